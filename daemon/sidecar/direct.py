"""Calls that need nothing of their request but who asks are answered before Flask, which costs more than they do.

By the same table, functions, audit log and problems: what is answered here, Flask would answer so, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from brokervol.server import Connection
from sidecar.audit import AuditLog, Telling, who
from sidecar.errors import STATUS_OF_CODE, problem
from sidecar.metrics import Metrics, call_of
from sidecar.outcomes import told
from sidecar.routes import Route
from sidecar.wire import JSON, PROBLEM, problem_headers

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication


class Direct:
    """An application before another.

    Args:
        app: answers all other calls of these routes.
        shared: what all requests share, for the routes' documents.
    """

    def __init__(self, app: WSGIApplication, shared: Mapping[str, Any], routes: Iterable[Route]) -> None:
        self._app, self._shared = app, shared
        self._routes = {route.path: (route, route.document) for route in routes if route.document is not None}
        self._audit: AuditLog = shared["audit"]
        self._metrics: Metrics = shared["metrics"]

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        found = self._routes.get(environ["PATH_INFO"])
        if found is None or environ["REQUEST_METHOD"] != "GET" or environ["QUERY_STRING"]:
            return self._app(environ, start_response)
        route, document = found
        connection: Connection = environ["brokervol.connection"]
        call = call_of(environ)
        call.operation = route.operation
        telling = Telling(self._audit, self._metrics, who(connection), call, None) if route.is_audited else None
        headers = {"Content-Type": JSON}
        try:
            status, told_of = 200, document(self._shared, connection)
        except Exception as error:
            code, detail = told(error, "request", path=route.path)
            status, told_of = STATUS_OF_CODE[code], problem(code, detail, {"instance": call.instance})
            call.code = code
            headers |= {"Content-Type": PROBLEM, **problem_headers(code)}
            if telling is not None:
                telling.outcome = code
        body = json.dumps(told_of).encode("ascii")
        headers["Content-Length"] = str(len(body))
        start_response(f"{status} {HTTPStatus(status).phrase.upper()}", [*headers.items()])
        return _Body(body, telling)


class _Body:
    """A body that is there, and what is told when it has been sent."""

    def __init__(self, body: bytes, telling: Telling | None) -> None:
        self._body, self._telling = body, telling

    def __iter__(self) -> Iterator[bytes]:
        yield self._body

    def close(self) -> None:
        if self._telling is not None:
            self._telling.close()

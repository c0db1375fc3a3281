"""The sidecar's HTTP API, version 1: the application, and how it tells errors. The calls are in `routes`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from sidecar.audit import AuditLog
from sidecar.direct import Direct
from sidecar.limits import DEFAULTS, Bulkheads, Limits
from sidecar.metrics import Counted, Metrics
from sidecar.openapi import document
from sidecar.outcomes import told
from sidecar.routes import ROUTES, add_routes
from sidecar.wire import close_with_response, problem_answer
from sidecar.workspaces import Workspaces
from storage.catalog import Catalog
from storage.exceptions import StorageError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def create_app(
    workspaces: Workspaces,
    catalog: Catalog,
    audit: AuditLog,
    limits: Limits = DEFAULTS,
    metrics: Metrics | None = None,
) -> WSGIApplication:
    """The application; `workspaces` says what a caller holds, `catalog` keeps the records, `audit` is told all.

    `metrics` counts all of it.
    """
    metrics = metrics or Metrics()
    app = Flask("sidecar", static_folder=None)
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = limits.max_body_bytes
    app.extensions["workspaces"] = workspaces
    app.extensions["catalog"] = catalog
    app.extensions["audit"] = audit
    app.extensions["metrics"] = metrics
    app.extensions["bulkheads"] = Bulkheads(limits)
    app.extensions["openapi"] = document(ROUTES)
    add_routes(app)
    app.register_error_handler(StorageError, _storage_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected_error)
    app.after_request(close_with_response)
    return Counted(Direct(app, app.extensions, ROUTES), metrics)


def _storage_error(error: StorageError) -> Response:
    return problem_answer(*told(error, "request", path=request.path))


_CODE_OF_STATUS = {404: "not-found", 405: "method-not-allowed"}


def _http_error(error: HTTPException) -> Response:
    code = _CODE_OF_STATUS.get(error.code or 500, "invalid-request")
    details = {
        "not-found": f"there is nothing at {request.path}",
        "method-not-allowed": f"{request.method} is not possible here",
    }
    response = problem_answer(code, details.get(code, error.description or "the request is malformed"))
    if isinstance(error, MethodNotAllowed):
        response.allow.update(error.valid_methods or ())
    return response


def _unexpected_error(error: Exception) -> Response:
    return problem_answer(*told(error, "request", path=request.path))

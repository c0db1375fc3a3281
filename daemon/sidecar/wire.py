"""What all views share: the session of a request, and the forms of answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import structlog
from flask import Response, current_app, g, request

from brokervol.server import Connection
from sidecar import bodies
from sidecar.audit import Telling, who
from sidecar.errors import RETRIED, RETRY_AFTER_S, STATUS_OF_CODE, problem
from sidecar.limits import Bulkheads
from sidecar.metrics import call_of
from sidecar.operations import Workspace
from sidecar.workspaces import Session, Workspaces
from storage.catalog import Catalog
from storage.exceptions import StorageError

log = structlog.get_logger()

JSON = "application/json"
NDJSON = "application/x-ndjson"
ANY = "*/*"
PROBLEM = "application/problem+json"

T = TypeVar("T")

# From how many characters on a client is sent what there is, and how long its first line may wait for others.
_BLOCK_CHARACTERS = 32 * 1024
_BLOCK_S = 0.1


def session() -> Session:
    """The session of this request, opened when first needed and closed with the response."""
    if "session" not in g:
        workspaces: Workspaces = current_app.extensions["workspaces"]
        g.session = workspaces.session(connection())
    found: Session = g.session
    return found


def close_with_response(response: Response) -> Response:
    """Close with the response, after the last line of a stream, what the request has opened, and tell of it."""
    for name in ("session", "place", "telling"):
        if name in g:
            response.call_on_close(g.pop(name).close)
    return response


def begin_telling(ws: str | None) -> None:
    """From now on the audit log is told of this request."""
    shared = current_app.extensions
    g.telling = Telling(shared["audit"], shared["metrics"], who(connection()), call_of(request.environ), ws)


def telling() -> Telling:
    """What the audit log will be told of this request."""
    found: Telling = g.telling
    return found


def connection() -> Connection:
    """The connection that the request came on."""
    found: Connection = request.environ["brokervol.connection"]
    return found


def catalog() -> Catalog:
    found: Catalog = current_app.extensions["catalog"]
    return found


def open_workspace(ws: str) -> Workspace:
    """The workspace of that name, as the caller holds it.

    Raises:
        UnknownWorkspace, PermissionDenied, InvalidPath: see `Workspace`.
        Busy: too many requests work in it.
    """
    mine = session()
    if ws in mine.holdings and "place" not in g:  # before it is looked at: its backend may hang
        bulkheads: Bulkheads = current_app.extensions["bulkheads"]
        g.place = bulkheads.enter(ws, connection().caller)
    workspace = Workspace(mine, ws, catalog())
    call_of(request.environ).backend = workspace.broker.broker_type
    return workspace


def whole_body() -> bytes:
    """The body, of which so much is held and no more. Raises as `bodies.whole`."""
    return bodies.whole(request.environ, current_app.config["MAX_CONTENT_LENGTH"])


def problem_headers(code: str) -> dict[str, str]:
    """What the answer to a failure says beside its document: `Retry-After` where to try again helps."""
    return {"Retry-After": str(RETRY_AFTER_S)} if code in RETRIED else {}


def json_answer(document: Any, status: int = 200, content_type: str = JSON) -> Response:
    return Response(json.dumps(document), status, content_type=content_type)


def problem_answer(code: str, detail: str, extra: Mapping[str, Any] | None = None) -> Response:
    """The answer to what failed: RFC 9457."""
    if "telling" in g:
        telling().outcome = code
    call = call_of(request.environ)
    call.code = code
    document = problem(code, detail, {"instance": call.instance, **(extra or {})})
    response = json_answer(document, STATUS_OF_CODE[code], PROBLEM)
    response.headers.extend(problem_headers(code))
    return response


def wants_lines(default: str = JSON) -> bool:
    """Whether the client would rather have a document a line than one document."""
    other = JSON if default == NDJSON else NDJSON
    return request.accept_mimetypes.best_match((default, other)) == NDJSON


def line(document: Any) -> str:
    """A document as a line of a stream."""
    return json.dumps(document) + "\n"


def lines_answer(lines: Iterable[str], *, at_once: bool = False) -> Response:
    """A stream of lines, see `line`, or of several together, until the client hangs up.

    The first block is made before the status is sent, so that what fails at once still has its own status. A
    later failure can only be told as the last line.

    Args:
        at_once: send each as it comes, without waiting for others.
    """
    if request.method == "HEAD":
        next(iter(lines), None)
        return Response(iter(()), content_type=NDJSON)
    blocks = _blocks(iter(lines), 0 if at_once else _BLOCK_CHARACTERS)
    first = next(blocks, b"")
    return Response(_told_in_line(first, blocks, telling()), content_type=NDJSON)


def while_wanted(documents: Iterator[T]) -> Iterator[T]:
    """The documents until the client hangs up: nothing more is done then for nobody to know."""
    client = connection()
    while not client.is_peer_gone():
        try:
            yield next(documents)
        except StopIteration:
            return
    log.info("the client is gone, the rest is not done", path=request.path)


def _blocks(lines: Iterator[str], enough: int) -> Iterator[bytes]:
    client, path = connection(), request.path
    try:
        while not client.is_peer_gone():
            block = "".join(_some(lines, enough))
            if not block:
                return
            yield block.encode("ascii")
    except GeneratorExit:
        pass  # what was sent last did not arrive
    log.info("the client is gone, the rest is not done", path=path)


def _some(lines: Iterator[str], enough: int) -> list[str]:
    """The next lines, of so many characters or more; fewer where they are slow to come."""
    until, found, length = time.monotonic() + _BLOCK_S, list[str](), 0
    for one in lines:
        found.append(one)
        length += len(one)
        if length >= enough or time.monotonic() > until:
            break
    return found


def _told_in_line(first: bytes, blocks: Iterator[bytes], told: Telling) -> Iterator[bytes]:
    yield first
    try:
        yield from blocks
    except StorageError as error:
        told.outcome = error.code
        yield line({"error": {"code": error.code, "detail": str(error)}}).encode("ascii")

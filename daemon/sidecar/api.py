"""The sidecar's HTTP API, version 1: the wire only. What is asked is decided in `operations`."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, TypeVar

import structlog
from flask import Flask, Response, current_app, g, request
from werkzeug.exceptions import HTTPException

from sidecar import requests
from sidecar.errors import RETRY_AFTER_S, STATUS_OF_CODE, InvalidConfiguration, InvalidRequest, problem
from sidecar.operations import Outcome, Workspace, describe, record
from sidecar.workspaces import Session, Workspaces
from storage.catalog import Catalog
from storage.configuration.exceptions import InvalidWorkspaceConfiguration
from storage.configuration.workspace_configuration import check_broker
from storage.exceptions import StorageError

log = structlog.get_logger()

_JSON = "application/json"
_NDJSON = "application/x-ndjson"
_PROBLEM = "application/problem+json"
_LINES_A_BLOCK = 500

MAX_BODY_BYTES = 4 * 1024 * 1024

T = TypeVar("T")
B = TypeVar("B", bound=requests.Batch)


def create_app(workspaces: Workspaces, catalog: Catalog) -> Flask:
    """The application; `workspaces` says what a caller holds, `catalog` keeps the records."""
    app = Flask("sidecar", static_folder=None)
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.extensions["workspaces"] = workspaces
    app.extensions["catalog"] = catalog
    _add_routes(app)
    app.register_error_handler(StorageError, _storage_error)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected_error)
    app.after_request(_close_session_with_response)
    return app


def _add_routes(app: Flask) -> None:
    app.add_url_rule("/healthz", view_func=_healthz)
    app.add_url_rule("/v1/validate", view_func=_validate, methods=["POST"])
    app.add_url_rule("/v1/workspaces", view_func=_workspaces)
    one = "/v1/workspaces/<name>"
    app.add_url_rule(one, view_func=_workspace)
    app.add_url_rule(f"{one}/files", view_func=_files)
    app.add_url_rule(f"{one}/catalog", view_func=_catalog)
    app.add_url_rule(f"{one}/paths", view_func=_paths, methods=["POST"])
    for verb, view in (
        ("download", _batch(requests.Downloads, Workspace.download)),
        ("upload", _batch(requests.Uploads, Workspace.upload)),
        ("move", _batch(requests.Moves, Workspace.move)),
        ("delete", _batch(requests.Deletes, Workspace.delete)),
    ):
        app.add_url_rule(f"{one}/{verb}", endpoint=verb, view_func=view, methods=["POST"])


def refusal(status: int, sentence: str) -> tuple[str, bytes]:
    """The answer to what is no HTTP request; see `brokervol.server`."""
    code = "too-large" if status in (413, 414) else "internal-error" if status == 500 else "invalid-request"
    detail = f"the request is malformed: {sentence}"
    return _PROBLEM, json.dumps({**problem(code, detail), "status": status}).encode("ascii")


def _healthz() -> Response:
    return _json({"status": "ok"})


def _validate() -> Response:
    asked = requests.parse_body(request.get_data(), requests.Validation)
    try:
        warnings = check_broker(asked.broker)  # asks no backend: whoever has the socket may call this
    except InvalidWorkspaceConfiguration as error:
        raise InvalidConfiguration(str(error)) from error
    return _json({"warnings": [warning._asdict() for warning in warnings]})


def _workspaces() -> Response:
    session = _session()
    found = [describe(holding, holding.broker(session.view)) for _, holding in sorted(session.holdings.items())]
    return _json({"workspaces": found})


def _workspace(name: str) -> Response:
    workspace = _open(name)
    return _json({**workspace.describe(), "health": workspace.health()})


def _files(name: str) -> Response:
    query = requests.parse_query(request.args.to_dict(), requests.ListQuery)
    workspace = _open(name)
    volume_path = workspace.volume_path
    if _wants_lines():
        if query.cursor:
            raise InvalidRequest("cursor: it is for pages of JSON; a stream of lines is the whole listing")
        listed = workspace.broker.list_under(volume_path, query.recursive, query.prefix)
        wanted = islice(listed, query.limit) if "limit" in request.args else listed
        return _lines(details._asdict() for details in wanted)
    page = workspace.broker.list_page(
        volume_path, query.recursive, prefix=query.prefix, after=_after(query.cursor, str, ""), limit=query.limit
    )
    cursor = _cursor(page[-1].file) if len(page) == query.limit else None
    return _json({"files": [details._asdict() for details in page], "next_cursor": cursor})


def _catalog(name: str) -> Response:
    query = requests.parse_query(request.args.to_dict(), requests.CatalogQuery)
    holding = _open(name).holding
    catalog: Catalog = current_app.extensions["catalog"]
    after = _after(query.cursor, int, 0)

    def page(after_id: int) -> list[dict[str, Any]]:
        found = catalog.page(
            holding.name,
            file_path=query.file_path,
            is_deleted=query.is_deleted,
            after_id=after_id,
            limit=query.limit,
        )
        return [record(file) for file in found]

    def every_page() -> Iterator[dict[str, Any]]:
        found = page(after)
        while found:
            yield from found
            found = page(found[-1]["id"])

    if _wants_lines():
        return _lines(every_page())
    found = page(after)
    cursor = _cursor(found[-1]["id"]) if len(found) == query.limit else None
    return _json({"files": found, "next_cursor": cursor})


def _paths(name: str) -> Response:
    query = requests.parse_body(request.get_data(), requests.Paths)
    return _json({"paths": _open(name).paths(query)})


def _batch(shape: type[B], work: Callable[[Workspace, B], Iterator[Outcome]]) -> Callable[[str], Response]:
    def view(name: str) -> Response:
        batch = requests.parse_body(request.get_data(), shape)
        outcomes = _while_wanted(work(_open(name), batch))
        if _wants_lines():
            return _lines((outcome.to_json() for outcome in outcomes), block=1)
        return _batch_answer(list(outcomes), goes_on=batch.on_error == "continue")

    return view


def _while_wanted(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """The outcomes until the client hangs up: nothing more is done then for nobody to know."""
    connection = request.environ["brokervol.connection"]

    def wanted() -> Iterator[Outcome]:
        while not connection.is_peer_gone():
            outcome = next(outcomes, None)
            if outcome is None:
                return
            yield outcome
        log.info("the client is gone, the rest of its batch is not done")

    return wanted()


def _batch_answer(outcomes: list[Outcome], *, goes_on: bool) -> Response:
    """All results at once: a problem document where a failure stopped the batch."""
    summary: dict[str, Any] = {"results": [outcome.to_json() for outcome in outcomes]}
    for status in ("done", "failed", "skipped"):
        summary[status] = sum(outcome.status == status for outcome in outcomes)
    failure = next((outcome.error for outcome in outcomes if outcome.error), None)
    if failure is None or goes_on:
        return _json(summary)
    return _problem(*failure, summary)


def _session() -> Session:
    """The session of this request, opened when first needed and closed with the response."""
    if "session" not in g:
        workspaces: Workspaces = current_app.extensions["workspaces"]
        g.session = workspaces.session(request.environ["brokervol.connection"])
    session: Session = g.session
    return session


def _close_session_with_response(response: Response) -> Response:
    if "session" in g:
        response.call_on_close(g.pop("session").close)  # after the last line of a stream
    return response


def _open(name: str) -> Workspace:
    return Workspace(_session(), name, current_app.extensions["catalog"])


def _wants_lines() -> bool:
    return request.accept_mimetypes.best_match((_JSON, _NDJSON)) == _NDJSON


def _json(document: object, status: int = 200, content_type: str = _JSON) -> Response:
    return Response(json.dumps(document), status, content_type=content_type)


def _lines(documents: Iterable[object], block: int = _LINES_A_BLOCK) -> Response:
    """A stream of one document a line, `block` of them a write.

    The first block is made before the status is sent, so that what fails at once still has its own status. A
    later failure can only be told as the last line.
    """
    blocks = _blocks(iter(documents), block)
    first = next(blocks, b"")
    return Response(chain((first,), _told_in_line(blocks)), content_type=_NDJSON)


def _blocks(documents: Iterator[object], block: int) -> Iterator[bytes]:
    while chunk := list(islice(documents, block)):
        yield "".join(f"{json.dumps(document)}\n" for document in chunk).encode("ascii")


def _told_in_line(blocks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from blocks
    except StorageError as error:
        yield (json.dumps({"error": {"code": error.code, "detail": str(error)}}) + "\n").encode("ascii")


def _cursor(after: str | int) -> str:
    return base64.urlsafe_b64encode(json.dumps(after).encode("ascii")).decode("ascii")


def _after(cursor: str, kind: type[T], first: T) -> T:
    """What a cursor of ours says; `first` for none."""
    if not cursor:
        return first
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
    except (ValueError, RecursionError):
        found = None
    if type(found) is not kind or not _is_storable(found):
        raise InvalidRequest("cursor: it is not one of ours; take `next_cursor` of the page before as it is")
    return found


def _is_storable(value: object) -> bool:
    """Whether a name can be a file's, or a number a record's id."""
    if isinstance(value, int):
        return 0 <= value < 2**63
    try:
        os.fsencode(str(value))
    except UnicodeEncodeError:
        return False
    return True


def _problem(code: str, detail: str, extra: dict[str, Any] | None = None) -> Response:
    response = _json(problem(code, detail, extra), STATUS_OF_CODE[code], _PROBLEM)
    if code == "backend-unavailable":
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def _storage_error(error: StorageError) -> Response:
    if error.code == "internal-error":
        return _unexpected_error(error)
    return _problem(error.code, str(error))


_CODE_OF_STATUS = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}


def _http_error(error: HTTPException) -> Response:
    code = _CODE_OF_STATUS.get(error.code or 500, "invalid-request")
    details = {
        "not-found": f"there is nothing at {request.path}",
        "method-not-allowed": f"{request.method} is not possible here",
        "too-large": f"the body is larger than {MAX_BODY_BYTES} bytes; send it as several batches",
    }
    return _problem(code, details.get(code, error.description or "the request is malformed"))


def _unexpected_error(error: Exception) -> Response:
    log.error("request failed unexpectedly", exc_info=error, path=request.path)
    return _problem("internal-error", "the sidecar failed; its log says why")

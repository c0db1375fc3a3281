"""What each call of the API does with its request. What is asked is decided in `operations`."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from json.encoder import encode_basestring_ascii
from typing import Any

from flask import Response, current_app, request

from brokervol.server import Connection
from sidecar import answers, bodies, requests
from sidecar.cursors import cursor, position
from sidecar.errors import InvalidConfiguration, InvalidRequest
from sidecar.operations import Workspace, describe
from sidecar.outcomes import Outcome, record
from sidecar.wire import (
    NDJSON,
    connection,
    json_answer,
    line,
    lines_answer,
    open_workspace,
    problem_answer,
    telling,
    wants_lines,
    while_wanted,
    whole_body,
)
from sidecar.workspaces import Workspaces
from storage.configuration.exceptions import InvalidWorkspaceConfiguration
from storage.configuration.workspace_configuration import check_broker
from storage.exceptions import StorageError
from storage.files import check_file_path

# Makes the answer of a call that needs nothing of its request but the connection, with what all requests share.
Document = Callable[[Mapping[str, Any], Connection], Any]


def healthz(_shared: Mapping[str, Any], _connection: Connection) -> answers.Liveness:
    return answers.Liveness(status="ok")


def openapi(shared: Mapping[str, Any], _connection: Connection) -> Any:
    return shared["openapi"]


def list_workspaces(shared: Mapping[str, Any], connection: Connection) -> answers.Workspaces:
    workspaces: Workspaces = shared["workspaces"]
    with contextlib.closing(workspaces.session(connection)) as mine:
        found = [describe(holding, holding.broker(mine.view)) for _, holding in sorted(mine.holdings.items())]
    return answers.Workspaces(workspaces=found)


def plain(document: Document) -> Callable[[], Response]:
    """The view of a call that answers with this document."""

    def view() -> Response:
        return json_answer(document(current_app.extensions, connection()))

    return view


def validate() -> Response:
    asked = requests.parse_body(whole_body(), requests.Validation)
    try:
        warnings = check_broker(asked.broker)  # asks no backend: whoever has the socket may call this
    except InvalidWorkspaceConfiguration as error:
        raise InvalidConfiguration(str(error)) from error
    told = [answers.Warned(name=warning.name, description=warning.description) for warning in warnings]
    return json_answer(answers.Warnings(warnings=told))


def get_workspace(ws: str) -> Response:
    workspace = open_workspace(ws)
    return json_answer(answers.DescribedWithHealth(**workspace.describe(), health=workspace.health()))


def list_files(ws: str, query: requests.ListQuery) -> Response:
    after = position(query.cursor, "")
    workspace = open_workspace(ws)
    volume_path = workspace.volume_path
    if wants_lines():
        if query.cursor:
            raise InvalidRequest("cursor: it is for pages of JSON; a stream of lines is the whole listing")
        blocks: Iterable[Sequence[tuple[str, int]]]
        blocks = workspace.broker.list_blocks(volume_path, query.recursive, query.prefix)
        if "limit" in request.args:
            blocks = ([found] for found in islice(chain.from_iterable(blocks), query.limit))
        return lines_answer(map(_listed_lines, blocks))
    page = workspace.broker.list_page(
        volume_path, query.recursive, prefix=query.prefix, after=after, limit=query.limit
    )
    files = [answers.Listed(file=found.file, size=found.size) for found in page]
    more = cursor(page[-1].file) if len(page) == query.limit else None
    return json_answer(answers.FilePage(files=files, next_cursor=more))


def _listed_lines(block: Sequence[tuple[str, int]]) -> str:
    """`line` of an `answers.Listed` of each: put together by hand, since there may be millions."""
    return "".join([f'{{"file": {encode_basestring_ascii(path)}, "size": {size}}}\n' for path, size in block])


def list_records(ws: str, query: requests.CatalogQuery) -> Response:
    after = position(query.cursor, 0)
    file_path, is_deleted = requests.given(query.file_path), requests.given(query.is_deleted)
    if file_path is not None:
        check_file_path(file_path)
    workspace = open_workspace(ws)
    workspace.check_reach()

    def page(after_id: int) -> list[answers.Record]:
        found = workspace.records.page(
            file_path=file_path, is_deleted=is_deleted, after_id=after_id, limit=query.limit
        )
        return [record(file) for file in found]

    def every_page() -> Iterator[answers.Record]:
        found = page(after)
        while found:
            yield from found
            found = page(found[-1]["id"] or 0)

    if wants_lines():
        return lines_answer(map(line, every_page()))
    files = page(after)
    more = cursor(files[-1]["id"] or 0) if len(files) == query.limit else None
    return json_answer(answers.RecordPage(files=files, next_cursor=more))


def find_paths(ws: str) -> Response:
    if _sends_lines():
        workspace = open_workspace(ws)
        found = _located(workspace, requests.read_items(_arriving(), requests.FileName))
        return lines_answer(map(line, found), at_once=True)
    asked = requests.parse_body(whole_body(), requests.Paths)
    return json_answer(answers.FilePaths(paths=open_workspace(ws).paths(asked.files)))


def _located(
    workspace: Workspace, arrivals: Iterator[list[requests.FileName | requests.BadLine]]
) -> Iterator[answers.Located]:
    """Where each file is, one by one; since nothing is changed, a failure stops nothing."""
    for item in chain.from_iterable(arrivals):
        try:
            if isinstance(item, requests.BadLine):
                raise InvalidRequest(item.reason)
            found = workspace.paths([item])
            yield answers.Located(file_path=item.label, status="done", path=found[0] if found else None)
        except StorageError as error:
            failure = answers.Failure(code=error.code, detail=str(error))
            yield answers.Located(file_path=item.label, status="failed", error=failure)


def batch(
    shape: Any, item: type[Any], work: Callable[[Workspace, Any, str | None, bytes], Iterator[list[Outcome]]]
) -> Callable[..., Response]:
    """The view of a batch: its JSON body has `shape`, a line of its stream that of an `item` of it."""

    def view(ws: str, query: requests.Batch, headers: requests.BatchHeaders) -> Response:
        if _sends_lines():
            asked = shape(files=requests.read_items(_arriving(), item), **requests.as_dict(query))
        else:
            asked = requests.parse_body(whole_body(), shape, requests.as_dict(query))
        key = headers.idempotency_key
        digest = b"" if key is None else repr(query if _sends_lines() else asked).encode("utf-8", "surrogatepass")
        outcomes = telling().items(work(open_workspace(ws), asked, key, digest))
        if wants_lines() or _sends_lines():
            return lines_answer((line(outcome.to_json()) for outcome in outcomes), at_once=True)
        return _at_once(list(while_wanted(outcomes)), goes_on=asked.on_error == "continue")

    return view


def _at_once(outcomes: list[Outcome], *, goes_on: bool) -> Response:
    """All results in one document: a problem where a failure stopped the batch."""
    count = Counter(outcome.status for outcome in outcomes)
    summary = answers.Results(
        results=[outcome.to_json() for outcome in outcomes],
        done=count["done"],
        failed=count["failed"],
        skipped=count["skipped"],
    )
    failure = next((outcome.error for outcome in outcomes if outcome.error), None)
    if failure is None or goes_on:
        return json_answer(summary)
    return problem_answer(*failure, summary)


def _sends_lines() -> bool:
    return request.mimetype == NDJSON


def _arriving() -> Callable[[int], bytes]:
    """What reads the body as it comes, without the limit of bodies that are held; also after the view returned."""
    return bodies.arriving(request.environ)

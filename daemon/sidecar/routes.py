"""The one table of the API's calls: the server's rules and the specification are both made from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Response, request
from werkzeug.routing import BaseConverter

from sidecar import answers, content, requests, views
from sidecar.metrics import call_of
from sidecar.operations import Workspace
from sidecar.wire import ANY, JSON, NDJSON, begin_telling

# The problems of any call; of those that look at the caller, at a workspace; of those that change files.
_ANY = ("invalid-request", "too-large", "too-slow", "busy", "internal-error")
_CALLER = (*_ANY, "permission-denied")
_WORKSPACE = ("unknown-workspace", "invalid-path", "missing-file", "unsupported", "backend-unavailable")
_READING = (*_CALLER, *_WORKSPACE)
_WRITING = (*_READING, "read-only", "already-exists", "no-space")

_ONE = "/v1/workspaces/{ws}"
_AUDITED = ("/v1/workspaces", "/v1/validate")
_PATH_CONVERTERS = {"ws": "string", "file_path": "rest"}

_VERSION = {"ETag": "The file's version.", "Last-Modified": "When that was made."}
_PARTS = {**_VERSION, "Accept-Ranges": "Always `bytes`."}


class _Rest(BaseConverter):
    """The rest of a URL, whatever it is: what is no path of a file is refused as such."""

    regex = r"[\s\S]*"
    part_isolating = False


@dataclass(frozen=True)
class Lines:
    """A body of one JSON document a line, each of one of these shapes."""

    shapes: tuple[Any, ...]


@dataclass(frozen=True)
class Answer:
    """A good answer: its media types with the shapes of their bodies (`bytes` is any), and its headers."""

    description: str
    media: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True)
class Route:
    """One call: how it is asked, what does it, and what it answers.

    Attributes:
        path: with parameters in braces; `ws` is one segment, `file_path` the rest of the path.
        view: called with the path's parameters and, where these have a shape, with `query` and `headers`.
        headers: a struct of the headers that are looked at, its fields renamed to their spelling on the wire.
        body: media types with the shapes of their bodies.
        codes: of the problems that it may answer, see `errors.STATUS_OF_CODE`.
        problem: the shape of these problems.
        document: what a call that needs nothing of its request but the connection answers; see `direct`.
    """

    method: str
    path: str
    operation: str
    summary: str
    view: Callable[..., Response]
    good: tuple[Answer, ...]
    codes: tuple[str, ...]
    query: type[Any] | None = None
    headers: type[Any] | None = None
    body: Mapping[str, Any] | None = None
    problem: type[Any] = answers.Problem
    document: views.Document | None = None

    @property
    def is_audited(self) -> bool:
        """Whether the audit log tells of it."""
        return self.path.startswith(_AUDITED)

    @property
    def rule(self) -> str:
        """The path as Flask writes it."""
        rule = self.path
        for name, converter in _PATH_CONVERTERS.items():
            rule = rule.replace(f"{{{name}}}", f"<{converter}:{name}>")
        return rule

    def serve(self, **arguments: Any) -> Response:
        """Check the query and the headers, and have the view answer."""
        call_of(request.environ).operation = self.operation
        if self.is_audited:
            begin_telling(arguments.get("ws"))
        query = requests.parse_query(request.args.to_dict(), self.query or requests.NoQuery)
        if self.query is not None:
            arguments["query"] = query
        if self.headers is not None:
            arguments["headers"] = requests.parse_headers(dict(request.headers), self.headers)
        return self.view(**arguments)


def _get(
    path: str,
    operation: str,
    summary: str,
    view: Callable[..., Response],
    *,
    shape: Any,
    codes: tuple[str, ...],
    line: Any = None,
    query: type[Any] | None = None,
) -> Route:
    media = {JSON: shape} if line is None else {JSON: shape, NDJSON: Lines((line, answers.Broken))}
    return Route("GET", path, operation, summary, view, (Answer("what was asked for", media),), codes, query=query)


def _plain(
    path: str,
    operation: str,
    summary: str,
    document: views.Document,
    *,
    shape: Any,
    codes: tuple[str, ...],
) -> Route:
    good = (Answer("what was asked for", {JSON: shape}),)
    return Route("GET", path, operation, summary, views.plain(document), good, codes, document=document)


def _batch(
    verb: str,
    summary: str,
    work: Callable[..., Any],
    *,
    shape: type[Any],
    item: type[Any],
    options: type[Any],
) -> Route:
    told = Answer(
        "what became of each item",
        {JSON: answers.Results, NDJSON: Lines((answers.Result, answers.Broken))},
    )
    return Route(
        "POST",
        f"{_ONE}/{verb}",
        verb,
        summary,
        views.batch(shape, item, work),
        (told,),
        (*_WRITING, "in-progress"),
        query=options,
        headers=requests.BatchHeaders,
        body={JSON: shape, NDJSON: Lines((item,))},
        problem=answers.BatchProblem,
    )


ROUTES: tuple[Route, ...] = (
    _plain(
        "/healthz",
        "healthz",
        "Whether the sidecar lives.",
        views.healthz,
        shape=answers.Liveness,
        codes=_ANY,
    ),
    _plain(
        "/v1/openapi.json",
        "openapi",
        "This specification.",
        views.openapi,
        shape=dict[str, Any],
        codes=_ANY,
    ),
    Route(
        "POST",
        "/v1/validate",
        "validate",
        "Check a broker configuration by itself, without asking its backend.",
        views.validate,
        (Answer("it is valid; what is doubtful is warned of", {JSON: answers.Warnings}),),
        (*_ANY, "invalid-broker-configuration"),
        body={JSON: requests.Validation},
    ),
    _plain(
        "/v1/workspaces",
        "workspaces",
        "The workspaces that the caller holds.",
        views.list_workspaces,
        shape=answers.Workspaces,
        codes=_CALLER,
    ),
    _get(
        _ONE,
        "workspace",
        "One workspace, with its health.",
        views.get_workspace,
        shape=answers.DescribedWithHealth,
        codes=_READING,
    ),
    _get(
        f"{_ONE}/files",
        "files",
        "The files of a workspace, in pages; all of them as lines.",
        views.list_files,
        shape=answers.FilePage,
        codes=_READING,
        line=answers.Listed,
        query=requests.ListQuery,
    ),
    _get(
        f"{_ONE}/catalog",
        "catalog",
        "The records of files, in pages; all of them as lines.",
        views.list_records,
        shape=answers.RecordPage,
        codes=_READING,
        line=answers.Record,
        query=requests.CatalogQuery,
    ),
    _batch(
        "download",
        "Bring files to local paths.",
        Workspace.download,
        shape=requests.Downloads,
        item=requests.Download,
        options=requests.Transfer,
    ),
    _batch(
        "upload",
        "Store local files.",
        Workspace.upload,
        shape=requests.Uploads,
        item=requests.Upload,
        options=requests.Transfer,
    ),
    _batch(
        "move",
        "Rename files within the workspace.",
        Workspace.move,
        shape=requests.Moves,
        item=requests.Move,
        options=requests.Transfer,
    ),
    _batch(
        "delete",
        "Delete files.",
        Workspace.delete,
        shape=requests.Deletes,
        item=requests.Delete,
        options=requests.Removal,
    ),
    Route(
        "POST",
        f"{_ONE}/paths",
        "paths",
        "Where files are in the caller's own file system.",
        views.find_paths,
        (Answer("where they are", {JSON: answers.FilePaths, NDJSON: Lines((answers.Located, answers.Broken))}),),
        _READING,
        body={JSON: requests.Paths, NDJSON: Lines((requests.FileName,))},
    ),
    Route(
        "GET",
        f"{_ONE}/content/{{file_path}}",
        "getContent",
        "The bytes of a file: whole, one range of them, or none if the client has them.",
        content.get_content,
        (
            Answer("all of them", {ANY: bytes}, _PARTS),
            Answer("those asked for", {ANY: bytes}, {**_PARTS, "Content-Range": "Which these are."}, status=206),
            Answer("the client has this version", headers=_VERSION, status=304),
        ),
        (*_READING, "precondition-failed", "range-not-satisfiable"),
        headers=requests.ReadHeaders,
    ),
    Route(
        "PUT",
        f"{_ONE}/content/{{file_path}}",
        "putContent",
        "Store the body as a file, whole or not at all; its Content-Type becomes the media type.",
        content.put_content,
        (
            Answer("a file was replaced", {JSON: answers.Stored}, {"ETag": _VERSION["ETag"]}),
            Answer("there was none before", {JSON: answers.Stored}, {"ETag": _VERSION["ETag"]}, status=201),
        ),
        (*_WRITING, "precondition-failed", "in-progress"),
        headers=requests.WriteHeaders,
        body={ANY: bytes},
    ),
)


def add_routes(app: Flask) -> None:
    """Have the application answer every call of the table; HEAD wherever there is GET, and no OPTIONS."""
    app.url_map.converters["rest"] = _Rest
    for route in ROUTES:
        app.add_url_rule(
            route.rule, route.operation, route.serve, methods=[route.method], provide_automatic_options=False
        )

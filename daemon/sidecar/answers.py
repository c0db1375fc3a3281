"""The bodies of answers: their shapes, by which the code is checked and from which the specification is made."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class Volume(TypedDict):
    driver: str | None
    remote_path: str


class Described(TypedDict):
    """A workspace that the caller holds."""

    name: str
    broker_type: str
    volume_path: str | None
    read_only: bool
    volume: Volume | None


class Health(TypedDict):
    """Whether the caller can reach a workspace now; code and detail say why not."""

    status: Literal["healthy", "unreachable"]
    code: NotRequired[str]
    detail: NotRequired[str]


class DescribedWithHealth(Described):
    health: Health


class Workspaces(TypedDict):
    workspaces: list[Described]


class Listed(TypedDict):
    """A file of a listing: its path in the workspace, and its size in bytes."""

    file: str
    size: int


class FilePage(TypedDict):
    files: list[Listed]
    next_cursor: str | None


class Record(TypedDict):
    """What the catalog says of a file; identifiers and times of recording are null for one that is not in it."""

    id: int | None
    uuid: str | None
    file_name: str
    file_path: str
    file_size: int | None
    media_type: str
    workspace: str
    is_deleted: bool
    deleted: str | None
    created: str | None
    last_modified: str | None
    checksum: str
    tags: dict[str, str]


class RecordPage(TypedDict):
    files: list[Record]
    next_cursor: str | None


class Failure(TypedDict):
    code: str
    detail: str


class Result(TypedDict):
    """What became of one item of a batch."""

    file_path: str
    status: Literal["done", "failed", "skipped"]
    file: NotRequired[Record]
    error: NotRequired[Failure]


class Broken(TypedDict):
    """The last line of a stream that could not be brought to its end."""

    error: Failure


class Results(TypedDict):
    """What became of a batch: a result for each item, in order, and how many there are of each status."""

    results: list[Result]
    done: int
    failed: int
    skipped: int


class FilePaths(TypedDict):
    """Where files are in the caller's file system; null where the broker has no such paths."""

    paths: list[str] | None


class Located(TypedDict):
    """Where one file is in the caller's file system; null where the broker has no such paths."""

    file_path: str
    status: Literal["done", "failed"]
    path: NotRequired[str | None]
    error: NotRequired[Failure]


class Stored(TypedDict):
    """What has become of a file that was put."""

    file: Record


class Warned(TypedDict):
    name: str
    description: str


class Warnings(TypedDict):
    warnings: list[Warned]


class Liveness(TypedDict):
    status: Literal["ok"]


class Problem(TypedDict):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: NotRequired[str]


class BatchProblem(Problem):
    """The failure that stopped a batch, with what was and was not done; none of that if the batch never began."""

    results: NotRequired[list[Result]]
    done: NotRequired[int]
    failed: NotRequired[int]
    skipped: NotRequired[int]

"""The bodies of requests: their shape, and the check of what a caller sent against it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec

from sidecar.errors import InvalidRequest

MAX_LINE_BYTES = 64 * 1024

# What `storage.files` checks, as far as a pattern can say it, for the specification. Its tests send both what the
# patterns allow and what they do not, so that they cannot differ from what is refused.
_NAME = r"(?!\.{1,2}(?:/|$)|\.brokervol-)[^/\u0000]{1,255}"
WORKSPACE_PATH = {"pattern": f"^{_NAME}(?:/{_NAME})*$", "minLength": 1, "examples": ["2026/scene.tif"]}
_LOCAL_PATH = {"pattern": r"^/(?:[^\u0000]*/)?(?!\.{1,2}$)[^/\u0000]+$", "examples": ["/work/scene.tif"]}
_PREFIX = {"pattern": rf"^(?:{_NAME}/)*[^/\u0000]*$"}

_FilePath = Annotated[str, msgspec.Meta(max_length=4096, extra_json_schema=WORKSPACE_PATH)]
_LocalPath = Annotated[str, msgspec.Meta(max_length=4096, extra_json_schema=_LOCAL_PATH)]
_Id = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
# In Python's expressions `$` is also before a final line break.
_Uuid = Annotated[str, msgspec.Meta(pattern="^[0-9A-Za-z-]{1,64}$(?!\\n)")]
_MediaType = Annotated[str, msgspec.Meta(pattern="^[ -~]{0,255}$(?!\\n)")]
_Files = msgspec.Meta(max_length=10_000)
_Key = Annotated[str, msgspec.Meta(pattern="^[!-~](?:[ -~]{0,253}[!-~])?$(?!\\n)")]


class FileName(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A file of the workspace, named in exactly one way."""

    SCHEMA: ClassVar[dict[str, Any]] = {
        "oneOf": [
            {"required": ["file_path"], "properties": {"file_path": {"type": "string"}}},
            {"required": ["id"], "properties": {"id": {"type": "integer"}}},
            {"required": ["uuid"], "properties": {"uuid": {"type": "string"}}},
        ]
    }

    file_path: _FilePath | None = None
    id: _Id | None = None
    uuid: _Uuid | None = None

    def __post_init__(self) -> None:
        if sum(name is not None for name in (self.file_path, self.id, self.uuid)) != 1:
            raise ValueError("exactly one of `file_path`, `id` and `uuid` names the file")

    @property
    def label(self) -> str:
        """The name as the caller gave it."""
        if self.file_path is not None:
            return self.file_path
        return f"uuid {self.uuid}" if self.uuid is not None else f"id {self.id}"


class Download(FileName, forbid_unknown_fields=True, kw_only=True):
    local_path: _LocalPath
    partial: bool = False


class Upload(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    local_path: _LocalPath
    file_path: _FilePath
    media_type: _MediaType = ""

    @property
    def label(self) -> str:
        return self.file_path


class Move(FileName, forbid_unknown_fields=True, kw_only=True):
    new_path: _FilePath


class Delete(FileName, forbid_unknown_fields=True, kw_only=True):
    pass


class Batch(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How a batch is to be done: whether to go on after a failure."""

    on_error: Literal["stop", "continue"] = "stop"


class Transfer(Batch, forbid_unknown_fields=True, kw_only=True):
    """How files are to be moved in, out or within: whether to replace what is there."""

    overwrite: bool = True


class Removal(Batch, forbid_unknown_fields=True, kw_only=True):
    """How files are to be deleted: whether the catalog is to say so."""

    update_model: bool = True


class Downloads(Transfer, forbid_unknown_fields=True, kw_only=True):
    files: Annotated[list[Download], _Files]


class Uploads(Transfer, forbid_unknown_fields=True, kw_only=True):
    files: Annotated[list[Upload], _Files]


class Moves(Transfer, forbid_unknown_fields=True, kw_only=True):
    files: Annotated[list[Move], _Files]


class Deletes(Removal, forbid_unknown_fields=True, kw_only=True):
    files: Annotated[list[Delete], _Files]


class Paths(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    files: Annotated[list[FileName], _Files]


class Validation(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    broker: dict[str, Any]


class ListQuery(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    recursive: bool = False
    prefix: Annotated[str, msgspec.Meta(max_length=4096, extra_json_schema=_PREFIX)] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000
    cursor: str = ""


class CatalogQuery(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    file_path: _FilePath | msgspec.UnsetType = msgspec.UNSET
    is_deleted: bool | msgspec.UnsetType = msgspec.UNSET
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000
    cursor: str = ""


class ReadHeaders(msgspec.Struct, kw_only=True, rename=lambda name: name.replace("_", "-").title()):
    """What a GET of a file's bytes looks at: which of them are wanted, and of which version."""

    range: str | None = None
    if_range: str | None = None
    if_match: str | None = None
    if_none_match: str | None = None
    if_modified_since: str | None = None
    if_unmodified_since: str | None = None


class BatchHeaders(msgspec.Struct, kw_only=True, rename=lambda name: name.replace("_", "-").title()):
    """What a batch looks at: its key, with which it can be sent again. A download needs none, and may have one."""

    idempotency_key: _Key | None = None


class WriteHeaders(msgspec.Struct, kw_only=True, rename=lambda name: name.replace("_", "-").title()):
    """What a PUT of a file's bytes looks at, beside their type: which version it may replace, and its key."""

    idempotency_key: _Key | None = None
    if_match: str | None = None
    if_none_match: Annotated[str, msgspec.Meta(extra_json_schema={"const": "*"})] | None = None


class NoQuery(msgspec.Struct, forbid_unknown_fields=True):
    """A call without parameters."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line of a stream that is no item, and why."""

    label: str
    reason: str


T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)

# A body of brackets becomes thirty times its size in objects: few are parsed at once.
_PARSING = threading.BoundedSemaphore(4)


def parse_body(body: bytes, shape: type[T], defaults: Mapping[str, Any] | None = None) -> T:
    """The JSON body as `shape`, with `defaults` for fields that it leaves out.

    Raises:
        InvalidRequest: it is not JSON, or not of this shape; the text names the field.
    """
    if not body:
        raise InvalidRequest("the request has no body; a JSON object is needed")
    with _PARSING:
        found = _parse(body, "the body")
        if defaults and isinstance(found, dict):
            found = {**defaults, **found}
        return _convert(found, shape, strict=True)


def parse_query(values: Mapping[str, str], shape: type[T]) -> T:
    """The query parameters as `shape`; numbers and `true` or `false` are read from their text.

    Raises:
        InvalidRequest: naming the parameter.
    """
    return _convert(dict(values), shape, strict=False)


def given(value: T | msgspec.UnsetType) -> T | None:
    """The value of a field that may be left out; None if it was."""
    return None if value is msgspec.UNSET else value


def as_dict(query: msgspec.Struct) -> dict[str, Any]:
    """What was asked for, by name."""
    return msgspec.structs.asdict(query)


def parse_headers(headers: Mapping[str, str], shape: type[S]) -> S:
    """The headers that `shape` names.

    Raises:
        InvalidRequest: naming the header.
    """
    names = [field.encode_name for field in msgspec.structs.fields(shape)]
    return _convert({name: headers[name] for name in names if name in headers}, shape, strict=False)


def read_items(read: Callable[[int], bytes], shape: type[T]) -> Iterator[list[T | BadLine]]:
    """The items of a stream of one JSON document a line: each time those that have come. Empty lines are none.

    Args:
        read: gives what is there of the stream, at most so many bytes; nothing at its end.
        shape: of an item.
    """
    number = 0
    for lines in _lines(read):
        items = [
            _item(line, at, shape) for at, line in enumerate(lines, number + 1) if line is None or line.strip()
        ]
        number += len(lines)
        if items:
            yield items


def _lines(read: Callable[[int], bytes]) -> Iterator[list[bytes | None]]:
    """The lines that have come; None for one that is too long, which is passed over without being held."""
    rest, is_long = b"", False
    while block := read(MAX_LINE_BYTES):
        first, *others = (rest + block).split(b"\n")
        if not others:
            rest = first
        else:
            *others, rest = others
            yield [None if is_long else _short(first), *map(_short, others)]
            is_long = False
        if len(rest) > MAX_LINE_BYTES:
            rest, is_long = b"", True
    if rest or is_long:
        yield [None if is_long else rest]


def _short(line: bytes) -> bytes | None:
    return line if len(line) <= MAX_LINE_BYTES else None


def _item(line: bytes | None, number: int, shape: type[T]) -> T | BadLine:
    if line is None:
        return BadLine(f"line {number}", f"line {number}: it is longer than {MAX_LINE_BYTES} bytes")
    try:
        return _convert(_parse(line, "it"), shape, strict=True)
    except InvalidRequest as error:
        return BadLine(f"line {number}", f"line {number}: {error}")


def _parse(text: bytes, what: str) -> Any:
    try:
        # json, not msgspec's decoder: file names that are not UTF-8 travel as lone surrogates.
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what} is not JSON: {error}") from error


def _convert(found: object, shape: type[T], *, strict: bool) -> T:
    try:
        return msgspec.convert(found, shape, strict=strict)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_sentence(str(error))) from error
    except UnicodeEncodeError as error:  # msgspec, of a lone surrogate where no text was expected
        raise InvalidRequest("a text that is not Unicode stands where none is expected") from error


def _sentence(text: str) -> str:
    """msgspec's text with the field first: "files[0].local_path: Expected `str`, got `int`"."""
    match = re.fullmatch(r"(?P<fact>.*?)(?: - at `(?:\$|key in \$)\.?(?P<field>.*)`)?", text, re.DOTALL)
    if match is None or not match["field"]:
        return text
    return f"{match['field']}: {match['fact']}"

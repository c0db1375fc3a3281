"""The bodies of requests: their shape, and the check of what a caller sent against it."""

from __future__ import annotations

import json
import re
import threading
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from sidecar.errors import InvalidRequest

_PathText = Annotated[str, msgspec.Meta(max_length=4096)]
_Id = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
_Uuid = Annotated[str, msgspec.Meta(pattern="^[0-9A-Za-z-]{1,64}$")]
_MediaType = Annotated[str, msgspec.Meta(pattern="^[ -~]{0,255}$")]
_Files = msgspec.Meta(max_length=10_000)


class FileName(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A file of the workspace, named in exactly one way."""

    file_path: _PathText | None = None
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
    local_path: _PathText
    partial: bool = False


class Upload(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    local_path: _PathText
    file_path: _PathText
    media_type: _MediaType = ""

    @property
    def label(self) -> str:
        return self.file_path


class Move(FileName, forbid_unknown_fields=True, kw_only=True):
    new_path: _PathText


class Delete(FileName, forbid_unknown_fields=True, kw_only=True):
    pass


class Batch(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What all batches have: whether to go on after a failure, and whether to replace what is there."""

    on_error: Literal["stop", "continue"] = "stop"


class Downloads(Batch, forbid_unknown_fields=True, kw_only=True):
    files: Annotated[list[Download], _Files]
    overwrite: bool = True


class Uploads(Batch, forbid_unknown_fields=True, kw_only=True):
    files: Annotated[list[Upload], _Files]
    overwrite: bool = True


class Moves(Batch, forbid_unknown_fields=True, kw_only=True):
    files: Annotated[list[Move], _Files]
    overwrite: bool = True


class Deletes(Batch, forbid_unknown_fields=True, kw_only=True):
    files: Annotated[list[Delete], _Files]
    update_model: bool = True


class Paths(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    files: Annotated[list[FileName], _Files]


class Validation(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    broker: dict[str, Any]


class ListQuery(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    recursive: bool = False
    prefix: _PathText = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000
    cursor: str = ""


class CatalogQuery(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    file_path: _PathText | None = None
    is_deleted: bool | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000
    cursor: str = ""


T = TypeVar("T")

# A body of brackets becomes thirty times its size in objects: few are parsed at once.
_PARSING = threading.BoundedSemaphore(4)


def parse_body(body: bytes, shape: type[T]) -> T:
    """The JSON body as `shape`.

    Raises:
        InvalidRequest: it is not JSON, or not of this shape; the text names the field.
    """
    if not body:
        raise InvalidRequest("the request has no body; a JSON object is needed")
    with _PARSING:
        try:
            # json, not msgspec's decoder: file names that are not UTF-8 travel as lone surrogates.
            found = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"the body is not JSON: {error}") from error
        return _convert(found, shape, strict=True)


def parse_query(values: dict[str, str], shape: type[T]) -> T:
    """The query parameters as `shape`; numbers and `true` or `false` are read from their text."""
    return _convert(values, shape, strict=False)


def _convert(found: object, shape: type[T], *, strict: bool) -> T:
    try:
        return msgspec.convert(found, shape, strict=strict)
    except msgspec.ValidationError as error:
        raise InvalidRequest(_sentence(str(error))) from error


def _sentence(text: str) -> str:
    """msgspec's text with the field first: "files[0].local_path: Expected `str`, got `int`"."""
    match = re.fullmatch(r"(?P<fact>.*?)(?: - at `(?:\$|key in \$)\.?(?P<field>.*)`)?", text, re.DOTALL)
    if match is None or not match["field"]:
        return text
    return f"{match['field']}: {match['fact']}"

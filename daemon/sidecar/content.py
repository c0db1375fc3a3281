"""The bytes of files over HTTP: read whole, in part or on condition, and written in one request of any length."""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Generator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import unquote_to_bytes

import structlog
from flask import Response, request
from werkzeug.http import parse_date, parse_etags, parse_range_header

from sidecar import answers, bodies, requests
from sidecar.errors import InvalidRequest
from sidecar.outcomes import record
from sidecar.wire import json_answer, open_workspace, problem_answer, telling
from storage.brokers.broker import Content
from storage.exceptions import FileChanged, StorageError
from storage.models import ScaleFile
from storage.os_errors import quoted

log = structlog.get_logger()

_UNKNOWN_TYPE = "application/octet-stream"
_PRINTABLE = re.compile(r"[ -~]{1,255}")

# What curl says of a body when nobody has told it what that is.
_MEANINGLESS_TYPE = "application/x-www-form-urlencoded"

# Python's own table: what the host's mime.types says is no matter of a task's.
_types = mimetypes.MimeTypes()


def get_content(ws: str, file_path: str, headers: requests.ReadHeaders) -> Response:
    """The bytes, those of one range, or why not; without them for HEAD."""
    del file_path
    path = telling().path = _path_as_sent()
    file, content = open_workspace(ws).open_content(path)
    try:
        response = _answer(file, content, headers)
    except BaseException:
        content.close()
        raise
    response.call_on_close(content.close)
    return response


def put_content(ws: str, file_path: str, headers: requests.WriteHeaders) -> Response:
    """What the body holds becomes the file, whole or not at all."""
    del file_path
    path = telling().path = _path_as_sent()
    media_type = _media_type_sent()
    _check_conditions(headers)
    tags = None if headers.if_match is None else parse_etags(headers.if_match)
    file, written = open_workspace(ws).put_content(
        path,
        _Body(request.environ),
        media_type=media_type,
        overwrite=headers.if_none_match is None,
        is_expected=None if tags is None else tags.contains,
        key=headers.idempotency_key,
    )
    telling().size = file.file_size
    response = json_answer(answers.Stored(file=record(file)), 201 if written.is_new else 200)
    if written.etag:
        response.set_etag(written.etag)
    return response


class _Body:
    """The body of a request as the source of a file. Raises as `bodies.arriving`."""

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._read = bodies.arriving(environ)

    def read(self, size: int, /) -> bytes:
        """So many bytes, fewer only at the end: to write them costs the more the fewer they are."""
        blocks = []
        while size and (block := self._read(size)):
            blocks.append(block)
            size -= len(block)
        return b"".join(blocks)


def _check_conditions(headers: requests.WriteHeaders) -> None:
    """Refuse what would have to be obeyed, and is not."""
    if "Content-Range" in request.headers:
        raise InvalidRequest("Content-Range: only whole files can be put")
    if "If-Unmodified-Since" in request.headers:
        raise InvalidRequest("If-Unmodified-Since: a PUT takes If-Match, which tells versions apart")
    if headers.if_none_match not in (None, "*"):
        raise InvalidRequest("If-None-Match: a PUT takes only '*', so that nothing is replaced")


def _path_as_sent() -> str:
    """The file's path, out of the URL as it was sent: WSGI's PATH_INFO cannot tell `%2F` from `%252F`."""
    sent: str = request.environ["REQUEST_URI"].partition("?")[0].split("/", 5)[5]
    return unquote_to_bytes(sent.encode("latin-1")).decode("utf-8", "surrogateescape")


def _answer(file: ScaleFile, content: Content, headers: requests.ReadHeaders) -> Response:
    response = Response(content_type=_media_type(file))
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.accept_ranges = "bytes"
    response.set_etag(content.etag)
    response.last_modified = content.last_modified
    if _is_other_version(content, headers):
        raise FileChanged(f"read {quoted(file.file_path)}: it is another version than was asked for")
    if _is_known(content, headers):
        response.status_code = 304
        return response
    start, end = 0, content.size
    if request.method == "GET" and (part := _range(content, headers)) is not None:
        start, end = part
        if start >= end:
            return _not_satisfiable(content)
        response.status_code = 206
        response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{content.size}"
    response.content_length = telling().size = end - start
    if request.method != "HEAD":
        _fill(response, content.read(start, end - start), file.file_path)
    return response


def _fill(response: Response, blocks: Generator[bytes, None, None], path: str) -> None:
    """Let the body be these blocks. The first is made now, so that what fails at once has its own status."""
    first = next(blocks, b"")
    told = telling()

    def body() -> Generator[bytes, None, None]:
        yield first
        try:
            yield from blocks
        except StorageError as error:  # the server ends the connection, so that nobody takes this for the whole
            log.warning("content is cut off", file_path=path, code=error.code, detail=str(error))
            told.outcome = error.code

    response.response = body()
    response.call_on_close(blocks.close)  # also if nobody has asked for the second


def _not_satisfiable(content: Content) -> Response:
    response = problem_answer("range-not-satisfiable", f"Range: the file has {content.size} bytes")
    response.headers["Content-Range"] = f"bytes */{content.size}"
    return response


def _is_other_version(content: Content, headers: requests.ReadHeaders) -> bool:
    """Whether the client's condition on the version fails; see RFC 9110, 13.2.2, for the order of conditions."""
    if headers.if_match is not None:
        return not parse_etags(headers.if_match).contains(content.etag)
    since, modified = _date(headers.if_unmodified_since), _modified(content)
    return since is not None and modified is not None and modified > since


def _is_known(content: Content, headers: requests.ReadHeaders) -> bool:
    """Whether the client says that it has this version."""
    if headers.if_none_match is not None:
        return parse_etags(headers.if_none_match).contains_weak(content.etag)
    since, modified = _date(headers.if_modified_since), _modified(content)
    return since is not None and modified is not None and modified <= since


def _date(text: str | None) -> datetime | None:
    """A date of HTTP; None for none, and for what is no date."""
    try:
        return parse_date(text)
    except (OverflowError, ValueError):  # a year that no calendar has
        return None


def _modified(content: Content) -> datetime | None:
    """When the version was made, as exactly as HTTP tells it."""
    return content.last_modified and content.last_modified.replace(microsecond=0)


def _range(content: Content, headers: requests.ReadHeaders) -> tuple[int, int] | None:
    """Start and end of the one range that is asked for; empty for one outside of the file.

    None for the whole, also where that is allowed instead: several ranges, no range that one could understand, or
    one of another version (`If-Range`; a date does not tell versions of one second apart, so none is taken).
    """
    asked = parse_range_header(headers.range)
    if asked is None or asked.units != "bytes" or len(asked.ranges) != 1:
        return None
    if headers.if_range is not None and headers.if_range != f'"{content.etag}"':
        return None
    start, end = asked.ranges[0]
    if start < 0:
        return max(0, content.size + start), content.size
    return start, content.size if end is None else min(end, content.size)


def _media_type(file: ScaleFile) -> str:
    """That of the record, or what the name suggests."""
    if _PRINTABLE.fullmatch(file.media_type):
        return file.media_type
    ending = os.path.splitext(file.file_name)[1]
    found, coding = _types.guess_type(f"file{ending}")
    return found if found is not None and coding is None else _UNKNOWN_TYPE


def _media_type_sent() -> str:
    sent = request.headers.get("Content-Type", "").strip()
    if sent and not _PRINTABLE.fullmatch(sent):
        raise InvalidRequest("Content-Type: accepted are at most 255 printable ASCII characters")
    return "" if sent.lower() == _MEANINGLESS_TYPE else sent

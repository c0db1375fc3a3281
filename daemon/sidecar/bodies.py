"""The body of a request, whole or as it comes; what goes wrong with it has one of the API's codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from brokervol.server import BodyFailed
from sidecar.errors import BodyTooLarge, BodyTooSlow, InvalidRequest
from storage.exceptions import StorageError

_BLOCK_BYTES = 64 * 1024


def arriving(environ: Mapping[str, Any]) -> Callable[[int], bytes]:
    """What reads the body as it comes: it gives what is there, so many bytes at most, and nothing at the end.

    It works also after the view has returned, and raises BodyTooSlow, or InvalidRequest for a broken body.
    """
    source = environ["wsgi.input"]

    def read(size: int) -> bytes:
        try:
            block: bytes = source.read1(size)
        except BodyFailed as failure:
            raise _told(failure) from failure
        return block

    return read


def whole(environ: Mapping[str, Any], most_bytes: int) -> bytes:
    """The body to its end.

    Raises:
        BodyTooLarge: it has more than `most_bytes`.
        BodyTooSlow, InvalidRequest: it did not come.
    """
    if int(environ.get("CONTENT_LENGTH") or 0) > most_bytes:
        raise BodyTooLarge(_sentence(most_bytes))
    read, blocks, left = arriving(environ), [], most_bytes
    while block := read(_BLOCK_BYTES):
        blocks.append(block)
        left -= len(block)
        if left < 0:
            raise BodyTooLarge(_sentence(most_bytes))
    return b"".join(blocks)


def _sentence(most_bytes: int) -> str:
    return f"the body is larger than {most_bytes} bytes; send it as several batches"


def _told(failure: BodyFailed) -> StorageError:
    kind = BodyTooSlow if failure.status == HTTPStatus.REQUEST_TIMEOUT else InvalidRequest
    return kind(str(failure))

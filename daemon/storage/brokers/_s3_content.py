"""The bytes of objects: read part by part, all of one version, and stored as they arrive."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from storage.brokers._parallel import one_ahead
from storage.brokers._s3_jobs import about
from storage.brokers._s3_objects import Found, Objects, Stored
from storage.brokers.broker import Content, Readable
from storage.exceptions import StorageError, TooLarge

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

    from storage.brokers._s3_boto import Connection

log = logging.getLogger(__name__)

_BLOCK_BYTES = 256 * 1024
_READ_BYTES = 4 * 1024 * 1024

# An object has at most 10,000 parts. They are small at first, and larger once it is long: 183 GiB fit.
_MOST_PARTS = 10_000
_PART_BYTES = 8 * 1024 * 1024
_SMALL_PARTS = 1000
_LARGE_PART_BYTES = 20 * 1024 * 1024

# Checked by the service, part by part and as a whole.
_CHECKSUM: Any = {"ChecksumAlgorithm": "CRC32"}


class ObjectContent(Content):
    """The content of the object at `key` that `found` is of. Each part is given only if it is of that very one."""

    def __init__(self, objects: Objects, key: str, found: Found, subject: str) -> None:
        super().__init__(found.size, found.etag, found.modified)
        self._objects = objects
        self._key = key
        self._subject = subject

    def read(self, start: int, length: int) -> Generator[bytes, None, None]:
        parts = self._parts(start, start + length)
        # For one part another thread would only cost.
        fetched = parts if length <= _READ_BYTES else one_ahead(parts)
        with about(self._subject), contextlib.closing(fetched):
            for part in fetched:
                view = memoryview(part)
                for offset in range(0, len(view), _BLOCK_BYTES):
                    yield bytes(view[offset : offset + _BLOCK_BYTES])

    def _parts(self, start: int, end: int) -> Generator[bytes | memoryview, None, None]:
        for offset in range(start, end, _READ_BYTES):
            yield self._objects.read(self._key, self.etag, offset, min(offset + _READ_BYTES, end))


class Stream:
    """Bytes that become an object: in one request if they are few, else in parts, each sent while the next comes.

    Args:
        asking: the connection, with the SDK's errors as ours; the source is read outside of it.
        place: bucket and key, as the SDK's arguments.
    """

    def __init__(
        self, asking: Callable[[], AbstractContextManager[Connection]], place: Mapping[str, Any], source: Readable
    ) -> None:
        self._asking = asking
        self._place = place
        self._source = source
        self._size = 0

    def store(
        self, options: Mapping[str, Any], condition: Mapping[str, Any], *, before_end: Callable[[], None]
    ) -> Stored:
        """Store all of it.

        Args:
            options: of the new object.
            condition: what must hold of what is there, for the request that replaces it.
            before_end: called before that request.
        """
        part = self._next(_PART_BYTES)
        if len(part) == _PART_BYTES:
            return self._store_in_parts(part, options, condition, before_end)
        before_end()
        body: Any = part
        with self._asking() as connection:
            answer = connection.client.put_object(**self._place, Body=body, **options, **condition)
        return Stored(self._size, answer["ETag"].strip('"'))

    def _store_in_parts(
        self,
        part: bytearray,
        options: Mapping[str, Any],
        condition: Mapping[str, Any],
        before_end: Callable[[], None],
    ) -> Stored:
        with self._asking() as connection:
            begun = connection.client.create_multipart_upload(**self._place, **options, **_CHECKSUM)
        upload = {**self._place, "UploadId": begun["UploadId"]}
        try:
            parts = self._send(upload, part)
            before_end()
            with self._asking() as connection:
                whole: Any = {"MultipartUpload": {"Parts": parts}}
                answer = connection.client.complete_multipart_upload(**upload, **whole, **condition)
        except BaseException:
            self._abort(upload)
            raise
        return Stored(self._size, answer["ETag"].strip('"'))

    def _send(self, upload: Mapping[str, Any], part: bytearray) -> list[CompletedPartTypeDef]:
        sent: list[CompletedPartTypeDef] = []
        with ThreadPoolExecutor(1) as pool:  # ends when the part under way is there, also if the source fails
            while part:
                number = len(sent) + 1
                if number > _MOST_PARTS:
                    raise TooLarge(f"more than {self._size >> 30} GiB cannot be stored without being a local file")
                sending = pool.submit(self._send_part, upload, number, part)
                part = self._next(_PART_BYTES if number < _SMALL_PARTS else _LARGE_PART_BYTES)
                sent.append(sending.result())
        return sent

    def _send_part(self, upload: Mapping[str, Any], number: int, part: Any) -> CompletedPartTypeDef:
        with self._asking() as connection:
            answer = connection.client.upload_part(**upload, PartNumber=number, Body=part, **_CHECKSUM)
        sent: CompletedPartTypeDef = {"PartNumber": number, "ETag": answer["ETag"]}
        if "ChecksumCRC32" in answer:
            sent["ChecksumCRC32"] = answer["ChecksumCRC32"]
        return sent

    def _abort(self, upload: Mapping[str, Any]) -> None:
        try:
            with self._asking() as connection:
                connection.client.abort_multipart_upload(**upload)
        except StorageError as error:
            log.warning("the parts of an upload that failed could not be removed: %s", error)

    def _next(self, size: int) -> bytearray:
        """The next `size` bytes of the source, fewer only at its end."""
        part = bytearray()
        while len(part) < size and (block := self._source.read(min(_BLOCK_BYTES, size - len(part)))):
            part += block
        self._size += len(part)
        return part

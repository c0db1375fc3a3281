"""The bulk path to S3 by obstore (Rust's object_store), whose one home this is.

It carries the requests that come by the thousand: heads, whole reads and writes, plain copies. Whatever it
cannot do or fails at is done by boto3 instead, whose retries and errors are then the ones that count, so that
both paths behave as one.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.store import S3Store

from storage import linux
from storage.brokers._s3_boto import (
    CONNECT_TIMEOUT_S,
    LARGEST_COPY_BYTES,
    PART_BYTES,
    READ_TIMEOUT_S,
    SMALL_BYTES,
    STAMP,
    BotoObjects,
    Connection,
    connect,
    read_all,
)
from storage.brokers._s3_objects import Found, Source
from storage.brokers._s3_settings import Settings
from storage.exceptions import StorageError

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult

log = logging.getLogger(__name__)
R = TypeVar("R")

_STREAM_BYTES = 1024 * 1024
_PARTS_AT_ONCE = 6

# Of objects above this size fewer are in memory at a time than there are workers.
_LITTLE_BYTES = 256 * 1024
_MIDDLING_AT_ONCE = 16
_PID = os.getpid()


class ObstoreObjects(BotoObjects):
    """As its base, faster.

    Listings and deletes stay with boto3: obstore alters or refuses some keys that S3 allows (`a//b`, `dir/`,
    control characters), and reports of a failed delete only the first key.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._settings = settings
        self._middling = threading.BoundedSemaphore(_MIDDLING_AT_ONCE)

    def head(self, key: str, *, with_all: bool = False) -> Found:
        def slow() -> Found:
            return super(ObstoreObjects, self).head(key, with_all=with_all)

        def fast() -> Found:
            found = obstore.head(self._store(), key)
            return Found(found["size"], (found["e_tag"] or "").strip('"'), modified=found["last_modified"])

        return slow() if with_all else _first(fast, slow)

    def look(self, key: str, listed: Found | None) -> Found:
        # It tells neither the storage class nor how an object is encrypted, hence not if its tag is a digest.
        def fast() -> Found:
            if listed is None:
                raise _Unsuited("the storage class is not known")
            found = obstore.get(self._store(), key, options={"head": True})
            stamp, etag = found.attributes.get(STAMP, ""), (found.meta["e_tag"] or "").strip('"')
            if not stamp or (etag, found.meta["size"]) != (listed.etag, listed.size):
                raise _Unsuited("it is not known by a stamp, or not the one that was listed")
            return listed._replace(stamp=stamp, modified=found.meta["last_modified"])

        return _first(fast, lambda: super(ObstoreObjects, self).look(key, listed))

    def put(self, key: str, source: Source, *, overwrite: bool) -> None:
        def slow() -> None:
            super(ObstoreObjects, self).put(key, source, overwrite=overwrite)

        def fast() -> None:
            with self._held(source.size):
                content = read_all(source)
                obstore.put(self._store(), key, content, attributes=attributes, use_multipart=False)

        # A large object costs its bytes, not its requests; and boto3 removes the parts of an upload that fails.
        if source.size > SMALL_BYTES or not overwrite:
            return slow()
        attributes: Any = {"Content-Type": source.media_type} if source.media_type else {}
        if self._settings.storage_class:
            attributes["Storage-Class"] = self._settings.storage_class
        if source.stamp:
            attributes[STAMP] = source.stamp
        return _first(fast, slow)

    def get(self, key: str, fd: int) -> int:
        def fast() -> int:
            result = obstore.get(self._store(), key)
            size = result.meta["size"]
            with self._held(size):
                _write(result, fd, 0, min(size, PART_BYTES))
                if size > PART_BYTES:
                    self._get_rest(key, result.meta["e_tag"], fd, size)
            return size

        return _first(fast, lambda: super(ObstoreObjects, self).get(key, fd))

    def _get_rest(self, key: str, etag: str | None, fd: int, size: int) -> None:
        """What is beyond the first part, some parts at a time, all of the object that the first was of."""
        if etag is None:
            raise _Unsuited("the object has no entity tag")

        def part(start: int) -> None:
            end = min(start + PART_BYTES, size)
            result = obstore.get(self._store(), key, options={"range": (start, end), "if_match": etag})
            _write(result, fd, start, end)
            linux.start_write_back(fd)  # else the fsync at the end waits for nearly all of it

        with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            parts = [pool.submit(part, start) for start in range(PART_BYTES, size, PART_BYTES)]
            try:
                for done in parts:
                    done.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def read(self, key: str, etag: str, start: int, end: int) -> bytes | memoryview:
        def fast() -> memoryview:
            wanted: GetOptions = {"range": (start, end), "if_match": f'"{etag}"'}
            content = memoryview(obstore.get(self._store(), key, options=wanted).bytes())
            if len(content) != end - start:
                raise _Unsuited("the body was cut short")
            return content

        return _first(fast, lambda: super(ObstoreObjects, self).read(key, etag, start, end))

    def copy(self, key: str, found: Found, new_key: str, *, overwrite: bool, stamp: str = "") -> None:
        def slow() -> None:
            super(ObstoreObjects, self).copy(key, found, new_key, overwrite=overwrite, stamp=stamp)

        # obstore has no conditional copy, none in parts, and makes every copy one of class STANDARD.
        is_standard = not self._settings.storage_class and found.storage_class in (None, "STANDARD")
        is_known = bool(found.stamp or found.digest)
        if not overwrite or not is_standard or not is_known or found.size > LARGEST_COPY_BYTES:
            return slow()
        return _first(lambda: obstore.copy(self._store(), key, new_key), slow)

    @contextmanager
    def _held(self, size: int) -> Iterator[None]:
        """Around what holds an object, or parts of it, in memory."""
        if size <= _LITTLE_BYTES:
            yield
            return
        with self._large if size > PART_BYTES else self._middling:
            yield

    def _store(self) -> S3Store:
        endpoint = self._settings.endpoint
        return _open(connect(endpoint), endpoint.bucket_name, self._settings.server_side_encryption)


class _Unsuited(Exception):
    """obstore cannot do this."""


def _first(fast: Callable[[], R], slow: Callable[[], R]) -> R:
    """The fast way; where that fails for whatever reason, the thorough one, whose error is the one to tell."""
    if os.getpid() != _PID:  # obstore's threads did not come along into this forked process
        return slow()
    try:
        return fast()
    except (StorageError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # Rust panics among them; obstore's kinds are few and its texts not for users
        log.debug("obstore failed, boto3 takes over: %s", type(error).__name__)
        return slow()


def _write(result: GetResult, fd: int, start: int, end: int) -> None:
    """Write the first bytes of the body to `fd` from `start` to `end`; refuses one that is shorter."""
    offset = start
    for chunk in result.stream(min_chunk_size=_STREAM_BYTES):
        view = memoryview(chunk)[: end - offset]
        while view:
            written = os.pwrite(fd, view, offset)
            offset, view = offset + written, view[written:]
        if offset == end:
            return
    if offset != end:
        raise _Unsuited("the body was cut short")


@lru_cache(maxsize=32)
def _open(connection: Connection, bucket: str, encryption: str | None) -> S3Store:
    """The store of a bucket, with the credentials and the address that boto3 found."""
    address = connection.client.meta.endpoint_url
    options: Any = {"server_side_encryption": encryption} if encryption else {}
    return S3Store(
        bucket,
        endpoint=address,
        region=connection.client.meta.region_name,
        credential_provider=Boto3CredentialProvider(connection.session, ttl=timedelta(minutes=5)),
        client_options={
            "allow_http": address.startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
            "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
            "timeout": timedelta(hours=24),  # of a whole object; a silent service is what read_timeout is for
        },
        retry_config={"max_retries": 0},  # botocore retries
        **options,
    )

"""What the broker needs of the objects in a bucket, whichever SDK carries the requests."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from storage.brokers.broker import Readable
from storage.exceptions import StorageError


class Found(NamedTuple):
    """What the bucket says of an object: size in bytes, entity tag, its time, and if asked for, the rest.

    Attributes:
        stamp: the one that it was stored with; a copy has it, too.
        digest: of the content, where the entity tag is one; else empty.
        age_s: seconds since the object was made, by the service's own clock.
    """

    size: int
    etag: str
    storage_class: str | None = None
    modified: datetime | None = None
    stamp: str = ""
    digest: str = ""
    age_s: float = 0


class Stored(NamedTuple):
    """What has become of a stream: size in bytes and entity tag of the object."""

    size: int
    etag: str


class Source(NamedTuple):
    """An open file whose first `size` bytes are to be stored. Closed by who opened it.

    Attributes:
        stamp: unique, to know the object by; empty for none.
    """

    fd: int
    size: int
    media_type: str
    stamp: str = ""


class Objects(Protocol):
    """The objects of one bucket. Safe for several threads.

    Errors are `StorageError` whose text is the fact alone; the broker says of which file.
    """

    def check_bucket(self) -> None:
        """Ask for the bucket; raises what keeps it from being used."""

    def pages(
        self, prefix: str, *, recursive: bool, after: str = "", page_size: int = 1000
    ) -> Generator[list[tuple[str, int]], None, None]:
        """Key and size in bytes of the objects whose keys begin with `prefix` and sort after the key `after`.

        Not recursive: only those without a further `/`.
        """

    def is_ordered(self) -> bool:
        """Whether listings are in the order of the keys' bytes, so that one can begin in the middle."""

    def head(self, key: str, *, with_all: bool = False) -> Found:
        """The object at `key`, with all that is known of it only if asked for: that costs more.

        Raises:
            MissingFile: there is none.
        """

    def look(self, key: str, listed: Found | None) -> Found:
        """The object at `key` with all that is known of it, some of which `listed` may tell.

        Raises:
            MissingFile: there is none.
        """

    def listed(self, keys: Sequence[str]) -> dict[str, Found]:
        """Size, entity tag and storage class of the objects at these keys, as few requests tell them.

        One that is not in it may be there all the same.
        """

    def put(self, key: str, source: Source, *, overwrite: bool) -> None:
        """Store the bytes of `source` at `key`, all or nothing.

        Raises:
            AlreadyExists: an object is at `key` and `overwrite` is false.
            InvalidPath: the source became shorter meanwhile.
        """

    def get(self, key: str, fd: int) -> int:
        """Write the object at `key` into the file `fd`, in place of what is in it; the size in bytes.

        Raises:
            MissingFile: there is none.
        """

    def read(self, key: str, etag: str, start: int, end: int) -> bytes | memoryview:
        """The bytes of the object at `key` from `start` to before `end`, all within its size.

        Raises:
            BackendUnavailable: what is there has another entity tag than `etag`, or nothing is.
        """

    def put_stream(
        self,
        key: str,
        source: Readable,
        media_type: str,
        *,
        overwrite: bool,
        expected: str | None,
        stamp: str = "",
    ) -> Stored:
        """Store all that `source` gives at `key`, all or nothing, holding two parts of it at a time.

        Raises:
            AlreadyExists: an object is at `key` and `overwrite` is false.
            FileChanged: the object at `key` has another entity tag than `expected`, or there is none.
            TooLarge: the source does not end.
        """

    def copy(self, key: str, found: Found, new_key: str, *, overwrite: bool, stamp: str = "") -> None:
        """Copy the object at `key`, which is the one `found` with all, within the bucket, by the server.

        The copy has the configured storage class, else that of `found`. Where neither its stamp nor its digest
        would tell that it is one, it gets the `stamp`.

        Raises:
            AlreadyExists: an object is at `new_key` and `overwrite` is false.
        """

    def abort_uploads(self, key: str, since: datetime, *, idle_s: float) -> None:
        """Remove the parts of unfinished uploads to `key` that were begun since then, by the local clock.

        Raises:
            BackendUnavailable: one was begun or got a part within the last `idle_s` seconds.
        """

    def delete(self, keys: Sequence[str]) -> dict[str, StorageError]:
        """Delete the objects at `keys`, of which none need be there; the error of each that could not be."""

"""What the broker needs of the objects in a bucket, whichever SDK carries the requests."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple, Protocol

from storage.exceptions import StorageError


class Found(NamedTuple):
    """What the bucket says of an object: size in bytes, entity tag, and its storage class if asked for."""

    size: int
    etag: str
    storage_class: str | None = None


class Listed(NamedTuple):
    """A listed key and the size of its object in bytes."""

    key: str
    size: int


class Source(NamedTuple):
    """An open file whose first `size` bytes are to be stored. Closed by who opened it."""

    fd: int
    size: int
    media_type: str


class Objects(Protocol):
    """The objects of one bucket. Safe for several threads.

    Errors are `StorageError` whose text is the fact alone; the broker says of which file.
    """

    def check_bucket(self) -> None:
        """Ask for the bucket; raises what keeps it from being used."""

    def pages(
        self, prefix: str, *, recursive: bool, after: str = "", page_size: int = 1000
    ) -> Generator[list[Listed], None, None]:
        """The objects whose keys begin with `prefix` and sort after the key `after`.

        Not recursive: only those without a further `/`.
        """

    def is_ordered(self) -> bool:
        """Whether listings are in the order of the keys' bytes, so that one can begin in the middle."""

    def head(self, key: str, *, with_class: bool = False) -> Found:
        """The object at `key`, with its storage class only if asked for: that costs more.

        Raises:
            MissingFile: there is none.
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

    def copy(self, key: str, found: Found, new_key: str, *, overwrite: bool) -> None:
        """Copy the object at `key`, which is the one `found`, within the bucket, by the server.

        The copy has the configured storage class, else that of `found`.

        Raises:
            AlreadyExists: an object is at `new_key` and `overwrite` is false.
        """

    def delete(self, keys: Sequence[str]) -> dict[str, StorageError]:
        """Delete the objects at `keys`, of which none need be there; the error of each that could not be."""

"""The kernel's errors as the library's kinds: one table, used at the edge where system calls are made."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from storage.exceptions import (
    AlreadyExists,
    BackendUnavailable,
    InvalidPath,
    MissingFile,
    NoSpace,
    PermissionDenied,
    ReadOnly,
    StorageError,
    TooLarge,
    Unsupported,
)

KINDS: dict[int, tuple[type[StorageError], str]] = {
    errno.ENOENT: (MissingFile, "there is no such file"),
    errno.ENOTDIR: (InvalidPath, "a component of the path is not a directory"),
    errno.ELOOP: (InvalidPath, "the path passes through a symbolic link that may not be followed"),
    errno.EXDEV: (InvalidPath, "the path leaves the place it is confined to"),
    errno.ENAMETOOLONG: (
        InvalidPath,
        "a component of the path is longer than 255 bytes or the path than 4095",
    ),
    errno.EINVAL: (InvalidPath, "the file system does not accept this name"),
    errno.EILSEQ: (InvalidPath, "the file system does not accept this name"),
    errno.ENXIO: (InvalidPath, "it is a special file, not a regular one"),
    errno.EACCES: (PermissionDenied, "the caller may not do this here"),
    errno.EPERM: (PermissionDenied, "the caller may not do this here"),
    errno.EROFS: (ReadOnly, "the file system is mounted read-only for the caller"),
    errno.EEXIST: (AlreadyExists, "something of this name is already there"),
    errno.EISDIR: (AlreadyExists, "a directory of this name is already there"),
    errno.ENOTEMPTY: (AlreadyExists, "a directory of this name is already there"),
    errno.ETXTBSY: (AlreadyExists, "the file there is a program that is running"),
    errno.ENOSPC: (NoSpace, "no space is left on the file system"),
    errno.EDQUOT: (NoSpace, "the caller's disk quota is used up"),
    errno.EFBIG: (TooLarge, "the file is larger than the file system allows"),
    errno.EOPNOTSUPP: (Unsupported, "the file system cannot do this"),
    errno.ENOSYS: (Unsupported, "the kernel cannot do this"),
    errno.EIO: (BackendUnavailable, "the file system reports an input/output error"),
    errno.ESTALE: (BackendUnavailable, "the server no longer knows this file (stale handle)"),
    errno.ETIMEDOUT: (BackendUnavailable, "the server did not answer in time"),
    errno.EHOSTDOWN: (BackendUnavailable, "the server is down"),
    errno.EHOSTUNREACH: (BackendUnavailable, "the server cannot be reached"),
    errno.ENOTCONN: (BackendUnavailable, "the server is not connected"),
    errno.ECONNREFUSED: (BackendUnavailable, "the server refused the connection"),
    errno.ECONNRESET: (BackendUnavailable, "the server closed the connection"),
    errno.EBUSY: (BackendUnavailable, "the file is busy"),
    errno.EAGAIN: (BackendUnavailable, "the file is busy"),
    errno.EMFILE: (BackendUnavailable, "too many files are open"),
    errno.ENFILE: (BackendUnavailable, "too many files are open"),
    errno.ENOMEM: (BackendUnavailable, "the host is out of memory"),
    errno.ESRCH: (BackendUnavailable, "the caller has exited"),
}


def translate(error: OSError, subject: str) -> StorageError:
    """The library's error for the kernel's, as the sentence "`subject`: what is wrong"."""
    kind, fact = KINDS.get(error.errno or 0, (StorageError, f"{error.strerror or error}"))
    name = errno.errorcode.get(error.errno or 0, "unknown")
    return kind(f"{subject}: {fact} ({name})")


@contextmanager
def os_errors(subject: str, missing: type[StorageError] = MissingFile) -> Iterator[None]:
    """Translate an `OSError` of the block; `subject` says operation and object.

    Args:
        missing: the kind for ENOENT, where what is missing is not the file asked for.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT and missing is not MissingFile:
            raise missing(f"{subject}: its directory does not exist (ENOENT)") from error
        raise translate(error, subject) from error


def quoted(path: str) -> str:
    """A path for a sentence: quoted, control characters escaped, shortened in the middle when very long."""
    shown = path if len(path) <= 200 else f"{path[:120]}...{path[-60:]}"
    if "\\" not in shown and shown.isprintable():
        return repr(shown)
    # A backslash of the name stays one, as its owner wrote it: repr would double it.
    return "'" + "".join(_spelled(character) for character in shown) + "'"


def _spelled(character: str) -> str:
    if character.isprintable() or character == "\\":
        return character
    if "\udc80" <= character <= "\udcff":  # a byte of a name that is not UTF-8, as `os.fsdecode` has it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1]

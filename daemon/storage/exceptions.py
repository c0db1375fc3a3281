"""What can go wrong with a file, by kind. Callers act on the class (or its `code`), never on the text.

The codes are those of the sidecar's API. `storage.os_errors` translates the kernel's errors into these.
"""

from __future__ import annotations

from typing import ClassVar


class StorageError(Exception):
    """Base of every error that a broker raises on purpose. Its text is one sentence for the user."""

    code: ClassVar[str] = "internal-error"


class MissingFile(StorageError):
    """The file is not at its expected place."""

    code = "missing-file"


class InvalidPath(StorageError):
    """The path is malformed, leaves its workspace or root, or does not name what the operation needs."""

    code = "invalid-path"


class AlreadyExists(StorageError):
    """Something that the operation must not replace is at the destination."""

    code = "already-exists"


class FileChanged(StorageError):
    """The file is not the version of itself that the operation was meant for."""

    code = "precondition-failed"


class PermissionDenied(StorageError):
    """The identity that the operation acts as may not do this."""

    code = "permission-denied"


class InvalidCredentials(PermissionDenied):
    """The backend does not know the credentials, or there are none to give to it."""


class ExpiredCredentials(PermissionDenied):
    """The credentials were good and no longer are: they need renewal, not correction."""


class ReadOnly(StorageError):
    """The file system or the mount is read-only for this caller."""

    code = "read-only"


class NoSpace(StorageError):
    """The file system or the caller's quota is full."""

    code = "no-space"


class TooLarge(StorageError):
    """The file is larger than the file system or the limit allows."""

    code = "too-large"


class BackendUnavailable(StorageError):
    """The backend does not answer or fails; the same call may succeed later."""

    code = "backend-unavailable"


class MissingBucket(BackendUnavailable):
    """The S3 bucket does not exist; the same call succeeds once it does."""


class TooManyRequests(BackendUnavailable):
    """The backend asks for fewer requests a second (S3's SlowDown), after all retries."""


class TimedOut(BackendUnavailable):
    """The backend did not answer in time, after all retries."""


class Unsupported(StorageError):
    """The backend has no such ability."""

    code = "unsupported"

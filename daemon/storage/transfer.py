"""Writing files so that a crash leaves the old or the new, never a half: temporary file, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from storage import linux
from storage.exceptions import AlreadyExists, InvalidPath
from storage.files import FILE_MODE, TEMPORARY_PREFIX, Directory
from storage.os_errors import quoted

# Bounds one system call, so that a signal or a slow backend is noticed between two.
_CHUNK_BYTES = 64 * 1024 * 1024

# What copy_file_range says when the two files do not suit it.
_NOT_SUITED = frozenset((errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF))


def write_file(directory: Directory, path: str, source: int, *, overwrite: bool) -> int:
    """Copy the open file `source` to `path` below `directory`: mode 0644, durable, missing directories made.

    Returns:
        The size in bytes.

    Raises:
        AlreadyExists: a directory or a mount is at `path`, or anything is and `overwrite` is false.
        OSError: of the kernel; nothing is left behind then.
    """
    with directory.parent(path, create=True) as (parent, name):
        refuse_directory(parent, name)
        with _unfinished(parent) as file:
            size = copy_contents(source, file.fd)
            os.fchmod(file.fd, FILE_MODE)
            os.fsync(file.fd)
            file.publish(name, overwrite=overwrite)
        parent.sync()
    return size


def write_link(parent: Directory, name: str, destination: str, *, overwrite: bool) -> None:
    """Put a symbolic link to `destination` at `name`, in one step, as `write_file` does a file."""
    refuse_directory(parent, name)
    temporary = _temporary_name()
    os.symlink(destination, temporary, dir_fd=parent.fd)
    with _removed_on_failure(parent, temporary):
        publish(parent, temporary, parent, name, overwrite=overwrite)


def publish(source: Directory, old: str, target: Directory, new: str, *, overwrite: bool) -> None:
    """Rename `old` in `source` to `new` in `target`; what is there is replaced only if `overwrite`.

    Raises:
        AlreadyExists: something is mounted at one of them.
    """
    source.refuse_mountpoint(old)
    target.refuse_mountpoint(new)
    if overwrite:
        os.rename(old, new, src_dir_fd=source.fd, dst_dir_fd=target.fd)
    else:
        linux.rename_no_replace(old, new, old_dir_fd=source.fd, new_dir_fd=target.fd)


def refuse_directory(parent: Directory, name: str) -> None:
    """Refuse a destination that is a directory, before anything is copied.

    Raises:
        AlreadyExists: a directory is there.
    """
    with contextlib.suppress(FileNotFoundError):
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
        with contextlib.suppress(NotADirectoryError):
            os.close(parent.open(name, flags))
            raise AlreadyExists(f"a directory is already at {quoted(name)}")


def copy_contents(source: int, target: int) -> int:
    """Copy all of `source` into the empty file `target` in the kernel, holes kept as holes.

    Returns:
        The size in bytes.
    """
    size = os.fstat(source).st_size
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: only a hole is left
                raise
            break
        end = min(os.lseek(source, offset, os.SEEK_HOLE), size)
        if end <= offset:
            raise InvalidPath("the source was cut short while it was copied")
        _copy_range(source, target, offset, end)
        offset = end
    os.ftruncate(target, size)
    return size


def _copy_range(source: int, target: int, offset: int, end: int) -> None:
    while offset < end:
        count = min(end - offset, _CHUNK_BYTES)
        copied = _copy_some(source, target, offset, count)
        if copied == 0:
            raise InvalidPath("the source was cut short while it was copied")
        offset += copied


def _copy_some(source: int, target: int, offset: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, offset, offset)
    except OSError as error:
        if error.errno not in _NOT_SUITED:
            raise
    block = os.pread(source, min(count, 1024 * 1024), offset)
    return os.pwrite(target, block, offset)


class _Unfinished:
    """A new file in `parent`, without a name where the file system can do that, so that a crash leaves nothing."""

    def __init__(self, parent: Directory) -> None:
        self._parent = parent
        self._name = ""
        try:
            self.fd = os.open(".", os.O_WRONLY | os.O_TMPFILE, 0o600, dir_fd=parent.fd)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            self._name = _temporary_name()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self.fd = os.open(self._name, flags, 0o600, dir_fd=parent.fd)

    def publish(self, name: str, *, overwrite: bool) -> None:
        """Give the file its name, in one step."""
        if not self._name:
            self._name = _temporary_name()
            linux.link(self.fd, self._name, dir_fd=self._parent.fd)
        publish(self._parent, self._name, self._parent, name, overwrite=overwrite)
        self._name = ""

    def close(self) -> None:
        if self._name:
            _remove_quietly(self._parent, self._name)
        os.close(self.fd)


# What file systems without nameless files say (NFS, older overlayfs), and kernels to a directory's name.
_NO_TMPFILE = frozenset((errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL))


def _unfinished(parent: Directory) -> contextlib.closing[_Unfinished]:
    return contextlib.closing(_Unfinished(parent))


@contextmanager
def _removed_on_failure(parent: Directory, name: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _remove_quietly(parent, name)
        raise


def _temporary_name() -> str:
    return f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}.part"


def _remove_quietly(parent: Directory, name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=parent.fd)

"""Writing files so that a crash leaves the old or the new, never a half: temporary file, fsync, rename.

What a killed process can leave behind is a file named `.brokervol-*.part`, which no listing shows and no path can
name. Where the file system has no nameless files (NFS, older overlayfs) it can at any moment of an upload,
elsewhere only between the two system calls that replace a file. In a directory that several hosts share it cannot
be told from the file of an upload that is going on; only who finds its token in the journal knows.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from storage import linux
from storage.exceptions import AlreadyExists, InvalidPath
from storage.files import TEMPORARY_PREFIX, Directory, refuse_special
from storage.os_errors import quoted

# Bounds one system call, so that a signal or a slow backend is noticed between two.
_CHUNK_BYTES = 64 * 1024 * 1024

# What file systems without nameless files say (NFS, older overlayfs), and kernels to a directory's name.
_NO_TMPFILE = frozenset((errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL))

# What file systems say that know one name a file.
_NO_HARD_LINKS = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS))

# What copy_file_range says when the two files do not suit it.
_NOT_SUITED = frozenset((errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF))

CUT_SHORT = "the source was cut short while it was copied"


def write_link(parent: Directory, name: str, destination: str, *, overwrite: bool) -> None:
    """Put a symbolic link to `destination` at `name`, in one step.

    Raises:
        AlreadyExists: a mount is there, or what is no file.
    """
    refuse_no_file(parent, name)
    try:
        os.symlink(destination, name, dir_fd=parent.fd)
    except FileExistsError:
        if not overwrite:
            raise
        temporary = temporary_name()
        with _removed_on_failure(parent, temporary):
            os.symlink(destination, temporary, dir_fd=parent.fd)
            publish(parent, temporary, parent, name, overwrite=True)


def publish(source: Directory, old: str, target: Directory, new: str, *, overwrite: bool) -> None:
    """Rename `old` in `source` to `new` in `target`; what is there is replaced only if `overwrite`.

    Raises:
        AlreadyExists: a mount is there, or what is no file.
    """
    target.refuse_irreplaceable(new)
    if overwrite:
        os.rename(old, new, src_dir_fd=source.fd, dst_dir_fd=target.fd)
    else:
        linux.rename_no_replace(old, new, old_dir_fd=source.fd, new_dir_fd=target.fd)


def refuse_no_file(parent: Directory, name: str) -> None:
    """Refuse a destination that is no file, before anything is copied; see `refuse_special`."""
    with contextlib.suppress(FileNotFoundError):
        refuse_special(parent.stat(name, follow=False).st_mode, name)


def refuse_same_file(parent: Directory, name: str, source: os.stat_result) -> None:
    """A link must not replace the very file it leads to: that would lose the data.

    Raises:
        AlreadyExists: the file `source` is at `name`.
    """
    with contextlib.suppress(FileNotFoundError):
        present = parent.stat(name, follow=False)
        if (present.st_dev, present.st_ino) == (source.st_dev, source.st_ino):
            raise AlreadyExists(f"local_path is the file itself: {quoted(name)}")


def copy_contents(source: int, target: int, size: int) -> None:
    """Copy the first `size` bytes of `source` into the empty file `target` in the kernel, holes kept as holes.

    Raises:
        InvalidPath: the source is shorter.
    """
    end = 0
    for start, end in _data(source, size):
        _copy_range(source, target, start, end)
    if end < size:
        os.ftruncate(target, size)
    if os.fstat(source).st_size < size:  # else what was cut off would pass for a hole
        raise InvalidPath(CUT_SHORT)


def _data(source: int, size: int) -> Iterator[tuple[int, int]]:
    """Start and end of each part of the first `size` bytes of `source` that is no hole."""
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
            end = os.lseek(source, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        if start < size:
            yield start, min(end, size)


def _copy_range(source: int, target: int, offset: int, end: int) -> None:
    while offset < end:
        copied = _copy_some(source, target, offset, min(end - offset, _CHUNK_BYTES))
        if copied == 0:
            raise InvalidPath(CUT_SHORT)
        offset += copied


def _copy_some(source: int, target: int, offset: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, offset, offset)
    except OSError as error:
        if error.errno not in _NOT_SUITED:
            raise
    block = os.pread(source, min(count, 1024 * 1024), offset)
    return os.pwrite(target, block, offset)


class Unfinished:
    """A new file in `parent`, without a name where the file system can do that, so that a crash leaves nothing.

    Attributes:
        fd: descriptor for writing it, mode 0600.
    """

    def __init__(self, parent: Directory, token: str = "") -> None:
        """Make it.

        Args:
            token: what the temporary name is made of, if there is one; see `temporary_name`.
        """
        self._parent = parent
        self._token = token
        self._name = ""
        try:
            self.fd = os.open(".", os.O_WRONLY | os.O_TMPFILE, 0o600, dir_fd=parent.fd)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            self._name = temporary_name(token)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self.fd = os.open(self._name, flags, 0o600, dir_fd=parent.fd)

    def publish(self, name: str, *, overwrite: bool) -> None:
        """Give the file its name, in one step. If it has a temporary one, `close` takes that away."""
        if not self._name or not overwrite:
            try:
                linux.link(self.fd, name, dir_fd=self._parent.fd)
                return
            except FileExistsError:
                if not overwrite:
                    raise
            except OSError as error:
                if not self._name or error.errno not in _NO_HARD_LINKS:
                    raise
        if not self._name:
            self._name = temporary_name(self._token)
            linux.link(self.fd, self._name, dir_fd=self._parent.fd)
        publish(self._parent, self._name, self._parent, name, overwrite=overwrite)
        self._name = ""

    def close(self) -> None:
        """Let go of the file; if it was not published, it is no more. Once closed it stays so."""
        fd, self.fd = self.fd, -1
        with contextlib.suppress(OSError):  # NFS and FUSE tell of failed writes here; fsync has told before
            if fd >= 0:
                os.close(fd)
        if self._name:  # now: of an open file NFS would make one with another name (.nfs...), for all to see
            _remove_quietly(self._parent, self._name)
            self._name = ""


@contextmanager
def _removed_on_failure(parent: Directory, name: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _remove_quietly(parent, name)
        raise


def temporary_name(token: str = "") -> str:
    """The name of an unfinished file. `token` is unique and of letters and digits; random if left out."""
    return f"{TEMPORARY_PREFIX}{token or secrets.token_hex(8)}.part"


def _remove_quietly(parent: Directory, name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=parent.fd)

"""The view of files that a broker works through: whose paths these are, and as whom they are touched.

Confinement is by file descriptor. A `Directory` is an open directory, and every path given to it is resolved
by the kernel with openat2(2), which refuses or scopes whatever would lead outside; nothing here checks a
string and then uses it. What is changed is changed by (descriptor of the parent, last component), so that a
directory swapped for a symbolic link in the meantime changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from types import TracebackType
from typing import NamedTuple

from storage import linux
from storage.exceptions import AlreadyExists, InvalidPath
from storage.os_errors import os_errors, quoted

DIRECTORY_MODE = 0o755
FILE_MODE = 0o644

# Names of unfinished files. Never listed, never accepted as a workspace path.
TEMPORARY_PREFIX = ".brokervol-"

_LONGEST_NAME = 255  # NAME_MAX
_PLAIN_PATH = re.compile(r"(?=.{1,1000}\Z)(?:[\w-][\w.-]{0,254}/)*[\w-][\w.-]{0,254}", re.ASCII)
_LONGEST_PATH = 4095  # PATH_MAX, less the final NUL

_SPECIAL = {
    stat.S_IFDIR: "directory",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
}

_O_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW

# The kernel's own pseudo-files are no data, and `/proc/self` would be the server instead of the caller:
# linux/magic.h names of proc, sysfs, cgroup, cgroup2, debugfs, tracefs, securityfs, bpf, configfs, efivarfs.
_PSEUDO_FILE_SYSTEMS = frozenset(
    (
        0x9FA0,
        0x62656572,
        0x27E0EB,
        0x63677270,
        0x64626720,
        0x74726163,
        0x73636673,
        0xCAFE4A11,
        0x62656570,
        0xDE5E81E4,
    )
)


class Directory:
    """An open directory that confines the paths resolved below it. Closed by `close` or as a context.

    Args:
        fd: descriptor of the directory, owned from now on.
        resolve: `linux.RESOLVE_*` flags for every resolution below it.
        is_covered: whether, beyond what is mounted on the way here, a mount covers a name in the directory of a
            descriptor.
    """

    def __init__(
        self, fd: int, resolve: int, is_covered: Callable[[int, str], bool] = lambda _fd, _name: False
    ) -> None:
        self.fd = fd
        self.is_covered = is_covered
        self.resolve = resolve | linux.RESOLVE_NO_MAGICLINKS

    def __enter__(self) -> Directory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self.fd)

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        """A new descriptor for `path` below this directory; see openat2(2) for the errors."""
        return linux.openat2(self.fd, path or ".", flags, self.resolve, mode)

    def directory(self, path: str) -> Directory:
        """The directory at `path` below this one, itself confining."""
        return Directory(self.open(path, os.O_PATH | os.O_DIRECTORY), self.resolve, self.is_covered)

    def refuse_irreplaceable(self, name: str) -> None:
        """Refuse a name in this directory at which a mount is, or what is no file, before a file is renamed to it.

        The kernel says EBUSY for a mountpoint of one's own mount namespace only. Acting in a caller's, it would
        detach the mount: a mask or a file that the operator put there.

        Raises:
            AlreadyExists: there is one.
        """
        self.refuse_covered(name)
        try:
            resolve = self.resolve | linux.RESOLVE_NO_XDEV
            found = linux.openat2(self.fd, name, os.O_PATH | os.O_NOFOLLOW, resolve)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise AlreadyExists(f"something is mounted at {quoted(name)}") from error
            raise
        try:
            refuse_special(os.fstat(found).st_mode, name)
        finally:
            os.close(found)

    def refuse_covered(self, name: str) -> None:
        """Refuse a name at which something is mounted in another mount of this directory; see above.

        That is left to ask of a name which was just opened in a workspace: what is mounted there, openat2 refused.

        Raises:
            AlreadyExists: something is mounted there.
        """
        if self.is_covered(self.fd, name):
            raise AlreadyExists(f"something is mounted at {quoted(name)} in another mount of its directory")

    def open_regular(self, path: str) -> int:
        """A descriptor for reading the regular file at `path`, symbolic links followed within the limits.

        Opened without side effects first, so that a FIFO cannot block and a device is not touched.

        Raises:
            InvalidPath: it is not a regular file, or one of the kernel's pseudo-files.
            OSError: it cannot be opened.
        """
        found = self.open(path, os.O_PATH)
        try:
            if not stat.S_ISREG(os.fstat(found).st_mode):
                raise InvalidPath(f"{quoted(path)} is not a regular file")
            if linux.file_system_type(found) in _PSEUDO_FILE_SYSTEMS:
                raise InvalidPath(f"{quoted(path)} is a pseudo-file of the kernel, not data")
            # O_NONBLOCK: a lease that somebody holds on the file would otherwise stop this thread for 45 s.
            return linux.reopen(found, os.O_RDONLY | os.O_NONBLOCK)
        finally:
            os.close(found)

    def stat(self, path: str, *, follow: bool = True) -> os.stat_result:
        """The status of what `path` leads to within the limits, or with `follow` false of a final link itself."""
        found = self.open(path, os.O_PATH if follow else os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.fstat(found)
        finally:
            os.close(found)

    @contextmanager
    def parent(self, path: str, *, create: bool = False) -> Iterator[tuple[Directory, str]]:
        """The directory that holds the last component of `path`, and that component.

        Args:
            create: make the missing directories (mode 0755); those are removed again, if still empty, when the
                block fails.
        """
        head, _, name = path.rpartition("/")
        made: list[str] = []
        try:
            with self.make_directory(head, made) if create else self.directory(head) as found:
                yield found, name
        except BaseException:
            self.remove_directories(made)
            raise

    def make_directory(self, path: str, made: list[str]) -> Directory:
        """The directory at `path`, made (mode 0755) with all on the way to it where missing.

        Args:
            made: the paths of what was made are appended to it, also when this fails.
        """
        names = path.split("/") if path else []
        missing: list[str] = []
        while True:  # upwards to the deepest directory that is there
            try:
                found = self.directory("/".join(names))
                break
            except FileNotFoundError:
                if not names:
                    raise
                missing.append(names.pop())
        while missing:
            with found as above:
                names.append(missing.pop())
                if _make_directory(above, names[-1]):
                    made.append("/".join(names))
                    _lift_umask(above, names[-1])
                found = above.directory(names[-1])
        return found

    def remove_directories(self, made: list[str]) -> None:
        """Remove those of the directories that `make_directory` made which are empty."""
        for path in reversed(made):
            with contextlib.suppress(OSError), self.parent(path) as (parent, name):  # somebody may use it by now
                os.rmdir(name, dir_fd=parent.fd)

    def scan(self, path: str, batch: int = 1000) -> Generator[list[os.DirEntry[str]], None, None]:
        """The entries of the directory at `path`, unsorted, at most `batch` at a time."""
        readable = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(readable) as entries:
                while chunk := list(islice(entries, batch)):
                    yield chunk
        finally:
            os.close(readable)

    def sync(self) -> None:
        """Make the names in this directory durable, as far as the caller may read it and it is still there."""
        with contextlib.suppress(PermissionError, FileNotFoundError):
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.fd)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


class Actor(NamedTuple):
    """Whom files are touched as: a user, its group, and its supplementary groups."""

    user: int
    group: int
    groups: tuple[int, ...]


class FileView(ABC):
    """Where a caller's paths lead, and the identity that touches them.

    Everything that reads or changes files happens inside `acting()`; nothing else does (in particular no
    database call), since the caller's identity may not read our own files.

    Attributes:
        actor: whom the files are touched as; None for this process itself, and for root, to whom it is equal.
    """

    actor: Actor | None = None

    @abstractmethod
    def acting(self) -> AbstractContextManager[None]:
        """Take the caller's file-system identity on this thread for the block; always given back at its end."""

    def leaving(self) -> AbstractContextManager[None]:
        """As `acting`, to take away what was made as the caller, who may have gone meanwhile."""
        return self.acting()

    @abstractmethod
    def open_root(self) -> Directory:
        """The caller's root directory: absolute local paths are resolved in it and cannot leave it."""

    @abstractmethod
    def open_workspace(self, volume_path: str) -> Directory:
        """The workspace mounted at `volume_path`; paths below it cannot leave it.

        Raises:
            BackendUnavailable, InvalidPath, PermissionDenied: it cannot be opened as the caller.
        """

    def open_local(self, path: str) -> int:
        """A descriptor for reading the caller's regular file at the absolute `path`. Call inside `acting()`."""
        with self.open_root() as root:
            return root.open_regular(_below_root(path))

    @contextmanager
    def local_parent(self, path: str) -> Iterator[tuple[Directory, str]]:
        """The existing directory of the caller's `path`, and its last component. Call inside `acting()`."""
        with self.open_root() as root, root.parent(_below_root(path)) as found:
            yield found


class SelfView(FileView):
    """The process's own files and identity: a library used alone, or a sidecar sharing its task's volumes."""

    @contextmanager
    def acting(self) -> Iterator[None]:
        yield

    def open_root(self) -> Directory:
        return Directory(os.open("/", os.O_PATH | os.O_DIRECTORY), linux.RESOLVE_IN_ROOT)

    def open_workspace(self, volume_path: str) -> Directory:
        with os_errors(f"open the workspace at {quoted(volume_path)}", missing=InvalidPath):
            return Directory(os.open(volume_path, os.O_PATH | os.O_DIRECTORY), WORKSPACE_RESOLVE)


# A mount inside a workspace belongs to another workspace or to nobody: it is not entered.
WORKSPACE_RESOLVE = linux.RESOLVE_BENEATH | linux.RESOLVE_NO_XDEV


def refuse_special(mode: int, name: str) -> None:
    """Refuse to put a file in the place of what is none: /dev/null replaced harms all who use it.

    Args:
        mode: of what is there, itself; symbolic links are replaced as files are.

    Raises:
        AlreadyExists: a directory, a device, a named pipe or a socket is there.
    """
    if kind := _SPECIAL.get(stat.S_IFMT(mode)):
        raise AlreadyExists(f"a {kind} is already at {quoted(name)}")


def check_file_path(path: str, field: str = "file_path") -> None:
    """Refuse a workspace path that is not relative and in its one canonical spelling.

    The kernel confines paths in any case; this keeps one name for one file, in the catalog and across
    backends.

    Raises:
        InvalidPath: naming the field and what is accepted.
    """
    if _PLAIN_PATH.fullmatch(path):  # most are, and listings check many
        return
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidPath(f"{field} {quoted(path)} is not valid UTF-8 text") from None
    parts = path.split("/")
    if len(encoded) > _LONGEST_PATH or any(len(part) > _LONGEST_NAME for part in encoded.split(b"/")):
        raise InvalidPath(f"{field} {quoted(path)} is too long: a name has at most 255 bytes, a path 4095")
    if "\0" in path:
        raise InvalidPath(f"{field} {quoted(path)} holds a NUL byte")
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidPath(
            f"{field} {quoted(path)} must be relative to the workspace, without empty, '.' or '..' components"
        )
    if any(part.startswith(TEMPORARY_PREFIX) for part in parts):
        raise InvalidPath(
            f"{field} {quoted(path)}: names that begin {TEMPORARY_PREFIX!r} are kept for unfinished files"
        )


def is_file_path(path: str) -> bool:
    """Whether `check_file_path` accepts it."""
    try:
        check_file_path(path)
    except InvalidPath:
        return False
    return True


def check_prefix(prefix: str) -> None:
    """Refuse a listing's prefix whose directories are not a canonical workspace path.

    Raises:
        InvalidPath: naming what is accepted.
    """
    directory = prefix.rpartition("/")[0]
    if directory or prefix.startswith("/"):
        check_file_path(directory, "prefix")
    if "\0" in prefix:
        raise InvalidPath(f"prefix {quoted(prefix)} holds a NUL byte")


def check_local_path(path: str) -> None:
    """Refuse a local path that is not absolute or names no file.

    Raises:
        InvalidPath: naming what is accepted.
    """
    if "\0" in path:
        raise InvalidPath(f"local_path {quoted(path)} holds a NUL byte")
    if not path.startswith("/"):
        raise InvalidPath(f"local_path {quoted(path)} must be absolute")
    if path.rpartition("/")[2] in ("", ".", ".."):
        raise InvalidPath(f"local_path {quoted(path)} must end in a file name")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise InvalidPath(f"local_path {quoted(path)} cannot be a file name") from None


def _below_root(path: str) -> str:
    return path.lstrip("/")


def _make_directory(above: Directory, name: str) -> bool:
    """Make a directory, unless somebody just has; whether it was made."""
    try:
        os.mkdir(name, DIRECTORY_MODE, dir_fd=above.fd)
    except FileExistsError:
        return False
    return True


def _lift_umask(above: Directory, name: str) -> None:
    """Give the directory just made the mode that the process's umask may have kept from it."""
    if linux.umask() & DIRECTORY_MODE:
        # Only a library user's umask: in the sidecar, another user could exchange the name for a private directory
        # of the caller's before it is opened.
        fd = os.open(name, os.O_RDONLY | _O_DIRECTORY, dir_fd=above.fd)
        try:
            os.fchmod(fd, DIRECTORY_MODE)
        finally:
            os.close(fd)


def is_gone(error: OSError) -> bool:
    """Whether the error says that nothing is at the path."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR)

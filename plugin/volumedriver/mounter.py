"""Mounts and mountpoints. The only module that makes mount calls.

Everything goes by descriptor: the source is cloned from the descriptor that was checked, made private and
read-only while it is still detached, and only then attached. So no path can be exchanged in between, and no
container sees a moment of it that was writable or tied to the host's own mounts.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
from collections.abc import Iterator
from typing import Protocol

import structlog

from storage import linux
from storage.mountinfo import Mount, parse_mounts, read_mounts
from volumedriver.errors import MountFailed, reason

log = structlog.get_logger()


class Mounter(Protocol):
    """Binds directories to mountpoints. Callers never work on one mountpoint from two threads at once."""

    def mount(self, source_fd: int | None, mountpoint: str, *, read_only: bool) -> None:
        """Show the directory behind `source_fd`, without what is mounted beneath it, at `mountpoint`.

        None is for a volume without files: what is mounted then is its *token*, an empty directory of a file
        system that is this mount's alone. Nobody can write there, not even root; whether the mount itself is
        read-only can still be told, by everybody who sees it.

        The mountpoint is made where it is missing, and removed again on failure. The mount is not tied to
        the source's: what is mounted or unmounted below one of them later does not appear below the other.

        Raises:
            MountFailed: also where something is mounted there: nothing is ever mounted on top.
        """

    def unmount(self, mountpoint: str) -> None:
        """Take everything off `mountpoint` at once, in use or not, and remove the mountpoint.

        That nothing is mounted there, or that it does not exist, is no error. The mountpoint is removed only
        while empty: files are never removed.

        Raises:
            MountFailed: it is still mounted.
        """

    def is_mounted(self, mountpoint: str) -> bool:
        """Whether something is mounted at exactly `mountpoint`. Never waits for a file system."""

    def mountpoints(self, directory: str) -> set[str]:
        """The paths in `directory`, one level down, at which something is mounted."""


_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_SYS_UMOUNT2 = {"x86_64": 166, "aarch64": 39}.get(os.uname().machine)

_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV, _MOUNT_ATTR_NOEXEC = 0x01, 0x02, 0x04, 0x08
_CLOEXEC = 0x01  # of fsopen and of fsmount
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_MS_PRIVATE, _MS_SLAVE = 1 << 18, 1 << 19
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MNT_DETACH, _UMOUNT_NOFOLLOW = 0x02, 0x08
_HERE = ctypes.c_char_p(b"")


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class KernelMounter:
    """The real one. Needs Linux 5.12 and CAP_SYS_ADMIN.

    Raises:
        MountFailed: one of them is missing.
    """

    def __init__(self) -> None:
        try:
            _set_attributes(-1, 0, 0)
        except OSError as error:
            _check_support(error)

    def mount(self, source_fd: int | None, mountpoint: str, *, read_only: bool) -> None:
        with _failures("mount at", mountpoint), contextlib.ExitStack() as undo:
            _make_mountpoint(mountpoint, undo)
            if self.is_mounted(mountpoint):
                raise OSError(errno.EBUSY, "something is mounted there already")
            with _closing(_token(mountpoint) if source_fd is None else _cloned(source_fd)) as tree:
                _set_attributes(tree, _MOUNT_ATTR_RDONLY if read_only else 0, _MS_PRIVATE)
                flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                with _closing(os.open(mountpoint, flags)) as target:
                    _attach(tree, target)
            undo.pop_all()

    def unmount(self, mountpoint: str) -> None:
        with _failures("unmount", mountpoint):
            with contextlib.suppress(FileNotFoundError):
                while _detached_one(mountpoint):
                    pass
            if self.is_mounted(mountpoint):
                raise OSError(errno.EINVAL, "the mount is locked by another mount namespace")
        _remove_mountpoint(mountpoint)

    def is_mounted(self, mountpoint: str) -> bool:
        # Only lines that mention the path are parsed: this runs at every Mount, on hosts with many mounts.
        needle = _escaped(mountpoint)
        with open("/proc/self/mountinfo", "rb") as lines:
            mentions = [line for line in lines if needle in line]
        return any(mount.mountpoint == mountpoint for mount in parse_mounts(mentions))

    def mountpoints(self, directory: str) -> set[str]:
        return mounted_in(directory, read_mounts())


def _escaped(path: str) -> bytes:
    """`path` as mountinfo writes it."""
    return re.sub(rb"[ \t\n\\]", lambda match: b"\\%03o" % ord(match[0]), os.fsencode(path))


def mounted_in(directory: str, mounts: list[Mount]) -> set[str]:
    """The mountpoints one level below `directory`."""
    return {mount.mountpoint for mount in mounts if os.path.dirname(mount.mountpoint) == directory}


def follower_of_root() -> int:
    """A detached copy of `/` and all below it, into which later mounts and unmounts there propagate."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    tree = linux.syscall(_SYS_OPEN_TREE, ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(b"/"), ctypes.c_uint(flags))
    try:
        _set_attributes(tree, 0, _MS_SLAVE, recursive=True)
    except OSError:
        os.close(tree)
        raise
    return tree


def replace(mountpoint: str, tree_fd: int) -> None:
    """Exchange what is mounted at `mountpoint` for the detached `tree_fd`, which is closed."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with _closing(tree_fd):
        with _closing(os.open(mountpoint, flags)) as old:
            # Private first, all of it: were anything in it shared with the host, detaching would unmount there.
            _set_attributes(old, 0, _MS_PRIVATE, recursive=True)
        _detached_one(mountpoint)
        with _closing(os.open(mountpoint, flags)) as target:
            _attach(tree_fd, target)


def _check_support(error: OSError) -> None:
    if error.errno == errno.ENOSYS:
        raise MountFailed(
            "the kernel does not offer mount_setattr(2): brokervol needs Linux 5.12 or newer,"
            f" this is {os.uname().release}"
        ) from error
    if error.errno == errno.EPERM:
        raise MountFailed("the driver may not mount: it needs CAP_SYS_ADMIN") from error


def _cloned(source_fd: int) -> int:
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | linux.AT_EMPTY_PATH
    return linux.syscall(_SYS_OPEN_TREE, ctypes.c_int(source_fd), _HERE, ctypes.c_uint(flags))


def _token(mountpoint: str) -> int:
    """A detached mount of a new, empty file system that is read-only itself, whatever the mounts of it are.

    Its source names the volume: device numbers come again, so they alone would not tell two tokens apart.
    """
    fs = linux.syscall(_SYS_FSOPEN, ctypes.c_char_p(b"tmpfs"), ctypes.c_uint(_CLOEXEC))
    with _closing(fs):
        source = f"brokervol:{os.path.basename(mountpoint)}".encode()
        for key, value in ((b"source", source), (b"mode", b"0555"), (b"nr_inodes", b"1")):
            _configure(fs, _FSCONFIG_SET_STRING, key, value)
        _configure(fs, _FSCONFIG_SET_FLAG, b"ro", None)
        _configure(fs, _FSCONFIG_CMD_CREATE, None, None)
        attributes = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | _MOUNT_ATTR_NOEXEC
        return linux.syscall(_SYS_FSMOUNT, ctypes.c_int(fs), ctypes.c_uint(_CLOEXEC), ctypes.c_uint(attributes))


def _configure(fs: int, command: int, key: bytes | None, value: bytes | None) -> None:
    texts = ctypes.c_char_p(key), ctypes.c_char_p(value)
    linux.syscall(_SYS_FSCONFIG, ctypes.c_int(fs), ctypes.c_uint(command), *texts, ctypes.c_int(0))


def _set_attributes(tree_fd: int, attributes: int, propagation: int, *, recursive: bool = False) -> None:
    flags = linux.AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    request = _MountAttr(attr_set=attributes, propagation=propagation)
    linux.syscall(
        _SYS_MOUNT_SETATTR,
        ctypes.c_int(tree_fd),
        _HERE,
        ctypes.c_uint(flags),
        ctypes.byref(request),
        ctypes.c_size_t(ctypes.sizeof(request)),
    )


def _attach(tree_fd: int, target_fd: int) -> None:
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)
    linux.syscall(_SYS_MOVE_MOUNT, ctypes.c_int(tree_fd), _HERE, ctypes.c_int(target_fd), _HERE, flags)


def _detached_one(mountpoint: str) -> bool:
    """Detach the top mount of `mountpoint`; False where there is none."""
    if _SYS_UMOUNT2 is None:
        raise OSError(errno.ENOSYS, f"umount2 has no known number on {os.uname().machine}")
    path = ctypes.c_char_p(os.fsencode(mountpoint))
    try:
        linux.syscall(_SYS_UMOUNT2, path, ctypes.c_int(_MNT_DETACH | _UMOUNT_NOFOLLOW))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def _make_mountpoint(mountpoint: str, undo: contextlib.ExitStack) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(mountpoint, 0o700)
        undo.callback(_remove_mountpoint, mountpoint)


def _remove_mountpoint(mountpoint: str) -> None:
    try:
        os.rmdir(mountpoint)
    except FileNotFoundError:
        pass
    except OSError as error:  # not empty, or busy: whatever it is, it is not ours to remove
        log.warning("mountpoint left in place", mountpoint=mountpoint, reason=reason(error))


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _failures(action: str, mountpoint: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MountFailed(f"cannot {action} {mountpoint}: {reason(error)}") from error

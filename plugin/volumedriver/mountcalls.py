"""The kernel's mount calls, by descriptor wherever there is a choice: for `mounter`, and for workers.

Thin and stateless: numbers follow the kernel's UAPI headers (`linux/mount.h`), every failure is an OSError with
the kernel's errno. Imports little, since workers do too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator

from storage import linux

RDONLY, NOSUID, NODEV, NOEXEC = 0x01, 0x02, 0x04, 0x08
NOATIME, NODIRATIME = 0x10, 0x80
PRIVATE, SLAVE = 1 << 18, 1 << 19

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_SYS_UMOUNT2 = {"x86_64": 166, "aarch64": 39}.get(os.uname().machine)
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}.get(os.uname().machine)

_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
_CLOEXEC = 0x01  # of fsopen and of fsmount
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MNT_DETACH, _UMOUNT_NOFOLLOW = 0x02, 0x08
_LONGEST_MESSAGE = 4096
_HERE = ctypes.c_char_p(b"")
_CLONE_NEWNS = 0x00020000

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class NewFileSystem:
    """A file system that is being configured: fsopen(2). `messages` is what the kernel has to say about it."""

    def __init__(self, fs_type: str) -> None:
        name = ctypes.c_char_p(fs_type.encode())
        self._fd = linux.syscall(_SYS_FSOPEN, name, ctypes.c_uint(_CLOEXEC), path=fs_type)

    def set(self, key: str, value: str | None) -> None:
        """Set a parameter; None for one that is only named."""
        command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
        self._configure(command, key.encode(), None if value is None else os.fsencode(value))

    def mounted(self, attributes: int) -> int:
        """Have the kernel make it; returns a detached mount, which ends with its descriptor unless attached."""
        self._configure(_FSCONFIG_CMD_CREATE, None, None)
        flags = ctypes.c_uint(_CLOEXEC), ctypes.c_uint(attributes)
        return linux.syscall(_SYS_FSMOUNT, ctypes.c_int(self._fd), *flags)

    def messages(self) -> list[str]:
        """What the kernel has said since the last time, without the level."""
        said = []
        with contextlib.suppress(OSError):  # ENODATA: that was all
            while message := os.read(self._fd, _LONGEST_MESSAGE):
                said.append(message.decode(errors="replace").strip()[2:])
        return said

    def _configure(self, command: int, key: bytes | None, value: bytes | None) -> None:
        texts = ctypes.c_char_p(key), ctypes.c_char_p(value)
        linux.syscall(_SYS_FSCONFIG, ctypes.c_int(self._fd), ctypes.c_uint(command), *texts, ctypes.c_int(0))

    def __enter__(self) -> NewFileSystem:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def cloned(source_fd: int) -> int:
    """A detached mount of the directory behind `source_fd`, without what is mounted beneath it."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | linux.AT_EMPTY_PATH
    return linux.syscall(_SYS_OPEN_TREE, ctypes.c_int(source_fd), _HERE, ctypes.c_uint(flags))


def cloned_root() -> int:
    """A detached copy of `/` and all that is mounted below it."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    return linux.syscall(_SYS_OPEN_TREE, ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(b"/"), ctypes.c_uint(flags))


def set_attributes(
    tree_fd: int, attributes: int, propagation: int, *, cleared: int = 0, recursive: bool = False
) -> None:
    """Add `attributes` to a mount, take `cleared` from it, and set its propagation."""
    flags = linux.AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    request = _MountAttr(attr_set=attributes, attr_clr=cleared, propagation=propagation)
    linux.syscall(
        _SYS_MOUNT_SETATTR,
        ctypes.c_int(tree_fd),
        _HERE,
        ctypes.c_uint(flags),
        ctypes.byref(request),
        ctypes.c_size_t(ctypes.sizeof(request)),
    )


def enter(namespace_fd: int) -> None:
    """Make a mount namespace this process's own, which must have one thread only; `/` is that namespace's then."""
    if _libc.setns(ctypes.c_int(namespace_fd), ctypes.c_int(_CLONE_NEWNS)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "setns")


def leave_namespace() -> None:
    """Give this process, which must have one thread only, a copy of its mount namespace."""
    if _libc.unshare(ctypes.c_int(_CLONE_NEWNS)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "unshare")


def make_root(tree_fd: int) -> None:
    """Make `tree_fd`, which is mounted on `/`, this mount namespace's root, and detach all the rest."""
    if _SYS_PIVOT_ROOT is None or _SYS_UMOUNT2 is None:
        raise OSError(errno.ENOSYS, f"pivot_root has no known number on {os.uname().machine}")
    os.fchdir(tree_fd)
    here = ctypes.c_char_p(b".")
    linux.syscall(_SYS_PIVOT_ROOT, here, here, path="/")
    linux.syscall(_SYS_UMOUNT2, here, ctypes.c_int(_MNT_DETACH), path="/")  # the old root lies on the new one now


def attach(tree_fd: int, target_fd: int) -> None:
    """Mount the detached tree on the directory behind `target_fd`."""
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)
    linux.syscall(_SYS_MOVE_MOUNT, ctypes.c_int(tree_fd), _HERE, ctypes.c_int(target_fd), _HERE, flags)


def detached_one(mountpoint: str) -> bool:
    """Detach the top mount of `mountpoint`; False where there is none.

    It is off the namespace before anything can wait. But where nobody else uses the file system, this call ends
    it, and with an NFS server of version 4.1 or newer that is silent that takes until the caller is killed.
    """
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


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """`fd`, closed in the end."""
    try:
        yield fd
    finally:
        os.close(fd)

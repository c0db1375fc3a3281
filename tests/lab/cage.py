"""Run a command that can change files in one place only: `cage.py DIRECTORY [SOURCE=TARGET ...] -- COMMAND`.

For programs that are given hostile paths on purpose: should one of them do with such a path what it must not, the
machine's own files are read-only for it. In a mount namespace of its own, every mount is made read-only but
DIRECTORY, and each SOURCE, which is bound over an existing TARGET. Needs root.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd"))


def caged(directory: object, *binds: str) -> list[str]:
    """What to put before a command."""
    return [sys.executable, "-P", __file__, str(directory), *binds, "--"]


def enter(directory: str, binds: Sequence[str] = ()) -> None:
    """Have this process in such a cage, and all that it starts."""
    _must(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount(None, "/", _MS_REC | _MS_PRIVATE)
    writable = [directory]
    _mount(directory, directory, _MS_BIND)
    for bind in binds:
        source, _, target = bind.partition("=")
        _mount(source, target, _MS_BIND)
        writable.append(target)
    _set_attributes("/", _AT_RECURSIVE, _MountAttributes(set=_MOUNT_ATTR_RDONLY))
    for path in writable:
        _set_attributes(path, 0, _MountAttributes(clear=_MOUNT_ATTR_RDONLY))


def _mount(source: str | None, target: str, flags: int) -> None:
    encoded = os.fsencode(source) if source else None
    _must(_libc.mount(encoded, os.fsencode(target), None, ctypes.c_ulong(flags), None), f"mount {target}")


def _set_attributes(path: str, flags: int, attributes: _MountAttributes) -> None:
    call = ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_int(_AT_FDCWD), ctypes.c_char_p(os.fsencode(path))
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _must(_libc.syscall(*call, ctypes.c_uint(flags), ctypes.byref(attributes), size), f"mount_setattr {path}")


def _must(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)


def main(arguments: Sequence[str]) -> None:
    split = arguments.index("--")
    directory, *binds = arguments[:split]
    command = list(arguments[split + 1 :])
    enter(directory, binds)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])

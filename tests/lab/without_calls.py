"""Run a command as on an older kernel: `without_calls.py NUMBER[,NUMBER ...] -- COMMAND`.

System calls of these numbers are answered ENOSYS, by a seccomp filter that the command and all it starts inherit.
The numbers are those of calls that have the same on all machines of Linux, 424 and above.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Sequence

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD_NUMBER = struct.pack("HBBI", 0x20, 0, 0, 0)  # the first word of seccomp_data
_ALLOW = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
_ENOSYS = struct.pack("HBBI", 0x06, 0, 0, 0x00050000 | 38)

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def without(*numbers: int) -> list[str]:
    """What to put before a command."""
    return [sys.executable, "-P", __file__, ",".join(map(str, numbers)), "--"]


def install(numbers: Sequence[int]) -> None:
    """Have this process, and all that it starts, without these calls."""
    code = _LOAD_NUMBER
    for number in numbers:
        code += struct.pack("HBBI", 0x15, 0, 1, number) + _ENOSYS  # if it is another, skip one instruction
    code += _ALLOW
    program = _Program(len(code) // 8, code)
    for option, *values in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program)),
    ):
        if _libc.prctl(ctypes.c_int(option), *map(ctypes.c_ulong, values), *[ctypes.c_ulong(0)] * 2) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "prctl")


def main(arguments: Sequence[str]) -> None:
    numbers, _, *command = arguments
    install([int(number) for number in numbers.split(",")])
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])

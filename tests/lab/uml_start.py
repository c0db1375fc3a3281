"""Starts user-mode Linux, in a process of its own: `python uml_start.py PROGRAM ARGUMENT ...`.

All its processes end with ours, however we end. And where this machine's processor has AMX, ptrace(2) tells more
registers than this kernel has room for, and it dies of that; so it is told that ptrace knows none of the newer.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_SYS_PTRACE, _PTRACE_GETREGSET, _EIO = 101, 0x4204, 5
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _FIRST_ARGUMENT = 0, 16  # offsets in struct seccomp_data
_FILTER = (
    (_LOAD, 0, 0, _NUMBER),
    (_JUMP_IF_EQUAL, 0, 3, _SYS_PTRACE),
    (_LOAD, 0, 0, _FIRST_ARGUMENT),
    (_JUMP_IF_EQUAL, 0, 1, _PTRACE_GETREGSET),
    (_RETURN, 0, 0, _ERRNO | _EIO),
    (_RETURN, 0, 0, _ALLOW),
)
_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _prctl(option: int, value: int, pointer: object = None) -> None:
    zero = ctypes.c_ulong(0)
    if _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), pointer or zero, zero, zero) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _hide_registers() -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in _FILTER))
    program = _Program(len(_FILTER), ctypes.addressof(code))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))


def _has_amx() -> bool:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        return "amx_tile" in lines.read().split()


def main(command: list[str]) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if _has_amx():
        _hide_registers()
    os.execvp("unshare", ["unshare", "--pid", "--fork", "--kill-child", *command])  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main(sys.argv[1:])

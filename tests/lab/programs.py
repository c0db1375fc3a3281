"""Programs small enough to be written by hand: what a task's bare root directory can run."""

from __future__ import annotations

import os
import struct

# pause() for ever; on arm64, which has none, ppoll() of nothing.
_PAUSE = {
    "x86_64": (62, bytes.fromhex("b8220000000f05ebf7")),
    "aarch64": (183, struct.pack("<7I", *(0xD2800000 + n for n in range(4)), 0xD2800928, 0xD4000001, 0x17FFFFFA)),
}


def pausing_program() -> bytes:
    """An executable that does nothing until it is killed: an ELF header, one segment, a few instructions."""
    machine, code = _PAUSE[os.uname().machine]
    base, header_size = 0x400000, 64 + 56
    size = header_size + len(code)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, base + header_size, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return identity + header + segment + code

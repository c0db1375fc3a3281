"""Paths that attack or trip a file service: one table for every suite."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# Never a file of a workspace: refused as a workspace path by every operation.
REFUSED_PATHS = [
    "",
    ".",
    "..",
    "../secret",
    "../../../../../../etc/passwd",
    "a/../../secret",
    "a/..",
    "a/../b",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    "/etc/passwd",
    "//etc/passwd",
    "a\0b",
    "\0",
    "x" * 256,
    "/".join(["y" * 200] * 25),
    "not-utf8-\udcff",
    "lone-\ud800-surrogate",
    ".brokervol-0123456789abcdef.part",
    "a/.brokervol-x",
]

# Legal names that careless code mangles: they must work, exactly as they are.
WEIRD_NAMES = [
    "with space",
    " leading and trailing ",
    "quote's",
    'double"quote',
    "back\\slash",
    "new\nline",
    "tab\tand\rreturn",
    "\x01\x1b[31mcontrol\x7f",
    "-rf",
    "--help",
    "*?[a-z]{x,y}",
    "$(touch pwned)`id`;&|<>",
    "%2e%2e%2fsecret",
    "%00",
    "plus+percent%hash#question?",
    "colon:name",
    "~root",
    "...",
    ".hidden",
    "CON",
    "x" * 255,
    "ü" * 127,
    "e\u0301 decomposed",
    "\u00e9 composed",
    "\u202eright-to-left",
    "\ufeffbom",
    "漢字 😀",
    "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p",
]

# Symbolic links planted inside a workspace, (name, target): following any of them would leave it.
ESCAPING_LINKS = [
    ("to-parent", ".."),
    ("to-secret", "../secret"),
    ("to-root", "/"),
    ("to-etc", "/etc"),
    ("to-absolute-secret", "{outside}/secret"),
    ("through-proc", "/proc/self/root"),
    ("up-and-down", "../../../../../../../../etc"),
]

# Every one is a name of its own, though some file services take two of them for the same.
ALIKE_NAMES = [
    "\u00e9",
    "e\u0301",
    "\u212b",
    "\u00c5",
    "A\u030a",
    "name",
    "NAME",
    "a b",
    "a+b",
    "a%20b",
    "a%2Bb",
    "dot",
    "dot.",
    "dot ",
]

# Never a prefix of a listing.
REFUSED_PREFIXES = ["/", "/etc", "//", "../", "../x", "a/../", "a//", "./a", "a\0", "a/./b"]


_RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one step, so that a racing reader always finds one or the other."""
    here = ctypes.c_int(-100)  # AT_FDCWD
    if _libc.renameat2(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)) != 0:
        raise OSError(ctypes.get_errno(), "renameat2", str(one))

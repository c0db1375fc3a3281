"""The steps of the driver's verbs: each change to its state, each system call, each directory made or removed.

At any of them something can fail, or the process be killed. Only for a process of the test's own, since what it
patches is `os` and libc themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from storage import linux
from storage.definitions import DefinitionStore
from volumedriver.errors import StateUnavailable
from volumedriver.store import ReferenceStore

_FULL = "database or disk is full"
_SYSTEM_CALLS = {
    437: "openat2",
    428: "open_tree",
    429: "move_mount",
    442: "mount_setattr",
    {"x86_64": 166, "aarch64": 39}.get(os.uname().machine, -1): "umount2",
}

Take = Callable[[str], bool]
"""Told the name of a step before it is taken; whether it is to fail."""


@contextlib.contextmanager
def seam(take: Take) -> Iterator[None]:
    """Have `take` told of each step in the block."""
    with contextlib.ExitStack() as undo:
        for method in ("intend", "set", "set_apart", "set_shown", "settle", "drop"):
            _patch(undo, take, ReferenceStore, method, StateUnavailable(_FULL))
        for method in ("add", "remove"):
            _patch(undo, take, DefinitionStore, method, sqlite3.OperationalError(_FULL))
        for function in ("mkdir", "rmdir"):
            _patch(undo, take, os, function, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        undo.callback(setattr, linux, "_libc", linux._libc)
        setattr(linux, "_libc", _Libc(take, linux._libc))  # noqa: B010  # mypy refuses it otherwise
        yield


def _patch(undo: contextlib.ExitStack, take: Take, owner: Any, name: str, error: Exception) -> None:
    real: Callable[..., Any] = getattr(owner, name)

    def step(*arguments: Any, **options: Any) -> Any:
        if take(f"{owner.__name__}.{name}"):
            raise error
        return real(*arguments, **options)

    undo.callback(setattr, owner, name, real)
    setattr(owner, name, step)


class _Libc:
    def __init__(self, take: Take, real: Any) -> None:
        self._take = take
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def syscall(self, number: ctypes.c_long, *arguments: Any) -> int:
        if self._take(_SYSTEM_CALLS.get(number.value, f"system call {number.value}")):
            ctypes.set_errno(errno.EIO)
            return -1
        return int(self._real.syscall(number, *arguments))


class Steps:
    """Counts steps from 1; at step `at` the process is killed, or the step fails."""

    def __init__(self, at: int, *, is_kill: bool) -> None:
        self.taken: list[str] = []
        self._at = at
        self._is_kill = is_kill

    @property
    def is_reached(self) -> bool:
        return len(self.taken) >= self._at

    def in_place(self) -> contextlib.AbstractContextManager[None]:
        """Take the steps of everything in the block."""
        return seam(self._take)

    def _take(self, name: str) -> bool:
        self.taken.append(name)
        if len(self.taken) != self._at:
            return False
        if self._is_kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return True


def killed_at(number: int, prepare: Callable[[], object], act: Callable[[], object]) -> bool:
    """Run both in a process that is killed at this step of `act`; False when it came to its end before."""
    child = os.fork()
    if child == 0:
        try:
            prepare()
            with Steps(number, is_kill=True).in_place():
                act()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "what should be killed failed by itself"
    return False

"""Faults in the system calls that the library makes, at one seam: the `os` and the libc that its modules see.

Only those modules see them, so the test, its database and its clean-up go on with the real ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from storage import linux

# The calls that can fail, each a step. What a step does to names can be done although its answer is lost.
CHANGES_OF_NAMES = frozenset(("link", "rename", "renameat2", "symlink", "unlink", "mkdir", "rmdir"))
_CALLS_OF_OS = CHANGES_OF_NAMES | frozenset(
    (
        "open",
        "fstat",
        "lseek",
        "copy_file_range",
        "pread",
        "pwrite",
        "write",
        "ftruncate",
        "fchmod",
        "chmod",
        "fsync",
    )
)
_CALLS_OF_LIBC = {"syscall": "openat2", "renameat2": "renameat2", "sync_file_range": "sync_file_range"}


@dataclass
class Fault:
    """What happens at one step.

    Attributes:
        at: number of the step, from 1; 0 for none.
        code: the errno that it fails with; None to be killed there, before the call.
        lasts: every step from there on fails, as when a server is gone.
        is_done: the call is made, and its answer is the error, as when a reply is lost.
    """

    at: int
    code: int | None = None
    lasts: bool = False
    is_done: bool = False


@dataclass
class Kernel:
    """What the library's system calls meet.

    Attributes:
        is_nfs: as on an NFS mount, there are no nameless files, no renameat2 flags and no copy_file_range.
        steps: the calls made so far, by name.
        broken: the functions that a fault was met in, innermost first.
        meanwhile: called before each step with its name: what else happens on the machine.
    """

    fault: Fault = field(default_factory=lambda: Fault(0))
    is_nfs: bool = False
    meanwhile: Callable[[str], object] | None = None
    steps: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @contextmanager
    def in_place(self) -> Iterator[Kernel]:
        """Let the library's modules meet it in the block."""
        places = [(module, "os", os) for module in _modules()] + [(linux, "_libc", linux._libc)]
        for module, name, real in places:
            setattr(module, name, _Proxy(self, real))
        try:
            yield self
        finally:
            for module, name, real in places:
                setattr(module, name, real)

    def call(self, name: str, arguments: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Make a step's call, or let its fault happen; an OSError, whoever makes it."""
        self.steps.append(name)
        if self.meanwhile is not None:
            self.meanwhile(name)
        number, at = len(self.steps), self.fault.at
        if number == at or (self.fault.lasts and 0 < at < number):
            self._break(name, make)
        if self.is_nfs and _is_not_on_nfs(name, arguments):
            raise OSError(errno.EINVAL if name == "renameat2" else errno.EOPNOTSUPP, "as on NFS")
        return make()

    def _break(self, name: str, make: Callable[[], Any]) -> None:
        if self.fault.code is None:
            os.kill(os.getpid(), signal.SIGKILL)
        if not self.broken:
            self.broken = list(_callers())
        # A descriptor is gone also when close(2) fails.
        if name == "close" or (self.fault.is_done and name in CHANGES_OF_NAMES):
            make()
        code = self.fault.code or 0
        raise OSError(code, os.strerror(code))


@functools.cache
def _modules() -> list[ModuleType]:
    """The library's modules that make system calls."""
    library = [module for name, module in sys.modules.items() if name.startswith("storage.")]
    return [module for module in library if getattr(module, "os", None) is os]


class _Proxy:
    """`os` or libc with steps in it."""

    def __init__(self, kernel: Kernel, real: Any) -> None:
        self._kernel = kernel
        self._real = real

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if self._real is not os:
            return self._of_libc(_CALLS_OF_LIBC[name], real) if name in _CALLS_OF_LIBC else real
        if name == "close":
            return self._close
        if name not in _CALLS_OF_OS:
            return real
        return lambda *arguments, **options: self._kernel.call(
            name, arguments, lambda: real(*arguments, **options)
        )

    def _of_libc(self, name: str, real: Any) -> Callable[..., int]:
        def function(*arguments: Any) -> int:
            try:
                return int(self._kernel.call(name, arguments, lambda: real(*arguments)))
            except OSError as error:
                ctypes.set_errno(error.errno or 0)
                return -1

        return function

    def _close(self, fd: int) -> None:
        """A step only where it can fail: for a file that was written to."""
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            os.close(fd)
        else:
            self._kernel.call("close", (fd,), lambda: os.close(fd))


def _is_not_on_nfs(name: str, arguments: tuple[Any, ...]) -> bool:
    is_nameless = name == "open" and arguments[1] & os.O_TMPFILE == os.O_TMPFILE
    return is_nameless or name in ("renameat2", "copy_file_range")


def _callers() -> Iterator[str]:
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        yield frame.f_code.co_qualname


def descriptors() -> int:
    """How many files and directories this process has open.

    Sockets, pipes and databases do not count: they belong to fixtures of the whole run, whose threads and the
    garbage collector open and close them at any time.
    """
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/self/fd/{descriptor}")
            found += target.startswith("/") and ".sqlite" not in target and not target.startswith("/proc/")
    return found

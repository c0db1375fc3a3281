"""Mounting in tests without danger: in a mount namespace that ends with its processes.

A mount that leaked into the machine's own namespace, and a recursive delete of a temporary directory after it,
would be somebody's data. So nothing is ever mounted there.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from storage.mountinfo import Mount, read_mounts

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_REC_PRIVATE = 0x4000 | 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


class Host:
    """A mount namespace that stands for a Docker host, with a shared tmpfs at `directory` for its root.

    It lives until its standard input is closed, which also happens when the test run is killed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        script = 'mount -t tmpfs -o mode=755 lab "$0" && mount --make-shared "$0" && echo ready && exec cat'
        self._process = subprocess.Popen(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", script, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        _await_ready(self._process)

    @property
    def files(self) -> Path:
        """The files of this host, as seen from the test's own namespace."""
        return Path(f"/proc/{self.pid}/root{self.directory}")

    @property
    def entering(self) -> list[str]:
        """What to put before a command to run it in this namespace."""
        return ["nsenter", "-t", str(self.pid), "-m", "--"]

    @property
    def entering_as_plugin(self) -> list[str]:
        """The same, in a copy of the namespace whose mounts propagate here: a managed plugin's."""
        return [*self.entering, "unshare", "-m", "--propagation", "unchanged"]

    def run(self, *command: str) -> None:
        subprocess.run([*self.entering, *command], check=True)

    def mounts(self) -> list[Mount]:
        """What is mounted on this host, its root itself left out; mountpoints are relative to it."""
        prefix = f"{self.directory}/"
        return [
            mount for mount in read_mounts(f"/proc/{self.pid}/mountinfo") if mount.mountpoint.startswith(prefix)
        ]

    @contextlib.contextmanager
    def container(self, source: str) -> Iterator[int]:
        """A process with a mount namespace of its own that has `source` of this host mounted at `/container`."""
        (self.files / "container").mkdir(exist_ok=True)
        process = subprocess.Popen(
            [
                *self.entering,
                *("unshare", "-m", "--propagation", "slave"),
                *("sh", "-c", 'mount --bind "$0" "$1" && echo ready && exec cat'),
                *(source, f"{self.directory}/container"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            _await_ready(process)
            yield process.pid
        finally:
            _end(process)

    def close(self) -> None:
        _end(self._process)
        self.directory.rmdir()  # empty on the outside: the tmpfs was never mounted there


def _await_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.communicate(timeout=20)


def in_private_namespace(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a child process with a private mount namespace; without root, run it as it is."""
    return _in_child(test, _CLONE_NEWNS)


def in_private_network(test: Callable[..., None]) -> Callable[..., None]:
    """The same with a private network as well, in which there is nothing but a loopback that is down."""
    return _in_child(test, _CLONE_NEWNS | _CLONE_NEWNET)


def _in_child(test: Callable[..., None], namespaces: int) -> Callable[..., None]:
    @functools.wraps(test)
    def wrapped(*arguments: object, **keywords: object) -> None:
        if os.geteuid() != 0:
            test(*arguments, **keywords)
            return
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            os._exit(_isolated(lambda: test(*arguments, **keywords), namespaces, writing))
        os.close(writing)
        with os.fdopen(reading, "rb") as report:
            failure = report.read().decode()
        _, status = os.waitpid(child, 0)
        assert status == 0, failure

    return wrapped


def _isolated(test: Callable[[], None], namespaces: int, report_fd: int) -> int:
    try:
        if _libc.unshare(namespaces) != 0 or _libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) != 0:
            raise OSError(ctypes.get_errno(), "no private namespace")
        test()
    except BaseException:
        os.write(report_fd, traceback.format_exc().encode())
        return 1
    return 0

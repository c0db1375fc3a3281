"""What mounting costs at least, and what it costs by the `mount` command.

As a process of its own, in the mount namespace of a host: `python -m bench.floor` answers a line of JSON with one.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.client import lives
from volumedriver import mountcalls

_MS_BIND, _MNT_DETACH = 0x1000, 0x02
_libc = ctypes.CDLL(None, use_errno=True)


def by_mount2(
    count: int, source: str, target: str, fs_type: str | None = None, data: str = ""
) -> dict[str, list[float]]:
    """mount(2) and umount2(2): a bind, or a file system of this type."""
    return _both(count, lambda: mount2(source, target, fs_type, data), lambda: umount2(target))


def by_descriptors(count: int, source: str, target: str) -> dict[str, list[float]]:
    """A bind by open_tree(2), mount_setattr(2) and move_mount(2), and umount2(2)."""
    source_fd = os.open(source, os.O_PATH)
    with mountcalls.closing(source_fd), mountcalls.closing(os.open(target, os.O_PATH)) as target_fd:

        def mount() -> None:
            with mountcalls.closing(mountcalls.cloned(source_fd)) as tree_fd:
                mountcalls.set_attributes(tree_fd, 0, mountcalls.PRIVATE)
                mountcalls.attach(tree_fd, target_fd)

        return _both(count, mount, lambda: mountcalls.detached_one(target))


def by_command(count: int, target: str, arguments: list[str]) -> dict[str, list[float]]:
    """The commands `mount` and `umount`."""
    return _both(count, lambda: _run("mount", *arguments, target), lambda: _run("umount", target))


def by_command_line(count: int, *command: str) -> list[float]:
    """The seconds of a program, so many times."""
    return [_seconds(lambda: _run(*command)) for _ in range(count)]


def mount2(source: str, target: str, fs_type: str | None = None, data: str = "") -> None:
    flags = ctypes.c_ulong(0 if fs_type else _MS_BIND)
    kind = fs_type.encode() if fs_type else None
    _checked(_libc.mount(source.encode(), target.encode(), kind, flags, data.encode() or None), "mount")


def umount2(target: str) -> None:
    _checked(_libc.umount2(target.encode(), _MNT_DETACH), "umount2")


def _both(count: int, mount: Callable[[], object], unmount: Callable[[], object]) -> dict[str, list[float]]:
    return lives([{"Mount": _seconds(mount), "Unmount": _seconds(unmount)} for _ in range(count)])


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _checked(result: int, call: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), call)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


_WAYS: dict[str, Callable[..., dict[str, list[float]]]] = {
    "mount2": by_mount2,
    "descriptors": by_descriptors,
    "command": by_command,
}


class Floor:
    """Such a process, which `prefix` puts into a mount namespace."""

    def __init__(self, prefix: list[str]) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "bench.floor"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def timings(self, way: str, count: int, **arguments: object) -> dict[str, list[float]]:
        """So many mounts and unmounts in the way `way`, with the `arguments` of its function here."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"way": way, "count": count, **arguments}) + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise RuntimeError("the process that mounts without a driver has ended")
        found: dict[str, list[float]] = json.loads(answer)
        return found

    def close(self) -> None:
        self._process.communicate(timeout=20)


def main() -> None:
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        print(json.dumps(_WAYS[request.pop("way")](**request)), flush=True)


if __name__ == "__main__":
    main()

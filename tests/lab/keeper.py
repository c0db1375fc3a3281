"""The process that a private engine lives and dies with: `engine.py` starts it, and talks to it in lines.

It is the subreaper of all that the engine starts: containers, shims and plugins whose parent was killed become
its children instead of init's, so "what belongs to this engine" is a question of parents, answered by process id.
When its standard input closes, however the test run ended, it ends them all and removes what they made.

It answers first with the process id of the anchor, which sleeps in the engine's mount namespace. Then each line
in is a JSON list, a command to start in that namespace, and each line out the process id of one. A last line, if
any, says what could not be cleaned.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_CGROUPS = Path("/sys/fs/cgroup")
# Engines of one machine must not meet in containerd's default socket, its shims' sockets or legacy plugins; and
# what dockerd and containerd write beyond the directories they are given (a key, an empty folder) must not stay.
_PRIVATE = ("/run/containerd", "/run/docker", "/etc/docker", "/opt/containerd")
# Shared mounts, as systemd makes them, for propagatedMount and rslave. Slave of the host's first: what the host
# mounts and unmounts arrives, what the engine mounts stays here.
_ANCHOR = """
set -e
mount --make-rshared /
for directory do mount -t tmpfs -o mode=755 brokervol-lab "$directory"; done
echo ready
exec sleep infinity
"""
_END_S = 20


class Unclean(Exception):
    """Something of the engine is left, and why."""


def descendants(ancestor: int) -> list[int]:
    """All processes below `ancestor`, parents before their children."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found = list(children.get(ancestor, []))
    for pid in found:  # grows while it is walked
        found += children.get(pid, [])
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with (
                contextlib.suppress(FileNotFoundError, ProcessLookupError),
                open(f"/proc/{name}/stat", "rb") as stat,
            ):
                state, parent = stat.read().rpartition(b")")[2].split()[:2]
                if state != b"Z":
                    yield int(name), int(parent)


def _start_anchor(private: list[str]) -> int:
    command = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", _ANCHOR, "anchor", *private]
    anchor = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert anchor.stdout is not None
    if anchor.stdout.readline() != b"ready\n":
        raise Unclean("no mount namespace could be made for the engine: it needs root and CAP_SYS_ADMIN")
    return anchor.pid


def _serve(anchor: int, log_path: Path) -> None:
    """Start what we are asked to start, until nobody is there to ask."""
    print(anchor, flush=True)
    signal.signal(signal.SIGCHLD, _reap)
    with log_path.open("ab") as log:
        for line in sys.stdin:
            command = ["nsenter", f"--mount=/proc/{anchor}/ns/mnt", "--", *json.loads(line)]
            started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            print(started.pid, flush=True)
            started.returncode = 0  # it is _reap that waits for it
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _end_all() -> None:
    """Kill until nothing is left: the last one takes the mount namespace with it."""
    deadline = time.monotonic() + _END_S
    while left := descendants(os.getpid()):
        if time.monotonic() > deadline:
            raise Unclean(f"processes {left} survived SIGKILL")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        _reap()


def cgroups(name: str) -> list[Path]:
    """Every cgroup of this name, in whatever hierarchies there are. Others may come and go meanwhile."""
    return [Path(group, name) for group, children, _ in os.walk(_CGROUPS) if name in children]


def _remove_cgroups(names: list[str]) -> None:
    for name in names:
        for top in cgroups(name):
            for group, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(group)


def _remove_made(made: list[str], lock: int) -> None:
    """Remove the empty directories that were made to mount on, unless another laboratory has its mounts there:
    to remove a directory takes away what is mounted on it in other mount namespaces."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    for path in made:
        os.rmdir(path)


def _remove(directory: Path) -> None:
    """Remove the engine's directory, once no process of this machine has anything mounted in it."""
    needle = f" {directory}/".encode()
    for mounts in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):
            if needle in mounts.read_bytes():
                raise Unclean(
                    f"process {mounts.parent.name} still has mounts below {directory}, which therefore stays"
                )
    shutil.rmtree(directory)


def main(directory: Path, cgroup: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    lock = os.open("/run", os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_SH)  # several laboratories may run at once
    made = [path for path in _PRIVATE if not os.path.exists(path)]
    try:
        for path in made:
            os.makedirs(path, exist_ok=True)
        _serve(_start_anchor(list(_PRIVATE)), directory / "dockerd.log")
    finally:
        _end_all()
        plugins = [path.name for path in (directory / "data" / "plugins").glob("*") if len(path.name) == 64]
        _remove_cgroups([cgroup, *plugins])
        _remove_made(made, lock)
        _remove(directory)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2])
    except (Unclean, OSError) as problem:
        print(problem, flush=True)
        sys.exit(1)

"""A pid that is used again, in a namespace of pids: `unshare --pid --fork --mount-proc python -m lab.reuse`.

A task connects and exits, and its connection is kept by a child; then the next process gets the pid that it had.
Prints, in JSON, what is answered on the connection before and after, and what the new process is answered.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from lab.directories import temporary_directory
from lab.processes import wait_until
from lab.task import Identity, Task
from lab.world import WS, World, served_workspace

_ATTEMPTS = 50


def _with_pid(world: World, pid: int) -> Task:
    """A task, with the workspace, that has this pid."""
    for _ in range(_ATTEMPTS):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        task = world.holder()
        if task.pid == pid:
            return task
        task.close()  # a thread of another process was faster
    raise AssertionError(f"pid {pid} could not be had again")


def main() -> None:
    with served_workspace() as (outer, sidecar), temporary_directory() as directory:
        world = World(directory, outer / "data", outer / "root" / "sidecar", sidecar)
        (world.data / "f").write_text("x")
        task = world.holder(identity=Identity(uid=1000, gid=1000))
        os.mkfifo(task.root / "tmp/go")
        number = task.attack("connect")
        before, _ = task.attack("ask_on", number, "GET", f"{WS}/files")
        task.attack("leave_connection", number, "/tmp/go", ("GET", f"{WS}/files", None), "/tmp/answer")
        task.close()
        with _with_pid(world, task.pid) as other:
            (task.root / "tmp/go").write_text("!")
            wait_until((task.root / "tmp/answer").exists, "the answer on the old connection")
            after = json.loads((task.root / "tmp/answer").read_text())
            print(json.dumps([before, after, other.get(f"{WS}/files").status]))


if __name__ == "__main__":
    main()

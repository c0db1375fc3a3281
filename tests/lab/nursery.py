"""A nursery whose workers do what a test asks: `python -m lab.nursery FD`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from volumedriver import nfs_worker
from volumedriver.nfs_request import Facts, Failure

Report = Callable[[Facts], None]


def _echo(request: Mapping[str, Any], fds: list[int], report: Report) -> Facts:
    del report
    return {
        "text": request["text"],
        "pid": os.getpid(),
        "files": [os.readlink(f"/proc/self/fd/{fd}") for fd in fds],
    }


def _sleep(request: Mapping[str, Any], fds: list[int], report: Report) -> Facts:
    del fds
    report({"step": "sleep", "pid": os.getpid()})
    time.sleep(request["seconds"])
    return {}


def _fail(request: Mapping[str, Any], fds: list[int], report: Report) -> Facts:
    del fds
    report({"step": "fail"})
    if request["how"] == "death":
        os._exit(1)
    if request["how"] == "long":
        raise Failure("asked", exports=["x" * nfs_worker.LONGEST_MESSAGE])
    raise OSError(5, "as asked") if request["how"] == "error" else Failure("asked", OSError(13, "no"), path="/x")


if __name__ == "__main__":
    nfs_worker.main(int(sys.argv[1]), {"echo": _echo, "sleep": _sleep, "fail": _fail})

"""What a driver makes of its state in a machine that was restarted: run in that machine (lab.uml).

    python after_reboot.py ROOT FILES > result

A real engine calls it. A container is created and a file copied from it, for which its volume is mounted: not
every processor lets a container run in there.
"""

from __future__ import annotations

import json
import os
import sys

from lab.inner_engine import IMAGE, InnerEngine, inner_engine
from lab.processes import running
from lab.unix_http import request

SOCKET = "/run/brokervol.sock"


def played(docker: InnerEngine, root: str, log: str) -> dict[str, str]:
    """The outcome, in the words of system/test_scenarios.py."""
    body = json.dumps({"Name": "ours"}).encode()
    before = request(SOCKET, "POST", "/VolumeDriver.Get", body).json["Volume"]
    assert (before["Mountpoint"], before["Status"]["references"]) == ("", 0)
    container = docker.done("create", "-v", "ours:/data", IMAGE, "true").decode().strip()
    copied = docker.done("cp", f"{container}:/data/file", "-")
    docker.done("rm", container)
    left = os.listdir(f"{root}/volumes")
    docker.done("volume", "rm", "ours")
    events = map(json.loads, log.splitlines())
    (dropped,) = (told["reason"] for told in events if told["event"] == "references dropped")
    return {
        "dropped": dropped,
        "running": "gone with the machine",
        "new": "reads" if b"content" in copied else "fails",
        "removal": "removed",
        "left": f"left: {left}" if left else "nothing left",
    }


def main(root: str, files: str) -> None:
    command = [sys.executable, "-m", "volumedriver", "--socket", SOCKET, "--root", root, "--hostfs", files]
    with running(command, {}, SOCKET) as process, inner_engine("brokervol", SOCKET) as docker:
        print(json.dumps(played(docker, root, process.log())))


if __name__ == "__main__":
    main(*sys.argv[1:])

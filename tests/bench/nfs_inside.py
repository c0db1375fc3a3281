"""The NFS section inside of its machine: `python -m bench.nfs_inside CALLS ROUNDS`; see `nfs`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bench import floor
from bench.calls import Caller, Calls, take_turns
from bench.client import Client, VolumeCalls
from bench.docker_local import DockerVolumes, calls_of_local_driver
from lab.inner_engine import IMAGE, inner_engine
from lab.nas import Nas
from lab.nfs_driver import running_driver
from lab.uml import OUT

SECTION, RESULTS = "nfs", "calls.json"

_ENGINE = "/run/engine/docker.sock"
_DATA = "vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1"
_V3 = "vers=3,nolock"
_DATA_V3 = f"{_V3},addr=127.0.0.1,mountaddr=127.0.0.1"


def main(calls: int, rounds: int) -> None:
    """Measure, and leave the results for the other side."""
    nas = Nas()
    nas.export("data")
    nas.start()
    for name in ("target", "held", "plain"):
        os.mkdir(f"/run/{name}")
    with running_driver("bench") as driver, contextlib.closing(Client(driver.process.socket_path)) as client:
        found = [*_beside_calls_and_commands(client, calls, rounds)]
        with inner_engine("bench", driver.process.socket_path):
            found += _beside_docker(client, calls, rounds)
    Path(OUT, RESULTS).write_text(json.dumps([asdict(each) for each in found]))


def _beside_calls_and_commands(client: Client, calls: int, rounds: int) -> Iterator[Calls]:
    few = max(3, calls // 10)
    callers = [_ours(client, calls), _raw(calls), _command(few, "nfs4")]
    with _held("nfs4", _DATA):
        yield from take_turns(f"{SECTION}, warm", callers, rounds, os.sync)
    callers = [_ours(client, few), _raw(few), _command(few, "nfs4")]
    yield from take_turns(f"{SECTION}, cold", callers, rounds, os.sync)
    callers = [
        _ours(client, calls, mount_options=_V3),
        _raw(calls, "nfs", _DATA_V3),
        _command(few, "nfs", "-o", _V3),
    ]
    with _held("nfs", _DATA_V3):
        yield from take_turns(f"{SECTION}, version 3, warm", callers, rounds, os.sync)


def _beside_docker(client: Client, calls: int, rounds: int) -> list[Calls]:
    """With an engine in the machine, which takes its part of the one processor, so that all are slower."""
    with contextlib.closing(DockerVolumes(_ENGINE, IMAGE)) as volumes, _held("nfs4", _DATA):
        volumes.prepare(Path("/run/plain"), type="nfs", o="addr=127.0.0.1,vers=4.2", device=":/data")
        callers = [_ours(client, calls), _raw(calls), calls_of_local_driver(volumes, max(5, calls // 4))]
        found = take_turns(f"{SECTION}, warm, beside an engine", callers, rounds, os.sync)
    return [each for each in found if each.name == "Mount and Unmount"]


def _ours(client: Client, count: int, **options: str) -> Caller:
    volumes = VolumeCalls(client, type="nfs", nfs_path="nas:/data", **options)
    return Caller("ours", volumes.lives, count, "server asked, killable process, intent, state")


def _raw(count: int, fs_type: str = "nfs4", data: str = _DATA) -> Caller:
    make = partial(floor.by_mount2, source="nas:/data", target="/run/target", fs_type=fs_type, data=data)
    return Caller("mount(2)", make, count, "the call alone")


def _command(count: int, fs_type: str, *options: str) -> Caller:
    arguments = ["-t", fs_type, *options, "nas:/data"]
    make = partial(floor.by_command, target="/run/target", arguments=arguments)
    return Caller("the mount command", make, count, "two programs, one of which asks the server")


@contextlib.contextmanager
def _held(fs_type: str, data: str) -> Iterator[None]:
    """The export is mounted elsewhere meanwhile, so that the kernel is connected with its server."""
    floor.mount2("nas:/data", "/run/held", fs_type, data)
    try:
        yield
    finally:
        floor.umount2("/run/held")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

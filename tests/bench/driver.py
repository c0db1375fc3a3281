"""Calls of the volume driver, over its socket: mounts beside the kernel's own, answers with many volumes known."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.calls import Caller
from bench.client import Client, VolumeCalls
from bench.docker_local import DockerVolumes, calls_of_local_driver
from bench.floor import Floor
from bench.frame import Figure
from bench.session import Session, progress
from lab import images, prerequisites
from lab.directories import temporary_directory
from lab.engine import Engine
from lab.namespaces import Host
from lab.volume_driver import VolumeDriver, driver_on
from storage.definitions import Definition, DefinitionStore, definitions_path, utc_now

VOLUMES = 10_000

_STEPS_OF_GROWTH = (10, 100, 1_000, VOLUMES)
_ANSWERS_A_MOUNT = 5  # so many times as many calls that only ask
_LISTS_A_MOUNT = 0.05


def measure(session: Session) -> None:
    """Measure everything of this section that can be had here."""
    if prerequisites.absence():
        session.leave_out("driver", prerequisites.absence())
        return
    _measure_binds(session)
    for volumes in _STEPS_OF_GROWTH:
        _measure_answers(session, volumes)


def _measure_binds(session: Session) -> None:
    with contextlib.ExitStack() as stack:
        host, driver = stack.enter_context(_driver())
        (host.files / "srv").mkdir()
        client = Client(driver.process.socket_path)
        stack.callback(client.close)
        callers = [
            Caller(
                "ours", VolumeCalls(client, host_path="/srv").lives, session.sizes.calls, "intent, checks, state"
            ),
            *_floor(session, host, stack),
            *_docker(session, stack),
        ]
        session.take_turns("driver, bind", callers)
    for call in ("Mount", "Unmount"):
        session.note_excess(f"driver, bind: {call}", "mount(2)", 1)


def _floor(session: Session, host: Host, stack: contextlib.ExitStack) -> list[Caller]:
    (host.files / "floor").mkdir()
    floor = Floor(host.entering)
    stack.callback(floor.close)
    source, target = f"{host.directory}/srv", f"{host.directory}/floor"

    def made(way: str, **arguments: object) -> Callable[[int], dict[str, list[float]]]:
        return lambda count: floor.timings(way, count, target=target, **arguments)

    count = session.sizes.calls
    command = made("command", arguments=["--bind", source])
    return [
        Caller("mount(2)", made("mount2", source=source), count, "the call alone"),
        Caller("open_tree(2), move_mount(2)", made("descriptors", source=source), count, "the calls alone"),
        Caller("the mount command", command, max(3, count // 10), "a program each"),
    ]


def _docker(session: Session, stack: contextlib.ExitStack) -> list[Caller]:
    progress("starting a Docker engine")
    engine = stack.enter_context(Engine())
    images.load_tiny(engine)
    source = stack.enter_context(temporary_directory())
    volumes = DockerVolumes(engine.url.removeprefix("unix://"), images.TINY)
    stack.callback(volumes.close)
    volumes.prepare(source, type="none", o="bind", device=str(source))
    return [calls_of_local_driver(volumes, max(5, session.sizes.calls // 4))]


def _measure_answers(session: Session, volumes: int) -> None:
    """What only asks, or changes little, when so many volumes are known."""
    with _driver(volumes) as (host, driver):
        (host.files / "srv").mkdir()
        client = Client(driver.process.socket_path)
        with contextlib.closing(client):
            ask = _answers(client, VolumeCalls(client, host_path="/srv"))
            calls = session.sizes.calls
            session.take_turns(
                f"driver, {volumes:,} volumes known",
                [Caller("ours", ask, calls, "one connection")],
            )
    if volumes == VOLUMES:
        for call in ("Get", "Capabilities"):
            timed = session.found(f"driver, {volumes:,} volumes known: {call}")
            session.note(Figure("driver", f"{call}, p50", timed.median_ms("ours"), 0.5, "ms", "10,000 volumes"))
            session.note(Figure("driver", f"{call}, p99", timed.p99_ms("ours"), 2, "ms", "10,000 volumes"))


def _answers(client: Client, volumes: VolumeCalls) -> Callable[[int], dict[str, list[float]]]:
    def ask(count: int) -> dict[str, list[float]]:
        many, few = count * _ANSWERS_A_MOUNT, max(3, round(count * _LISTS_A_MOUNT))
        return {
            "Get": [client.timed("/VolumeDriver.Get", Name="known-3") for _ in range(many)],
            "Capabilities": [client.timed("/VolumeDriver.Capabilities") for _ in range(many)],
            "List": [client.timed("/VolumeDriver.List") for _ in range(few)],
            **{call: found for call, found in volumes.lives(few).items() if call in {"Create", "Mount", "Remove"}},
        }

    return ask


@contextlib.contextmanager
def _driver(volumes: int = 0) -> Iterator[tuple[Host, VolumeDriver]]:
    """A driver on a host of its own, with so many volumes defined."""
    with temporary_directory() as directory:
        host = Host(directory / "host")
        try:
            _define(host, volumes)
            with driver_on(host) as driver:
                yield host, driver
        finally:
            host.close()


def _define(host: Host, volumes: int) -> None:
    options = {"type": "host", "host_path": "/srv"}
    with temporary_directory() as directory:
        path = Path(definitions_path(str(directory)))
        path.parent.mkdir()
        with DefinitionStore(str(path)) as definitions:
            definitions.add(Definition(f"known-{number}", options, utc_now()) for number in range(volumes))
        shutil.copytree(directory, host.files / "root")  # SQLite takes no path through another namespace

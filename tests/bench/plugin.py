"""The processes and the managed plugin: how fast they start, how much memory and disk they take."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import build
from bench.calls import Caller
from bench.client import Client
from bench.floor import by_command_line
from bench.frame import Figure
from bench.session import Session, progress
from lab import images, prerequisites
from lab.directories import temporary_directory
from lab.engine import Engine
from lab.namespaces import Host
from lab.plugin_host import sidecar_on
from lab.processes import Running, wait_until
from lab.unix_http import request
from lab.volume_driver import driver_on

_MB = 1e6
_START_TARGET_MS = 700
_MEMORY_TARGET_MB = 120
_SIZE_TARGET_MB = 120
_PLUGIN_TARGET_S = 10
_PLUGIN = "brokervol-bench"
_PSS = re.compile(r"^Pss: +([0-9]+) kB", re.MULTILINE)


def measure(session: Session) -> None:
    """Measure everything of this section that can be had here."""
    if reason := prerequisites.absence():
        session.leave_out("plugin", reason)
        return
    _measure_starts(session)
    _measure_plugin(session)


def _measure_starts(session: Session) -> None:
    section, starts = "start", max(3, session.sizes.calls // 40)
    session.take_turns(
        section,
        [
            Caller("ours", _started, starts, "from the start of the process to its first answer"),
            Caller("python3 -c pass", _python, starts, "the interpreter alone"),
        ],
    )
    for name in ("driver", "sidecar"):
        timed = session.found(f"{section}: {name}")
        about = "to the first answer"
        session.note(Figure(section, name, timed.median_ms("ours"), _START_TARGET_MS, "ms", about))


def _started(count: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"driver": [], "sidecar": []}
    with temporary_directory() as directory, contextlib.closing(Host(directory / "host")) as host:
        for _ in range(count):
            found["driver"].append(_first_answer(driver_process(host), "POST", "/VolumeDriver.Capabilities"))
            found["sidecar"].append(_first_answer(sidecar_on(host), "GET", "/healthz"))
    return found


@contextlib.contextmanager
def driver_process(host: Host) -> Iterator[Running]:
    """A driver on `host`."""
    with driver_on(host) as driver:
        yield driver.process


def _first_answer(starting: contextlib.AbstractContextManager[Running], method: str, path: str) -> float:
    began = time.perf_counter()
    with starting as process, contextlib.closing(Client(process.socket_path)) as client:
        client.timed_of(method, path, b"{}" if method == "POST" else b"")
        return time.perf_counter() - began


def _python(count: int) -> dict[str, list[float]]:
    took_s = by_command_line(count, sys.executable, "-c", "pass")
    return {"driver": took_s, "sidecar": took_s}


def _measure_plugin(session: Session) -> None:
    with Engine() as engine:
        progress("plugin: making what it is built on")
        images.load_task(engine)
        progress("plugin: building it")
        with contextlib.redirect_stdout(sys.stderr):
            archive = build.build(engine.client)
        size_mb, create_s = _unpacked_mb(archive), _seconds(lambda: _create(engine, archive))
        enable_s = _seconds(lambda: _enable(engine))
        session.note(Figure("plugin", "root file system", size_mb, _SIZE_TARGET_MB, "MB", "unpacked"))
        about = f"create {create_s:.1f} s, enable {enable_s:.1f} s"
        session.note(Figure("plugin", "create and enable", create_s + enable_s, _PLUGIN_TARGET_S, "s", about))
        _measure_memory(session, engine)


def _create(engine: Engine, archive: Path) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        build.create(engine.client, _PLUGIN, archive)


def _enable(engine: Engine) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        build.enable(engine.client.plugins.get(_PLUGIN), {})  # type: ignore[no-untyped-call]


def _measure_memory(session: Session, engine: Engine) -> None:
    """In the plugin, whose files no other process of this machine shares, so that its shares are all its own."""
    inside = f"/proc/{engine.plugin_pids(_PLUGIN)[0]}/root"
    driver = f"{inside}/run/docker/plugins/brokervol.sock"
    sidecar = f"{inside}/data/published/sidecar/broker.sock"
    wait_until(lambda: os.path.exists(sidecar), "the sidecar of the plugin")  # its driver answers first
    _asked(sidecar, "GET", "/healthz")
    _asked(driver, "POST", "/VolumeDriver.List")
    _note_memory(session, engine, "idle", "driver, sidecar and supervisor")
    _asked(driver, "POST", "/VolumeDriver.Create", Name="n", Opts={"type": "nfs", "nfs_path": "127.0.0.1:/n"})
    _asked(driver, "POST", "/VolumeDriver.Mount", Name="n", ID="bench")  # nobody serves it here
    _note_memory(session, engine, "idle, NFS in use", "the workers for NFS as well")


def _note_memory(session: Session, engine: Engine, name: str, about: str) -> None:
    shares_mb = {pid: proportional_mb(pid) for pid in engine.plugin_pids(_PLUGIN)}
    shown = " + ".join(f"{each:.0f}" for each in shares_mb.values())
    total = sum(shares_mb.values())
    session.note(Figure("memory", f"plugin, {name}", total, _MEMORY_TARGET_MB, "MB", f"{about} ({shown})"))


def proportional_mb(pid: int) -> float:
    """The proportional set size of a process: what it shares counts in equal parts for all who share it."""
    found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    assert found is not None
    return int(found[1]) * 1024 / _MB


def _asked(socket_path: str, method: str, path: str, **fields: object) -> None:
    """Ask, whatever is answered."""
    request(socket_path, method, path, json.dumps(fields).encode() if method == "POST" else None)


def _unpacked_mb(archive: Path) -> float:
    with tarfile.open(archive) as tar:
        return sum(member.size for member in tar) / _MB


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began

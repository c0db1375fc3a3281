"""The driver with more than anybody has: ten thousand volumes, fifty callers at once. Real mounts."""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.namespaces import Host
from lab.processes import processor_s, wait_until
from lab.volume_driver import VolumeDriver, driver_on
from storage.definitions import Definition, DefinitionStore, utc_now
from storage.mountinfo import mount_at, read_mounts
from volumedriver import options

pytestmark = pytest.mark.root

VOLUMES = 10_000
CALLERS = 50
MOUNTS = 1_000
# Made on demand: for who calls, for who has just been answered, and the driver's own.
MOST_THREADS = 2 * CALLERS + 4


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "host")
    for name in ("srv/data", "root/.state"):
        (host.files / name).mkdir(parents=True)
    (host.files / "srv/data/file").write_text("content")
    yield host
    assert (host.files / "srv/data/file").read_text() == "content"
    host.close()


def define(host: Host, directory: Path, count: int) -> None:
    """Give the host `count` volumes, of several types."""
    kinds = [{"host_path": "/srv/data"}, {"bucket_name": "imagery", "prefix": "2026"}, {"nfs_path": "nas:/x"}]
    effective = [options.parse(kind).effective for kind in kinds]
    directory.mkdir()
    with DefinitionStore(str(directory / "definitions.sqlite")) as store:
        store.add(Definition(f"v{number}", effective[number % 3], utc_now()) for number in range(count))
    for path in directory.iterdir():
        (host.files / "root/.state" / path.name).write_bytes(path.read_bytes())


def test_ten_thousand_volumes_are_answered_for_within_a_second_of_the_start(host: Host, tmp_path: Path) -> None:
    """The engine marks a plugin disabled that is not there after some 9 s. The machine may have other work to do:
    then there are several attempts, and what the driver itself used of the processor counts."""
    define(host, tmp_path / "definitions", VOLUMES)
    taken: list[float] = []
    used: list[float] = []
    while not taken or (min(taken) >= 1 and len(taken) < 5):
        began = time.monotonic()
        with driver_on(host) as driver:
            driver.done("Get", Name="v5000")
            taken.append(time.monotonic() - began)
            used.append(processor_s(driver.process.pid))
            assert driver.process.start_s < taken[-1]
            assert len(driver.done("List").json["Volumes"]) == VOLUMES
            driver.done("Mount", Name="v3000", ID="x")
            driver.done("Unmount", Name="v3000", ID="x")
            driver.process.kill()
    print(f"first answer after {min(taken):.2f} s, of {', '.join(f'{s:.2f}' for s in taken)}; processor {used}")
    assert min(used) < 1


def test_a_thousand_mounts_and_unmounts_by_fifty_callers_leave_nothing(host: Host, tmp_path: Path) -> None:
    define(host, tmp_path / "definitions", 60)
    with driver_on(host) as driver:
        latencies: dict[str, list[float]] = collections.defaultdict(list)
        storm(driver, latencies)
        before = descriptors(driver)
        storm(driver, latencies)
        assert {verb: len(taken) for verb, taken in latencies.items()} == {"Mount": MOUNTS, "Unmount": MOUNTS}
        for verb, taken in latencies.items():
            half = sorted(taken)[len(taken) // 2]
            print(f"{len(taken)} {verb}: median {half * 1e3:.1f} ms, most {max(taken) * 1e3:.0f} ms")
        assert driver.mounts() == []
        assert os.listdir(host.files / "root/volumes") == []
        assert {volume["Status"]["references"] for volume in driver.done("List").json["Volumes"]} == {0}
        wait_until(lambda: descriptors(driver) <= before, f"no more descriptors than {before}")
        assert len(os.listdir(f"/proc/{driver.process.pid}/task")) <= MOST_THREADS


def storm(driver: VolumeDriver, latencies: dict[str, list[float]]) -> None:
    """Half of the mounts, each with its unmount: of 20 volumes, directories and tokens, each for several."""

    def call(verb: str, name: str, mount_id: str) -> None:
        began = time.monotonic()
        driver.done(verb, Name=name, ID=mount_id)
        latencies[verb].append(time.monotonic() - began)

    def caller(number: int) -> None:
        for turn in range(MOUNTS // CALLERS // 2):
            wanted = (number * 7 + turn) % 20
            name = f"v{wanted * 3 + wanted % 2}"
            call("Mount", name, f"{number}-{turn}")
            assert mount_at(read_mounts(f"/proc/{driver.process.pid}/mountinfo"), driver.mountpoint(name))
            call("Unmount", name, f"{number}-{turn}")

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(caller, range(CALLERS)))


def descriptors(driver: VolumeDriver) -> int:
    return len(os.listdir(f"/proc/{driver.process.pid}/fd"))

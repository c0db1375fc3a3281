"""An identity is always given back: with a fault at each step of taking it, wearing it and giving it back.

The real sidecar under many users at once, of which every thread is asked of the kernel who it is. See
`lab.faulty_sidecar` for what a fault is.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from lab import faulty_sidecar
from lab.directories import temporary_directory
from lab.processes import Running, wait_until
from lab.sidecar import caller_sidecar, descriptors, thread_identities
from lab.task import Identity, Task
from lab.world import World, one
from sidecar.caller import EXIT_IDENTITY_LOST

pytestmark = pytest.mark.root

USERS = [Identity(), Identity(1000, 1000, [2000]), Identity(1001, 1001), Identity(1002, 1002, [2000, 2001])]
REQUESTS = 40


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which a file is a fault to come."""
    tmp_path.chmod(0o777)
    monkeypatch.setenv("BROKERVOL_LAB_FAULTS", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return tmp_path


@pytest.fixture(params=[("lab.faulty_sidecar",)], ids=["alone"])
def world(request: pytest.FixtureRequest, faults: Path) -> Iterator[World]:
    del faults  # before the sidecar starts
    with temporary_directory() as directory:
        data = directory / "data"
        (data / "roots").mkdir(parents=True)
        data.chmod(0o777)
        with caller_sidecar(directory, {"data": data}, module=request.param) as sidecar:
            yield World(directory, data, directory / "root" / "sidecar", sidecar)


def sidecar_of(supervisor: Running) -> int | None:
    """The process that the supervisor runs, None while there is none."""
    children = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()
    return int(children[0]) if children else None


def has_started(supervisor: Running, times: int) -> bool:
    return supervisor.log().count("sidecar listens") == times


def work(task: Task, identity: Identity, failures: list[str]) -> None:
    """Requests of a user that may and may not; whatever faults do to them, none may do what it must not."""
    for number in range(REQUESTS):
        name = f"{identity.uid}-{number}"
        task.post(*one("upload", local_path="/tmp/in", file_path=name))
        denied = task.post(*one("upload", local_path="/tmp/in", file_path=f"roots/{name}"))
        if denied.status == 200 and identity.uid != 0:
            failures.append(f"{name} was written by {identity}")


@pytest.mark.parametrize("step", [*faulty_sidecar.TAKING, faulty_sidecar.WEARING])
def test_after_a_fault_every_thread_is_itself(world: World, faults: Path, step: str) -> None:
    failures: list[str] = []
    tasks = [(world.holder(identity=identity), identity) for identity in USERS]
    assert tasks[0][0].workspaces()
    itself = thread_identities(world.sidecar.pid)
    threads = [threading.Thread(target=work, args=(*pair, failures)) for pair in tasks]
    for thread in threads:
        thread.start()
    happened, fault = 0, faults / step
    while any(thread.is_alive() for thread in threads):
        happened += not fault.exists()
        fault.touch()
        threads[0].join(0.001)
    fault.unlink(missing_ok=True)
    for thread in threads:
        thread.join()
    before = descriptors(world.sidecar.pid)
    last = tasks[1][0].post(*one("upload", local_path="/tmp/in", file_path="last"))
    assert last.status == 200, f"it does not serve as before: {last.text}"
    assert not world.sidecar.has_ended()
    wait_until(lambda: thread_identities(world.sidecar.pid) == itself, "every thread to be itself again")
    wait_until(lambda: descriptors(world.sidecar.pid) <= before, "descriptors to be closed")
    for task, _ in tasks:
        task.close()
    assert failures == []
    assert happened > 20
    owners = {int(path.name.partition("-")[0]): path.stat().st_uid for path in world.data.glob("*-*")}
    assert owners == {uid: uid for uid in owners}
    assert all(path.stat().st_uid == 0 for path in (world.data / "roots").iterdir())


@pytest.mark.parametrize("world", [("lab.faulty_sidecar", "--supervised")], indirect=True, ids=["supervised"])
def test_an_identity_that_cannot_be_given_back_ends_the_process(world: World, faults: Path) -> None:
    """At once, with nothing more done by that thread; and the supervisor starts another one."""
    with world.holder(identity=Identity(1000, 1000, [2000])) as task:
        for number, step in enumerate(faulty_sidecar.GIVING_BACK):
            before = sidecar_of(world.sidecar)
            assert before is not None
            assert task.workspaces()
            starts = world.sidecar.log().count("sidecar listens")
            (faults / step).touch()
            with pytest.raises(AssertionError, match="the task ended"), world.holder() as victim:
                victim.post(*one("upload", local_path="/tmp/in", file_path=f"f{number}"))
            wait_until(partial(has_started, world.sidecar, starts + 1), f"a start after {step}")
            assert sidecar_of(world.sidecar) not in (before, None)
            assert not (faults / step).exists()
            assert task.post(*one("upload", local_path="/tmp/in", file_path=f"g{number}")).status == 200
            after = sidecar_of(world.sidecar)
            assert after is not None
            assert len(thread_identities(after)) == 1
    deaths = [line for line in world.sidecar.log().splitlines() if '"died"' in line]
    assert len(deaths) == len(faulty_sidecar.GIVING_BACK)
    assert all(f'"exit code {EXIT_IDENTITY_LOST}"' in line for line in deaths)
    assert world.sidecar.log().count("could not drop its caller's identity") == len(deaths)

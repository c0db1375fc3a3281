"""Workers: what they are asked is done or they are killed, and nothing of them is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.keeper import descendants
from lab.processes import wait_until
from volumedriver.workers import NoAnswer, NoWorker, Workers

COMMAND = (sys.executable, "-m", "lab.nursery")
LONG_S = 20
WARM = 2


@pytest.fixture(autouse=True)
def search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


@pytest.fixture
def workers() -> Iterator[Workers]:
    before, descriptors = set(descendants(os.getpid())), len(os.listdir("/proc/self/fd"))
    opened = Workers(COMMAND, WARM)
    yield opened
    opened.close()
    wait_until(lambda: set(descendants(os.getpid())) <= before, "all its processes are gone")
    assert len(os.listdir("/proc/self/fd")) == descriptors


def processes() -> list[int]:
    """The nursery and its workers."""
    found = []
    for pid in descendants(os.getpid()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"lab.nursery" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def echoed(workers: Workers, text: str = "x") -> int:
    """Have a worker answer; returns its pid."""
    facts = workers.run({"do": "echo", "text": text}, LONG_S)
    assert facts["text"] == text
    return int(facts["pid"])


def test_a_request_is_answered_with_descriptors(workers: Workers, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    facts = workers.run({"do": "echo", "text": "\udcff ü\n"}, LONG_S, [fd])
    os.close(fd)
    assert facts["text"] == "\udcff ü\n"
    assert facts["files"] == [str(tmp_path)]


def test_a_worker_is_used_again(workers: Workers) -> None:
    assert len({echoed(workers) for _ in range(5)}) == 1


def test_prepared_workers_are_there_before_the_first_request(workers: Workers) -> None:
    workers.prepare()
    wait_until(lambda: len(processes()) == 1 + WARM, "the nursery and its workers")
    workers.prepare()
    before = {*processes()}
    assert echoed(workers) in before


def test_who_does_not_answer_is_killed_and_replaced(workers: Workers) -> None:
    echoed(workers)
    started = time.monotonic()
    with pytest.raises(NoAnswer) as silence:
        workers.run({"do": "sleep", "seconds": 1000}, 0.3)
    assert 0.3 <= time.monotonic() - started < 5
    assert silence.value.step["step"] == "sleep"
    assert not os.path.exists(f"/proc/{silence.value.step['pid']}")
    assert echoed(workers) != silence.value.step["pid"]


def test_who_is_left_goes_on_until_the_limit(workers: Workers) -> None:
    echoed(workers)
    started = time.monotonic()
    assert workers.run_and_leave({"do": "sleep", "seconds": 1000}, 0.1, limit_s=2) is None
    assert time.monotonic() - started < 2
    assert len(processes()) == 2
    wait_until(lambda: len(processes()) == 1, "the kernel has killed it")
    assert workers.run_and_leave({"do": "echo", "text": "x"}, LONG_S, LONG_S) is not None


def test_who_is_left_and_has_not_begun_is_replaced(workers: Workers) -> None:
    """On an overloaded host, say: what was asked must not be forgotten."""
    slow = echoed(workers)
    os.kill(slow, signal.SIGSTOP)
    facts = workers.run_and_leave({"do": "echo", "text": "x"}, 0.2, LONG_S)
    assert facts is not None
    assert facts["pid"] != slow
    assert not os.path.exists(f"/proc/{slow}")


def test_failures_are_answers_and_death_is_told(workers: Workers) -> None:
    facts = workers.run({"do": "fail", "how": "failure"}, LONG_S)
    assert (facts["failed"], facts["errno"], facts["path"]) == ("asked", 13, "/x")
    assert workers.run({"do": "fail", "how": "error"}, LONG_S)["errno"] == 5
    with pytest.raises(NoWorker, match="a worker died at fail"):
        workers.run({"do": "fail", "how": "death"}, LONG_S)
    echoed(workers)


def test_a_failure_that_is_longer_than_a_message(workers: Workers) -> None:
    assert workers.run({"do": "fail", "how": "long"}, LONG_S)["reason"] == "what the server says is too long"
    echoed(workers)


def test_of_an_answer_that_cannot_be_read_nothing_is_left(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    echoed(workers)
    descriptors = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("volumedriver.workers.LONGEST_MESSAGE", 16)
    for _ in range(3):
        with pytest.raises(NoWorker, match="a worker's answer cannot be read"):
            workers.run({"do": "echo", "text": "long enough to be cut"}, LONG_S)
    monkeypatch.undo()
    wait_until(lambda: len(processes()) == 1, "who was not understood has ended")
    assert len(os.listdir("/proc/self/fd")) < descriptors


def test_fifty_at_once_and_few_stay(workers: Workers) -> None:
    with ThreadPoolExecutor(50) as pool:
        pids = list(pool.map(lambda number: echoed(workers, str(number)), range(50)))
        hanging = [pool.submit(workers.run, {"do": "sleep", "seconds": 1000}, 1) for _ in range(20)]
        wait_until(lambda: len(processes()) >= 20, "twenty hang")
        assert echoed(workers), "others are served meanwhile"
        assert {type(future.exception()) for future in hanging} == {NoAnswer}
    assert len(pids) == 50
    wait_until(lambda: len(processes()) <= 1 + WARM, "only the warm ones stay")


def test_killed_nursery_is_replaced(workers: Workers) -> None:
    worker = echoed(workers)
    for _ in range(3):
        (nursery,) = [pid for pid in processes() if worker in descendants(pid)]
        os.kill(nursery, signal.SIGKILL)
        wait_until_dead([worker])
        worker = echoed(workers)


def test_stopped_nursery_is_woken(workers: Workers) -> None:
    worker = echoed(workers)
    (nursery,) = [pid for pid in processes() if worker in descendants(pid)]
    os.kill(worker, signal.SIGKILL)
    os.kill(nursery, signal.SIGSTOP)
    assert echoed(workers) in descendants(nursery)


def test_who_gives_up_waits_for_nobody_and_can_have_things_left(workers: Workers) -> None:
    with ThreadPoolExecutor(3) as pool:
        hanging = [pool.submit(workers.run, {"do": "sleep", "seconds": 1000}, LONG_S) for _ in range(2)]
        leaving = pool.submit(workers.run_and_leave, {"do": "sleep", "seconds": 1}, LONG_S, LONG_S)
        wait_until(lambda: workers.counts()["busy"] == 3, "all three wait")
        workers.give_up()
        for future in hanging:
            with pytest.raises(NoWorker, match="the driver is ending"):
                future.result()
        assert leaving.result() == {}
    with pytest.raises(NoWorker, match="the driver is ending"):
        workers.run({"do": "echo", "text": "x"}, LONG_S)
    assert workers.run_and_leave({"do": "echo", "text": "x"}, LONG_S, LONG_S)
    wait_until(lambda: len(processes()) <= 1 + WARM, "who hung was killed")


def test_killed_idle_worker_is_replaced(workers: Workers) -> None:
    worker = echoed(workers)
    os.kill(worker, signal.SIGKILL)
    wait_until_dead([worker])
    assert echoed(workers) != worker


def test_nothing_starts_after_the_end() -> None:
    workers = Workers(COMMAND)
    echoed(workers)
    workers.close()
    with pytest.raises(NoWorker):
        workers.run({"do": "echo", "text": "x"}, LONG_S)
    assert processes() == []


def test_a_nursery_that_cannot_start_is_told() -> None:
    workers = Workers((sys.executable, "-c", "pass"))
    with pytest.raises(NoWorker, match="no worker process can be started"):
        workers.run({"do": "echo", "text": "x"}, LONG_S)
    workers.close()


def test_workers_die_with_the_driver() -> None:
    code = """
import sys, threading, time
from volumedriver.workers import Workers
workers = Workers((sys.executable, "-m", "lab.nursery"))
threading.Thread(target=workers.run, args=({"do": "sleep", "seconds": 1000}, 1000), daemon=True).start()
while not workers.counts()["busy"]: time.sleep(0.01)
while not workers._idle: workers.run_and_leave({"do": "echo", "text": "x"}, 20, 20)
print("ready", flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as driver:
        assert driver.stdout is not None
        assert b"ready\n" in iter(driver.stdout.readline, b"")  # after what is logged of workers that are late
        pids = descendants(driver.pid)
        assert len(pids) >= 3
        driver.kill()
        driver.wait()
    wait_until_dead(pids)


def wait_until_dead(pids: list[int]) -> None:
    wait_until(lambda: not any(_is_alive(pid) for pid in pids), f"{pids} are dead")


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    return False

"""What the sidecar may do as itself: it needs what it has, and has given up all else for good."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from lab import intruder
from lab.directories import temporary_directory
from lab.sidecar import caller_sidecar, self_sidecar
from lab.task import Identity
from lab.world import USER, WS, World, one
from sidecar.__main__ import CAPABILITIES
from storage import linux

pytestmark = pytest.mark.root

CAP_SYS_ADMIN = 21
NEEDED = {
    "to see the caller's root and mounts": linux.CAP_SYS_PTRACE,
    "to take the caller's user": linux.CAP_SETUID,
    "to take the caller's groups": linux.CAP_SETGID,
    "to lend root what passes permissions": linux.CAP_DAC_OVERRIDE,
    "to lend who may read everything": linux.CAP_DAC_READ_SEARCH,
    "to lend root what removes others' files": linux.CAP_FOWNER,
}
TRACEABLE = 4  # PR_SET_DUMPABLE

_libc = ctypes.CDLL(None, use_errno=True)


def statuses(pid: int) -> list[dict[str, str]]:
    """What the kernel says of every thread."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return [dict(line.split(":\t", 1) for line in text.splitlines()) for text in texts]


def check_privileges(pid: int, kept: int) -> None:
    for status in statuses(pid):
        held = {name: int(status[f"Cap{name}"], 16) for name in ("Eff", "Prm", "Bnd", "Inh", "Amb")}
        assert held == {"Eff": kept, "Prm": kept, "Bnd": kept, "Inh": 0, "Amb": 0}
        assert status["NoNewPrivs"].strip() == "1"
    assert resource.prlimit(pid, resource.RLIMIT_CORE) == (1, 1)


def test_every_thread_has_only_what_the_sidecar_needs(world: World) -> None:
    with world.holder(identity=USER) as task:
        assert task.post(*one("upload", local_path="/tmp/in", file_path="f")).status == 200
    assert CAPABILITIES["caller"] == linux.mask(*NEEDED.values())
    check_privileges(world.sidecar.pid, CAPABILITIES["caller"])
    with temporary_directory() as directory, self_sidecar(directory, {}) as sidecar:
        check_privileges(sidecar.pid, CAPABILITIES["self"])


def works(world: World) -> bool:
    """Whether callers can do all that they may: the things that each kept capability is for."""
    (world.data / "theirs").mkdir(mode=0o700)
    (world.data / "sticky").mkdir()
    (world.data / "sticky").chmod(0o1777)
    for path, owner in (("theirs/f", 1000), ("sticky/f", 1000), ("theirs", 1000), ("sticky", 1001)):
        (world.data / path).touch()
        os.chown(world.data / path, owner, owner)
    reader = Identity(capabilities=1 << linux.CAP_DAC_READ_SEARCH)
    found = []
    with world.holder(identity=USER) as task:
        found.append(task.post(*one("upload", local_path="/tmp/in", file_path="mine")).status)
    with world.holder(identity=reader) as task:
        found.append(task.get(f"{WS}/files?recursive=true").status)
    with world.holder() as task:
        found.append(task.post(*one("upload", local_path="/tmp/in", file_path="theirs/g")).status)
        found.append(task.post(*one("delete", file_path="sticky/f")).status)
    assert set(found) <= {200, 403}, found
    return set(found) == {200}


def test_callers_can_do_what_they_may(world: World) -> None:
    world.data.chmod(0o777)
    assert works(world)


@pytest.mark.parametrize("capability", [1, 2, 3])
def test_each_capability_over_files_is_needed(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with lesser(capability, monkeypatch) as world:
        assert not works(world)


@pytest.mark.parametrize("capability", [linux.CAP_SETGID, linux.CAP_SETUID, linux.CAP_SYS_PTRACE])
def test_without_what_it_needs_to_act_as_others_it_does_not_start(
    capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "the view of callers needs CAP_SYS_PTRACE, CAP_SETUID and CAP_SETGID"
    with pytest.raises(AssertionError, match=said), lesser(capability, monkeypatch):
        pass


@contextlib.contextmanager
def lesser(capability: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world whose sidecar lacks a capability."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    with temporary_directory() as directory:
        data = directory / "data"
        data.mkdir()
        data.chmod(0o777)
        module = ("lab.lesser_sidecar", str(capability))
        with caller_sidecar(directory, {"data": data}, module=module) as sidecar:
            yield World(directory, data, directory / "root/sidecar", sidecar)


def in_child(work: Callable[[], object]) -> str:
    """What `work` returns in a process of its own, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, str(work()).encode())
        except BaseException as error:
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as report:
        told = report.read().decode()
    os.waitpid(child, 0)
    return told


def test_what_was_given_up_cannot_be_had_again(tmp_path: Path) -> None:
    """Not by asking, by a program with capabilities of its own, or as root of a new user namespace."""
    program = tmp_path / "program"
    program.write_bytes(Path("/bin/busybox").read_bytes())
    program.chmod(0o4755)
    # VFS_CAP_REVISION_2: every capability permitted
    os.setxattr(program, "security.capability", bytes.fromhex("00000002 ffffffff 00000000 ffffffff 00000000"))

    def attempts() -> list[object]:
        linux.keep_capabilities(CAPABILITIES["caller"])
        linux.set_no_new_privileges()
        found: list[object] = []
        try:
            linux.set_capabilities(1 << CAP_SYS_ADMIN, 1 << CAP_SYS_ADMIN, 0)
        except OSError as error:
            found.append(error.errno)
        found.append(intruder.mount("none", "/mnt", 0, "tmpfs"))
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.dup2(writing, 1)
            os.execv(program, ["busybox", "grep", "CapEff", "/proc/self/status"])  # noqa: S606
        os.close(writing)
        with open(reading, "rb") as said:
            found.append(int(said.read().split()[1], 16) & 1 << CAP_SYS_ADMIN)
        assert intruder.unshare(intruder.CLONE_NEWUSER | intruder.CLONE_NEWNS) == 0
        found.append(intruder.mount("", "/", intruder.MS_REMOUNT | intruder.MS_BIND | intruder.MS_RDONLY))
        return found

    # The last is done to a copy of the mounts, of which it is root; the host's are as they were.
    host = Path("/proc/self/mountinfo").read_text()
    assert in_child(attempts) == str([errno.EPERM, errno.EPERM, 0, 0])
    assert Path("/proc/self/mountinfo").read_text() == host


def test_no_other_process_of_the_user_reads_its_memory() -> None:
    """Of a sidecar that has its user, and its processes, in common with the task."""

    def look(forbid: bool) -> list[object]:
        os.setgroups([])
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        _libc.prctl(TRACEABLE, 1, 0, 0, 0)  # as after an exec by that user
        if forbid:
            linux.forbid_dumps()
        pid, found = os.getpid(), list[object]()
        for name in ("environ", "mem", "maps", "fd", "root", "cwd"):
            found.append(in_child(partial(_opened, f"/proc/{pid}/{name}")))
        assert os.listdir("/proc/self/fd"), "its own it can see"
        return found

    assert in_child(lambda: look(False)) == str(["opened"] * 6)
    assert in_child(lambda: look(True)) == str(["refused"] * 6)


def _opened(path: str) -> str:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        return "refused"
    return "opened"


def test_a_crash_leaves_no_core() -> None:
    """Also after a thread took a caller's user, which has the kernel set anew whether a core may be written."""
    with temporary_directory() as directory:
        data = directory / "data"
        data.mkdir(mode=0o777)
        limits = ["prlimit", "--core=unlimited", "env", "-C", str(directory)]
        if "/" not in Path("/proc/sys/kernel/core_pattern").read_text():  # else this machine keeps them elsewhere
            subprocess.run([*limits, "sh", "-c", "kill -SEGV $$"], check=False)
            core = next(path for path in directory.iterdir() if "core" in path.name)
            core.unlink()
        with caller_sidecar(directory, {"data": data}, limits) as sidecar:
            world = World(directory, data, directory / "root/sidecar", sidecar)
            with world.holder(identity=USER) as task:
                task.get(f"{WS}/files")
            os.kill(sidecar.pid, signal.SIGSEGV)
            assert sidecar.wait() == -signal.SIGSEGV
        assert [path.name for path in directory.iterdir() if "core" in path.name] == []

"""Identity that holds: who a caller is, while it exits, is replaced, hides in namespaces or changes its mounts.

Real processes on the real kernel; `test_caller.py` has what a caller may do, `tests/faults/test_identity.py` that
an identity is always given back.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab import intruder
from lab.processes import wait_until
from lab.task import Identity, Task
from lab.world import USER, WS, World, one
from sidecar.caller import Caller, CallerGone

pytestmark = pytest.mark.root

FILES = ("GET", f"{WS}/files", None)
WORKSPACES = ("GET", "/v1/workspaces", None)
UPLOAD = ("POST", *one("upload", local_path="/tmp/in", file_path="f"))
OVERFLOW = 65534


def held(answer: list[Any]) -> list[tuple[str, bool]]:
    """Where the workspaces of an answer are, and whether they are read-only."""
    status, text = answer
    assert status == 200, text
    return [(found["volume_path"], found["read_only"]) for found in json.loads(text)["workspaces"]]


def code(answer: list[Any]) -> str:
    status, text = answer
    return "ok" if status == 200 else str(json.loads(text)["code"])


# A caller that goes


def test_a_caller_that_exits_during_a_request_has_no_more_done(world: World) -> None:
    """A batch goes on, read by a child, when its caller is killed: from then on nothing of it is done."""
    items = [{"local_path": "/tmp/in", "file_path": f"{number:04}-{'x' * 200}"} for number in range(1500)]
    task = world.holder(identity=USER)
    answer = task.root / "tmp/answer"
    with pytest.raises(AssertionError, match="the task ended"):
        task.attack("begin_and_die", f"{WS}/upload", {"files": items, "on_error": "continue"}, "/tmp/answer")
    task.close()
    wait_until(answer.exists, "the rest of the answer")
    results = json.loads(answer.read_text())
    done = [result["file_path"] for result in results if result["status"] == "done"]
    assert sorted(os.listdir(world.data)) == sorted(done)
    assert 0 < len(done) < len(items)
    failed = results[len(done) :]
    assert {result["error"]["code"] for result in failed} == {"permission-denied"}
    assert all("exited" in result["error"]["detail"] for result in failed)


def test_a_pid_that_is_used_again_is_another_caller() -> None:
    """The connection of the first process with that pid is worth nothing, that of the second what it should be."""
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-m", "lab.reuse"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=50, check=False)
    assert ran.returncode == 0, ran.stderr
    before, (after, problem), other = json.loads(ran.stdout)
    assert (before, after, other) == (200, 403, 200)
    assert "has exited" in problem


def test_before_linux_6_5_a_caller_is_held_by_a_pidfd_opened_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an option of sockets that the kernel does not know: the way that older kernels take."""
    monkeypatch.setattr("sidecar.caller._SO_PEERPIDFD", 9999)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0brokervol-test-identity")
        listener.listen()
        child = os.fork()
        if child == 0:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect("\0brokervol-test-identity")
            connection.recv(1)
            os._exit(0)
        accepted, _ = listener.accept()
    with accepted:
        caller = Caller(accepted)
        assert caller.pid == child
        caller.check_alive()
        accepted.send(b"!")
        os.waitpid(child, 0)
        with pytest.raises(CallerGone):
            caller.check_alive()
        caller.close()
        with pytest.raises(CallerGone):
            Caller(accepted)


def test_a_connection_given_away_acts_as_who_connected_and_ends_with_it(world: World) -> None:
    """By SCM_RIGHTS, to root and from root: the receiver has what the giver has, and only while that lives."""
    (world.data / "roots").mkdir(mode=0o700)
    shared = world.directory / "shared"
    shared.mkdir(mode=0o777)
    shared.chmod(0o777)
    meeting = (shared, "/shared", "rw")
    denied = ("POST", *one("upload", local_path="/tmp/in", file_path="roots/f"))
    for giver, taker, outcome in ((USER, Identity(), "permission-denied"), (Identity(), USER, "ok")):
        with world.task(meeting, identity=taker) as other:
            task = world.task(meeting, (world.data, "/data", "rw"), identity=giver)
            place = f"/shared/{giver.uid}"
            other.attack("listen", place)
            given = task.attack("connect")
            task.attack("give", given, place)
            number = other.attack("take")
            assert held(other.attack("ask_on", number, *WORKSPACES)) == [("/data", False)]
            assert other.workspaces() == [], "its own connections have nothing of the other's"
            assert code(other.attack("ask_on", number, *denied)) == outcome
            task.close()
            answer = other.attack("ask_on", number, *FILES)
            assert code(answer) == "permission-denied"
            assert "exited" in answer[1]


# Groups


def _shared_file(world: World) -> Path:
    found = world.data / "of-a-group"
    found.write_text("x")
    os.chown(found, 0, 2000)
    found.chmod(0o640)
    return found


def test_a_file_of_a_group_is_reached_by_its_members_only(world: World) -> None:
    _shared_file(world)
    copy = one("upload", local_path="/data/of-a-group", file_path="copy")
    for groups, status in (([2000], 200), ([], 403), ([2001], 403), ([0], 403)):
        with world.holder(identity=Identity(1000, 1000, groups)) as task:
            assert task.post(*copy).status == status, groups
    with world.holder(identity=Identity(1000, 2000)) as task:
        assert task.post(*copy).status == 200, "the first group counts, too"


def test_the_groups_of_a_caller_are_those_when_it_connected(world: World) -> None:
    """As its user: a connection is what it was when it was made, like an open file."""
    _shared_file(world)
    copy = ("POST", *one("upload", local_path="/data/of-a-group", file_path="copy"))
    member = Identity(groups=[2000], capabilities=1 << 6)  # of root's capabilities only that to change groups
    os.chown(world.data / "of-a-group", 1, 2000)
    with world.holder(identity=member) as task:
        number = task.attack("connect")
        assert code(task.attack("ask_on", number, *copy)) == "ok"
        assert task.attack("set_groups", []) == 0
        assert code(task.attack("ask_on", number, *copy)) == "ok"
        assert task.post(*copy[1:]).status == 403, "a new connection has no more than the process now"


def test_records_are_for_all_who_hold_the_workspace(world: World) -> None:
    """Not defended, by decision: also those of files that the user cannot enter, or could not have deleted."""
    for name, mode in (("closed", 0o700), ("open", 0o755)):
        (world.data / name).mkdir(mode=mode)
    with world.holder() as owner, world.holder(identity=USER) as task:
        for path in ("closed/f", "open/f"):
            assert owner.post(*one("upload", local_path="/tmp/in", file_path=path)).status == 200
            assert task.post(*one("delete", file_path=path)).json["code"] == "permission-denied"
            (found,) = task.get(f"{WS}/catalog?file_path={path}").json["files"]
            assert found["is_deleted"] is False
        (world.data / "open/f").unlink()
        assert task.post(*one("delete", file_path="open/f")).json["results"][0]["file"]["is_deleted"] is True


# Namespaces


def _map_user(task: Task, inside: int, outside: int) -> None:
    for name, text in (("uid_map", f"{inside} {outside} 1"), ("gid_map", f"{inside} {outside} 1")):
        Path(f"/proc/{task.pid}/{name}").write_text(text)


def test_root_in_a_user_namespace_is_who_it_is_outside(world: World) -> None:
    """uid 0 inside, 1000 outside, with every capability in there: it acts as 1000, and nothing is lent."""
    (world.data / "private").mkdir(mode=0o700)
    (world.data / "private" / "f").write_text("root's")
    with world.holder(identity=USER, is_pivoted=True) as task:
        assert task.attack("unshare", intruder.CLONE_NEWUSER | intruder.CLONE_NEWNS) == 0
        _map_user(task, 0, 1000)
        status = Path(f"/proc/{task.pid}/status").read_text()
        assert "CapEff:\t000001ff" in status
        assert task.post(*one("upload", local_path="/tmp/in", file_path="f")).status == 200
        for verb, item in (
            ("delete", {"file_path": "private/f"}),
            ("download", {"file_path": "private/f", "local_path": "/tmp/out"}),
            ("upload", {"local_path": "/tmp/in", "file_path": "private/g"}),
        ):
            assert task.post(*one(verb, **item)).json["code"] == "permission-denied"
    assert (world.data / "f").stat().st_uid == 1000
    assert os.listdir(world.data / "private") == ["f"]


def test_root_in_a_user_namespace_of_its_own_lends_nothing(world: World) -> None:
    """The same of the host's root: it is the owner of root's files, and passes no permission of others'."""
    (world.data / "theirs").mkdir(mode=0o700)
    os.chown(world.data / "theirs", 1000, 1000)
    upload = one("upload", local_path="/tmp/in", file_path="theirs/f")
    with world.holder(is_pivoted=True) as task:
        assert task.attack("unshare", intruder.CLONE_NEWUSER) == 0
        _map_user(task, 0, 0)
        assert task.post(*upload).json["code"] == "permission-denied"
    with world.holder(is_pivoted=True) as task:
        assert task.post(*upload).status == 200


def test_a_user_that_its_namespace_does_not_know_is_who_it_is_outside(world: World) -> None:
    """To itself it is the overflow user (65534), as are all others; its files are its own and nobody's else."""
    (world.data / "overflow").mkdir(mode=0o700)
    os.chown(world.data / "overflow", OVERFLOW, OVERFLOW)
    with world.holder(identity=USER, is_pivoted=True) as task:
        assert task.attack("unshare", intruder.CLONE_NEWUSER) == 0
        assert task.post(*one("upload", local_path="/tmp/in", file_path="f")).status == 200
        assert task.post(*one("upload", local_path="/tmp/in", file_path="overflow/f")).status == 403
    assert (world.data / "f").stat().st_uid == 1000


def test_a_caller_in_nested_namespaces_is_seen_as_it_sees_itself(world: World) -> None:
    (world.data / "f").write_text("x")
    with world.holder("ro") as task:
        for flags in (
            intruder.CLONE_NEWNS,
            intruder.CLONE_NEWPID,
            intruder.CLONE_NEWPID | intruder.CLONE_NEWNS,
        ):
            answers = task.attack("nested", flags, "", None, WORKSPACES, UPLOAD, FILES)
            assert held(answers[0]) == [("/data", True)]
            assert [code(answer) for answer in answers[1:]] == ["read-only", "ok"]


def test_a_caller_in_a_chroot_has_what_is_mounted_in_there(world: World) -> None:
    (world.data / "sub").mkdir()
    (world.directory / "secret").write_text("sentinel")
    up = one("upload", local_path="/../../../tmp/in", file_path="stolen")
    with world.holder() as task:
        for name in ("jail/in", "jail/tmp"):
            (task.root / name).mkdir(parents=True)
        assert task.attack("mount", "/data", "/jail/in", intruder.MS_BIND) == 0
        for root, expected in (
            ("/jail", [("/in", False)]),
            ("/data", [("/", False)]),
            ("/data/sub", []),
            ("/tmp", []),
        ):
            answers = task.attack("nested", 0, root, None, WORKSPACES, ("POST", *up))
            assert held(answers[0]) == expected, root
            assert code(answers[1]) in ("missing-file", "unknown-workspace"), "its root is where its paths begin"
    assert not (world.data / "stolen").exists()


# Mounts that change


def test_each_request_on_a_connection_goes_by_the_mounts_of_that_moment(world: World) -> None:
    with world.holder() as task:
        (task.root / "elsewhere").mkdir()
        number = task.attack("connect")

        def seen() -> tuple[list[tuple[str, bool]], str]:
            workspaces, upload = (task.attack("ask_on", number, *asked) for asked in (WORKSPACES, UPLOAD))
            return held(workspaces), code(upload)

        writable = ([("/data", False)], "ok")
        changes: list[tuple[tuple[Any, ...], tuple[list[tuple[str, bool]], str]]] = [
            (("mount", "none", "/data", 0, "tmpfs"), ([], "unknown-workspace")),
            (("unmount", "/data"), writable),
            (("mount", "/tmp", "/data", intruder.MS_BIND), ([], "unknown-workspace")),
            (("unmount", "/data"), writable),
            (
                ("mount", "", "/data", intruder.MS_REMOUNT | intruder.MS_BIND | intruder.MS_RDONLY),
                ([("/data", True)], "read-only"),
            ),
            (("mount", "", "/data", intruder.MS_REMOUNT | intruder.MS_BIND), writable),
            (("mount", "/data", "/elsewhere", intruder.MS_MOVE), ([("/elsewhere", False)], "ok")),
            (("mount", "/elsewhere", "/data", intruder.MS_BIND), ([("/elsewhere", False)], "ok")),
            (("unmount", "/elsewhere"), writable),
            (("unmount", "/data"), ([], "unknown-workspace")),
        ]
        assert seen() == writable
        for change, expected in changes:
            assert task.attack(*change) == 0, change
            assert seen() == expected, change
        assert sorted(path.name for path in task.root.iterdir() if path.name == "f") == []
    assert [path.name for path in world.data.iterdir()] == ["f"]


@pytest.mark.parametrize(
    "change",
    [
        ("unmount", "/data"),
        ("mount", "none", "/data", 0, "tmpfs"),
        ("mount", "/tmp", "/data", intruder.MS_BIND),
        ("mount", "/data", "/elsewhere", intruder.MS_MOVE),
    ],
    ids=lambda change: "-".join(str(part) for part in change if part).replace("/", ""),
)
def test_a_listing_that_is_going_on_shows_the_workspace_or_ends(world: World, change: tuple[Any, ...]) -> None:
    """What is mounted over the workspace, or was below it, is never listed."""
    names = {f"{number:04}{'x' * 200}" for number in range(4000)}
    for name in names:
        os.close(os.open(world.data / name, os.O_CREAT | os.O_WRONLY))
    with world.holder() as task:
        (task.root / "elsewhere").mkdir()
        (task.root / "data" / "below").touch()
        number = task.attack("connect")
        lines = task.attack("begin", number, "GET", f"{WS}/files?recursive=true")
        assert task.attack(*change) == 0
        for place in ("tmp", "data"):  # which of them is seen at /data now
            (task.root / place / "planted").touch()
        documents = [json.loads(line) for line in lines + task.attack("end", number)]
        listed = {document["file"] for document in documents if "file" in document}
        assert listed <= names
        assert len(listed) == len(names) or "error" in documents[-1]


def test_a_batch_that_is_going_on_writes_to_the_workspace_or_nowhere(world: World) -> None:
    items = [{"local_path": "/tmp/in", "file_path": f"{number:04}{'x' * 200}"} for number in range(1500)]
    with world.holder() as task:
        number = task.attack("connect")
        body = {"files": items, "on_error": "continue"}
        lines = task.attack("begin", number, "POST", f"{WS}/upload", body)
        assert task.attack("mount", "none", "/data", 0, "tmpfs") == 0
        results = [json.loads(line) for line in lines + task.attack("end", number)]
        done = {result["file_path"] for result in results if result["status"] == "done"}
        assert 0 < len(done) < len(items)
        assert {result["error"]["code"] for result in results if result["status"] == "failed"} == {"invalid-path"}
        assert task.attack("unmount", "/data") == 0
    assert set(os.listdir(world.data)) == done


@pytest.mark.parametrize("identity", [USER, Identity(capabilities=0)], ids=["user", "root-without-capabilities"])
def test_read_only_cannot_be_lifted_in_a_user_namespace(world: World, identity: Identity) -> None:
    """A caller makes itself root of a copy of its mounts: the kernel keeps `:ro` locked in there, and so do we."""
    (world.data / "f").write_text("x")
    with world.holder("ro", identity=identity, is_pivoted=True) as task:
        lifting = task.attack("make_writable", "/data")
        assert set(lifting.values()) == {errno.EPERM}, "outside of one it may not mount at all"
        assert task.attack("unshare", intruder.CLONE_NEWUSER | intruder.CLONE_NEWNS) == 0
        _map_user(task, 0, identity.uid)
        lifting = task.attack("make_writable", "/data")
        assert lifting.pop("bind") == 0, "it is root of its mounts"
        assert all(lifting.values()), lifting
        assert [found["read_only"] for found in task.workspaces()] == [True]
        for verb, item in (
            ("upload", {"local_path": "/tmp/in", "file_path": "g"}),
            ("move", {"file_path": "f", "new_path": "g"}),
            ("delete", {"file_path": "f"}),
        ):
            answer = task.post(*one(verb, **item))
            assert answer.json["code"] == "read-only", (verb, answer.text)
    assert os.listdir(world.data) == ["f"]

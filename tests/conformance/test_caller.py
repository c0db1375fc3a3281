"""Authority follows the mounts: the real sidecar and tasks in mount namespaces, roots and identities of their own.

What a task may do is decided by the kernel from who it is and what is mounted in it. Every test looks at the
disk; `tests/system` repeats the main ones with real containers.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.directories import temporary_directory
from lab.hostile import exchange
from lab.processes import Running, wait_until
from lab.programs import pausing_program
from lab.sidecar import caller_sidecar, descriptors, thread_identities
from lab.task import Identity, Task
from lab.unix_http import connected, request, without_request
from lab.world import USER, WS, empty, one
from storage.exceptions import StorageError

pytestmark = pytest.mark.root

Start = Callable[..., Task]


class World:
    """A host with a workspace `data`, a sidecar, and tasks that hold the workspace or not."""

    def __init__(self, directory: Path, sidecar: Running) -> None:
        self.directory = directory
        self.sidecar = sidecar
        self.data = directory / "data"
        self.secret = directory / "secret"
        self._count = 0

    def task(
        self,
        mode: str | None = "rw",
        identity: Identity | None = None,
        at: str = "/data",
        *,
        is_pivoted: bool = False,
    ) -> Task:
        """A task with the workspace mounted `mode` at `at` (None: without it)."""
        self._count += 1
        root = self.directory / f"task{self._count}"
        for name in ("tmp", "etc"):
            (root / name).mkdir(parents=True)
        (root / "tmp").chmod(0o1777)
        (root / "etc" / "passwd").write_text("the task's own passwd")
        binds = [(self.directory / "root" / "sidecar", "/run/brokervol", "ro")]
        if mode:
            binds.append((self.data, at, mode))
        return Task(root, binds, identity, is_pivoted=is_pivoted)


@pytest.fixture
def world(served: tuple[Path, Running]) -> Iterator[World]:
    """A clean world; afterwards no thread of the sidecar may still be somebody else, and no descriptor be left."""
    outer, sidecar = served
    with temporary_directory() as directory:
        (directory / "root").symlink_to(outer / "root")
        world = World(directory, sidecar)
        world.data = outer / "data"
        world.data.chmod(0o777)
        world.secret.write_text("sentinel")
        before = descriptors(sidecar.pid)
        yield world
        assert world.secret.read_text() == "sentinel"
        wait_until(lambda: descriptors(sidecar.pid) <= before, "descriptors to be closed")
        wait_until(lambda: len(thread_identities(sidecar.pid)) == 1, "every thread to be itself again")
        empty(world.data)


def test_a_holder_sees_exactly_its_workspace_where_it_is_mounted(world: World) -> None:
    with world.task("ro", at="/mnt/in put") as task:
        assert task.workspaces() == [
            {
                "name": "data",
                "broker_type": "host",
                "volume_path": "/mnt/in put",
                "read_only": True,
                "volume": {"driver": None, "remote_path": str(world.data)},
            }
        ]
    with world.task("rw") as task:
        assert [(found["volume_path"], found["read_only"]) for found in task.workspaces()] == [("/data", False)]


def test_without_the_volume_a_workspace_looks_like_one_that_does_not_exist(world: World) -> None:
    (world.data / "f").write_text("x")
    with world.task(None) as task:
        assert task.workspaces() == []
        held, other = task.get(f"{WS}/files"), task.get("/v1/workspaces/nonsense/files")
        assert (held.status, other.status) == (404, 404)
        assert held.json["code"] == "unknown-workspace"
        assert without_request(held.text).replace("data", "nonsense") == without_request(other.text)


def test_a_directory_with_the_same_path_or_content_is_no_token(world: World) -> None:
    lookalike = world.directory / "data"
    lookalike.mkdir()
    with world.task(None) as task:
        (task.root / "data").mkdir()
        assert task.workspaces() == []


def test_a_read_only_mount_is_read_only_and_a_read_write_mount_is_not(world: World) -> None:
    (world.data / "f").write_text("x")
    with world.task("ro") as task:
        answer = task.post(*one("delete", file_path="f"))
        assert (answer.status, answer.json["code"]) == (403, "read-only")
        assert (world.data / "f").exists()
        assert task.get(f"{WS}/catalog").json["files"] == []
        assert task.post(*one("download", file_path="f", local_path="/tmp/f")).status == 200
    with world.task("rw") as task:
        assert task.post(*one("delete", file_path="f")).status == 200
        assert not (world.data / "f").exists()
        (record,) = task.get(f"{WS}/catalog?file_path=f").json["files"]
        assert record["is_deleted"] is True


def test_files_belong_to_the_caller(world: World) -> None:
    with world.task("rw", USER) as task:
        (task.root / "tmp" / "in").write_text("mine")
        assert task.post(*one("upload", local_path="/tmp/in", file_path="dir/f")).status == 200
        assert task.post(*one("download", file_path="dir/f", local_path="/tmp/out")).status == 200
        link = os.lstat(task.root / "tmp" / "out")
        assert (link.st_uid, link.st_gid) == (1000, 1000)
        assert os.readlink(task.root / "tmp" / "out") == "/data/dir/f"
    for path in ("dir", "dir/f"):
        stored = (world.data / path).stat()
        assert (stored.st_uid, stored.st_gid) == (1000, 1000)


def test_a_user_cannot_write_read_or_remove_what_it_may_not(world: World) -> None:
    world.data.chmod(0o755)
    (world.data / "f").write_text("root's")
    (world.data / "private").write_text("hidden")
    (world.data / "private").chmod(0o600)
    (world.data / "closed").mkdir(mode=0o700)
    (world.data / "closed" / "f").write_text("hidden")
    with world.task("rw", USER) as task:
        (task.root / "tmp" / "in").write_text("evil")
        (task.root / "etc" / "shadow").write_text("root's secret")
        (task.root / "etc" / "shadow").chmod(0o600)
        for verb, item in (
            ("upload", {"local_path": "/tmp/in", "file_path": "new"}),
            ("upload", {"local_path": "/tmp/in", "file_path": "f"}),
            ("upload", {"local_path": "/etc/shadow", "file_path": "stolen"}),
            ("delete", {"file_path": "f"}),
            ("delete", {"file_path": "closed/f"}),
            ("move", {"file_path": "f", "new_path": "g"}),
            ("move", {"file_path": "closed/f", "new_path": "g"}),
            ("download", {"file_path": "closed/f", "local_path": "/tmp/out"}),
            ("download", {"file_path": "f", "local_path": "/etc/out"}),
        ):
            answer = task.post(*one(verb, **item))
            assert (answer.status, answer.json["code"]) == (403, "permission-denied"), (verb, item, answer.text)
        assert task.get(f"{WS}/files?recursive=true").json["code"] == "permission-denied"
        assert sorted(os.listdir(task.root / "etc")) == ["passwd", "shadow"]
    assert (world.data / "f").read_text() == "root's"
    assert sorted(os.listdir(world.data)) == ["closed", "f", "private"]


def test_supplementary_groups_count(world: World) -> None:
    shared = world.data / "shared"
    shared.mkdir()
    os.chown(shared, 0, 2000)
    shared.chmod(0o770)
    groups = [2000, *range(3000, 3400)]  # more than fit into Python's own getsockopt
    for identity, status in ((Identity(1000, 1000, groups), 200), (USER, 403)):
        with world.task("rw", identity) as task:
            (task.root / "tmp" / "in").write_text("x")
            assert task.post(*one("upload", local_path="/tmp/in", file_path="shared/f")).status == status


def test_root_without_capabilities_is_held_to_permissions(world: World) -> None:
    (world.data / "theirs").mkdir()
    os.chown(world.data / "theirs", 1000, 1000)
    (world.data / "theirs").chmod(0o700)
    for capabilities, status in ((0, 403), (None, 200)):
        with world.task("rw", Identity(capabilities=capabilities)) as task:
            (task.root / "tmp" / "in").write_text("x")
            answer = task.post(*one("upload", local_path="/tmp/in", file_path="theirs/f"))
            assert answer.status == status, answer.text


@pytest.mark.parametrize(
    "target", ["{outside}", "../../../../../..{outside}", "/proc/self/root{outside}", "/../..{outside}"]
)
def test_a_local_link_out_of_the_tasks_root_leads_nowhere(world: World, target: str) -> None:
    """`{outside}` exists on the host, not in the task: wherever a link points, it points inside the task."""
    outside = world.directory / "outside"
    outside.mkdir(mode=0o777)
    (outside / "secret").write_text("sentinel")
    (world.data / "f").write_text("x")
    with world.task("rw") as task:
        (task.root / "proc").mkdir()
        (task.root / "tmp" / "link").symlink_to(target.format(outside=outside))
        for verb, item in (
            ("upload", {"local_path": "/tmp/link/secret", "file_path": "stolen"}),
            ("download", {"file_path": "f", "local_path": "/tmp/link/planted"}),
            ("download", {"file_path": "f", "local_path": "/tmp/link/secret"}),
        ):
            answer = task.post(*one(verb, **item))
            assert answer.status in (400, 404), answer.text
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").read_text() == "sentinel"
    assert os.listdir(world.data) == ["f"]


def test_dots_in_a_local_path_stop_at_the_tasks_root(world: World) -> None:
    with world.task("rw") as task:
        up = "/tmp" + "/.." * 40
        assert task.post(*one("upload", local_path=f"{up}/etc/passwd", file_path="f")).status == 200
        assert (world.data / "f").read_text() == "the task's own passwd"
        assert task.post(*one("download", file_path="f", local_path=f"{up}/tmp/out")).status == 200
        assert (task.root / "tmp" / "out").is_symlink()
        absolute = task.post(*one("upload", local_path=str(world.secret), file_path="g"))
        assert (absolute.status, absolute.json["code"]) == (404, "missing-file")
    assert os.listdir(world.data) == ["f"]


def test_a_link_in_the_workspace_leads_nowhere_outside(world: World) -> None:
    (world.data / "out").symlink_to("/etc")
    (world.data / "up").symlink_to("../secret")
    with world.task("rw") as task:
        for path in ("out/passwd", "up"):
            answer = task.post(*one("download", file_path=path, local_path="/tmp/x"))
            assert (answer.status, answer.json["code"]) == (400, "invalid-path")
        (task.root / "tmp" / "in").write_text("evil")
        assert task.post(*one("upload", local_path="/tmp/in", file_path="out/planted")).status == 400
        assert os.listdir(task.root / "etc") == ["passwd"]
    assert not Path("/etc/planted").exists()


def test_the_servers_own_proc_cannot_be_read_through_a_task(world: World) -> None:
    """With the host's /proc in a task (`--pid host`), /proc/self would be the sidecar: its environment."""
    with world.task("rw") as task:
        pid = world.sidecar.pid
        task.mount_proc()
        for path in (
            "/proc/self/environ",
            f"/proc/{pid}/environ",
            "/proc/self/root/etc/passwd",
            "/proc/1/environ",
        ):
            answer = task.post(*one("upload", local_path=path, file_path="stolen"))
            assert answer.status in (400, 403), (path, answer.text)
    assert os.listdir(world.data) == []


def test_special_files_of_the_task_are_refused_without_blocking(world: World) -> None:
    with world.task("rw") as task:
        os.mkfifo(task.root / "tmp" / "fifo")
        os.mknod(task.root / "tmp" / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        for name in ("fifo", "device", ""):
            answer = task.post(*one("upload", local_path=f"/tmp/{name}", file_path="f"))
            assert (answer.status, answer.json["code"]) == (400, "invalid-path")


def test_a_mount_inside_the_workspace_is_not_the_workspace(world: World) -> None:
    (world.data / "sub").mkdir()
    with world.task("rw") as task:
        task.mount_tmpfs("/data/sub")
        (task.root / "tmp" / "in").write_text("x")
        answer = task.post(*one("upload", local_path="/tmp/in", file_path="sub/f"))
        assert (answer.status, answer.json["code"]) == (400, "invalid-path")
        assert task.get(f"{WS}/files?recursive=true").json["files"] == []


def test_something_mounted_over_the_workspace_takes_it_away(world: World) -> None:
    (world.data / "f").write_text("x")
    with world.task("rw") as task:
        task.mount_tmpfs("/data")
        assert task.workspaces() == []
        assert task.post(*one("delete", file_path="f")).status == 404
    assert (world.data / "f").exists()


def test_a_caller_that_exited_has_no_authority_left(world: World) -> None:
    """The connection of a dead task, kept open by somebody else, is worth nothing."""
    path = str(world.directory / "root" / "sidecar" / "broker.sock")
    child_end, parent_end = os.pipe()
    child = os.fork()
    if child == 0:
        connection = connected(path)
        os.set_inheritable(connection.fileno(), True)
        if os.fork() > 0:
            os._exit(0)  # the process that connected
        os.read(child_end, 1)
        connection.sendall(b"GET /v1/workspaces HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
        Path(world.directory / "answer").write_bytes(answer)
        os.rename(world.directory / "answer", world.directory / "answered")
        os._exit(0)
    os.waitpid(child, 0)
    os.write(parent_end, b"!")
    os.close(parent_end)
    os.close(child_end)
    wait_until((world.directory / "answered").exists, "the orphan's answer")
    assert b" 403 " in (world.directory / "answered").read_bytes().splitlines()[0]
    assert b"exited" in (world.directory / "answered").read_bytes()


def _private_file(world: World) -> Path:
    private = world.data / "private"
    private.mkdir(mode=0o700)
    (private / "f").write_text("root's")
    return private / "f"


def test_a_set_user_id_program_on_the_connected_process_lends_nothing(world: World) -> None:
    """The capabilities of `su`, run by a user who then asks on the connection made before."""
    secret = _private_file(world)
    with world.task("rw", USER) as task:
        program = task.root / "setuid"
        program.write_bytes(pausing_program())
        program.chmod(0o4755)
        body = json.dumps({"files": [{"file_path": "private/f"}]})
        assert task.attack("exec", "/setuid", f"{WS}/delete", body) == [403]
    assert secret.exists()


def test_a_user_namespace_made_while_being_served_lends_nothing(world: World) -> None:
    secret = _private_file(world)
    body = json.dumps({"files": [{"file_path": "private/f"}] * 200, "on_error": "continue"})
    with world.task("rw", USER, is_pivoted=True) as task:
        for _ in range(10):
            assert task.attack("namespace", f"{WS}/delete", body) == [200]
    assert secret.exists()


@pytest.mark.parametrize("identity", [None, USER])
def test_what_is_mounted_in_the_caller_is_not_taken_away(world: World, identity: Identity | None) -> None:
    """The kernel says EBUSY to the caller; to us, in another mount namespace, it would detach the mount."""
    (world.data / "f").write_text("x")
    (world.data / "masked").write_text("hidden")
    for path in ("f", "masked"):
        os.chown(world.data / path, 1000, 1000)
    policy = world.directory / "policy"
    policy.write_text("the operator's")
    with world.task("rw", identity) as task:
        (task.root / "tmp" / "policy").touch()
        task.mount_file(policy, "/tmp/policy")
        task.mount_file(policy, "/data/masked")
        mounts = Path(f"/proc/{task.pid}/mountinfo").read_text()
        for verb, item in (
            ("download", {"file_path": "f", "local_path": "/tmp/policy"}),
            ("download", {"file_path": "f", "local_path": "/data/masked"}),
            ("upload", {"local_path": "/data/f", "file_path": "masked"}),
            ("move", {"file_path": "f", "new_path": "masked"}),
            ("move", {"file_path": "masked", "new_path": "g"}),
            ("delete", {"file_path": "masked"}),
        ):
            assert task.post(*one(verb, **item)).status in (400, 409), (verb, item)
        assert Path(f"/proc/{task.pid}/mountinfo").read_text() == mounts
    assert (world.data / "masked").read_text() == "hidden"


def test_what_is_mounted_through_another_mount_of_the_directory_is_not_taken_away(world: World) -> None:
    """The same volume twice, and a mask on a file in one of them: EBUSY goes by directory entry, not by path."""
    (world.data / "dir").mkdir()
    for path in ("f", "dir/masked"):
        (world.data / path).write_text("hidden")
    policy = world.directory / "policy"
    policy.write_text("the operator's")
    with world.task("rw") as task:
        (task.root / "second").mkdir()
        task.mount_file(world.data, "/second")
        task.mount_file(policy, "/second/dir/masked")
        assert [found["volume_path"] for found in task.workspaces()] == ["/data"]
        mounts = Path(f"/proc/{task.pid}/mountinfo").read_text()
        for verb, item in (
            ("download", {"file_path": "f", "local_path": "/data/dir/masked"}),
            ("upload", {"local_path": "/data/f", "file_path": "dir/masked"}),
            ("move", {"file_path": "f", "new_path": "dir/masked"}),
            ("move", {"file_path": "dir/masked", "new_path": "g"}),
            ("delete", {"file_path": "dir/masked"}),
        ):
            answer = task.post(*one(verb, **item))
            assert (answer.status, answer.json["code"]) == (409, "already-exists"), (verb, item, answer.text)
        assert Path(f"/proc/{task.pid}/mountinfo").read_text() == mounts
        assert task.post(*one("move", file_path="f", new_path="dir/g")).status == 200
    assert (world.data / "dir/masked").read_text() == "hidden"


def test_a_lease_on_a_file_stops_no_thread(world: World) -> None:
    with world.task("rw", USER) as task, world.task("rw") as other:
        (task.root / "tmp" / "leased").mkdir()
        (task.root / "tmp" / "leased" / "f").write_text("x")
        os.chown(task.root / "tmp" / "leased" / "f", 1000, 1000)
        task.attack("leases", "/tmp/leased")
        started = time.monotonic()
        answer = task.post(*one("upload", local_path="/tmp/leased/f", file_path="f"))
        assert (answer.status, answer.json["code"]) == (503, "backend-unavailable")
        assert "retry-after" in answer.headers
        assert time.monotonic() - started < 20, "a lease break takes 45 s"
        assert other.workspaces()


def test_identities_do_not_mix_between_threads(world: World) -> None:
    """Users and root at once on many threads: every file belongs to who made it, every refusal holds."""
    (world.data / "roots").mkdir(mode=0o755)
    identities = [Identity(), USER, Identity(uid=1001, gid=1001), Identity(uid=1002, gid=1002)]
    failures: list[str] = []

    def work(task: Task, uid: int) -> None:
        (task.root / "tmp" / "in").write_text(str(uid))
        for number in range(40):
            name = f"{uid}-{number}"
            if task.post(*one("upload", local_path="/tmp/in", file_path=name)).status != 200:
                failures.append(f"{name} failed")
            denied = task.post(*one("upload", local_path="/tmp/in", file_path=f"roots/{name}")).status
            if denied != (200 if uid == 0 else 403):
                failures.append(f"roots/{name}: {denied}")

    tasks = [(world.task("rw", identity), identity.uid) for identity in identities]
    threads = [threading.Thread(target=work, args=pair) for pair in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for task, _ in tasks:
        task.close()
    assert failures == []
    for found in world.data.iterdir():
        if found.is_file():
            assert str(found.stat().st_uid) == found.name.split("-")[0]


@pytest.mark.parametrize("verb", ["download", "upload", "move", "delete"])
def test_a_racing_task_gets_nothing_outside_its_root_or_workspace(world: World, verb: str) -> None:
    """The task swaps a directory for a link to the host's, in its root and in its workspace, while we work."""
    outside = world.directory / "outside"
    outside.mkdir(mode=0o777)
    (outside / "f").write_text("sentinel")
    stop = threading.Event()
    with world.task("rw") as task:
        swapped = [task.root / "tmp", world.data]
        for place in swapped:
            (place / "dir").mkdir(mode=0o777)
            (place / "dir" / "f").write_text("inside")
            (place / "link").symlink_to(outside)

        def swap() -> None:
            while not stop.is_set():
                for place in swapped:
                    exchange(place / "dir", place / "link")

        swapping = threading.Thread(target=swap)
        swapping.start()
        try:
            item = {
                "download": {"file_path": "dir/f", "local_path": "/tmp/dir/out"},
                "upload": {"local_path": "/tmp/dir/f", "file_path": "dir/f"},
                "move": {"file_path": "dir/f", "new_path": "dir/g"},
                "delete": {"file_path": "dir/f"},
            }[verb]
            statuses = {task.post(*one(verb, **item)).status for _ in range(250)}
        finally:
            stop.set()
            swapping.join()
    assert statuses <= {200, 400, 404}
    assert os.listdir(outside) == ["f"]
    assert (outside / "f").read_text() == "sentinel"
    assert all(found.is_symlink() or "sentinel" not in found.read_text() for found in world.data.rglob("f"))


def test_the_socket_is_open_to_all_and_its_directory_to_none(world: World) -> None:
    directory = world.directory / "root" / "sidecar"
    assert stat.S_IMODE((directory / "broker.sock").stat().st_mode) == 0o666
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    with world.task("rw") as task:
        (task.root / "tmp" / "in").write_text("x")
        (world.data / "f").write_text("x")
        for name, refusal in (("broker.sock", (409, "already-exists")), ("new", (403, "read-only"))):
            answer = task.post(*one("download", file_path="f", local_path=f"/run/brokervol/{name}"))
            assert (answer.status, answer.json["code"]) == refusal
    assert request(str(directory / "broker.sock"), "GET", "/healthz").status == 200


def test_kill_and_restart_serves_the_same_tasks() -> None:
    with temporary_directory() as directory:
        (directory / "data").mkdir()
        world = None
        with caller_sidecar(directory, {"data": directory / "data"}) as sidecar:
            world = World(directory, sidecar)
            task = world.task("rw")
            os.kill(sidecar.pid, signal.SIGKILL)
            wait_until(sidecar.has_ended, "the sidecar to die")
        with task, caller_sidecar(directory, {"data": directory / "data"}):
            assert [found["name"] for found in task.workspaces()] == ["data"]


def test_errors_have_the_documented_kinds() -> None:
    from sidecar.errors import STATUS_OF_CODE

    kinds = {kind.code for kind in StorageError.__subclasses__()}
    assert kinds <= set(STATUS_OF_CODE)

"""NFS volumes with the sidecar, and with what an engine does with them: copy-up, and the managed plugin.

On a real server and client, the kernel's, in a machine of the tests' own (lab/inside.py).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient

import build
from lab.images import USER
from lab.inner_engine import IMAGE, InnerEngine, inner_engine
from lab.nas import PREPARE, Nas, started_nas
from lab.nfs_driver import Driver, exported, running_driver
from lab.processes import Running, running, wait_until
from lab.sidecar import thread_identities
from lab.stage import build_plugin, built_plugin
from lab.task import Answer, Identity, Task
from storage.mountinfo import read_mounts

RUNS_INSIDE = PREPARE
OUTSIDE = {"managed": build_plugin}

OWNER = Identity(USER, USER)
GROUP = 2000
MEMBER = Identity(1001, 1001, [7, GROUP])
STRANGER = Identity(1001, 1001)
ROOT = Identity()
NOBODY = 65534
MIB = 1024 * 1024
_TASKS = Path("/run/tasks")
_NUMBERS = itertools.count()


class Site:
    """A driver and its sidecar: volumes, and tasks that have them."""

    def __init__(self, driver: Driver, sidecar: Running) -> None:
        self.driver = driver
        self.sidecar = sidecar

    def volume(self, nfs_path: str | Path, mount_options: str) -> Volume:
        name = f"v{next(_NUMBERS)}"
        self.driver.create(name, nfs_path, mount_options)
        return Volume(self, name, self.driver.mount(name))

    def task(self, identity: Identity, *binds: tuple[Path, str, str]) -> Task:
        """A task with these binds: (source, target, "ro" or "rw"), and files of its own in /tmp."""
        root = _TASKS / str(next(_NUMBERS))
        (root / "tmp").mkdir(parents=True)
        (root / "tmp").chmod(0o1777)
        (root / "tmp/in").write_text("local")
        socket = (Path(self.sidecar.socket_path).parent, "/run/brokervol", "ro")
        return Task(root, [socket, *binds], identity)


class Volume:
    """A mounted volume, and what is asked of the sidecar about it."""

    def __init__(self, site: Site, name: str, files: Path) -> None:
        self._site = site
        self.name = name
        self.files = files
        self.url = f"/v1/workspaces/{name}"

    def task(self, identity: Identity, part: str = "", mode: str = "rw") -> Task:
        """A task that has it, or a part of it, at /data."""
        return self._site.task(identity, (self.files / part, "/data", mode))

    def ask(self, task: Task, verb: str, **item: Any) -> Answer:
        """A batch of one."""
        return task.post(f"{self.url}/{verb}", {"files": [item]})

    def done(self, task: Task, verb: str, **item: Any) -> None:
        answer = self.ask(task, verb, **item)
        assert (answer.status, answer.json["done"]) == (200, 1), answer.text

    def names(self, task: Task) -> list[str]:
        answer = task.get(f"{self.url}/files?recursive=true")
        assert answer.status == 200, answer.text
        return sorted(found["file"] for found in answer.json["files"])

    def put(self, task: Task, path: str, text: str, **headers: str) -> Answer:
        return task.request("PUT", f"{self.url}/content/{path}", text, **headers)

    def recorded(self, task: Task) -> list[str]:
        found = task.get(f"{self.url}/catalog?is_deleted=false").json["files"]
        return sorted(record["file_path"] for record in found)


@pytest.fixture(scope="module")
def nas() -> Iterator[Nas]:
    with started_nas() as server:
        yield server


@contextlib.contextmanager
def running_sidecar(root: str) -> Iterator[Running]:
    command = [sys.executable, "-m", "sidecar", "--root", root]
    with running(command, {}, f"{root}/sidecar/broker.sock") as process:
        yield process


@pytest.fixture(scope="module")
def shared_site() -> Iterator[Site]:
    with running_driver("site") as driver, running_sidecar(driver.root) as sidecar:
        yield Site(driver, sidecar)
        assert "Traceback" not in sidecar.log()
        wait_until(lambda: len(thread_identities(sidecar.pid)) == 1, "every thread to be itself again")


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """Without volumes. Nothing is left of those that the test makes."""
    yield shared_site
    shared_site.driver.remove_all()
    shared_site.driver.nothing_is_left()


def owned_by(path: Path, uid: int, gid: int, mode: int) -> Path:
    """A directory on the server's disk, made if need be."""
    path.mkdir(exist_ok=True)
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def owners(path: Path) -> dict[str, tuple[int, int]]:
    """Who owns what there is, on the server's disk."""
    return {
        str(found.relative_to(path)): (found.lstat().st_uid, found.lstat().st_gid) for found in path.rglob("*")
    }


# The sidecar


@pytest.mark.parametrize("version", ["4.2", "4.0", "3"])
def test_callers_are_themselves_where_root_is_nobody(site: Site, nas: Nas, version: str) -> None:
    """Every operation, in a directory that the sidecar's own user may not even look into."""
    export = owned_by(nas.export(f"own-{version}", options="rw,root_squash"), USER, USER, 0o700)
    volume = site.volume(export, f"vers={version}")
    with pytest.raises(PermissionError):
        os.listdir(volume.files)
    with volume.task(OWNER) as task:
        assert volume.put(task, "deep/er/put", "put").status == 201
        assert volume.put(task, "deep/er/put", "again").status == 200
        assert volume.put(task, "deep/er/put", "never", **{"If-None-Match": "*"}).status == 409
        assert volume.put(task, "deep/new", "new", **{"If-None-Match": "*"}).status == 201
        volume.done(task, "upload", local_path="/tmp/in", file_path="up")
        volume.done(task, "move", file_path="up", new_path="moved/up")
        volume.done(task, "delete", file_path="deep/new")
        volume.done(task, "download", file_path="deep/er/put", local_path="/tmp/out")
        assert os.readlink(task.root / "tmp/out") == "/data/deep/er/put"
        assert volume.ask(task, "paths", file_path="moved/up").json == {"paths": ["/data/moved/up"]}
        assert volume.names(task) == volume.recorded(task) == ["deep/er/put", "moved/up"]
        assert task.get(f"{volume.url}/content/deep/er/put").text == "again"
    kept = ["deep", "deep/er", "deep/er/put", "moved", "moved/up"]
    assert owners(export) == dict.fromkeys(kept, (USER, USER))
    assert (export / "moved/up").read_text() == "local"
    for identity in (ROOT, STRANGER):
        with volume.task(identity) as task:
            assert_denied(volume, task)
    assert sorted(owners(export)) == kept


def assert_denied(volume: Volume, task: Task) -> None:
    """The caller has the volume, and may do nothing there."""
    answers = {
        "list": task.get(f"{volume.url}/files"),
        "get": task.get(f"{volume.url}/content/moved/up"),
        "put": volume.put(task, "mine", "x"),
        "upload": volume.ask(task, "upload", local_path="/tmp/in", file_path="mine"),
        "download": volume.ask(task, "download", file_path="moved/up", local_path="/tmp/out"),
        "move": volume.ask(task, "move", file_path="moved/up", new_path="moved/mine"),
        "delete": volume.ask(task, "delete", file_path="moved/up"),
    }
    told = {verb: (answer.status, answer.json["code"]) for verb, answer in answers.items()}
    assert told == dict.fromkeys(answers, (403, "permission-denied"))


def test_supplementary_groups_count(site: Site, nas: Nas) -> None:
    export = owned_by(nas.export("group", options="rw,root_squash"), 0, GROUP, 0o2770)
    volume = site.volume(export, "vers=4.2")
    with volume.task(MEMBER) as task:
        volume.done(task, "upload", local_path="/tmp/in", file_path="up")
        assert volume.put(task, "put", "x").status == 201
    assert owners(export) == {"up": (1001, GROUP), "put": (1001, GROUP)}
    for identity in (STRANGER, Identity(1001, 1001, [*range(100, 116), GROUP])):  # NFS carries 16 of them
        with volume.task(identity) as task:
            assert task.get(f"{volume.url}/files").status == 403
    with volume.task(MEMBER, mode="ro") as task:
        assert volume.names(task) == ["put", "up"]
        answer = volume.ask(task, "delete", file_path="up")
        assert (answer.status, answer.json["code"]) == (403, "read-only")


def test_deleted_file_that_is_open_is_seen_until_it_is_closed(site: Site, nas: Nas) -> None:
    export = nas.export("open")
    volume = site.volume(export, "vers=4.2")
    with volume.task(ROOT) as task:
        volume.done(task, "upload", local_path="/tmp/in", file_path="up")
        with open(volume.files / "up", "rb") as file:
            volume.done(task, "delete", file_path="up")
            (name,) = volume.names(task)
            assert name.startswith(".nfs")
            assert file.read() == b"local"
        assert volume.names(task) == []


SIZE = 24 * MIB
CONTENT = os.urandom(MIB)


def traffic(mountpoint: Path) -> dict[str, int]:
    """What the client has done on the file system of a mount: calls by name, and bytes `read` and `written`."""
    statistics = Path("/proc/self/mountstats").read_text().split(f" mounted on {mountpoint} ")[1]
    statistics = statistics.split("\ndevice ")[0]
    found = {call: int(count) for call, count in re.findall(r"^\s+([A-Z_]+): (\d+) ", statistics, re.MULTILINE)}
    numbers = re.search(r"^\s+bytes:\s+([\d ]+)$", statistics, re.MULTILINE)
    assert numbers is not None
    counts = [int(number) for number in numbers[1].split()]
    return found | {"read": counts[4], "written": counts[5]}  # from and to the server, see nfsiostat(8)


def make_large_file(path: Path) -> None:
    """A file of the user's with content, and with a hole where the server can tell of one."""
    with path.open("wb") as file:
        for _ in range(SIZE // MIB - 4):
            file.write(CONTENT)
        file.seek(SIZE - MIB)
        file.write(CONTENT)
    os.chown(path, USER, USER)


@pytest.mark.parametrize(("source_version", "version"), [("4.2", "4.2"), ("4.1", "4.1"), ("3", "3"), ("3", "4.2")])
def test_uploads_within_one_server(site: Site, nas: Nas, source_version: str, version: str) -> None:
    """Of one export, and from one to another: the server copies where both ends are NFS 4.2."""
    exports = []
    for kind in ("from", "to"):
        export = nas.export(f"{kind}-{source_version}-{version}", options="rw,root_squash")
        exports.append(owned_by(export, USER, USER, 0o700))
    make_large_file(exports[0] / "large")
    source, target = (
        site.volume(export, f"vers={of}") for export, of in zip(exports, (source_version, version), strict=True)
    )
    with site.task(OWNER, (source.files, "/from", "rw"), (target.files, "/to", "rw")) as task:
        before = [traffic(volume.files) for volume in (source, target)]
        for volume in (source, target):
            volume.done(task, "upload", local_path="/from/large", file_path="copy")
        after = [traffic(volume.files) for volume in (source, target)]
    for export in exports:
        assert (export / "copy").read_bytes() == (exports[0] / "large").read_bytes()
        assert (export / "copy").stat().st_uid == USER
        (export / "copy").unlink()
    for then, now in zip(before, after, strict=True):
        done = {call: now[call] - then.get(call, 0) for call in now}
        if source_version == "4.2":
            assert done["COPY"] >= 1
            assert done["READ"] == done["WRITE"] == done["read"] == done["written"] == 0
        else:
            assert done["written"] == SIZE


def test_what_a_killed_sidecar_left_is_settled_where_root_is_nobody(nas: Nas) -> None:
    """Only who began it may look into its directory, and only as a member of a group write there."""
    export = owned_by(nas.export("killed", options="rw,root_squash"), USER, GROUP, 0o700)
    inner = owned_by(export / "inner", 0, GROUP, 0o770)
    with running_driver("killed") as driver, contextlib.ExitStack() as tasks:
        with running_sidecar(driver.root) as sidecar:
            volume = Site(driver, sidecar).volume(export, "vers=4.2")
            task = tasks.enter_context(volume.task(Identity(USER, USER, [GROUP])))
            task.attack("stall", f"{volume.url}/content/inner")
            wait_until(lambda: len(os.listdir(inner)) == 1, "an upload has begun")
            sidecar.kill()
        with running_sidecar(driver.root) as sidecar:
            assert volume.names(task) == []
            assert os.listdir(inner) == []
            assert f"'inner/new' in workspace '{volume.name}': nothing was changed" in sidecar.log()
        tasks.close()
        driver.remove_all()
        driver.nothing_is_left()


def held(task: Task) -> dict[str, str]:
    """The workspaces that a task holds, and where."""
    return {found["name"]: found["volume_path"] for found in task.workspaces()}


@pytest.mark.parametrize("version", ["4.2", "3"])
def test_part_of_a_volume_is_all_that_its_task_has(site: Site, nas: Nas, version: str) -> None:
    """Whichever directory of an NFS file system is mounted, the kernel says that its root is `/`."""
    export = nas.export(f"parts-{version}", options="rw,root_squash")
    for name in ("part", "part/deep", "part2"):
        owned_by(export / name, USER, USER, 0o700)
        (export / name / "file").touch()
    volume = site.volume(export, f"vers={version}")
    with volume.task(OWNER) as whole, volume.task(OWNER, "part") as task:
        assert held(task) == held(whole) == {volume.name: "/data"}
        assert volume.names(task) == ["deep/file", "file"]
        assert volume.put(task, "new", "inside").status == 201
        assert (export / "part/new").read_text() == "inside"
        volume.done(task, "move", file_path="new", new_path="deep/new")
        assert volume.recorded(task) == ["deep/new"]
        assert volume.recorded(whole) == ["part/deep/new"]
        for path in ("part2/file", "part/file"):
            assert task.get(f"{volume.url}/content/{path}").status == 404
        assert task.get(f"{volume.url}/content/../part2/file").status == 400


def test_volumes_of_one_export_are_told_apart(site: Site, nas: Nas) -> None:
    """Of one device, all of them; one lies in another, one begins as another does, one has two names."""
    export = nas.export("many")
    volumes = {}
    for name in ("a/b", "a2", "a", ""):  # when the first is mounted, the kernel has not seen what lies above it
        (export / name).mkdir(parents=True, exist_ok=True)
        (export / name / f"of-{name.replace('/', '-')}").touch()
        volumes[name] = site.volume(export / name, "vers=4.2")
    other = site.volume(f"127.0.0.1:{exported(export)}/a2", "vers=4.2")
    for name in ("a", "a/b", "a2"):
        with volumes[name].task(ROOT) as task:
            assert {*held(task)} == {volumes[name].name, *([other.name] if name == "a2" else [])}
            assert f"of-{name.replace('/', '-')}" in volumes[name].names(task)
            assert task.get(f"{volumes[''].url}/files").status == 404
    places = {"a/b": "/0", "": "/1", "a": "/2"}
    with site.task(ROOT, *((volumes[name].files, place, "rw") for name, place in places.items())) as task:
        assert held(task) == {volumes[name].name: place for name, place in places.items()}
    with volumes[""].task(ROOT, "a/b") as task:
        assert held(task) == {volumes["a/b"].name: "/data"}, "the nearest"


# An engine


@pytest.fixture(scope="module")
def docker() -> Iterator[tuple[InnerEngine, Driver]]:
    """A real engine, which calls a driver of its own."""
    with running_driver("engine") as driver, inner_engine("brokervol", driver.process.socket_path) as engine:
        yield engine, driver


@contextlib.contextmanager
def created(engine: InnerEngine, driver: Driver, export: Path, mount_options: str = "") -> Iterator[str]:
    """A volume of an export; and nothing mounted after what the engine did with it."""
    place = ["-o", f"nfs_path=nas:{exported(export)}", "-o", f"mount_options={mount_options}"]
    engine.done("volume", "create", "-d", "brokervol", *place, "vol")
    yield "vol"
    assert driver.mounts() == []
    engine.done("volume", "rm", "vol")
    driver.nothing_is_left()


def create_and_remove(engine: InnerEngine, volume: str) -> None:
    """A container with the volume, which is copied into when it is created."""
    engine.done("rm", engine.done("create", "-v", volume, IMAGE, "true").decode().strip())


# The image has files in /etc, nothing in /tmp, and no /new.
@pytest.mark.parametrize(
    ("directory", "target", "refusal"),
    [
        ((0, 0o755), "/etc", "failed to chmod on /run/bv/engine/volumes/"),
        ((0, 0o777), "/tmp", "failed to chmod on /run/bv/engine/volumes/"),
        ((NOBODY, 0o755), "/tmp", "failed to copy file info for /run/bv/engine/volumes/"),
        ((USER, 0o700), "/tmp", "open /run/bv/engine/volumes/"),
    ],
    ids=["of root", "for all", "of nobody", "of a user"],
)
def test_copy_up_where_root_is_nobody(
    docker: tuple[InnerEngine, Driver], nas: Nas, directory: tuple[int, int], target: str, refusal: str
) -> None:
    """It fails in the engine's own words: no container is made, nothing is copied, and nothing stays mounted."""
    engine, driver = docker
    owner, mode = directory
    export = owned_by(nas.export(f"copy-{owner}-{mode:o}", options="rw,root_squash"), owner, owner, mode)
    for version in ("4.2", "3"):
        with created(engine, driver, export, f"vers={version}") as name:
            told = engine.error("create", "-v", f"{name}:{target}", IMAGE, "true")
            assert refusal in told
            assert re.search(r"(operation not permitted|permission denied)\n", told)
            assert engine.done("ps", "--all", "--quiet") == b""
            assert os.listdir(export) == []
            for works in (f"{name}:{target}:nocopy", f"{name}:/new"):
                create_and_remove(engine, works)


def test_copy_up_into_what_is_not_empty_copies_nothing(docker: tuple[InnerEngine, Driver], nas: Nas) -> None:
    engine, driver = docker
    export = nas.export("copy-full", options="rw,root_squash")
    (export / "there").touch()
    with created(engine, driver, export) as name:
        create_and_remove(engine, f"{name}:/etc")
    assert os.listdir(export) == ["there"]


def test_copy_up_where_root_is_root(docker: tuple[InnerEngine, Driver], nas: Nas) -> None:
    engine, driver = docker
    export = nas.export("copy-root")
    with created(engine, driver, export) as name:
        create_and_remove(engine, f"{name}:/etc")
    assert {"group", "passwd"} <= {*os.listdir(export)}


@pytest.fixture(scope="module")
def managed(docker: tuple[InnerEngine, Driver]) -> Iterator[InnerEngine]:
    """The same engine with the managed plugin `managed`, which was built outside."""
    engine = docker[0]
    client = DockerClient(base_url=engine.url, version="auto", timeout=120)
    archive = built_plugin()
    assert archive is not None
    plugin = build.create(client, "managed", archive)
    build.enable(plugin, {})
    yield engine
    plugin.disable()
    assert published() == {}
    plugin.remove()
    client.close()


def published() -> dict[str, str]:
    """Where the plugin has mounted something for containers, and of which kind."""
    found = {mount.mountpoint: mount.fs_type for mount in read_mounts()}
    return {place: kind for place, kind in found.items() if "/propagated-mount/volumes/" in place}


def run(engine: InnerEngine, script: str, *options: str) -> str:
    """What a script tells in a container with the volume, the sidecar's, and a Python for its client."""
    binds = ["imagery:/data:nocopy", "broker:/run/brokervol:nocopy"]
    binds += [f"{path}:{path}:ro" for path in ("/lib", "/lib64", "/usr")]
    volumes = [word for bind in binds for word in ("-v", bind)]
    given = [f"--user={USER}:{USER}", "--network=none", *volumes, *(options or ["--rm"])]
    return engine.done("run", *given, IMAGE, "/bin/sh", "-ec", script).decode()


def driver_of_plugin(engine: InnerEngine) -> int:
    """The pid of the plugin's driver, as its supervisor told it last."""
    pids = re.findall(r'\\"child\\": \\"driver\\", \\"pid\\": (\d+)', engine.log)
    return int(pids[-1])


@pytest.mark.timeout(200)
def test_managed_plugin(managed: InnerEngine, nas: Nas) -> None:
    engine = managed
    export = owned_by(nas.export("imagery", options="rw,root_squash"), USER, USER, 0o700)
    (export / "in").write_text("pixels")
    place = ["-o", "type=nfs", "-o", f"nfs_path=nas:{exported(export)}"]
    engine.done("volume", "create", "-d", "managed", *place, "imagery")
    engine.done("volume", "create", "-d", "managed", "-o", "type=sidecar", "broker")
    client = "/usr/bin/python3 /run/brokervol/brokervol"
    assert run(engine, f"{client} cp /data/in imagery:by/sidecar; {client} ls -r imagery:") == "by/sidecar\nin\n"
    keeper = run(engine, "exec sleep 1000", "--detach").strip()
    mounted, before = published(), driver_of_plugin(engine)
    assert sorted(kind == "nfs4" for kind in mounted.values()) == [False, True], "beside it the sidecar's volume"
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: driver_of_plugin(engine) != before, "the driver is started again")
    assert b"nas:/imagery" in engine.done("volume", "inspect", "imagery")
    assert published() == mounted
    assert engine.done("exec", keeper, "/bin/sh", "-c", "echo kept > /data/kept; cat /data/in") == b"pixels"
    assert run(engine, f"cat /data/kept; {client} cp imagery:by/sidecar /tmp/x; cat /tmp/x") == "kept\npixels"
    engine.done("rm", "--force", keeper)
    engine.done("volume", "rm", "imagery", "broker")
    assert published() == {}
    assert owners(export) == {"in": (0, 0), **dict.fromkeys(("by", "by/sidecar", "kept"), (USER, USER))}

"""Real containers on the real plugin: what a task sees, may do, and may not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError

from lab.engine import Engine, Result, inside, wait_until
from lab.images import TASK, TINY, USER
from lab.stage import PLUGIN

SOCKET = "/run/brokervol/broker.sock"
CLIENT = "/run/brokervol/brokervol"
CURL = ("curl", "-sS", "--unix-socket", SOCKET)


class Site:
    """A host directory as volume `data`, and the sidecar's volume `broker`."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self.engine = engine
        self.directory = directory
        self.create("data", type="host", host_path=str(directory))
        self.create("broker", type="sidecar")

    def create(self, name: str, **options: str) -> None:
        self.engine.client.volumes.create(name, driver=PLUGIN, driver_opts=options)

    def mounts(self, data: str | None) -> dict[str, dict[str, str]]:
        found = {"broker": {"bind": "/run/brokervol", "mode": "rw"}}
        if data:
            found["data"] = {"bind": "/data", "mode": data}
        return found

    def run(self, *command: str, data: str | None = "rw", **options: Any) -> Result:
        """Run a command in a task container with the volumes."""
        return self.engine.run(TASK, *command, volumes=self.mounts(data), **options)

    def curl(self, path: str, body: object = None, **options: Any) -> tuple[int, Any]:
        """A request by curl in a task container: status and document."""
        command = [*CURL, "-w", "\n%{http_code}", f"http://b{path}"]
        if body is not None:
            command += ["-d", json.dumps(body)]
        exit_code, output = self.run(*command, **options)
        assert exit_code == 0, output
        document, _, status = output.rpartition("\n")
        return int(status), json.loads(document)

    def task(self, data: str | None = "rw", **options: Any) -> Any:
        """A task container that stays, as a context manager."""
        return self.engine.running(TASK, "sleep", "1000", init=True, volumes=self.mounts(data), **options)


@pytest.fixture
def site(engine: Engine, tmp_path: Path) -> Iterator[Site]:
    directory = Path(f"/srv/brokervol-test-{os.getpid()}")
    directory.mkdir(parents=True)
    try:
        yield Site(engine, directory)
    finally:
        for container in engine.client.containers.list(all=True):
            container.remove(force=True)
        _empty(directory)


def _empty(directory: Path) -> None:
    for found in sorted(directory.rglob("*"), key=lambda path: len(path.parts), reverse=True):
        found.rmdir() if found.is_dir() and not found.is_symlink() else found.unlink()
    directory.rmdir()


def test_a_read_only_task_reads_and_cannot_delete_and_a_writable_one_can(site: Site) -> None:
    """The issue's own example, by curl."""
    file = site.directory / "scene.tif"
    file.write_text("pixels")
    delete = {"files": [{"file_path": "scene.tif"}]}

    status, found = site.curl("/v1/workspaces", data="ro")
    assert status == 200
    (workspace,) = found["workspaces"]
    assert (workspace["name"], workspace["read_only"], workspace["volume_path"]) == ("data", True, "/data")

    status, problem = site.curl("/v1/workspaces/data/delete", delete, data="ro")
    assert (status, problem["code"]) == (403, "read-only")
    assert file.read_text() == "pixels"

    status, answer = site.curl("/v1/workspaces/data/delete", delete)
    assert (status, answer["done"]) == (200, 1)
    assert not file.exists()
    status, records = site.curl("/v1/workspaces/data/catalog?file_path=scene.tif")
    assert [record["is_deleted"] for record in records["files"]] == [True]


def test_without_the_volume_there_is_no_workspace(site: Site) -> None:
    (site.directory / "f").touch()
    assert site.curl("/v1/workspaces", data=None) == (200, {"workspaces": []})
    status, problem = site.curl("/v1/workspaces/data/files", data=None)
    assert (status, problem["code"]) == (404, "unknown-workspace")
    assert site.run(CLIENT, "ls", "data:", data=None).exit_code == 3


@pytest.mark.parametrize("user", [0, USER])
def test_the_client_moves_real_files_as_the_user(site: Site, user: int) -> None:
    site.directory.chmod(0o777)
    (site.directory / "in.txt").write_text("input")
    script = f"""
        set -e
        {CLIENT} ws
        {CLIENT} ls -r data:
        cd /tmp
        {CLIENT} cp data:in.txt .
        readlink in.txt
        tr a-z A-Z < in.txt > out.txt
        {CLIENT} cp out.txt data:results/
        {CLIENT} mv data:results/out.txt data:results/final.txt
        {CLIENT} stat data:results/final.txt
        {CLIENT} rm data:in.txt
    """
    exit_code, output = site.run("sh", "-c", script, user=str(user))
    assert exit_code == 0, output
    assert "/data/in.txt" in output
    assert [path.name for path in site.directory.iterdir()] == ["results"]
    final = site.directory / "results" / "final.txt"
    assert final.read_text() == "INPUT"
    assert final.stat().st_uid == user


# operation -> what each caller gets: root with the volume, a user with it, the user with it read-only, nobody.
OUTCOMES: dict[str, tuple[str, str, str, str]] = {
    "list": ("ok", "ok", "ok", "unknown-workspace"),
    "download": ("ok", "ok", "ok", "unknown-workspace"),
    "upload to root's directory": ("ok", "permission-denied", "read-only", "unknown-workspace"),
    "upload to the user's directory": ("ok", "ok", "read-only", "unknown-workspace"),
    "delete root's file": ("ok", "permission-denied", "read-only", "unknown-workspace"),
}


def _request(operation: str) -> tuple[str, object]:
    match operation:
        case "list":
            return "files", None
        case "download":
            return "download", {"files": [{"file_path": "roots/f", "local_path": "/tmp/f"}]}
        case "delete root's file":
            return "delete", {"files": [{"file_path": "roots/f"}]}
    name = "roots/new" if "root" in operation else "users/new"
    return "upload", {"files": [{"local_path": "/etc/hostname", "file_path": name}]}


def test_operations_by_caller(site: Site) -> None:
    for name, owner in (("roots", 0), ("users", USER)):
        (site.directory / name).mkdir()
        os.chown(site.directory / name, owner, owner)
    callers: list[dict[str, Any]] = [
        {"user": "0"},
        {"user": str(USER)},
        {"user": str(USER), "data": "ro"},
        {"user": str(USER), "data": None},
    ]
    seen = {}
    for operation in OUTCOMES:
        row = []
        for caller in callers:
            (site.directory / "roots" / "f").write_text("x")
            verb, body = _request(operation)
            status, document = site.curl(f"/v1/workspaces/data/{verb}", body, **caller)
            row.append("ok" if status == 200 else document["code"])
        seen[operation] = tuple(row)
    assert seen == OUTCOMES


def test_root_without_capabilities_and_with_no_new_privileges(site: Site) -> None:
    (site.directory / "users").mkdir(mode=0o700)
    os.chown(site.directory / "users", USER, USER)
    body = {"files": [{"local_path": "/etc/hostname", "file_path": "users/f"}]}
    status, problem = site.curl("/v1/workspaces/data/upload", body, cap_drop=["ALL"])
    assert (status, problem["code"]) == (403, "permission-denied")
    assert site.curl("/v1/workspaces/data/upload", body)[0] == 200


def test_hostile_local_paths_of_a_container_stay_in_it(site: Site) -> None:
    secret = site.directory.parent / f"{site.directory.name}-secret"
    secret.write_text("sentinel")
    by_link = {"files": [{"local_path": "/tmp/link", "file_path": "stolen"}]}
    upload_by_link = f"{' '.join(CURL)} -d '{json.dumps(by_link)}' http://b/v1/workspaces/data/upload"
    try:
        for path in (str(secret), f"/tmp/../../..{secret}", f"/proc/self/root{secret}", f"/proc/1/root{secret}"):
            body = {"files": [{"local_path": path, "file_path": "stolen"}]}
            status, _ = site.curl("/v1/workspaces/data/upload", body)
            assert status in (400, 403, 404), path
            exit_code, output = site.run("sh", "-c", f"ln -s {path} /tmp/link && {upload_by_link}")
            assert exit_code == 0
            assert '"failed": 1' in output
        assert list(site.directory.iterdir()) == []
        assert secret.read_text() == "sentinel"
    finally:
        secret.unlink()


def test_a_task_with_the_hosts_processes_cannot_read_the_sidecar(site: Site) -> None:
    sidecar = process_of(site.engine, "sidecar")
    for path in ("/proc/self/environ", f"/proc/{sidecar}/environ", f"/proc/{sidecar}/root/etc/passwd"):
        body = {"files": [{"local_path": path, "file_path": "stolen"}]}
        status, problem = site.curl("/v1/workspaces/data/upload", body, pid_mode="host")
        assert status in (400, 403), (path, problem)
    assert list(site.directory.iterdir()) == []


def test_the_sidecars_volume_cannot_be_written(site: Site) -> None:
    for command in (
        f"rm {SOCKET}",
        f"mv {CLIENT} /run/brokervol/x",
        "touch /run/brokervol/new",
        f"echo > {CLIENT}",
    ):
        exit_code, output = site.run("sh", "-c", command)
        assert exit_code != 0
        assert "Read-only file system" in output


def test_a_read_only_volume_is_read_only_for_everyone(site: Site) -> None:
    site.create("frozen", type="host", host_path=str(site.directory), read_only="true")
    volumes = {"frozen": {"bind": "/frozen", "mode": "rw"}}
    exit_code, output = site.engine.run(TINY, "touch", "/frozen/f", volumes=volumes)
    assert exit_code != 0
    assert "Read-only file system" in output
    assert list(site.directory.iterdir()) == []


def test_the_sidecar_runs_without_cap_sys_admin(site: Site) -> None:
    status = Path(f"/proc/{process_of(site.engine, 'sidecar')}/status").read_text()
    fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapBnd"], 16) >> 21 & 1 == 0
    assert fields["NoNewPrivs"] == "1"


def test_the_same_volume_twice_in_one_container(site: Site) -> None:
    (site.directory / "f").write_text("x")
    volumes = ["data:/ro:ro", "data:/rw", "broker:/run/brokervol"]
    exit_code, output = site.engine.run(TASK, *CURL, "http://b/v1/workspaces", volumes=volumes)
    assert exit_code == 0
    (found,) = json.loads(output)["workspaces"]
    assert (found["volume_path"], found["read_only"]) == ("/rw", False)


@pytest.mark.parametrize("name", ["driver", "sidecar"])
def test_a_process_that_dies_is_started_again_alone_and_tasks_go_on(site: Site, name: str) -> None:
    (site.directory / "f").write_text("x")
    with site.task() as container:
        others = {process_of(site.engine, other) for other in ("driver", "sidecar") if other != name}
        dead = process_of(site.engine, name)
        assert dead is not None
        os.kill(dead, 9)
        wait_until("a new process", lambda: process_of(site.engine, name) not in (None, dead))
        assert {process_of(site.engine, other) for other in ("driver", "sidecar") if other != name} == others
        found = inside(container, CLIENT, "ls", "data:")
        assert found == (0, "f\n")
        assert site.run("cat", "/data/f") == (0, "x")


def process_of(engine: Engine, name: str) -> int | None:
    """The pid of the plugin's driver or sidecar once it serves, None while there is none."""
    module = {"driver": b"volumedriver", "sidecar": b"sidecar"}[name]
    for pid in engine.plugin_pids(PLUGIN):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"-m" in arguments and arguments[arguments.index(b"-m") + 1] == module:
            return pid
    return None


def test_wrong_options_and_names_reach_the_user_as_sentences(site: Site) -> None:
    for name, options, told in (
        ("x1", {"type": "host", "host_path": "/etc"}, "/etc"),
        ("x1", {"type": "host", "host_path": "relative"}, "host_path"),
        ("x1", {"type": "host", "host_path": "/no/such/dir"}, "does not exist"),
        ("x1", {"type": "floppy"}, "floppy"),
        ("x1", {"type": "host", "host_path": str(site.directory), "colour": "red", "mode": "x"}, "colour"),
        ("../escape", {"type": "host", "host_path": str(site.directory)}, "name"),
        ("n" * 256, {"type": "host", "host_path": str(site.directory)}, "name"),
        ("n" * (1 << 20), {"type": "host", "host_path": str(site.directory)}, "name"),
    ):
        with pytest.raises(APIError) as caught:
            site.create(name, **options)
        sentence = str(caught.value).replace(name, "")  # the engine itself repeats the name
        assert told in sentence
        assert len(sentence) < 3000
    assert {volume.name for volume in site.engine.client.volumes.list()} == {"data", "broker"}


def test_docker_run_by_the_command_line(site: Site) -> None:
    """What the README says, with the docker command itself."""
    environment = {**os.environ, "DOCKER_HOST": site.engine.url}
    command = ["docker", "run", "--rm", "--network=none", "-v", "data:/data:ro", "-v", "broker:/run/brokervol"]
    done = subprocess.run(
        [*command, TASK, CLIENT, "ws"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["NAME", "TYPE", "PATH", "ACCESS", "data", "host", "/data", "ro"]


def test_status_names_the_containers_that_have_a_volume(site: Site) -> None:
    """As an administrator runs it on the host, who need not know where the plugin's socket is."""
    host = site.engine.path("/")
    command = ["env", f"DOCKER_HOST={site.engine.url}", sys.executable, "-m", "brokervol", "status"]
    with site.task("ro", name="train-7") as container:
        late = site.engine.client.containers.create(TASK, ["true"], name="late", volumes=site.mounts("rw"))
        found = json.loads(site.engine.execute(*command, "--json"))
        page = site.engine.execute(*command)
        # In the plugin itself there is neither the engine's socket nor what draws tables.
        pid = site.engine.plugin_pids(PLUGIN)[0]
        inner = subprocess.run(
            ["nsenter", "-t", str(pid), "-m", "--", "/usr/bin/python3", "-m", "brokervol", "status", "--json"],
            capture_output=True,
            text=True,
            check=True,
        )
    volumes = {volume["name"]: volume for volume in found["volumes"]}
    data = volumes["data"]
    assert [(holder["container"], holder["state"]) for holder in data["holders"]] == [
        ("train-7", "running"),
        ("late", "created"),
    ]
    assert data["holders"][0]["id"] == container.id
    assert (data["source"], data["is_mounted"], len(data["references"])) == (str(site.directory), True, 1)
    assert found["holders_from"] == "engine"
    assert host.joinpath(found["socket"].lstrip("/")).is_socket()
    row = next(line.split() for line in page.splitlines() if line.startswith("data "))
    assert row == ["data", "host", str(site.directory), "1", "train-7,", "late", "(created)", "-"]
    (holder,) = next(volume for volume in json.loads(inner.stdout)["volumes"] if volume["name"] == "data")[
        "holders"
    ]
    assert (holder["id"], holder["container"]) == (container.id, None)
    late.remove()

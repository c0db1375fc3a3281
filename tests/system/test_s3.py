"""Buckets as volumes of the real plugin: real containers, and a real S3 server that is asked behind its back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError
from docker.models.plugins import Plugin

import build
from lab.engine import Engine, Result, inside, wait_until
from lab.images import TASK, TINY, USER
from lab.s3 import S3Server
from lab.sidecar import thread_identities
from lab.stage import PLUGIN
from storage.mountinfo import Mount

CLIENT = "/run/brokervol/brokervol"
CURL = ("curl", "-sS", "--unix-socket", "/run/brokervol/broker.sock")
PROFILE = "lab"


class Site:
    """A bucket as volume `imagery`, and the sidecar's volume `broker`."""

    def __init__(self, engine: Engine, server: S3Server, bucket: str) -> None:
        self.engine = engine
        self.server = server
        self.client = server.client()
        self.bucket = bucket
        self.create("imagery")
        engine.client.volumes.create("broker", driver=PLUGIN, driver_opts={"type": "sidecar"})

    def create(self, name: str, **options: str) -> None:
        ours = {
            "bucket_name": self.bucket,
            "endpoint_url": self.server.endpoint_url,
            "region_name": self.server.region_name,
            "credentials": PROFILE,
            "prefix": "2026",
        }
        self.engine.client.volumes.create(name, driver=PLUGIN, driver_opts={**ours, **options})

    def volumes(self, mode: str | None = "rw", name: str = "imagery", at: str = "/data") -> dict[str, Any]:
        found = {"broker": {"bind": "/run/brokervol", "mode": "ro"}}
        return {**found, name: {"bind": at, "mode": mode}} if mode else found

    def run(self, *command: str, user: int = USER, image: str = TASK, **where: Any) -> Result:
        return self.engine.run(image, *command, user=str(user), volumes=self.volumes(**where))

    def script(self, script: str, user: int = USER, **where: Any) -> Result:
        return self.run("sh", "-c", f"set -e; cd /tmp; {script}", user=user, **where)

    def task(self, **where: Any) -> Any:
        """A task container that stays, as a context manager."""
        return self.engine.running(TASK, "sleep", "1000", init=True, volumes=self.volumes(**where))

    def put(self, key: str, body: bytes = b"pixels") -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def objects(self) -> dict[str, bytes]:
        """What is in the bucket, asked of the server itself."""
        listed = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        keys = [found["Key"] for found in listed]
        return {key: self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}

    def tokens(self) -> list[Mount]:
        """The plugin's mounts as its host sees them, each once; without the sidecar's."""
        found = {
            mount.mountpoint: mount
            for mount in self.engine.mounts()
            if "/propagated-mount/volumes/" in mount.mountpoint and mount.fs_type == "tmpfs"
        }
        return list(found.values())


@pytest.fixture(scope="module")
def profile(
    shared_engine: Engine, seaweedfs: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A credentials file on the host, of which the plugin is told: the machine's own /etc is not touched."""
    path = tmp_path_factory.mktemp("s3") / "credentials"
    path.touch(mode=0o600)
    lines = [f"[{PROFILE}]", *(f"aws_{key} = {value}" for key, value in seaweedfs.credentials().items())]
    path.write_text("\n".join(lines))
    plugin: Plugin = shared_engine.client.plugins.get(PLUGIN)  # type: ignore[no-untyped-call]
    # `docker plugin set` can empty a variable, not unset it.
    build.enable(plugin, {"BROKERVOL_CREDENTIALS": f"/hostfs{path}", "AWS_MAX_ATTEMPTS": "", "AWS_CA_BUNDLE": ""})
    yield path
    plugin.reload()
    build.enable(plugin, {"BROKERVOL_CREDENTIALS": "/hostfs/etc/brokervol/credentials"})


@pytest.fixture
def site(
    engine: Engine, profile: Path, seaweedfs: S3Server, new_bucket: Callable[[S3Server], str]
) -> Iterator[Site]:
    yield Site(engine, seaweedfs, new_bucket(seaweedfs))
    (sidecar,) = [pid for pid in engine.plugin_pids(PLUGIN) if b"sidecar" in arguments(pid)]
    wait_until("every thread is itself again", lambda: len(thread_identities(sidecar)) == 1)
    assert seaweedfs.secret_access_key not in engine.log


def arguments(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


@pytest.mark.parametrize("user", [0, USER])
def test_the_client_moves_files_between_a_task_and_the_bucket(site: Site, user: int) -> None:
    site.put("2026/in.txt", b"input")
    site.put("2025/secret.txt")
    exit_code, output = site.script(
        f"""
        {CLIENT} ws
        {CLIENT} ls -r imagery:
        {CLIENT} cp imagery:in.txt .
        test ! -L in.txt
        tr a-z A-Z < in.txt > out.txt
        {CLIENT} cp out.txt imagery:results/
        {CLIENT} mv imagery:results/out.txt imagery:results/final.txt
        {CLIENT} stat imagery:results/final.txt
        {CLIENT} rm imagery:in.txt
        stat -c %u in.txt
        """,
        user=user,
    )
    assert exit_code == 0, output
    lines = output.splitlines()
    assert lines[1].split() == ["imagery", "s3", "/data", "rw"]
    assert "in.txt" in lines[2]
    assert lines[-1] == str(user)
    assert site.objects() == {"2026/results/final.txt": b"INPUT", "2025/secret.txt": b"pixels"}


def test_a_large_file_goes_there_and_back(site: Site) -> None:
    exit_code, output = site.script(
        f"""
        head -c 30000000 /dev/urandom > big
        {CLIENT} cp big imagery:big
        {CLIENT} cp imagery:big copy
        cmp big copy
        """
    )
    assert exit_code == 0, output
    assert site.client.head_object(Bucket=site.bucket, Key="2026/big")["ContentLength"] == 30_000_000


@pytest.mark.parametrize("user", [0, USER])
def test_read_only_lists_and_downloads_and_changes_nothing(site: Site, user: int) -> None:
    site.put("2026/f", b"old")
    site.create("frozen", read_only="true")
    for where in ({"mode": "ro"}, {"mode": "rw", "name": "frozen"}):
        name = where.get("name", "imagery")
        exit_code, output = site.script(
            f"""
            {CLIENT} ls {name}:
            {CLIENT} cp {name}:f copy
            echo new > new
            for attempt in "cp new {name}:f" "cp new {name}:g" "mv {name}:f {name}:g" "rm {name}:f" "rm {name}:no"
            do {CLIENT} $attempt && exit 9 || test $? = 4
            done
            """,
            user=user,
            **where,
        )
        assert exit_code == 0, output
        assert output.splitlines()[0] == "f"
        assert output.count("is mounted read-only for you") == 5
    assert site.objects() == {"2026/f": b"old"}


def test_without_the_volume_there_is_no_workspace(site: Site) -> None:
    site.put("2026/f")
    for path in ("", "/imagery", "/imagery/files", "/other/files"):
        status = "%{http_code}" if path else ""
        exit_code, output = site.run(*CURL, "-w", status, f"http://b/v1/workspaces{path}", mode=None)
        assert exit_code == 0
        if path:
            assert output.endswith("404")
            assert json.loads(output[:-3])["code"] == "unknown-workspace"
        else:
            assert json.loads(output) == {"workspaces": []}


@pytest.mark.parametrize("user", [0, USER])
def test_the_tokens_directory_is_empty_and_cannot_be_written(site: Site, user: int) -> None:
    site.put("2026/f")
    for mode in ("rw", "ro"):
        for attempt in ("touch /data/x", "mkdir /data/x", "ln -s / /data/x", "chmod 777 /data", "mknod /data/x p"):
            exit_code, output = site.run("sh", "-c", f"ls -A /data; {attempt}", user=user, mode=mode)
            assert exit_code != 0
            assert "Read-only file system" in output or (user and "not permitted" in output)
            assert len(output.splitlines()) == 1, "it is not empty"


def test_no_secret_is_where_a_task_or_an_engines_user_can_see_it(site: Site) -> None:
    site.put("2026/f")
    looks = "env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/mounts; ls -lR /run/brokervol /data"
    looks = f"{CLIENT} cp imagery:f .; {CLIENT} ls imagery:; {looks}"
    seen: list[object] = [site.script(looks, user=user) for user in (0, USER)]
    seen += [site.engine.client.volumes.get(name).attrs for name in ("imagery", "broker")]
    with site.task() as container:
        container.reload()
        seen += [container.attrs, inside(container, *CURL, "http://b/v1/workspaces/imagery")]
    plugin = site.engine.client.plugins.get(PLUGIN)  # type: ignore[no-untyped-call]
    seen.append(plugin.attrs)
    told = repr(seen)
    assert "credentials" in told
    for secret in (site.server.secret_access_key, site.server.access_key_id):
        assert secret not in told


# Prints what it could read of a process, and of what it could not, why.
LOOK = """
import ctypes, os, sys

pid, keys, address = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)


def attempt(name, function):
    try:
        print(name, function())
    except OSError as error:
        print(name, error.strerror)


def call(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def vector(address):
    return (ctypes.c_uint64 * 2)(address, 16)


def read_memory():
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(int(address, 16))
        return memory.read(16)


for name in ("environ", "maps", "auxv", "stack"):
    attempt(name, lambda: open(f"/proc/{pid}/{name}").read())
for name in ("fd/0", "root", "cwd", "exe", "ns/mnt"):
    attempt(name, lambda: os.readlink(f"/proc/{pid}/{name}"))
attempt("map_files", lambda: os.listdir(f"/proc/{pid}/map_files"))
attempt("mem", read_memory)
attempt("keys", lambda: open(f"/proc/{pid}/root{keys}").read())
attempt("ptrace", lambda: call(libc.ptrace, 16, int(pid), None, None))
buffer, one = ctypes.create_string_buffer(16), ctypes.c_ulong(1)
vectors = vector(ctypes.addressof(buffer)), one, vector(int(address, 16)), one
attempt("process_vm_readv", lambda: call(libc.process_vm_readv, int(pid), *vectors, ctypes.c_ulong(0)))
attempt("pidfd_getfd", lambda: call(libc.syscall, 438, os.pidfd_open(int(pid)), 3, 0))
"""


@pytest.mark.parametrize("user", [0, USER])
def test_a_task_cannot_look_into_the_sidecar(site: Site, profile: Path, user: int) -> None:
    """In its own pid namespace it is not there; with the host's, the kernel refuses without CAP_SYS_PTRACE."""
    secret = site.server.secret_access_key
    (sidecar,) = [pid for pid in site.engine.plugin_pids(PLUGIN) if b"sidecar" in arguments(pid)]
    address = Path(f"/proc/{sidecar}/maps").read_text().partition("-")[0]
    in_plugin = f"/hostfs{profile}"
    seen: list[str] = []

    def inside_as_user(*command: str) -> Result:
        found = inside(container, *command, user=str(user))
        seen.append(found.output)
        return found

    with site.engine.running(
        TASK, "sleep", "1000", init=True, pid_mode="host", volumes=site.volumes()
    ) as container:
        assert inside_as_user(CLIENT, "ls", "imagery:").exit_code == 0, "the keys are in use"
        exit_code, output = inside_as_user("python3", "-c", LOOK, str(sidecar), in_plugin, address)
        assert exit_code == 0, output
        said = dict(line.split(" ", 1) for line in output.splitlines())
        assert len(said) == 15
        assert set(said.values()) <= {"Permission denied", "Operation not permitted"}, output
        for path in (
            f"/proc/{sidecar}/root{in_plugin}",
            f"/proc/{sidecar}/environ",
            f"/proc/{sidecar}/mem",
            "/proc/self/environ",
            in_plugin,
            str(profile),
        ):
            assert inside_as_user(CLIENT, "cp", path, "imagery:stolen").exit_code != 0, path
        inside_as_user("sh", "-c", "env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null")
    with site.task() as container:
        exit_code, output = inside_as_user("sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ; env")
        assert "volumedriver" not in output
    assert site.objects() == {}
    assert secret in profile.read_text()
    for text in seen:
        assert secret not in text


def test_secrets_as_options_are_refused_and_not_repeated(site: Site) -> None:
    secret = site.server.secret_access_key
    for options in (
        {"secret_access_key": secret},
        {"credentials": json.dumps(site.server.credentials())},
        {"credentials": secret},
    ):
        with pytest.raises(APIError, match="docker volume inspect") as refused:
            site.create("x", **options)
        assert secret not in str(refused.value)


def test_host_path_shows_the_mounted_bucket_and_enables_links(site: Site) -> None:
    directory = Path(f"/srv/brokervol-bucket-{os.getpid()}")
    (directory / "2026").mkdir(parents=True)
    try:
        (directory / "2026/f").write_text("as mounted")
        site.put("2026/f", b"object")
        site.create("mounted", host_path=str(directory))
        exit_code, output = site.script(
            f"""
            cat /data/2026/f; echo
            {" ".join(CURL)} -d '{{"files": [{{"file_path": "f", "local_path": "/tmp/f", "partial": true}}]}}' \
                http://b/v1/workspaces/mounted/download > /dev/null
            readlink f
            {CLIENT} cp mounted:f copy; cat copy; echo
            {CLIENT} cp copy mounted:g
            """,
            name="mounted",
        )
        assert (exit_code, output.split("\n")) == (0, ["as mounted", "/data/2026/f", "object", ""])
        assert site.objects() == {"2026/f": b"object", "2026/g": b"object"}
    finally:
        (directory / "2026/f").unlink()
        (directory / "2026").rmdir()
        directory.rmdir()


def ls(container: Any) -> Result:
    return inside(container, CLIENT, "ls", "imagery:", user=str(USER))


def test_the_token_is_right_after_the_plugin_was_killed(site: Site) -> None:
    site.put("2026/f")
    with site.task() as writer, site.task(mode="ro") as reader:
        before = site.tokens()
        assert len(before) == 1
        site.engine.kill_plugin(PLUGIN)
        assert site.tokens() == before
        for container in (writer, reader):
            assert ls(container) == (0, "f\n")
        assert inside(reader, CLIENT, "rm", "imagery:f").exit_code == 4
        assert inside(writer, CLIENT, "rm", "imagery:f").exit_code == 0
        assert site.run(CLIENT, "ls", "imagery:") == (0, "")
    wait_until("the token is unmounted", lambda: site.tokens() == [])
    assert site.objects() == {}


def test_plugin_that_was_disabled_by_force_has_its_token_again(site: Site) -> None:
    """From the task that runs on with it: one that is made anew would be another's."""
    site.put("2026/f")
    plugin: Plugin = site.engine.client.plugins.get(PLUGIN)  # type: ignore[no-untyped-call]
    with site.task() as container:
        (before,) = site.tokens()
        plugin.disable(force=True)
        assert site.tokens() == []
        plugin.enable(timeout=30)
        wait_until("the token is mounted again", lambda: site.tokens() != [])
        assert site.tokens()[0].shows_same_as(before)
        assert ls(container) == (0, "f\n")
        assert site.script(f"{CLIENT} cp imagery:f g; {CLIENT} cp g imagery:g").exit_code == 0, "not read-only"
    wait_until("the token is unmounted", lambda: site.tokens() == [])


def test_a_bucket_in_use_is_not_removed_and_its_objects_never_are(site: Site) -> None:
    site.put("2026/f")
    volume = site.engine.client.volumes.get("imagery")
    with site.task(mode="ro"), pytest.raises(APIError, match="in use"):
        volume.remove()
    wait_until("the token is unmounted", lambda: site.tokens() == [])
    volume.remove()
    assert site.objects() == {"2026/f": b"pixels"}


def test_docker_fills_no_token(site: Site) -> None:
    """It copies what an image has at the place of an empty volume, and cannot: `nocopy` is what to say then."""
    with pytest.raises(APIError, match="read-only file system"):
        site.run("true", image=TINY, at="/tmp")
    assert site.run("ls", "-A", "/tmp", image=TINY, at="/tmp", mode="rw,nocopy") == (0, "")

"""`brokervol doctor` on hosts with planted faults: each is named, with its cure, and nothing else is.

The faults that take an engine and the plugin are in tests/system/test_doctor.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import doctor
from lab.directories import temporary_directory
from lab.doctor import Diagnosis
from lab.namespaces import Host
from lab.plugin_host import PluginHost, plugin_host, sidecar_on
from lab.processes import wait_until
from lab.s3 import S3Server
from lab.volume_driver import driver_on
from lab.without_calls import without

pytestmark = pytest.mark.root

OPENAT2, MOUNT_SETATTR = 437, 442
ID = "a" * 64


@pytest.fixture(scope="module")
def shared_host() -> Iterator[PluginHost]:
    """A host with a driver and a sidecar, and with a file of credentials that is the tests' own."""
    with pytest.MonkeyPatch.context() as patched, temporary_directory() as directory:
        patched.setenv("BROKERVOL_CREDENTIALS", str(directory / "credentials"))
        with plugin_host(directory) as host:
            (host.host.files / "data").mkdir()
            yield host


@pytest.fixture
def host(shared_host: PluginHost) -> Iterator[PluginHost]:
    """The same, without volumes."""
    yield shared_host
    for volume in shared_host.driver.done("List").json["Volumes"]:
        shared_host.driver.done("Remove", Name=volume["Name"])


def diagnose(host: PluginHost, *prefix: str) -> Diagnosis:
    """What doctor finds on this host, where no engine runs."""
    found = doctor.diagnose("--socket", host.driver.process.socket_path, prefix=[*host.host.entering, *prefix])
    assert found.fault("engine").cure.startswith("`systemctl start docker`")
    return found


def credentials(server: S3Server, secret: str = "") -> None:
    path = Path(os.environ["BROKERVOL_CREDENTIALS"])
    key, secret = server.access_key_id, secret or server.secret_access_key
    path.write_text(f"[lab]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    path.chmod(0o600)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_where_only_the_engine_is_missing_nothing_else_is_found(
    host: PluginHost, seaweedfs: S3Server, new_bucket: Callable[[S3Server], str]
) -> None:
    credentials(seaweedfs)
    bucket = new_bucket(seaweedfs)
    host.create("data", host_path="/data")
    host.create("things", bucket_name=bucket, endpoint_url=seaweedfs.endpoint_url, credentials="lab")
    host.create("broker", type="sidecar")
    mount_ids = {name: host.mount(name) for name in ("data", "things")}
    found = diagnose(host)
    for name, mount_id in mount_ids.items():
        host.driver.done("Unmount", Name=name, ID=mount_id)
    assert found.bad() == ["engine"]
    assert "no Docker engine answers" in found.fault("engine").finding
    assert [told.check for told in found.findings if told.result == "skipped"] == [
        *("live-restore", "plugin", "nfs-client", "nfs-server", "nfs-exports")
    ]
    assert "3 volumes, 2 of them mounted" in found.of("volumes").finding
    assert bucket in found.of("s3-bucket").finding


def test_missing_feature_of_the_kernel(host: PluginHost) -> None:
    found = diagnose(host, *without(OPENAT2, MOUNT_SETATTR))
    assert found.bad() == ["kernel", "engine"]
    told = found.fault("kernel")
    assert "no openat2, mount_setattr: volumes cannot be mounted" in told.finding
    assert "run Linux 5.12 or newer" in told.cure


def test_nfs_server_that_refuses(host: PluginHost) -> None:
    port = closed_port()
    host.create("far", nfs_path="127.0.0.1:/export", mount_options=f"port={port}")
    found = diagnose(host)
    told = found.fault("nfs-server")
    assert told.subject == f"127.0.0.1:{port}"
    assert told.finding == f"127.0.0.1 refuses connections to port {port}"
    assert "no NFS server runs there, or a firewall refuses" in told.cure
    assert "`systemctl status nfs-server` there" in told.cure


def test_nfs_server_without_a_route(host: PluginHost) -> None:
    host.create("far", nfs_path="192.0.2.1:/export")
    found = diagnose(host, "unshare", "--net")
    told = found.fault("nfs-server")
    assert told.finding == "there is no route to 192.0.2.1"
    assert "`ip route get 192.0.2.1`" in told.cure


def test_nfs_server_whose_name_is_not_known(host: PluginHost) -> None:
    host.create("far", nfs_path="nowhere.invalid:/export")
    told = diagnose(host, "unshare", "--net").fault("nfs-server")
    assert "the name nowhere.invalid is not known here" in told.finding
    assert "`getent hosts nowhere.invalid`" in told.cure


def test_silent_nfs_servers_are_waited_for_at_once(host: PluginHost) -> None:
    with contextlib.ExitStack() as stack:
        ports = []
        for number in range(8):
            silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            ports.append(silent.getsockname()[1])
            host.create(f"far{number}", nfs_path="127.0.0.1:/export", mount_options=f"port={ports[-1]}")
        began = time.monotonic()
        found = diagnose(host)
        took_s = time.monotonic() - began
    told = [told for told in found.findings if told.check == "nfs-server"]
    assert {one.subject for one in told} == {f"127.0.0.1:{port}" for port in ports}
    assert all("answers no request within 5 s" in one.finding for one in told)
    assert took_s < 4 * 5, "not one after the other"


def s3(host: PluginHost, server: S3Server, bucket: str, endpoint_url: str = "", profile: str = "lab") -> Diagnosis:
    url = endpoint_url or server.endpoint_url
    host.create("things", bucket_name=bucket, endpoint_url=url, credentials=profile)
    return diagnose(host)


def test_wrong_key_for_s3(host: PluginHost, seaweedfs: S3Server, new_bucket: Callable[[S3Server], str]) -> None:
    credentials(seaweedfs, "x" * 40)
    found = s3(host, seaweedfs, new_bucket(seaweedfs))
    assert found.bad() == ["engine", "s3-bucket"]
    told = found.fault("s3-bucket")
    assert "volume things: the secret access key does not belong to the access key" in told.finding
    assert "x" * 40 not in told.finding + told.cure
    assert f"correct the key of profile [lab] in {os.environ['BROKERVOL_CREDENTIALS']}" in told.cure


def test_missing_bucket(host: PluginHost, seaweedfs: S3Server) -> None:
    credentials(seaweedfs)
    found = s3(host, seaweedfs, "not-there")
    assert found.bad() == ["engine", "s3-bucket"]
    told = found.fault("s3-bucket")
    assert "the bucket does not exist" in told.finding
    assert f"aws --endpoint-url {seaweedfs.endpoint_url} s3 mb s3://not-there" in told.cure


def test_s3_service_that_is_not_there(host: PluginHost, seaweedfs: S3Server) -> None:
    credentials(seaweedfs)
    url = f"http://127.0.0.1:{closed_port()}"
    found = s3(host, seaweedfs, "any", endpoint_url=url)
    assert found.bad() == ["engine", "s3-bucket"]
    told = found.fault("s3-bucket")
    assert "the service cannot be reached" in told.finding
    assert f"`curl -v {url}`" in told.cure


def test_profile_that_is_not_in_the_file_of_credentials(host: PluginHost, seaweedfs: S3Server) -> None:
    credentials(seaweedfs)
    told = s3(host, seaweedfs, "any", profile="other").fault("s3-credentials")
    assert "has no profile other, but lab" in told.finding
    assert "write the lines [other]" in told.cure


def test_mount_that_was_taken_away(host: PluginHost) -> None:
    host.create("data", host_path="/data")
    host.driver.mount("data", ID)
    mountpoint = host.driver.mountpoint("data")
    taking = ["nsenter", "-t", str(host.driver.process.pid), "-m", "--", "umount", mountpoint]
    subprocess.run(taking, check=True)
    told = diagnose(host).fault("mounts")
    host.driver.done("Unmount", Name="data", ID=ID)
    assert told.finding == "volume data is in use, and nothing is mounted for it"


def test_mount_that_nobody_holds(host: PluginHost) -> None:
    entering = ["nsenter", "-t", str(host.driver.process.pid), "-m", "--"]
    leak = f"{host.driver.root}/volumes/leak"
    subprocess.run([*entering, "mkdir", leak], check=True)
    subprocess.run([*entering, "mount", "-t", "tmpfs", "leak", leak], check=True)
    found = diagnose(host)
    subprocess.run([*entering, "umount", leak], check=True)
    subprocess.run([*entering, "rmdir", leak], check=True)
    told = found.of("mounts")
    assert (told.result, told.subject) == ("warning", leak)
    assert "no volume there is in use" in told.finding


def test_full_disk_of_the_state() -> None:
    with temporary_directory() as directory, contextlib.closing(Host(directory / "host")) as small:
        (small.files / "root").mkdir()
        small.run("mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "small", f"{small.directory}/root")
        with driver_on(small) as driver, sidecar_on(small) as sidecar:
            (small.files / "root/filler").write_bytes(bytes(1 << 20))
            with contextlib.suppress(OSError), open(small.files / "root/filler", "wb") as file:
                while True:
                    file.write(bytes(1 << 16))
            found = diagnose(PluginHost(small, driver, sidecar))
    told = found.fault("disk")
    assert f"the disk of {small.directory}/root/.state is full" in told.finding
    assert "make room" in told.cure
    assert found.bad() == ["engine", "disk"]


def test_read_only_disk_of_the_state(tmp_path: Path) -> None:
    (tmp_path / "root/.state").mkdir(parents=True)
    script = 'mount -t tmpfs -o ro state "$0" && exec "$@"'
    prefix = ["unshare", "-m", "sh", "-c", script, str(tmp_path / "root/.state")]
    found = doctor.diagnose("--root", str(tmp_path / "root"), prefix=prefix)
    told = found.fault("disk")
    assert "is read-only" in told.finding
    assert "mount -o remount,rw" in told.cure


@pytest.fixture(scope="module")
def at_rest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root directory of a driver that is no more, with two volumes."""
    directory = tmp_path_factory.mktemp("rest")
    with contextlib.closing(Host(directory / "host")) as alone:
        with driver_on(alone) as driver:
            (alone.files / "data").mkdir()
            for name in ("one", "two"):
                driver.create(name, "/data")
            driver.mount("one", ID)
            driver.done("Unmount", Name="one", ID=ID)
            assert driver.process.terminate() == 0
        shutil.copytree(alone.files / "root", directory / "root")
    return directory / "root"


@pytest.fixture
def stopped(at_rest: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    root: Path = shutil.copytree(at_rest, tmp_path / "root")
    return root


def contents(root: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (root / ".state").iterdir()}


def of_state(root: Path) -> Diagnosis:
    """What is found of a state at rest, of which nothing may be altered."""
    before = contents(root)
    found = doctor.diagnose("--root", str(root), "--socket", str(root / "none.sock"))
    assert contents(root) == before
    return found


def test_state_at_rest_is_well(stopped: Path) -> None:
    found = of_state(stopped)
    assert found.bad() == ["engine", "driver"]
    whole, backup = (told for told in found.findings if told.check == "definitions")
    assert "2 volumes are defined" in whole.finding
    assert backup.finding == "their backup says the same"
    assert found.of("references").finding == "the record of mounts is whole: 0 volumes are held"


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(2048, len(content), 512):
        content[place : place + 64] = os.urandom(64)
    path.write_bytes(content)


def test_state_in_the_root_directory_of_another_process(stopped: Path) -> None:
    """As a plugin's is. SQLite takes the way there for one in its own."""
    with subprocess.Popen(["unshare", "-m", "sh", "-c", 'mount --bind "$0" /mnt && echo && cat', stopped],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:  # fmt: skip
        assert other.stdout
        assert other.stdout.readline() == b"\n"
        found = doctor.diagnose("--root", f"/proc/{other.pid}/root/mnt", "--socket", str(stopped / "none.sock"))
        other.communicate(timeout=20)
    assert found.bad() == ["engine", "driver"]
    assert "2 volumes are defined" in next(told.finding for told in found.findings if told.check == "definitions")


def test_state_that_a_power_cut_left_half_written(stopped: Path, tmp_path: Path) -> None:
    """With a journal, from which the driver makes it what it was, and so does doctor, elsewhere."""
    path = stopped / ".state/definitions.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as cut:
        cut.execute("PRAGMA cache_size = 1")
        cut.execute("BEGIN IMMEDIATE")
        long = "x" * 1000  # for the pages of both, the first ones of the file, too, to be written before the end
        cut.executemany("INSERT INTO definitions VALUES (?, ?, '', '')", ((str(n), long) for n in range(400)))
        cut.execute("CREATE TABLE other (text)")
        cut.executemany("INSERT INTO other VALUES (?)", [(long,)] * 400)
        for name in ("definitions.sqlite", "definitions.sqlite-journal"):
            shutil.copy(stopped / ".state" / name, tmp_path)
        cut.execute("ROLLBACK")
    for name in ("definitions.sqlite", "definitions.sqlite-journal"):
        shutil.copy(tmp_path / name, stopped / ".state")
    assert of_state(stopped).bad() == ["engine", "driver"]


@pytest.fixture
def hanging(stopped: Path) -> Path:
    """One of which a file is on a disk that never answers, as a pipe is that nobody writes to."""
    damage(stopped / ".state/definitions.sqlite")
    (stopped / ".state/definitions.json").unlink()
    os.mkfifo(stopped / ".state/definitions.json")
    return stopped


def test_a_disk_that_hangs_keeps_nobody_from_other_checks(hanging: Path) -> None:
    found = doctor.diagnose("--root", str(hanging), "--socket", str(hanging / "none.sock"), "--only", "kernel")
    assert [told.check for told in found.findings] == ["kernel"]
    assert found.exit_code == 0


def test_ctrl_c_ends_it_also_while_a_disk_hangs(hanging: Path) -> None:
    line = doctor.command("--root", str(hanging), "--socket", str(hanging / "none.sock"), "--only", "definitions")
    with (
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        open(opened_by_a_reader(hanging / ".state/definitions.json"), "wb"),
    ):
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (b"", b""), "of itself it says after 12 s what it found"
    assert process.returncode == 130


def opened_by_a_reader(pipe: Path) -> int:
    """A descriptor to write to the pipe, as soon as somebody waits to read from it."""
    found: list[int] = []

    def is_open() -> bool:
        with contextlib.suppress(OSError):
            found.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(found)

    wait_until(is_open, "the pipe is opened")
    return found[0]


def test_damaged_definitions(stopped: Path) -> None:
    damage(stopped / ".state/definitions.sqlite")
    found = of_state(stopped)
    told = found.fault("definitions")
    assert "are damaged" in told.finding
    assert "their backup has 2 volumes and is whole" in told.finding
    assert "have the driver build them anew from it" in told.cure
    assert found.bad() == ["engine", "driver", "definitions"]


def test_damaged_definitions_and_backup(stopped: Path) -> None:
    damage(stopped / ".state/definitions.sqlite")
    (stopped / ".state/definitions.json").write_text("{}")
    told = of_state(stopped).fault("definitions")
    assert "and their backup is not usable" in told.finding
    assert f"`brokervol volumes import --root {stopped} FILE`" in told.cure


def test_backup_that_says_something_else(stopped: Path) -> None:
    backup = stopped / ".state/definitions.json"
    backup.write_text('{"format": "brokervol volumes", "version": 1, "volumes": []}')
    told = next(told for told in of_state(stopped).findings if told.subject == "backup")
    assert (told.check, told.result) == ("definitions", "warning")
    assert "says something else of one, two" in told.finding


def test_damaged_references(stopped: Path) -> None:
    damage(stopped / ".state/mounts.sqlite")
    told = of_state(stopped).fault("references")
    assert f"the driver's state in {stopped}/.state/mounts.sqlite is damaged" in told.finding
    assert "have the driver build it anew from what the kernel shows" in told.cure


def test_what_was_set_aside_is_told(stopped: Path) -> None:
    name = "mounts.sqlite.damaged-20260102T030405.000000Z"
    (stopped / ".state" / name).touch()
    told = of_state(stopped).of("kept-aside")
    assert (told.result, told.subject) == ("warning", name)


def test_without_root_it_says_what_it_could_not_see(host: PluginHost) -> None:
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]
    found = doctor.diagnose("--socket", host.driver.process.socket_path, prefix=[*host.host.entering, *nobody])
    unseen = {told.check for told in found.findings if told.result == "skipped" and told.cure}
    assert {"privileges", "driver", "nfs-server", "s3-bucket"} <= unseen
    assert all("sudo brokervol doctor" in told.cure for told in found.findings if told.check in unseen)
    blind = doctor.diagnose("--only", "driver", "--socket", host.driver.process.socket_path, prefix=nobody)
    assert blind.exit_code == 1

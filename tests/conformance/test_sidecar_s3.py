"""The sidecar's API over buckets, in the view of the process itself: workspaces with keys, and with profiles."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.processes import Running
from lab.s3 import S3Server
from lab.sidecar import self_sidecar
from lab.task import Answer, ask
from sidecar.__main__ import _credentials, _options


class Site:
    """A running sidecar, the bucket behind it, and a directory in which the bucket is not really mounted."""

    def __init__(self, sidecar: Running, server: S3Server, bucket: str, directory: Path) -> None:
        self.sidecar = sidecar
        self.client = server.client()
        self.secret = server.secret_access_key
        self.bucket = bucket
        self.directory = directory

    def get(self, path: str) -> Answer:
        return ask(self.sidecar.socket_path, "GET", path)

    def post(self, path: str, body: object) -> Answer:
        return ask(self.sidecar.socket_path, "POST", path, body)

    def batch(self, workspace: str, verb: str, *files: object) -> Answer:
        return self.post(f"/v1/workspaces/{workspace}/{verb}", {"files": files})

    def keys(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.bucket)
        return [listed["Key"] for listed in found.get("Contents", [])]


def workspaces(server: S3Server, bucket: str, directory: Path) -> dict[str, Any]:
    place = {"type": "s3", "endpoint_url": server.endpoint_url, "region_name": server.region_name}
    ours = {**place, "bucket_name": bucket, "credentials": server.credentials()}
    wrong = {**server.credentials(), "access_key_id": "AKIANOSUCHKEY"}
    return {
        "keys": {"broker": ours},
        "frozen": {"broker": ours, "read_only": True},
        "profile": {"broker": {**ours, "credentials": "lab"}},
        "below": {"broker": {**ours, "prefix": "a/b"}},
        "mounted": {"broker": {**ours, "host_path": str(directory / "mounted")}},
        "no-bucket": {"broker": {**ours, "bucket_name": "no-such-bucket-of-ours"}},
        "no-key": {"broker": {**ours, "credentials": wrong}},
        "no-profile": {"broker": {**ours, "credentials": "nobody"}},
        "no-server": {"broker": {**ours, "endpoint_url": "http://127.0.0.1:1"}},
    }


@pytest.fixture
def site(
    seaweedfs: S3Server, new_bucket: Callable[[S3Server], str], short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    profile = short_dir / "credentials"
    lines = ["[lab]", *(f"aws_{key} = {value}" for key, value in seaweedfs.credentials().items())]
    profile.write_text("\n".join(lines))
    monkeypatch.setenv("BROKERVOL_CREDENTIALS", str(profile))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/no/such/file")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    (short_dir / "mounted").mkdir()
    (short_dir / "in").write_text("hello")
    bucket = new_bucket(seaweedfs)
    with self_sidecar(short_dir, workspaces(seaweedfs, bucket, short_dir)) as sidecar:
        site = Site(sidecar, seaweedfs, bucket, short_dir)
        yield site
        assert "Traceback" not in sidecar.log()
        assert site.secret not in sidecar.log()


@pytest.mark.parametrize("name", ["keys", "profile", "mounted"])
def test_files_go_to_the_bucket_and_come_from_it(site: Site, name: str) -> None:
    source, copy = site.directory / "in", site.directory / "out"
    assert site.batch(name, "upload", {"local_path": str(source), "file_path": "x/y"}).status == 200
    assert site.client.get_object(Bucket=site.bucket, Key="x/y")["Body"].read() == b"hello"
    assert site.batch(name, "move", {"file_path": "x/y", "new_path": "z"}).status == 200
    assert site.keys() == ["z"]
    assert site.get(f"/v1/workspaces/{name}/files").json["files"] == [{"file": "z", "size": 5}]
    assert site.batch(name, "download", {"file_path": "z", "local_path": str(copy)}).status == 200
    assert (copy.read_text(), copy.is_symlink()) == ("hello", False)
    assert site.batch(name, "paths", {"file_path": "z"}).json == {"paths": None}
    assert site.batch(name, "delete", {"file_path": "z"}).status == 200
    assert site.keys() == []


def test_a_batch_is_done_in_groups_with_a_result_for_each_file(site: Site) -> None:
    names = [f"{number:03}" for number in range(100)]
    uploads = [{"local_path": str(site.directory / "in"), "file_path": f"a/{name}"} for name in names]
    assert site.batch("keys", "upload", *uploads).json["done"] == 100
    site.client.delete_object(Bucket=site.bucket, Key="a/070")
    moves = [{"file_path": f"a/{name}", "new_path": f"b/{name}"} for name in names]
    stopped = site.batch("keys", "move", *moves)
    assert (stopped.status, stopped.json["code"]) == (404, "missing-file")
    assert [result["status"] for result in stopped.json["results"]] == ["done"] * 70 + ["failed"] + [
        "skipped"
    ] * 29
    assert site.keys() == [f"a/{name}" for name in names[71:]] + [f"b/{name}" for name in names[:70]]
    rest = site.post("/v1/workspaces/keys/move?on_error=continue", {"files": moves[65:]})
    assert rest.status == 200
    assert [result["status"] for result in rest.json["results"]] == ["failed"] * 6 + ["done"] * 29
    moved = [name for name in names if name != "070"]
    assert site.keys() == [f"b/{name}" for name in moved]
    deleted = site.batch("keys", "delete", *({"file_path": f"b/{name}"} for name in moved))
    assert (deleted.json["done"], site.keys()) == (99, [])


def test_workspaces_are_described_without_what_is_secret(site: Site) -> None:
    answer = site.get("/v1/workspaces")
    found = {workspace["name"]: workspace for workspace in answer.json["workspaces"]}
    assert found["keys"] == {
        "name": "keys",
        "broker_type": "s3",
        "volume_path": None,
        "read_only": False,
        "volume": None,
    }
    place = str(site.directory / "mounted")
    assert found["mounted"]["volume_path"] == place
    assert found["mounted"]["volume"] == {"driver": None, "remote_path": place}
    assert site.secret not in answer.text
    assert site.get("/v1/workspaces/keys").json["health"] == {"status": "healthy"}


def test_partial_download_is_a_link_where_the_bucket_is_mounted(site: Site) -> None:
    site.client.put_object(Bucket=site.bucket, Key="f", Body=b"object")
    (site.directory / "mounted/f").write_text("as mounted")
    item = {"file_path": "f", "local_path": str(site.directory / "out"), "partial": True}
    for name, content in (("mounted", "as mounted"), ("keys", "object")):
        assert site.batch(name, "download", item).status == 200
        assert (site.directory / "out").read_text() == content


def test_prefix_confines(site: Site) -> None:
    for key in ("a/b/c", "a/bc", "d"):
        site.client.put_object(Bucket=site.bucket, Key=key, Body=b"1")
    assert site.get("/v1/workspaces/below/files?recursive=true").json["files"] == [{"file": "c", "size": 1}]
    assert site.batch("below", "delete", {"file_path": "../bc"}).json["code"] == "invalid-path"
    assert site.batch("below", "delete", {"file_path": "d"}).status == 200
    assert site.keys() == ["a/b/c", "a/bc", "d"]


def test_read_only_workspace_changes_nothing(site: Site) -> None:
    site.client.put_object(Bucket=site.bucket, Key="f", Body=b"old")
    local = str(site.directory / "in")
    for verb, item in (
        ("upload", {"local_path": local, "file_path": "f"}),
        ("move", {"file_path": "f", "new_path": "g"}),
        ("delete", {"file_path": "f"}),
        ("delete", {"file_path": "never"}),
    ):
        answer = site.batch("frozen", verb, item)
        assert (answer.status, answer.json["code"]) == (403, "read-only")
    assert site.keys() == ["f"]
    assert site.get("/v1/workspaces/frozen/catalog").json["files"] == []
    assert site.batch("frozen", "download", {"file_path": "f", "local_path": local}).status == 200


@pytest.mark.parametrize(
    ("name", "status", "code", "fact"),
    [
        ("no-bucket", 503, "backend-unavailable", "the bucket does not exist"),
        ("no-key", 403, "permission-denied", "the service does not know the access key"),
        ("no-profile", 403, "permission-denied", "no profile of the configured name"),
        ("no-server", 503, "backend-unavailable", "cannot be reached"),
    ],
)
def test_what_the_service_refuses_is_told_by_kind(
    site: Site, name: str, status: int, code: str, fact: str
) -> None:
    """Kinds within a kind, such as MissingBucket, have their parents' codes."""
    answer = site.get(f"/v1/workspaces/{name}/files")
    assert (answer.status, answer.json["code"]) == (status, code)
    assert fact in answer.json["detail"]
    assert ("retry-after" in answer.headers) == (status == 503)
    health = site.get(f"/v1/workspaces/{name}").json["health"]
    assert (health["status"], health["code"]) == ("unreachable", code)
    item = {"local_path": str(site.directory / "in"), "file_path": "f"}
    answer = site.batch(name, "upload", item)
    assert (answer.status, answer.json["code"]) == (status, code)


def test_validation_asks_nobody(site: Site) -> None:
    """A stranger must not have us connect anywhere, or use our credentials there."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        broker = {"type": "s3", "bucket_name": "theirs", "endpoint_url": url, "region_name": "us-east-1"}
        for credentials in ("lab", {"access_key_id": "A", "secret_access_key": "stranger"}):
            answer = site.post("/v1/validate", {"broker": {**broker, "credentials": credentials}})
            assert (answer.status, answer.json) == (200, {"warnings": []})
        (warning,) = site.post("/v1/validate", {"broker": {**broker, "typo": 1}}).json["warnings"]
        assert warning["name"] == "unknown_key"
        answer = site.post("/v1/validate", {"broker": {**broker, "prefix": "../x"}})
        assert (answer.status, answer.json["code"]) == (422, "invalid-broker-configuration")
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert "stranger" not in site.sidecar.log()


@pytest.mark.root  # for others its memory is closed
def test_sidecar_without_buckets_does_not_load_the_sdks(short_dir: Path) -> None:
    (short_dir / "data").mkdir()
    host = {"data": {"broker": {"type": "host", "host_path": str(short_dir / "data")}}}
    with self_sidecar(short_dir, host) as sidecar:
        assert ask(sidecar.socket_path, "GET", "/v1/workspaces").status == 200
        s3 = {"broker": {"type": "s3", "bucket_name": "imagery"}}
        assert ask(sidecar.socket_path, "POST", "/v1/validate", s3).status == 200
        with open(f"/proc/{sidecar.pid}/maps", encoding="utf-8") as maps:
            assert "obstore" not in maps.read()


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {}, "/etc/brokervol/credentials"),
        ([], {"BROKERVOL_HOSTFS": "/hostfs"}, "/hostfs/etc/brokervol/credentials"),
        ([], {"AWS_SHARED_CREDENTIALS_FILE": "/a", "BROKERVOL_HOSTFS": "/hostfs"}, "/a"),
        ([], {"AWS_SHARED_CREDENTIALS_FILE": "/a", "BROKERVOL_CREDENTIALS": "/b"}, "/b"),
        (["--credentials", "/c"], {"AWS_SHARED_CREDENTIALS_FILE": "/a", "BROKERVOL_CREDENTIALS": "/b"}, "/c"),
        ([], {"BROKERVOL_CREDENTIALS": "", "AWS_SHARED_CREDENTIALS_FILE": ""}, "/etc/brokervol/credentials"),
    ],
)
def test_where_profiles_are(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], environment: dict[str, str], expected: str
) -> None:
    for name in ("BROKERVOL_CREDENTIALS", "AWS_SHARED_CREDENTIALS_FILE", "BROKERVOL_HOSTFS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _credentials(_options(arguments)) == expected

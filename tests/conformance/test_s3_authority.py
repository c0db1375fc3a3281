"""A bucket is for whom its token is mounted, and its keys are for nobody: driver, sidecar and a real S3 server.

`tests/system/test_s3.py` has the same with containers; what is here needs mounts that an engine would not make.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lab import intruder
from lab.directories import temporary_directory
from lab.namespaces import in_private_namespace
from lab.plugin_host import PluginHost, plugin_host
from lab.s3 import S3Server
from lab.task import Answer, Identity, Task
from sidecar.holdings import Holding
from storage.exceptions import InvalidPath

USER = Identity(uid=1000, gid=1000)
WS = "/v1/workspaces/imagery"
DAEMON = Path(__file__).parents[2] / "daemon"


class Site:
    """Buckets as volumes: `imagery`, which is there, and others of prefixes of the same bucket."""

    def __init__(self, plugin: PluginHost, server: S3Server, bucket: str) -> None:
        self.plugin = plugin
        self.server = server
        self.bucket = bucket
        self.task = plugin.task
        self._mounted: list[tuple[str, str]] = []
        self.create("imagery", prefix="2026")

    def create(self, name: str, **options: str) -> None:
        """A volume that is mounted for a container."""
        given = {
            "type": "s3",
            "bucket_name": self.bucket,
            "endpoint_url": self.server.endpoint_url,
            "region_name": self.server.region_name,
            "credentials": "lab",
        }
        self.plugin.create(name, **{**given, **options})
        self.mount(name)

    def mount(self, name: str) -> None:
        self._mounted.append((name, self.plugin.mount(name)))

    def unmount(self) -> None:
        """What happens when the last container ends."""
        while self._mounted:
            name, mount_id = self._mounted.pop()
            self.plugin.driver.done("Unmount", Name=name, ID=mount_id)

    def close(self) -> None:
        self.unmount()
        for volume in self.plugin.driver.done("List").json["Volumes"]:
            self.plugin.driver.done("Remove", Name=volume["Name"])

    def keys(self) -> list[str]:
        found = self.server.client().list_objects_v2(Bucket=self.bucket, MaxKeys=1000)
        return [listed["Key"] for listed in found.get("Contents", [])]

    def logs(self) -> str:
        return self.plugin.sidecar.log() + self.plugin.driver.process.log()


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory, seaweedfs: S3Server) -> Iterator[PluginHost]:
    """With two profiles: `lab` for the server, `told` with a session token for one that tells what it is sent."""
    path = tmp_path_factory.mktemp("s3") / "credentials"
    lines = ["[lab]", *(f"aws_{key} = {value}" for key, value in seaweedfs.credentials().items())]
    lines += ["[told]", *(f"aws_{key} = {value}" for key, value in SECRETS.items())]
    path.write_text("\n".join(lines))
    path.chmod(0o600)
    with pytest.MonkeyPatch.context() as environment, temporary_directory() as directory:
        environment.setenv("BROKERVOL_CREDENTIALS", str(path))
        environment.setenv("AWS_MAX_ATTEMPTS", "1")
        with plugin_host(directory) as found:
            yield found


@pytest.fixture
def site(plugin: PluginHost, seaweedfs: S3Server, new_bucket: Callable[[S3Server], str]) -> Iterator[Site]:
    site = Site(plugin, seaweedfs, new_bucket(seaweedfs))
    yield site
    site.close()
    for secret in (*SECRETS.values(), *seaweedfs.credentials().values()):
        assert secret not in site.logs()


def batch(verb: str, **item: Any) -> tuple[str, str, object]:
    return "POST", f"/{verb}", {"files": [item]}


# What each is asked, in this order; `f` is there, unless it may be deleted.
OPERATIONS: dict[str, tuple[str, str, object]] = {
    "list": ("GET", "/files", None),
    "stat": ("GET", "/files?prefix=f&limit=1", None),
    "catalog": ("GET", "/catalog", None),
    "paths": batch("paths", file_path="f"),
    "download": batch("download", file_path="f", local_path="/tmp/out"),
    "content GET": ("GET", "/content/f", None),
    "content HEAD": ("HEAD", "/content/f", None),
    "content PUT": ("PUT", "/content/put", "new"),
    "upload": batch("upload", local_path="/tmp/in", file_path="up"),
    "move": batch("move", file_path="f", new_path="moved"),
    "delete": batch("delete", file_path="moved"),
    "delete what is gone": batch("delete", file_path="gone"),
}
READS = ("list", "stat", "catalog", "paths", "download", "content GET", "content HEAD")


def outcomes(task: Task, workspace: str = WS) -> dict[str, str]:
    """What each operation answers: `ok` or a code."""
    found = {}
    for name, (method, path, body) in OPERATIONS.items():
        answer = task.request(method, workspace + path, body)
        is_ok = answer.status in (200, 201, 204)
        found[name] = "ok" if is_ok else str(answer.status) if method == "HEAD" else answer.json["code"]
    return found


def all_of(code: str, head: str) -> dict[str, str]:
    return dict.fromkeys(OPERATIONS, code) | {"content HEAD": head}


EVERYTHING = all_of("ok", "ok")
READING = {name: "ok" if name in READS else "read-only" for name in OPERATIONS}
NOTHING = all_of("unknown-workspace", "404")


@pytest.mark.root
@pytest.mark.parametrize("identity", [Identity(), USER], ids=["root", "user"])
def test_the_mount_of_the_token_says_what_may_be_done(site: Site, identity: Identity) -> None:
    """The table: how the token is mounted -> operation -> outcome."""
    site.create("frozen", prefix="2026", read_only="true")
    site.create("others", prefix="2025")
    client = site.server.client()
    for volumes, workspace, expected in (
        ([("imagery", "/data", "rw")], WS, EVERYTHING),
        ([("imagery", "/data", "ro")], WS, READING),
        ([("imagery", "/a", "ro"), ("imagery", "/b", "rw")], WS, EVERYTHING),
        ([("frozen", "/data", "rw")], WS.replace("imagery", "frozen"), READING),
        ([("others", "/data", "rw")], WS, NOTHING),
        ([], WS, NOTHING),
        ([], "/v1/workspaces/never", NOTHING),
    ):
        client.put_object(Bucket=site.bucket, Key="2026/f", Body=b"pixels")
        before = site.keys()
        with site.task(*volumes, identity=identity) as task:
            assert outcomes(task, workspace) == expected, volumes
        changed = site.keys() != before
        assert changed == (expected is EVERYTHING)


@pytest.mark.root
def test_a_token_that_is_unmounted_gives_nothing_any_more(site: Site) -> None:
    """By the task itself, or by the driver below it, which then makes a new one: on the same connections."""
    site.server.client().put_object(Bucket=site.bucket, Key="2026/f", Body=b"pixels")
    with site.task(("imagery", "/data", "rw")) as task:
        number = task.attack("connect")
        assert task.attack("ask_on", number, "GET", f"{WS}/files")[0] == 200
        assert task.attack("unmount", "/data") == 0
        assert task.attack("ask_on", number, "GET", f"{WS}/files")[0] == 404
        assert outcomes(task) == NOTHING
    with site.task(("imagery", "/data", "rw")) as task:
        site.unmount()
        assert site.plugin.driver.mounts() == []
        assert outcomes(task) == NOTHING
        site.mount("imagery")
        assert outcomes(task) == NOTHING, "the new token is another one"
    assert site.keys() == ["2026/f"]


@pytest.mark.root
def test_a_request_that_is_going_on_ends_with_its_token(site: Site) -> None:
    items = [{"local_path": "/tmp/in", "file_path": f"{number:04}{'x' * 200}"} for number in range(800)]
    for verb, ready in (("upload", items), ("download", [{**item, "local_path": "/tmp/out"} for item in items])):
        with site.task(("imagery", "/data", "rw")) as task:
            number = task.attack("connect")
            lines = task.attack("begin", number, "POST", f"{WS}/{verb}", {"files": ready, "on_error": "continue"})
            assert task.attack("unmount", "/data") == 0
            results = [json.loads(line) for line in lines + task.attack("end", number)]
        statuses = [result["status"] for result in results]
        assert 0 < statuses.count("done") < len(items)
        assert statuses == sorted(statuses), "once it is gone nothing more is done"
        if verb == "upload":
            assert len(site.keys()) == statuses.count("done")
        assert {result["error"]["code"] for result in results[-10:]} == {"invalid-path"}
        items = items[: statuses.count("done")] * 20


@pytest.mark.root
@pytest.mark.parametrize("is_user", [False, True], ids=["root", "root-of-a-user-namespace"])
def test_a_forged_token_is_none(site: Site, is_user: bool) -> None:
    """Whatever a task can mount where its token would be: the same to the eye, and of another file system."""
    site.create("others", prefix="2025")
    token = site.plugin.token("imagery")
    with site.task(("others", "/others", "rw"), identity=USER if is_user else None, is_pivoted=True) as task:
        root = site.plugin.files(task.root)
        for name in ("data", "upper"):
            (root / name).mkdir()
        if is_user:
            assert task.attack("unshare", intruder.CLONE_NEWUSER | intruder.CLONE_NEWNS) == 0
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{task.pid}/{name}").write_text("0 1000 1")
        flags = intruder.MS_RDONLY
        for forged in (
            (token.source, "/data", flags, "tmpfs", "mode=0555,nr_inodes=1"),
            (token.source, "/data", 0, "tmpfs", "size=0"),
            ("/others", "/data", intruder.MS_BIND),
            ("/tmp", "/data", intruder.MS_BIND),
            (token.source, "/data", intruder.MS_RDONLY, "ramfs"),
        ):
            done = task.attack("mount", *forged)
            assert done == 0 or is_user, forged
            assert [found["name"] for found in task.workspaces()] == ["others"], forged
            assert outcomes(task) == NOTHING
            if done == 0:
                assert task.attack("unmount", "/data") == 0
    assert site.keys() == []


@pytest.mark.root
@in_private_namespace
def test_the_token_is_known_by_its_inode_while_it_is_open() -> None:
    """What mountinfo shows can be of two moments, and its numbers be another's by now."""
    with temporary_directory() as directory:
        for name in ("token", "seen", "forged"):
            (directory / name).mkdir()
        place = str(directory / "token")
        assert intruder.mount("brokervol:1", place, 0, "tmpfs") == 0
        assert intruder.mount(place, str(directory / "seen"), intruder.MS_BIND) == 0
        assert intruder.mount("brokervol:1", str(directory / "forged"), 0, "tmpfs") == 0
        holding = Holding("w", {}, "/data", is_read_only=False, is_by_mount=True, token=place)
        seen, forged = (os.open(directory / name, os.O_PATH) for name in ("seen", "forged"))
        holding.check_token(seen)
        with pytest.raises(InvalidPath):
            holding.check_token(forged)
        assert intruder.unmount(place) == 0
        with pytest.raises(InvalidPath):
            holding.check_token(seen)
        os.close(seen)
        os.close(forged)
        for name in ("seen", "forged"):
            assert intruder.unmount(str(directory / name)) == 0


# The keys

SECRETS = {
    "access_key_id": "AKIATOLDTOLDTOLDTOLD",
    "secret_access_key": "secretsecretsecretsecretsecretsecretsecr",
    "session_token": "FwoGZXIvYXdzEtokentokentoken//////////",
}
SIGNED = re.compile(
    "X-Amz-Signature|X-Amz-Credential|Signature=|AWSAccessKeyId|AWS4-HMAC|Credential=", re.IGNORECASE
)


class Teller(BaseHTTPRequestHandler):
    """A service that fails, each time in another way, and tells all that it was sent."""

    status = 403
    code = "SignatureDoesNotMatch"
    protocol_version = "HTTP/1.1"
    seen: list[str]

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        sent = f"{self.requestline}\n{self.headers}"
        type(self).seen.append(sent)
        text = sent.replace("&", "&amp;").replace("<", "&lt;")
        body = (
            f"<Error><Code>{self.code}</Code><Message>{text}</Message><StringToSign>{text}</StringToSign></Error>"
        )
        told = " ".join(sent.split())[:4000]
        self.send_response(self.status, told)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Location", f"http://127.0.0.1:1/?{told}")
        self.send_header("x-amz-bucket-region", told)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def teller() -> Iterator[tuple[str, type[Teller]]]:
    class One(Teller):
        seen: list[str] = []  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), One)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", One
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.root
def test_no_answer_has_a_key_or_a_signature_whatever_the_service_says(
    site: Site, teller: tuple[str, type[Teller]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every operation on a service that sends back all that it was sent, with every kind of failure."""
    url, told = teller
    site.create("told", endpoint_url=url, credentials="told")
    secrets = [*SECRETS.values(), *site.server.credentials().values()]
    answers: list[Answer] = []
    with site.task(("told", "/data", "rw"), identity=USER) as task:
        for status, code in (
            (403, "SignatureDoesNotMatch"),
            (403, "InvalidAccessKeyId"),
            (400, "AuthorizationHeaderMalformed"),
            (404, "NoSuchKey"),
            (301, "PermanentRedirect"),
            (307, "TemporaryRedirect"),
            (412, "PreconditionFailed"),
            (500, "InternalError"),
            (503, "SlowDown"),
            (200, "Nonsense"),
        ):
            monkeypatch.setattr(told, "status", status)
            monkeypatch.setattr(told, "code", code)
            for name, (method, path, body) in {**OPERATIONS, "workspace": ("GET", "", None)}.items():
                if status == 200 and name in ("download", "content GET", "content HEAD"):
                    continue  # what the service says then is the file
                answers.append(task.request(method, "/v1/workspaces/told" + path, body))
        answers += [task.get("/v1/workspaces"), task.get("/v1/openapi.json"), task.get("/healthz")]
        answers.append(task.post("/v1/validate", {"broker": {"type": "s3", "credentials": SECRETS}}))
        files = [path.read_text() for path in (site.plugin.files(task.root) / "tmp").iterdir()]
    assert any(SECRETS["access_key_id"] in sent for sent in told.seen), "it was sent what it could tell"
    assert any(SECRETS["session_token"] in sent for sent in told.seen)
    said = [f"{answer.headers} {answer.text}" for answer in answers] + [site.logs(), *files]
    for text in said:
        for secret in secrets:
            assert secret not in text
        assert SIGNED.search(text) is None, text


def test_nothing_here_makes_a_presigned_address() -> None:
    for path in DAEMON.rglob("*.py"):
        assert re.search(r"presign|sign_async|\.sign\(", path.read_text()) is None, path

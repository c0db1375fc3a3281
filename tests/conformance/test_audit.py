"""The audit log: every call and every file of a batch leaves one line, which says who did what, and no secret."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.directories import temporary_directory
from lab.processes import Running, wait_until
from lab.sidecar import caller_sidecar, host_sidecar
from lab.task import Identity, Task
from lab.unix_http import Answer, request
from sidecar import audit
from sidecar.audit import AuditLog

WS = "/v1/workspaces/data"


class Served:
    """A sidecar with the workspace `data`, and what its audit log says."""

    def __init__(self, directory: Path, sidecar: Running) -> None:
        self.directory = directory
        self.sidecar = sidecar
        self.file = directory / "root" / ".state" / "audit.jsonl"
        self._seen = 0

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        return request(self.sidecar.socket_path, method, path, sent, **headers)

    def told(self, count: int) -> list[dict[str, Any]]:
        """The next `count` lines; a line comes when the answer has been sent."""
        wanted = self._seen + count
        wait_until(lambda: len(self._lines()) >= wanted, f"{count} more lines of the audit log")
        lines = self._lines()
        assert len(lines) == wanted
        new, self._seen = lines[self._seen :], wanted
        return [json.loads(line) for line in new]

    def _lines(self) -> list[str]:
        return self.file.read_text(encoding="ascii").splitlines()


@pytest.fixture
def served() -> Iterator[Served]:
    with host_sidecar() as found:
        yield Served(*found)


def test_each_file_of_a_batch_is_told(served: Served) -> None:
    (served.directory / "one").write_text("12345")
    local = str(served.directory / "one")
    answer = served.call("POST", f"{WS}/upload", {"files": [{"local_path": local, "file_path": "a/b"}]})
    (line,) = served.told(1)
    assert line.pop("time").endswith("+00:00")
    assert line.pop("ms") > 0
    assert line == {
        "audit": True,
        "request": answer.headers["X-Request-Id"],
        "uid": os.getuid(),
        "pid": os.getpid(),
        "operation": "upload",
        "workspace": "data",
        "path": "a/b",
        "outcome": "done",
        "bytes": 5,
    }


def test_failures_are_told_by_their_code_and_what_was_skipped_is_not(served: Served) -> None:
    (served.directory / "data" / "x").write_text("1")
    moves = [
        {"file_path": "x", "new_path": "y"},
        {"file_path": "gone", "new_path": "z"},
        {"id": 1, "new_path": "w"},
    ]
    assert served.call("POST", f"{WS}/move", {"files": moves}).status == 404
    done, failed = served.told(2)
    assert (done["path"], done["file_path"], done["outcome"]) == ("x", "y", "done")
    assert (failed["path"], failed["outcome"]) == ("gone", "missing-file")
    assert done["request"] == failed["request"]


@pytest.mark.parametrize(
    ("call", "body", "told"),
    [
        ("GET /v1/workspaces", None, ("workspaces", None, "done")),
        (f"GET {WS}/files", None, ("files", "data", "done")),
        (f"GET {WS}/files?limit=x", None, ("files", "data", "invalid-request")),
        ("GET /v1/workspaces/other/files", None, ("files", "other", "unknown-workspace")),
        ("POST /v1/workspaces/other/delete", {"files": []}, ("delete", "other", "unknown-workspace")),
        (f"POST {WS}/delete", b"{", ("delete", "data", "invalid-request")),
        (f"POST {WS}/paths", {"files": [{"file_path": "../x"}]}, ("paths", "data", "invalid-path")),
    ],
)
def test_a_call_that_is_no_batch_is_told_as_one(
    served: Served, call: str, body: Any, told: tuple[str, ...]
) -> None:
    method, _, path = call.partition(" ")
    served.call(method, path, body)
    (line,) = served.told(1)
    assert (line["operation"], line.get("workspace"), line["outcome"]) == told


def test_content_is_told_with_path_and_size(served: Served) -> None:
    served.call("PUT", f"{WS}/content/d/new%20file", b"0123456789")
    served.call("GET", f"{WS}/content/d/new%20file", Range="bytes=2-4")
    put, got = served.told(2)
    assert (put["path"], put["bytes"], put["outcome"]) == ("d/new file", 10, "done")
    assert (got["path"], got["bytes"], got["outcome"]) == ("d/new file", 3, "done")


def test_liveness_and_what_is_no_call_leave_no_line(served: Served) -> None:
    for path in ("/healthz", "/v1/openapi.json", "/nothing"):
        served.call("GET", path)
    served.call("GET", "/v1/workspaces")
    (line,) = served.told(1)
    assert line["operation"] == "workspaces"


def test_no_secret_and_no_line_break_gets_in(served: Served) -> None:
    secret = "AKIASECRETSECRET"  # noqa: S105  # of nobody
    broker = {
        "type": "s3",
        "bucket_name": "b",
        "credentials": {"access_key_id": secret, "secret_access_key": secret},
    }
    served.call("POST", "/v1/validate", {"broker": broker}, Authorization=secret)
    hostile = [{"file_path": 'a\n{"audit": true, "uid": 0}'}, {"file_path": "\udcff"}]
    served.call("POST", f"{WS}/delete", {"files": hostile, "on_error": "continue"})
    validated, *deleted = served.told(3)
    assert validated["operation"] == "validate"
    assert {line["uid"] for line in deleted} == {os.getuid()}
    assert secret not in served.file.read_text()


@pytest.mark.root
def test_the_caller_is_told_as_the_kernel_says() -> None:
    with temporary_directory() as directory:
        (directory / "data").mkdir()
        (directory / "task" / "tmp").mkdir(parents=True)
        binds = [(directory / "root" / "sidecar", "/run/brokervol", "ro"), (directory / "data", "/data", "rw")]
        with caller_sidecar(directory, {"data": directory / "data"}) as sidecar:
            served = Served(directory, sidecar)
            with Task(directory / "task", binds, Identity(uid=1000, gid=1000)) as task:
                task.workspaces()
                (line,) = served.told(1)
                assert (line["uid"], line["outcome"]) == (1000, "done")
                assert line["pid"] == task.pid


def test_the_file_is_for_its_owner_and_kept_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_FILE_BYTES", 1000)
    log = AuditLog(str(tmp_path / "log"))
    for number in range(500):
        log.write(operation="test", number=number)
    log.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 1 + audit._FILES_KEPT
    assert all(file.stat().st_size <= 1000 and stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    newest = (tmp_path / "log").read_text().splitlines()
    assert json.loads(newest[-1])["number"] == 499


def test_a_disk_that_is_full_stops_the_log_and_not_the_work(capfd: pytest.CaptureFixture[str]) -> None:
    log = AuditLog("/dev/full")
    log.write(operation="test")
    log.close()
    assert "a line of the audit log could not be written" in capfd.readouterr().out


@pytest.mark.parametrize(("target", "expected"), [("-", True), ("off", False)])
def test_it_goes_where_it_is_sent(capfd: pytest.CaptureFixture[str], target: str, expected: bool) -> None:
    log = AuditLog(target)
    log.write(operation="test")
    log.close()
    assert ('"audit": true' in capfd.readouterr().out) is expected


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="symbolic links"):
        AuditLog(str(tmp_path / "log"))

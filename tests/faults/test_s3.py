"""S3 that fails: a proxy before a real server breaks each request of each operation in each way.

Afterwards the old or the new is there, never a half. An upload in parts leaves no parts. The source
of a move is there unless the destination is complete. No unfinished local file is left. The catalog agrees.
"""

from __future__ import annotations

import io
import os
import resource
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.fault_proxy import Fault, FaultProxy, corrupt, error, reset, stall, truncate
from lab.s3 import S3Server
from storage import catalog, journal
from storage.brokers import _s3_boto, _s3_obstore, s3_broker
from storage.brokers._s3_groups import Pace
from storage.brokers.broker import Broker, FileDownload, FileMove, FileUpload
from storage.brokers.factory import get_broker
from storage.exceptions import (
    BackendUnavailable,
    ExpiredCredentials,
    MissingFile,
    PermissionDenied,
    StorageError,
    TimedOut,
    TooLarge,
    TooManyRequests,
)
from storage.models import ScaleFile, use_catalog

# What runs an operation, and what looks behind it: told whether the operation was done, or raised.
Prepared = tuple[Callable[[], object], Callable[[bool], None]]
Operation = Callable[["Stage"], Prepared]

OLD, NEW, LARGE = b"old content", b"new content, longer", os.urandom(9 * 1024 * 1024)


@dataclass
class Stage:
    """A broker that reaches its bucket through the proxy, and a client that reaches it directly."""

    server: S3Server
    proxy: FaultProxy
    bucket: str
    local: Path
    records: catalog.Catalog
    broker: Broker

    def put(self, key: str, content: bytes) -> None:
        self.server.client().put_object(Bucket=self.bucket, Key=key, Body=content)

    def objects(self) -> dict[str, bytes]:
        client = self.server.client()
        keys = [found["Key"] for found in client.list_objects_v2(Bucket=self.bucket).get("Contents", [])]
        return {key: client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}

    def open_uploads(self) -> int:
        return len(self.server.client().list_multipart_uploads(Bucket=self.bucket).get("Uploads", []))

    def source(self, content: bytes) -> str:
        path = self.local / "source"
        path.write_bytes(content)
        return str(path)

    def clear(self) -> None:
        client = self.server.client()
        for begun in client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", []):
            client.abort_multipart_upload(Bucket=self.bucket, Key=begun["Key"], UploadId=begun["UploadId"])
        for key in self.objects():
            client.delete_object(Bucket=self.bucket, Key=key)
        for path in self.local.iterdir():
            path.unlink()
        for file in self.records.page("w"):
            file.set_deleted()
            file.save()


@pytest.fixture(params=["obstore", "boto3"])
def bulk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("BROKERVOL_S3_BULK", request.param)
    return str(request.param)


@pytest.fixture
def stage(
    seaweedfs: S3Server,
    new_bucket: Callable[[S3Server], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Stage]:
    # How often botocore tries again is its own matter; how long it waits in between is a test's, too.
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    local = tmp_path / "local"
    local.mkdir()
    records = catalog.configure(f"sqlite:///{tmp_path}/catalog.sqlite")
    bucket = new_bucket(seaweedfs)
    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        broker = get_broker("s3")
        broker.load_configuration(
            {
                "bucket_name": bucket,
                "endpoint_url": proxy.url,
                "region_name": seaweedfs.region_name,
                "credentials": seaweedfs.credentials(),
            }
        )
        yield Stage(seaweedfs, proxy, bucket, local, records, broker)
    use_catalog(None)
    records.close()


def file(path: str) -> ScaleFile:
    return ScaleFile(file_path=path, workspace="w")


def upload(content: bytes, old: bytes | None) -> Operation:
    def prepare(stage: Stage) -> Prepared:
        if old is not None:
            stage.put("f", old)
        uploads = [FileUpload(file("f"), stage.source(content))]

        def check(is_done: bool) -> None:
            before = {} if old is None else {"f": old}
            # An answer can be lost after the server did what was asked: then the new is there, whole.
            assert stage.objects() in ([{"f": content}] if is_done else [before, {"f": content}])
            # Parts of which nobody was told, since the answer was lost, are left to the bucket's lifecycle rule.
            begun = [asked for asked in stage.proxy.requests if asked.query == "uploads"]
            assert stage.open_uploads() <= max(len(begun) - 1, 0)
            assert (stage.records.find_path("w", "f") is not None) == is_done

        return lambda: stage.broker.upload_files(None, uploads), check

    return prepare


def write(content: bytes, old: bytes | None) -> Operation:
    def prepare(stage: Stage) -> Prepared:
        _, check = upload(content, old)(stage)
        return lambda: stage.broker.write_file(None, file("f"), io.BytesIO(content)), check

    return prepare


def download(content: bytes, old: bytes | None) -> Operation:
    def prepare(stage: Stage) -> Prepared:
        stage.put("f", content)
        target = stage.local / "out"
        if old is not None:
            target.write_bytes(old)
        downloads = [FileDownload(file("f"), str(target), False)]

        def check(is_done: bool) -> None:
            expected = content if is_done else old
            assert (target.read_bytes() if target.exists() else None) == expected
            assert [path.name for path in stage.local.iterdir()] == (["out"] if expected is not None else [])

        return lambda: stage.broker.download_files(None, downloads), check

    return prepare


def move(old: bytes | None) -> Operation:
    def prepare(stage: Stage) -> Prepared:
        moved = file("f")
        stage.put("f", NEW)
        if old is not None:
            stage.put("g", old)
        moved.save()

        def check(is_done: bool) -> None:
            objects = stage.objects()
            if is_done:
                assert objects == {"g": NEW}
            else:
                assert objects.get("g") in (old, NEW)
                assert objects.get("f") == NEW or objects["g"] == NEW
            assert moved.file_path == ("g" if is_done else "f")
            recorded = stage.records.find_uuid("w", moved.uuid)
            assert recorded is not None
            assert recorded.file_path == moved.file_path

        return lambda: stage.broker.move_files(None, [FileMove(moved, "g")]), check

    return prepare


def delete(stage: Stage) -> Prepared:
    stage.put("f", OLD)
    deleted = file("f")
    deleted.save()

    def check(is_done: bool) -> None:
        assert stage.objects() in ([{}] if is_done else [{}, {"f": OLD}])
        recorded = stage.records.find_uuid("w", deleted.uuid)
        assert recorded is not None
        assert recorded.is_deleted == deleted.is_deleted == is_done

    return lambda: stage.broker.delete_files(None, [deleted]), check


OPERATIONS: dict[str, Operation] = {
    "upload": upload(NEW, OLD),
    "upload in parts": upload(LARGE, OLD),
    "write": write(NEW, OLD),
    "write in parts": write(LARGE, OLD),
    "download": download(NEW, OLD),
    "download in parts": download(LARGE, OLD),
    "move": move(OLD),
    "delete": delete,
}

# What breaks once: a well-behaved client tries again and gets there, unless it is told no.
FAULTS: dict[str, tuple[Callable[[], Fault], bool]] = {
    "500": (lambda: error(500, "InternalError"), True),
    "403": (lambda: error(403, "AccessDenied"), False),
    "reset": (reset, True),
    "lost answer": (lambda: reset(after_forwarding=True), True),
    "cut short": (lambda: truncate(3), True),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_request_may_fail_once(stage: Stage, bulk: str, operation: str, fault: str) -> None:
    make_fault, is_mended = FAULTS[fault]
    run, check = OPERATIONS[operation](stage)
    run()
    check(True)
    steps = len(stage.proxy.requests)
    assert steps > 0
    for step in range(steps):
        stage.clear()
        stage.proxy.clear()
        run, check = OPERATIONS[operation](stage)
        stage.proxy.fail(make_fault(), after=step)
        failure = failure_of(run)
        check(failure is None)
        assert failure is None or (not is_mended and isinstance(failure, PermissionDenied)), f"{step}: {failure}"


def failure_of(run: Callable[[], object]) -> StorageError | None:
    try:
        run()
    except StorageError as failure:
        return failure
    return None


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (error(500, "InternalError"), BackendUnavailable),
        (error(503, "SlowDown"), TooManyRequests),
        (error(400, "ExpiredToken"), ExpiredCredentials),
        (error(403, "AccessDenied"), PermissionDenied),
    ],
    ids=["500", "SlowDown", "expired", "denied"],
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_service_that_goes_on_failing_is_an_error_and_changes_nothing(
    stage: Stage, bulk: str, operation: str, fault: Fault, kind: type[StorageError]
) -> None:
    """The ancestor's loops ended in success. Nothing is changed, since no request gets through."""
    run, check = OPERATIONS[operation](stage)
    before = stage.objects()
    stage.proxy.fail(fault, times=None)
    with pytest.raises(kind) as caught:
        run()
    assert "\n" not in str(caught.value)
    check(False)
    assert stage.objects() == before
    assert len(stage.proxy.requests) < 40, "retries are bounded"


@pytest.mark.parametrize("operation", ["upload", "download", "move", "delete"])
def test_a_silent_service_is_given_up(
    stage: Stage, bulk: str, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_s3_boto, _s3_obstore):
        monkeypatch.setattr(module, "READ_TIMEOUT_S", 0.2)
    run, check = OPERATIONS[operation](stage)
    stage.proxy.fail(stall(threading.Event()), times=None)
    with pytest.raises(TimedOut):
        run()
    check(False)


def test_a_part_that_cannot_be_stored_leaves_no_parts(stage: Stage, bulk: str) -> None:
    run, check = OPERATIONS["upload in parts"](stage)
    stage.proxy.fail(error(500, "InternalError"), method="PUT", query="partNumber=2", times=None)
    with pytest.raises(BackendUnavailable):
        run()
    check(False)


def test_a_part_that_cannot_be_fetched_leaves_the_old_file(stage: Stage, bulk: str) -> None:
    run, check = OPERATIONS["download in parts"](stage)
    stage.proxy.fail(truncate(1000, resets=True), method="GET", after=1, times=None)
    with pytest.raises(BackendUnavailable):
        run()
    check(False)


@pytest.mark.parametrize("fault", ["500", "lost answer", "cut short"])
def test_a_part_that_is_read_is_asked_for_again(stage: Stage, bulk: str, fault: str) -> None:
    stage.put("f", LARGE)
    make_fault, _ = FAULTS[fault]
    got: list[bytes] = []
    with stage.broker.open_file(None, file("f")) as content:
        stage.proxy.fail(make_fault(), method="GET", after=1)
        assert b"".join(content.read(0, content.size)) == LARGE
        stage.proxy.fail(make_fault(), method="GET", after=1, times=None)
        blocks = content.read(0, content.size)
        with pytest.raises(BackendUnavailable, match="read 'f': "):
            got.extend(blocks)
    assert LARGE.startswith(b"".join(got))
    assert sum(map(len, got)) < len(LARGE)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_source_that_cannot_be_removed_is_said(stage: Stage, bulk: str, overwrite: bool) -> None:
    run, _ = move(None)(stage)
    stage.broker.overwrite = overwrite
    stage.proxy.fail(error(403, "AccessDenied"), method="POST", query="delete")
    with pytest.raises(PermissionDenied):
        run()
    # What replaced nothing can be taken away again; what may have replaced something is all there is.
    assert stage.objects() == ({"f": NEW, "g": NEW} if overwrite else {"f": NEW})


def test_a_lost_answer_to_the_deletion_of_a_source_loses_nothing(stage: Stage, bulk: str) -> None:
    """The source may be gone, so the copy must stay, also if it replaced nothing."""
    moved = file("f")
    stage.broker.upload_files(None, [FileUpload(moved, stage.source(NEW))])
    stage.broker.overwrite = False
    stage.proxy.fail(reset(after_forwarding=True), method="POST", query="delete", times=3)
    with pytest.raises(BackendUnavailable, match="the copy stays"):
        stage.broker.move_files(None, [FileMove(moved, "g")])
    assert stage.objects() == {"g": NEW}
    assert journal.recover(stage.records, stage.broker, None, "w") == 0
    assert [(record.file_path, record.file_size) for record in stage.records.page("w")] == [("g", len(NEW))]


@pytest.mark.parametrize(
    ("overwrite", "denied"),
    [
        (True, {"method": "POST", "query": "delete"}),
        (False, {"method": "POST", "query": "delete"}),
        (True, {"method": "HEAD", "path": "/g$", "times": None}),
        (
            False,
            {"method": "HEAD", "path": "/g$", "times": None, "after": 2},
        ),  # the first ask if something is there
    ],
)
def test_what_a_denied_move_leaves_is_recorded(
    stage: Stage, bulk: str, overwrite: bool, denied: dict[str, Any]
) -> None:
    moved, old = file("f"), file("g")
    stage.broker.upload_files(None, [FileUpload(moved, stage.source(NEW))])
    if overwrite:
        stage.broker.upload_files(None, [FileUpload(old, stage.source(OLD))])
    stage.broker.overwrite = overwrite
    stage.proxy.fail(error(403, "AccessDenied"), **denied)
    with pytest.raises(PermissionDenied, match="both are there" if overwrite else "the copy was removed again"):
        stage.broker.move_files(None, [FileMove(moved, "g")])
    assert stage.objects() == ({"f": NEW, "g": NEW} if overwrite else {"f": NEW})
    found = {record.file_path: record.file_size for record in stage.records.page("w")}
    assert found == dict.fromkeys(stage.objects(), len(NEW))
    assert not journal.has_abandoned("w")


def test_once_one_fails_nothing_of_later_groups_is_deleted(
    stage: Stage, bulk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_broker, "REQUESTS", Pace(10, 4))
    keys = [f"k{number:02}" for number in range(40)]
    for key in keys:
        stage.put(key, OLD)
    stage.proxy.fail(error(403, "AccessDenied"), method="HEAD", path="/k05$", times=None)
    stage.proxy.fail(stall(0.5), method="HEAD", path="/k[123]", times=None)
    with pytest.raises(PermissionDenied, match="k05"):
        stage.broker.delete_files(None, [file(key) for key in keys])
    stage.proxy.clear()
    assert set(stage.objects()) == set(keys[5:])
    assert {record.file_path for record in stage.records.page("w")} == set(keys[:5])


def test_a_model_that_is_twice_in_a_batch_is_where_it_was_moved_to(stage: Stage, bulk: str) -> None:
    stage.put("f", NEW)
    moved, other = file("f"), file("g")
    with pytest.raises(MissingFile):
        stage.broker.move_files(None, [FileMove(moved, "g"), FileMove(moved, "h"), FileMove(other, "i")])
    assert stage.objects() == {"h": NEW}


def test_a_move_whose_copy_always_fails_keeps_its_source(stage: Stage, bulk: str) -> None:
    """A copy may answer 200 and then fail in its body."""
    run, check = move(OLD)(stage)
    stage.proxy.fail(error(200, "InternalError"), method="PUT", path="/g$", times=None)
    with pytest.raises(BackendUnavailable):
        run()
    check(False)
    assert stage.objects() == {"f": NEW, "g": OLD}


def test_many_are_moved_where_nobody_may_list(stage: Stage, bulk: str) -> None:
    """A listing saves requests. Where it fails, each is asked for by itself."""
    files = [file(f"f{number:02}") for number in range(25)]
    for moved in files:
        stage.put(moved.file_path, NEW)
    stage.proxy.fail(error(403, "AccessDenied"), method="GET", times=None)
    stage.broker.move_files(None, [FileMove(moved, f"g/{moved.file_path}") for moved in files])
    stage.proxy.clear()
    assert set(stage.objects()) == {f"g/f{number:02}" for number in range(25)}


def test_of_many_copies_one_that_fails_keeps_its_source(stage: Stage, bulk: str) -> None:
    files = [file(f"f{number:02}") for number in range(25)]
    for moved in files:
        stage.put(moved.file_path, NEW)
    stage.proxy.fail(error(403, "AccessDenied"), method="PUT", path="/g/f07$", times=None)
    with pytest.raises(PermissionDenied, match="f07"):
        stage.broker.move_files(None, [FileMove(moved, f"g/{moved.file_path}") for moved in files])
    stored = set(stage.objects())
    assert {f"g/f{number:02}" for number in range(7)} | {"f07"} <= stored
    assert len(stored) == 25
    assert {record.file_path for record in stage.records.page("w")} == {key for key in stored if "/" in key}


def test_altered_bytes_are_noticed_where_the_path_checks_them(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """boto3 compares the stored checksum; obstore does not, which docs/brokers.md says."""
    monkeypatch.setenv("BROKERVOL_S3_BULK", "boto3")
    stage.broker.load_configuration(
        {
            "bucket_name": stage.bucket,
            "endpoint_url": stage.proxy.url,
            "region_name": stage.server.region_name,
            "credentials": stage.server.credentials(),
        }
    )
    stage.broker.upload_files(None, [FileUpload(file("f"), stage.source(NEW))])
    stage.proxy.fail(corrupt(2), method="GET", path="/f$", times=None)
    target = stage.local / "out"
    with pytest.raises(BackendUnavailable, match="altered"):
        stage.broker.download_files(None, [FileDownload(file("f"), str(target), False)])
    assert not target.exists()


def test_a_batch_saves_what_is_done_and_raises_the_first_failure(stage: Stage, bulk: str) -> None:
    uploads = [FileUpload(file(f"f{number:02}"), stage.source(NEW)) for number in range(40)]
    stage.proxy.fail(error(403, "AccessDenied"), method="PUT", path="/f07$", times=None)
    with pytest.raises(PermissionDenied, match="f07"):
        stage.broker.upload_files(None, uploads)
    stored = set(stage.objects())
    assert {f"f{number:02}" for number in range(7)} <= stored
    assert "f07" not in stored
    assert {record.file_path for record in stage.records.page("w")} == stored


def test_a_listing_goes_on_after_a_failed_page(stage: Stage, bulk: str) -> None:
    for number in range(5):
        stage.put(str(number), b"")
    stage.proxy.fail(truncate(50), query="list-type=2")
    assert sorted(found.file for found in stage.broker.list_files(None, True)) == list("01234")
    stage.proxy.fail(error(500, "InternalError"), query="list-type=2", times=None)
    with pytest.raises(BackendUnavailable, match="list the workspace"):
        list(stage.broker.list_files(None, True))


def test_the_local_disk_takes_no_more(stage: Stage, bulk: str) -> None:
    run, check = OPERATIONS["download"](stage)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))  # as a full disk in the middle of the file
    try:
        failure = failure_of(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(failure, TooLarge)
    check(False)

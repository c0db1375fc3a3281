"""What is S3's own beside the broker contract: how objects are stored, credentials, large objects, both SDKs."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import io
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.s3 import S3Server
from storage import catalog
from storage.brokers import _s3_boto, _s3_jobs, _s3_obstore
from storage.brokers._s3_objects import Source
from storage.brokers.broker import FileDownload, FileMove, FileUpload
from storage.brokers.exceptions import InvalidBrokerConfiguration
from storage.brokers.factory import get_broker
from storage.brokers.s3_broker import S3Broker
from storage.exceptions import (
    AlreadyExists,
    BackendUnavailable,
    InvalidCredentials,
    InvalidPath,
    MissingBucket,
    MissingFile,
    StorageError,
)
from storage.models import ScaleFile, use_catalog

MIB = 1024 * 1024


@dataclasses.dataclass
class Stage:
    """A loaded broker, its bucket seen by a client of our own, and a local directory."""

    server: S3Server
    bucket: str
    local: Path

    def configuration(self, **more: Any) -> dict[str, Any]:
        return {
            "type": "s3",
            "bucket_name": self.bucket,
            "region_name": self.server.region_name,
            "endpoint_url": self.server.endpoint_url,
            "credentials": self.server.credentials(),
            **more,
        }

    def broker(self, **more: Any) -> S3Broker:
        broker = get_broker("s3")
        assert isinstance(broker, S3Broker)
        broker.load_configuration(self.configuration(**more))
        return broker

    def file(self, path: str, **fields: Any) -> ScaleFile:
        return ScaleFile(file_path=path, workspace="w", **fields)

    def source(self, content: bytes, name: str = "source") -> str:
        (self.local / name).write_bytes(content)
        return str(self.local / name)

    def upload(self, broker: S3Broker, path: str, content: bytes = b"content", **fields: Any) -> ScaleFile:
        file = self.file(path, **fields)
        broker.upload_files(None, [FileUpload(file, self.source(content))])
        return file

    def keys(self) -> list[str]:
        listed = self.server.client().list_objects_v2(Bucket=self.bucket)
        return [found["Key"] for found in listed.get("Contents", [])]

    def open_uploads(self) -> list[Any]:
        return list(self.server.client().list_multipart_uploads(Bucket=self.bucket).get("Uploads", []))


@pytest.fixture(autouse=True)
def records(tmp_path: Path) -> Iterator[catalog.Catalog]:
    opened = catalog.configure(f"sqlite:///{tmp_path}/catalog.sqlite")
    yield opened
    use_catalog(None)
    opened.close()


@pytest.fixture(params=["moto", "seaweedfs"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["obstore", "boto3"])
def bulk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("BROKERVOL_S3_BULK", request.param)
    return str(request.param)


@pytest.fixture
def stage(server: S3Server, new_bucket: Callable[[S3Server], str], tmp_path: Path) -> Stage:
    return Stage(server, new_bucket(server), tmp_path)


@pytest.fixture
def weed(seaweedfs: S3Server, new_bucket: Callable[[S3Server], str], tmp_path: Path) -> Stage:
    """On the server that checks signatures."""
    return Stage(seaweedfs, new_bucket(seaweedfs), tmp_path)


def test_objects_have_content_type_storage_class_and_encryption(stage: Stage, bulk: str) -> None:
    broker = stage.broker(storage_class="STANDARD_IA", server_side_encryption="AES256")
    for path, content in (("small", b"s"), ("large", bytes(9 * MIB))):
        stage.upload(broker, path, content, media_type="image/tiff")
        found = stage.server.client().head_object(Bucket=stage.bucket, Key=path)
        assert found["ContentType"] == "image/tiff"
        assert found["StorageClass"] == "STANDARD_IA"
        assert found["ServerSideEncryption"] == "AES256"


def test_a_move_keeps_metadata_and_storage_class(stage: Stage, bulk: str) -> None:
    client = stage.server.client()
    client.put_object(
        Bucket=stage.bucket,
        Key="old",
        Body=b"x",
        ContentType="image/tiff",
        StorageClass="STANDARD_IA",
        Metadata={"scene": "7"},
    )
    stage.broker().move_files(None, [FileMove(stage.file("old"), "new")])
    found = client.head_object(Bucket=stage.bucket, Key="new")
    assert (found["ContentType"], found["StorageClass"]) == ("image/tiff", "STANDARD_IA")
    assert found["Metadata"] == {"scene": "7"}
    assert stage.keys() == ["new"]


def test_objects_beyond_s3s_limit_are_copied_in_parts(
    stage: Stage, bulk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 GiB are too much for a test; the limit is lowered instead. `make bench` has the real size."""
    for module in (_s3_boto, _s3_obstore):
        monkeypatch.setattr(module, "LARGEST_COPY_BYTES", 6 * MIB)
    monkeypatch.setattr(_s3_boto, "_COPY_PART_BYTES", 5 * MIB)
    content = os.urandom(11 * MIB)
    broker = stage.broker()
    file = stage.upload(broker, "old", content, media_type="image/tiff")
    broker.move_files(None, [FileMove(file, "new")])
    stored = stage.server.client().get_object(Bucket=stage.bucket, Key="new")
    assert stored["Body"].read() == content
    assert stored["ETag"].strip('"').endswith("-3")
    assert stored["ContentType"] == "image/tiff"
    assert stage.keys() == ["new"]


@pytest.mark.parametrize("size", [4 * MIB, 4 * MIB + 1, 8 * MIB, 8 * MIB + 1, 21 * MIB + 5])
def test_sizes_around_the_parts_come_back_whole(weed: Stage, bulk: str, size: int) -> None:
    content = os.urandom(size)
    broker = weed.broker()
    file = weed.upload(broker, "f", content)
    target = weed.local / "out"
    broker.download_files(None, [FileDownload(file, str(target), False)])
    assert target.read_bytes() == content
    assert target.stat().st_mode & 0o7777 == 0o644
    assert weed.open_uploads() == []


def test_a_large_upload_that_may_not_replace_leaves_no_parts(stage: Stage, bulk: str) -> None:
    broker = stage.broker()
    stage.upload(broker, "f", b"old")
    broker.overwrite = False
    with pytest.raises(AlreadyExists):
        stage.upload(broker, "f", bytes(9 * MIB))
    assert stage.server.client().get_object(Bucket=stage.bucket, Key="f")["Body"].read() == b"old"
    assert stage.open_uploads() == []


def test_an_object_replaced_while_it_is_read_comes_whole(
    weed: Stage, bulk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts of a download are of one object, whichever."""
    old, new = os.urandom(20 * MIB), os.urandom(20 * MIB)
    broker = weed.broker()
    file = weed.upload(broker, "f", old)
    client = weed.server.client()
    was_replaced: list[bool] = []

    def replace_once(*_: object, **__: object) -> None:
        if not was_replaced:
            was_replaced.append(True)
            client.put_object(Bucket=weed.bucket, Key="f", Body=new)

    if bulk == "obstore":
        rest = _s3_obstore.ObstoreObjects._get_rest

        def get_rest(*args: Any) -> None:
            replace_once()
            rest(*args)

        monkeypatch.setattr(_s3_obstore.ObstoreObjects, "_get_rest", get_rest)
    else:
        _s3_boto.connect.cache_clear()
        broker = weed.broker()
        endpoint = broker._configured().settings.endpoint
        _s3_boto.connect(endpoint).client.meta.events.register("after-call.s3.GetObject", replace_once)
    target = weed.local / "out"
    try:
        broker.download_files(None, [FileDownload(file, str(target), False)])
    except BackendUnavailable as error:
        assert "replaced" in str(error)  # noqa: PT017  # either is right, a mixture is not
        assert not target.exists()
    else:
        assert target.read_bytes() in (old, new)
    finally:
        _s3_boto.connect.cache_clear()
    assert was_replaced


def test_a_partial_download_is_a_link_into_the_mounted_bucket(stage: Stage, bulk: str) -> None:
    mounted = stage.local / "mounted"
    (mounted / "p").mkdir(parents=True)
    broker = stage.broker(host_path="/mnt/bucket", prefix="p")
    assert broker.volume is not None
    assert (broker.volume.driver, broker.volume.remote_path, broker.volume.host) == (None, "/mnt/bucket", True)
    shown, hidden = stage.upload(broker, "shown"), stage.upload(broker, "hidden")
    (mounted / "p" / "shown").write_bytes(b"content")
    local = stage.local / "out"
    local.mkdir()
    broker.download_files(
        str(mounted),
        [
            FileDownload(shown, str(local / "link"), True),
            FileDownload(shown, str(local / "copy"), False),
            FileDownload(hidden, str(local / "unseen"), True),
        ],
    )
    assert os.readlink(local / "link") == f"{mounted}/p/shown"
    assert not (local / "copy").is_symlink()
    assert (local / "unseen").read_bytes() == b"content"
    assert not (local / "unseen").is_symlink()


def test_keys_that_are_no_paths_are_not_listed(stage: Stage) -> None:
    client = stage.server.client()
    for key in ("p/dir/", "p/.brokervol-x", "p/ok", "outside"):
        client.put_object(Bucket=stage.bucket, Key=key, Body=b"")
    if stage.server.name == "moto":  # SeaweedFS stores them under other names
        for key in ("p//a", "p/../b", "p/./c"):
            client.put_object(Bucket=stage.bucket, Key=key, Body=b"")
    broker = stage.broker(prefix="p")
    assert [found.file for found in broker.list_files(None, True)] == ["ok"]
    assert [found.file for found in broker.list_page(None, True, limit=9)] == ["ok"]


def test_list_files_takes_a_relative_volume_path_as_prefix(stage: Stage) -> None:
    broker = stage.broker(prefix="p")
    for path in ("2026/a/1", "2026/a2", "2026/b", "2025/a"):
        stage.upload(broker, path, b"")
    assert {found.file for found in broker.list_files("2026/a", True)} == {"2026/a/1", "2026/a2"}
    assert {found.file for found in broker.list_files("2026/a", False)} == {"2026/a2"}
    assert len(list(broker.list_files("/where/a/volume/is", True))) == 4


def test_a_thousand_keys_and_more_are_listed_moved_and_deleted(weed: Stage, bulk: str) -> None:
    names = [f"{number:04}" for number in range(1203)]
    broker = weed.broker()
    files = [weed.file(f"a/{name}") for name in names]
    source = weed.source(b"x")
    broker.upload_files(None, [FileUpload(file, source) for file in files])
    assert sorted(found.file for found in broker.list_files(None, True)) == [f"a/{name}" for name in names]
    broker.move_files(None, [FileMove(file, f"b/{name}") for file, name in zip(files, names, strict=True)])
    assert sorted(found.file for found in broker.list_files("b/", True)) == [f"b/{name}" for name in names]
    broker.delete_files(None, files)
    assert list(broker.list_files(None, True)) == []
    assert all(file.is_deleted for file in files)


def test_one_batch_may_touch_a_path_twice(weed: Stage, bulk: str) -> None:
    broker = weed.broker()
    sources = [weed.source(str(number).encode(), f"s{number}") for number in range(9)]
    broker.upload_files(None, [FileUpload(weed.file("same"), source) for source in sources])
    assert weed.server.client().get_object(Bucket=weed.bucket, Key="same")["Body"].read() == b"8"
    file = weed.file("same")
    broker.move_files(None, [FileMove(file, "one")])
    broker.move_files(None, [FileMove(weed.file("one"), "two"), FileMove(weed.file("two"), "three")])
    assert weed.keys() == ["three"]


def test_both_sdks_are_used_for_what_they_are_for(weed: Stage, bulk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the fast path could fail at everything, and nobody would notice but the clock."""
    asked: list[str] = []
    broker = weed.broker()
    client = _s3_boto.connect(broker._configured().settings.endpoint).client
    client.meta.events.register("before-call.s3", lambda model, **_: asked.append(model.name))
    file = weed.upload(broker, "f")
    broker.download_files(None, [FileDownload(file, str(weed.local / "out"), False)])
    broker.move_files(None, [FileMove(file, "g")])
    bulk_calls = {"PutObject", "GetObject", "CopyObject"}
    assert bulk_calls & set(asked) == (set() if bulk == "obstore" else bulk_calls)


def test_many_objects_are_looked_at_by_listings(weed: Stage, bulk: str) -> None:
    """And nothing is lost of what only a question for each would tell: stamps and storage classes."""
    names = [f"{number:02}" for number in range(25)]
    broker, client = weed.broker(), weed.server.client()
    files, source = [weed.file(f"a/{name}") for name in names], weed.source(b"x")
    broker.upload_files(None, [FileUpload(file, source) for file in files])
    client.put_object(Bucket=weed.bucket, Key="a/07", Body=b"rare", StorageClass="STANDARD_IA")
    asked: list[str] = []
    events = _s3_boto.connect(broker._configured().settings.endpoint).client.meta.events
    events.register("before-call.s3", lambda model, **_: asked.append(model.name), unique_id="many")
    broker.move_files(None, [FileMove(file, f"b/{name}") for file, name in zip(files, names, strict=True)])
    events.unregister("before-call.s3", unique_id="many")
    assert asked.count("ListObjectsV2") in (2, 3)  # the third asks for the name of the service
    assert asked.count("DeleteObjects") == 1
    # By obstore, only what has no stamp is asked for by itself.
    assert asked.count("HeadObject") == (1 if bulk == "obstore" else 25)
    assert weed.keys() == [f"b/{name}" for name in names]
    stamped = client.head_object(Bucket=weed.bucket, Key="b/08")
    assert set(stamped["Metadata"]) == {"brokervol-upload"}
    rare = client.head_object(Bucket=weed.bucket, Key="b/07")
    assert (rare["StorageClass"], rare["ContentLength"], files[7].file_size) == ("STANDARD_IA", 4, 4)


def test_what_became_of_each_item_is_told(weed: Stage, bulk: str) -> None:
    """All that was begun, in order; the rest is as it was."""
    broker = weed.broker()
    files = [weed.file(f"{number:02}") for number in range(30)]
    source = weed.source(b"x")
    broker.outcomes = told = dict[int, Exception | None]()
    broker.upload_files(None, [FileUpload(file, source) for file in files])
    assert told == {id(file): None for file in files}
    broker.outcomes = told = {}
    broker.delete_files(None, [files[20]])
    assert told == {id(files[20]): None}
    broker.outcomes = told = {}
    with pytest.raises(MissingFile, match="'20'"):
        broker.move_files(None, [FileMove(file, f"to/{file.file_path}") for file in files])
    assert list(told) == [id(file) for file in files[:21]] or set(told) == {id(file) for file in files[:21]}
    assert [told[id(file)] for file in files[:20]] == [None] * 20
    assert isinstance(told[id(files[20])], MissingFile)
    broker.outcomes = told = {}
    targets = [weed.local / file.file_name for file in files]
    targets[3].mkdir()
    downloads = [FileDownload(file, str(target), False) for file, target in zip(files, targets, strict=True)]
    with pytest.raises(AlreadyExists):
        broker.download_files(None, downloads)
    assert told == {id(file): None for file in files[:3]}
    assert [path.name for path in sorted(weed.local.glob("??"))] == ["00", "01", "02", "03"]


WRONG: dict[str, tuple[type[StorageError], str, dict[str, Any]]] = {
    "bucket": (MissingBucket, "bucket does not exist", {"bucket_name": "there-is-none"}),
    "secret": (InvalidCredentials, "secret access key", {"secret_access_key": "WRONG"}),
    "key": (InvalidCredentials, "does not know the access key", {"access_key_id": "WRONG"}),
    "profile": (InvalidCredentials, "no profile", {"credentials": "nobodys-profile"}),
    "endpoint": (BackendUnavailable, "cannot be reached", {"endpoint_url": "http://127.0.0.1:1"}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_tell_what_is_wrong(weed: Stage, bulk: str, wrong: str) -> None:
    kind, fact, change = WRONG[wrong]
    if wrong in ("secret", "key"):
        change = {"credentials": weed.server.credentials() | change}
    broker, file, target = weed.broker(**change), weed.file("none"), str(weed.local / "out")
    operations: list[Callable[[], object]] = [
        lambda: broker.download_files(None, [FileDownload(file, target, False)]),
        lambda: broker.move_files(None, [FileMove(file, "new")]),
        lambda: list(broker.list_files(None, True)),
        lambda: weed.upload(broker, "f"),
        lambda: broker.delete_files(None, [file]),
    ]
    for operation in operations:
        with pytest.raises(kind, match=fact) as caught:
            operation()
        assert "WRONG" not in str(caught.value)
    (warning,) = broker.validate_configuration(weed.configuration(**change))
    assert warning.name == "bucket_access"
    assert fact in warning.description
    assert not os.path.lexists(target)
    assert weed.keys() == []


def test_credentials_come_from_a_profile_and_are_read_again_once_refused(
    weed: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weed.local / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))

    def write(secret: str) -> None:
        path.write_text(
            f"[task]\naws_access_key_id = {weed.server.access_key_id}\naws_secret_access_key = {secret}\n"
        )

    write("wrong")
    broker = weed.broker(credentials="task")
    with pytest.raises(InvalidCredentials):
        weed.upload(broker, "f")
    write(weed.server.secret_access_key)
    weed.upload(broker, "f")
    assert weed.keys() == ["f"]


def test_credentials_come_from_the_sdks_own_chain(weed: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    _s3_boto.connect.cache_clear()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", weed.server.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", weed.server.secret_access_key)
    weed.upload(weed.broker(credentials=None), "f")
    assert weed.keys() == ["f"]
    _s3_boto.connect.cache_clear()


@pytest.mark.parametrize("left", [1, 9 * MIB + 5, 17 * MIB - 1])
def test_a_source_cut_short_meanwhile_leaves_the_old_object(
    weed: Stage, bulk: str, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cut when its first byte is read."""
    broker = weed.broker()
    weed.upload(broker, "f", b"old")
    source = weed.source(bytes(17 * MIB))
    read = os.preadv

    def cut_and_read(*args: Any) -> int:
        os.truncate(source, left)
        return read(*args)

    monkeypatch.setattr("storage.brokers._s3_boto.os.preadv", cut_and_read)
    with pytest.raises(InvalidPath, match="cut short"):
        broker.upload_files(None, [FileUpload(weed.file("f"), source)])
    assert weed.server.client().get_object(Bucket=weed.bucket, Key="f")["Body"].read() == b"old"
    assert weed.open_uploads() == []


@pytest.mark.parametrize("size", [10, 5 * MIB, 17 * MIB])
def test_what_is_appended_to_a_source_meanwhile_is_not_stored(
    weed: Stage, bulk: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, source = weed.broker(), weed.source(bytes(size))
    opened = Source

    def append(*args: Any) -> Any:
        with open(source, "ab") as file:
            file.write(b"more")
        return opened(*args)

    monkeypatch.setattr(_s3_jobs, "Source", append)
    file = weed.file("f")
    broker.upload_files(None, [FileUpload(file, source)])
    found = weed.server.client().head_object(Bucket=weed.bucket, Key="f")
    assert found["ContentLength"] == file.file_size == size


def test_a_listing_may_be_left_at_any_time(weed: Stage) -> None:
    broker = weed.broker()
    source = weed.source(b"")
    broker.upload_files(None, [FileUpload(weed.file(f"{n:04}"), source) for n in range(1100)])
    before = threading.active_count()
    for pause in range(20):
        listing = broker.list_files(None, True)
        for _, _ in zip(range(pause), listing, strict=False):
            pass
        listing.close()
        assert len(broker.list_page(None, True, limit=3)) == 3
    assert threading.active_count() == before


def test_a_forked_process_can_go_on(weed: Stage, bulk: str) -> None:
    broker = weed.broker()
    file = weed.upload(broker, "f")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            broker.download_files(None, [FileDownload(file, str(weed.local / "out"), False)])
        os._exit(0)
    waiting = threading.Timer(30, os.kill, (child, signal.SIGKILL))
    waiting.start()
    os.waitpid(child, 0)
    waiting.cancel()
    assert (weed.local / "out").read_bytes() == b"content"


def test_a_media_type_that_is_no_header_is_refused_before_anything_is_stored(weed: Stage, bulk: str) -> None:
    broker, source = weed.broker(), weed.source(b"x")
    uploads = [
        FileUpload(weed.file(f"{n}", media_type="text/plain\n" if n == 5 else ""), source) for n in range(9)
    ]
    with pytest.raises(ValueError, match="media_type"):
        broker.upload_files(None, uploads)
    stored = weed.keys()
    assert set("01234") <= set(stored)
    assert "5" not in stored
    assert [upload.file.id is not None for upload in uploads] == [
        upload.file.file_path in stored for upload in uploads
    ]


def test_a_partial_download_onto_the_mounted_object_does_not_lose_it(weed: Stage) -> None:
    mounted = weed.local / "mounted"
    mounted.mkdir()
    (mounted / "f").write_bytes(b"precious")
    broker = weed.broker(host_path="/mnt/bucket")
    with pytest.raises(AlreadyExists):
        broker.download_files(str(mounted), [FileDownload(weed.file("f"), str(mounted / "f"), True)])
    assert (mounted / "f").read_bytes() == b"precious"


def test_what_is_no_s3_service_is_an_error(tmp_path: Path) -> None:
    for body in (
        b"<html><body>Please log in</body></html>",
        b"",
        b"<ListBucketResult><Contents/></ListBucketResult>",
    ):
        with _answering(body) as url:
            broker = get_broker("s3")
            broker.load_configuration(
                {"bucket_name": "bucket", "endpoint_url": url, "credentials": {**KEYS}, "region_name": "us-east-1"}
            )
            with pytest.raises(BackendUnavailable, match="no S3 service"):
                list(broker.list_files(None, True))


def test_keys_are_decoded_only_where_the_service_encodes_them(tmp_path: Path) -> None:
    one = "<Contents><Key>a+b%25</Key><Size>1</Size></Contents>"
    for encoding, expected in (("", "a+b%25"), ("<EncodingType>url</EncodingType>", "a b%")):
        with _answering(f"<ListBucketResult>{encoding}{one}</ListBucketResult>".encode()) as url:
            broker = get_broker("s3")
            broker.load_configuration(
                {"bucket_name": "bucket", "endpoint_url": url, "credentials": {**KEYS}, "region_name": "us-east-1"}
            )
            assert [found.file for found in broker.list_files(None, True)] == [expected]


@contextlib.contextmanager
def _answering(body: bytes) -> Iterator[str]:
    """A service that answers everything with 200 and this body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        serving = threading.Thread(target=server.serve_forever, args=[0.01])
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


def test_the_example_in_the_docs_works(
    weed: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _s3_boto.connect.cache_clear()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", weed.server.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", weed.server.secret_access_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", weed.server.endpoint_url)
    page = (Path(__file__).parents[2] / "docs" / "brokers.md").read_text()
    example = page.partition("```python\n")[2].partition("```")[0]
    for there, here in {
        "/srv/files.sqlite": f"{weed.local}/files.sqlite",
        '"imagery"': f'"{weed.bucket}"',
        "/data/scene.tif": weed.source(b"scene"),
    }.items():
        assert there in example
        example = example.replace(there, here)
    exec(example, {})  # noqa: S102  # of our own documentation
    assert "['2026/scene.tif']" in capsys.readouterr().out
    assert weed.keys() == ["2026/scene.tif"]
    _s3_boto.connect.cache_clear()


def test_secrets_are_in_no_log_repr_error_or_catalog(weed: Stage, bulk: str, tmp_path: Path) -> None:
    """Everything logs at DEBUG, and the requests both work and fail."""
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    secret, token = "s3cr3t-in-no-log-please", "t0ken-in-no-log-please"
    texts = []
    try:
        for credentials in (
            {**weed.server.credentials()},
            {**weed.server.credentials(), "secret_access_key": secret, "session_token": token},
        ):
            _s3_boto.connect.cache_clear()
            broker = weed.broker(credentials=credentials)
            texts += [repr(broker), repr(vars(broker)), str(broker.volume)]
            try:
                weed.upload(broker, "f")
                list(broker.list_files(None, True))
            except StorageError as error:
                texts += [str(error), repr(error), repr(error.__cause__)]
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("catalog.sqlite*"))
    everything = "\n".join([log.getvalue(), *texts]).encode() + stored
    for hidden in (secret, token, weed.server.secret_access_key):
        assert hidden.encode() not in everything


KEYS = {"access_key_id": "a", "secret_access_key": "hunter2"}
REFUSED: dict[str, list[Any]] = {
    "bucket_name": [None, 1, "", "ab", "a/b", "a b", "-ab", "x" * 64, "a\n"],
    "region_name": [1, "", "EU WEST", "eu/west"],
    "endpoint_url": [1, "", "s3.example.org", "ftp://h", "http://", "http://h/path", "http://h?q", "http://h:x"],
    "prefix": [1, "/a", "a//b", "../a", ".", "a\0", "x" * 600, ".brokervol-x"],
    "credentials": ["", 1, [], {}, {"access_key_id": "a"}, "a\nb", {**KEYS, "typo": "x"}],
    "storage_class": [1, "", "standard", "A B"],
    "server_side_encryption": [1, "", "aes256", "sse-c", []],
    "host_path": [1, "", "rel", "/a/../b"],
}
SECRET = [
    ("endpoint_url", "https://user:hunter2@host"),
    ("credentials", {**KEYS, "secret_access_key": "hunter2\n"}),
    ("credentials", {**KEYS, "session_token": 1}),
]


@pytest.mark.parametrize(
    ("key", "value"), [*((key, value) for key, values in REFUSED.items() for value in values), *SECRET]
)
def test_wrong_configurations_are_refused_by_name(key: str, value: object) -> None:
    config = {"type": "s3", "bucket_name": "bucket", key: value}
    broker = get_broker("s3")
    for check in (broker.load_configuration, broker.validate_configuration, broker.check_configuration):
        with pytest.raises(InvalidBrokerConfiguration, match=key) as caught:
            check(config)
        assert caught.value.name == key
        assert "hunter2" not in str(caught.value)


def test_an_unknown_bulk_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKERVOL_S3_BULK", "curl")
    with pytest.raises(InvalidBrokerConfiguration, match="obstore"):
        get_broker("s3").load_configuration({"bucket_name": "bucket"})

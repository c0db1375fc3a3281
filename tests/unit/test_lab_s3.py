"""The S3 servers of the laboratory do what their tables say, and the fault proxy breaks what it is asked to."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionClosedError, ReadTimeoutError

from lab import fault_proxy
from lab.fault_proxy import FaultProxy, Request
from lab.keeper import descendants
from lab.processes import wait_until
from lab.s3 import Place, S3Server, new_place, real_server

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

NewBucket = Callable[[S3Server], str]
NewPlace = Callable[[S3Server], Place]
SESSION = boto3.Session()  # it loads the description of S3 once
PART = b"a" * (5 << 20)
WRONG = "a secret that is not the server's"


def refusal(call: Callable[..., Any], **arguments: Any) -> str:
    """The code of the error that the call ends in, or "" if it succeeds."""
    try:
        call(**arguments)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


def keys(client: S3Client, bucket: str, prefix: str = "", **arguments: Any) -> list[str]:
    listed = client.list_objects_v2(Bucket=bucket, Prefix=prefix, **arguments).get("Contents", [])
    return [found["Key"] for found in listed]


def prefixes(client: S3Client, bucket: str) -> list[str]:
    listed = client.list_objects_v2(Bucket=bucket, Delimiter="/").get("CommonPrefixes", [])
    return [found["Prefix"] for found in listed]


def content(client: S3Client, bucket: str, key: str) -> bytes:
    with contextlib.closing(client.get_object(Bucket=bucket, Key=key)["Body"]) as body:
        return body.read()


def put(client: S3Client, bucket: str, *names: str, body: bytes = b"x") -> None:
    for key in names:
        client.put_object(Bucket=bucket, Key=key, Body=body)


def upload(client: S3Client, bucket: str, key: str, parts: list[bytes], **completion: Any) -> None:
    """A multipart upload; `completion` goes to CompleteMultipartUpload."""
    where: dict[str, Any] = {"Bucket": bucket, "Key": key}
    where["UploadId"] = client.create_multipart_upload(**where)["UploadId"]
    done: list[CompletedPartTypeDef] = [
        {"PartNumber": number, "ETag": client.upload_part(**where, PartNumber=number, Body=part)["ETag"]}
        for number, part in enumerate(parts, 1)
    ]
    client.complete_multipart_upload(**where, MultipartUpload={"Parts": done}, **completion)


# Every server


def test_what_every_server_does(s3_server: S3Server, new_place: NewPlace) -> None:
    client, (bucket, prefix) = s3_server.client(), new_place(s3_server)
    name = f"{prefix}d/ä +%?#&'\"<>.txt"
    kept: dict[str, Any] = {"ContentType": "text/x-lab; charset=utf-8", "Metadata": {"mode": "0644"}}
    client.put_object(Bucket=bucket, Key=name, Body=b"0123456789", **kept)
    assert content(client, bucket, name) == b"0123456789"
    assert keys(client, bucket, prefix) == [name]
    client.copy_object(Bucket=bucket, Key=f"{prefix}copy", CopySource={"Bucket": bucket, "Key": name})
    head: dict[str, Any] = dict(client.head_object(Bucket=bucket, Key=f"{prefix}copy"))
    assert head["ContentLength"] == 10
    assert kept.items() <= head.items()
    with contextlib.closing(client.get_object(Bucket=bucket, Key=name, Range="bytes=8-")["Body"]) as body:
        assert body.read() == b"89"
    deleted = client.delete_objects(
        Bucket=bucket, Delete={"Objects": [{"Key": key} for key in (name, f"{prefix}none")]}
    )
    assert not deleted.get("Errors")
    client.delete_object(Bucket=bucket, Key=f"{prefix}copy")
    assert keys(client, bucket, prefix) == []
    assert refusal(client.get_object, Bucket=bucket, Key=name) == "NoSuchKey"


def test_every_server_joins_the_parts_of_an_upload(s3_server: S3Server, new_place: NewPlace) -> None:
    client, (bucket, prefix) = s3_server.client(), new_place(s3_server)
    upload(client, bucket, f"{prefix}big", [PART, b"end"])
    assert content(client, bucket, f"{prefix}big") == PART + b"end"


def test_every_server_keeps_what_is_there_on_condition(s3_server: S3Server, new_place: NewPlace) -> None:
    client, (bucket, prefix) = s3_server.client(), new_place(s3_server)
    key = f"{prefix}taken"
    put(client, bucket, key, body=b"old")
    assert refusal(client.put_object, Bucket=bucket, Key=key, IfNoneMatch="*") == "PreconditionFailed"
    with pytest.raises(ClientError, match="PreconditionFailed"):
        upload(client, bucket, key, [b"new"], IfNoneMatch="*")
    assert content(client, bucket, key) == b"old"
    client.put_object(Bucket=bucket, Key=f"{prefix}free", IfNoneMatch="*")


def test_every_server_pages_without_loss(s3_server: S3Server, new_place: NewPlace) -> None:
    client, (bucket, prefix) = s3_server.client(), new_place(s3_server)
    names = {
        f"{prefix}{name}" for name in ("a", "a b", "a-b", "a.b", "a/b", "a/b/c", "a0", "b/c", "é", "\U0001f600")
    }
    put(client, bucket, *names)
    for size in (1, 3):
        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": size}
        )
        found = [item["Key"] for page in pages for item in page.get("Contents", [])]
        assert len(found) == len(names)
        assert set(found) == names


# What only one of them does right: probe, what moto answers, what SeaweedFS answers


def wrong_checksum(client: S3Client, bucket: str) -> str:
    wrong = base64.b64encode(b"\1\2\3\4").decode()
    return refusal(client.put_object, Bucket=bucket, Key="k", Body=b"data", ChecksumCRC32=wrong)


def wrong_md5(client: S3Client, bucket: str) -> str:
    wrong = base64.b64encode(bytes(16)).decode()
    return refusal(client.put_object, Bucket=bucket, Key="k", Body=b"data", ContentMD5=wrong)


def copy_onto_taken(client: S3Client, bucket: str) -> tuple[str, bytes]:
    put(client, bucket, "source", body=b"new")
    put(client, bucket, "taken", body=b"old")
    source = {"Bucket": bucket, "Key": "source"}
    code = refusal(client.copy_object, Bucket=bucket, Key="taken", CopySource=source, IfNoneMatch="*")
    return code, content(client, bucket, "taken")


def copy_of_what_changed(client: S3Client, bucket: str) -> str:
    put(client, bucket, "source")
    source = {"Bucket": bucket, "Key": "source"}
    return refusal(client.copy_object, Bucket=bucket, Key="k", CopySource=source, CopySourceIfMatch='"0"')


def put_on_condition_where_a_prefix_is(client: S3Client, bucket: str) -> str:
    put(client, bucket, "d/x")
    return refusal(client.put_object, Bucket=bucket, Key="d", IfNoneMatch="*")


def order(client: S3Client, bucket: str) -> list[str]:
    put(client, bucket, "a0", "a/b", "a-b")
    return keys(client, bucket)


def start_after_a_prefix(client: S3Client, bucket: str) -> list[str]:
    put(client, bucket, "p/a", "q")
    return keys(client, bucket, StartAfter="p")


def prefix_of_what_was_deleted(client: S3Client, bucket: str) -> tuple[list[str], list[str]]:
    put(client, bucket, "d/x")
    client.delete_object(Bucket=bucket, Key="d/x")
    return keys(client, bucket), prefixes(client, bucket)


def odd_slashes(client: S3Client, bucket: str) -> list[str]:
    put(client, bucket, "a//b", "c\\d")
    return keys(client, bucket)


def content_of_a_marker(client: S3Client, bucket: str) -> bytes:
    put(client, bucket, "d/")
    return content(client, bucket, "d/")


def put_of(key: str) -> Callable[[S3Client, str], str]:
    return lambda client, bucket: refusal(client.put_object, Bucket=bucket, Key=key)


def upload_beside_a_prefix(client: S3Client, bucket: str) -> str:
    put(client, bucket, "f/g")
    return refusal(upload, client=client, bucket=bucket, key="f", parts=[b"x"])


def storage_class_of_a_copy(client: S3Client, bucket: str) -> str | None:
    client.put_object(Bucket=bucket, Key="source", StorageClass="STANDARD_IA")
    client.copy_object(Bucket=bucket, Key="k", CopySource={"Bucket": bucket, "Key": "source"})
    return client.head_object(Bucket=bucket, Key="k").get("StorageClass")


def encryption(algorithm: str) -> Callable[[S3Client, str], str]:
    return lambda client, bucket: refusal(
        client.put_object, Bucket=bucket, Key="k", ServerSideEncryption=algorithm
    )


def part_of_an_unknown_upload(client: S3Client, bucket: str) -> str:
    return refusal(client.upload_part, Bucket=bucket, Key="k", UploadId="0" * 32, PartNumber=1, Body=b"")


def batch_with_a_control_character(client: S3Client, bucket: str) -> tuple[str, list[str]]:
    put(client, bucket, "a\x01")
    code = refusal(client.delete_objects, Bucket=bucket, Delete={"Objects": [{"Key": "a\x01"}]})
    return code, keys(client, bucket)


def put_without_a_bucket(client: S3Client, bucket: str) -> str:
    return refusal(client.put_object, Bucket=f"{bucket}-none", Key="k")


FACTS: dict[str, tuple[Callable[[S3Client, str], Any], Any, Any]] = {
    "wrong CRC32": (wrong_checksum, "", "BadDigest"),
    "wrong Content-MD5": (wrong_md5, "", "BadDigest"),
    "copy IfNoneMatch": (copy_onto_taken, ("", b"new"), ("PreconditionFailed", b"old")),
    "copy CopySourceIfMatch": (copy_of_what_changed, "", "PreconditionFailed"),
    "IfNoneMatch where a prefix is": (put_on_condition_where_a_prefix_is, "", "PreconditionFailed"),
    "order": (order, ["a-b", "a/b", "a0"], ["a/b", "a-b", "a0"]),
    "StartAfter a prefix": (start_after_a_prefix, ["p/a", "q"], ["q"]),
    "prefix of what was deleted": (prefix_of_what_was_deleted, ([], []), ([], ["d/"])),
    "odd slashes": (odd_slashes, ["a//b", "c\\d"], ["a/b", "c/d"]),
    "content of a marker": (content_of_a_marker, b"x", b""),
    "dots": (put_of("a/../b"), "", "InvalidRequest"),
    "component of 256 bytes": (put_of("x" * 256), "", "KeyTooLongError"),
    "key of 1024 bytes": (put_of("d/" * 512), "", ""),
    "newline": (put_of("a\nb"), "404", ""),
    "upload beside a prefix": (upload_beside_a_prefix, "", "InternalError"),
    "storage class of a copy": (storage_class_of_a_copy, None, "STANDARD_IA"),
    "AES256": (encryption("AES256"), "", ""),
    "aws:kms": (encryption("aws:kms"), "", "InternalError"),
    "unknown upload": (part_of_an_unknown_upload, "500", "NoSuchUpload"),
    "control characters in a batch": (
        batch_with_a_control_character,
        ("500", ["a\x01"]),
        ("MalformedXML", ["a\x01"]),
    ),
    "missing bucket": (put_without_a_bucket, "NoSuchBucket", "NoSuchBucket"),
}


@pytest.mark.parametrize("fact", FACTS)
@pytest.mark.parametrize("server", ["moto", "seaweedfs"], indirect=True)
def test_what_each_server_does(server: S3Server, fact: str, new_bucket: NewBucket) -> None:
    probe, *answers = FACTS[fact]
    assert probe(server.client(), new_bucket(server)) == answers[server.name == "seaweedfs"]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


def test_who_may_use_them(moto: S3Server, seaweedfs: S3Server) -> None:
    for server, expected in ((moto, ("", "")), (seaweedfs, ("SignatureDoesNotMatch", "InvalidAccessKeyId"))):
        with client_of(server, secret=WRONG) as forger, client_of(server, key_id="nobody") as nobody:
            assert (refusal(forger.list_buckets), refusal(nobody.list_buckets)) == expected


def test_a_server_does_not_show_its_secret(seaweedfs: S3Server) -> None:
    assert seaweedfs.secret_access_key not in repr(seaweedfs)
    assert seaweedfs.credentials()["secret_access_key"] == seaweedfs.secret_access_key


def test_seaweedfs_has_room_for_many_buckets(seaweedfs: S3Server, new_bucket: NewBucket) -> None:
    buckets = [new_bucket(seaweedfs) for _ in range(16)]  # its default is out of volumes after a dozen
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda bucket: put(seaweedfs.client(), bucket, "k"), buckets))


def test_a_place_is_removed_with_all_that_it_holds(s3_server: S3Server) -> None:
    client = s3_server.client()
    with new_place(s3_server) as (bucket, prefix):
        put(client, bucket, f"{prefix}a", f"{prefix}d/b", f"{prefix}c\x01")
        client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}open")
    if prefix:
        assert keys(client, bucket, prefix) == []
    else:
        assert refusal(client.list_objects_v2, Bucket=bucket) == "NoSuchBucket"


@pytest.mark.parametrize("server", ["moto", "seaweedfs"], indirect=True)
def test_a_bucket_is_removed_with_all_versions(server: S3Server) -> None:
    client = server.client()
    with new_place(server) as (bucket, _):
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        put(client, bucket, "a", "a", "b")
        client.delete_object(Bucket=bucket, Key="a")
    assert refusal(client.list_objects_v2, Bucket=bucket) == "NoSuchBucket"


def test_a_real_server_is_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "BUCKET", "REGION", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"BROKERVOL_TEST_S3_{name}", raising=False)
    assert real_server() is None
    monkeypatch.setenv("BROKERVOL_TEST_S3_ENDPOINT", "https://s3.example.org")
    with pytest.raises(ValueError, match="BROKERVOL_TEST_S3_BUCKET, BROKERVOL_TEST_S3_REGION"):
        real_server()


# What becomes of their processes

RUN = """
import time
from lab.s3 import seaweed_server
with seaweed_server() as server:
    print(server.endpoint_url, flush=True)
    time.sleep(60)
"""


def listening(pid: int) -> set[str]:
    """The addresses, in the kernel's hexadecimal, on which a process listens."""
    inodes, found = set(), set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile, so none that it listens on
            inodes.add(os.readlink(path))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in inodes:
                found.add(local.partition(":")[0])
    return found


def option(pid: int, name: str) -> str | None:
    """What `-name=` says in the command line of a process."""
    arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return next((argument.partition("=")[2] for argument in arguments if argument.startswith(f"-{name}=")), None)


def has_ended(pid: int) -> bool:
    """Whether it is gone, or only waits to be reaped by whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_servers_end_with_a_killed_run_and_leave_nothing() -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", RUN],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
    )
    with run:
        assert run.stdout is not None
        assert run.stdout.readline().startswith(b"http://127.0.0.1:")
        started = descendants(run.pid)
        (weed,) = [pid for pid in started if option(pid, "dir")]
        assert {address for pid in started for address in listening(pid)} == {"0100007F"}
        directory = Path(option(weed, "dir") or "")
        sockets = [
            Path(f"/tmp/seaweedfs-{service}-grpc-{option(weed, f'{service}.port.grpc')}.sock")
            for service in ("master", "volume", "filer", "s3")
        ]
        assert directory.is_dir()
        assert all(path.is_socket() for path in sockets)
        run.send_signal(signal.SIGKILL)
    wait_until(lambda: all(has_ended(pid) for pid in started), f"the end of {started}")
    assert not directory.parent.exists()
    assert not any(path.exists() for path in sockets)


# The fault proxy


@pytest.fixture
def proxy(seaweedfs: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        yield proxy
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fault-proxy")]


@contextlib.contextmanager
def client_of(
    server: S3Server,
    url: str | None = None,
    *,
    key_id: str | None = None,
    secret: str | None = None,
    attempts: int = 1,
    read_timeout_s: float = 20,
) -> Iterator[S3Client]:
    client = SESSION.client(
        "s3",
        endpoint_url=url or server.endpoint_url,
        region_name=server.region_name,
        aws_access_key_id=key_id or server.access_key_id,
        aws_secret_access_key=secret or server.secret_access_key,
        config=Config(
            s3={"addressing_style": "path"},
            retries={"mode": "standard", "total_max_attempts": attempts},
            read_timeout=read_timeout_s,
            proxies={},
        ),
    )
    with contextlib.closing(client):
        yield client


@pytest.fixture
def client(seaweedfs: S3Server, proxy: FaultProxy) -> Iterator[S3Client]:
    """A client that goes through the proxy and tries once."""
    with client_of(seaweedfs, proxy.url) as client:
        yield client


@pytest.fixture
def bucket(seaweedfs: S3Server, new_bucket: NewBucket) -> str:
    return new_bucket(seaweedfs)


@pytest.mark.parametrize("server", ["moto", "seaweedfs"], indirect=True)
def test_the_proxy_relays_what_is_not_to_break(server: S3Server, new_bucket: NewBucket) -> None:
    bucket, body = new_bucket(server), os.urandom(3 << 20)
    with FaultProxy(server.endpoint_url) as proxy, client_of(server, proxy.url) as client:
        put(client, bucket, "ä +%/b", body=body)
        assert content(client, bucket, "ä +%/b") == body
        assert client.head_object(Bucket=bucket, Key="ä +%/b")["ContentLength"] == len(body)
        put(client, bucket, *(f"many/{number}" for number in range(60)))
        assert len(keys(client, bucket, "many/")) == 60  # an answer without a length: chunked, or to the end
        assert refusal(client.get_object, Bucket=bucket, Key="none") == "NoSuchKey"
        first, *_, last = proxy.requests
    assert (first.method, first.path, first.status) == ("PUT", f"/{bucket}/ä +%/b", 200)
    assert (first.headers["host"], first.headers["expect"]) == (urlsplit(proxy.url).netloc, "100-continue")
    assert (last.method, last.status) == ("GET", 404)


def test_the_proxy_relays_a_chunked_body(seaweedfs: S3Server, proxy: FaultProxy, bucket: str) -> None:
    with client_of(seaweedfs, proxy.url) as client:
        url = urlsplit(client.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "k"}))
    connection = http.client.HTTPConnection(url.netloc, timeout=20)
    with contextlib.closing(connection):
        for body in ([b"one, ", b"two"], [b"three"]):  # on one connection
            connection.request("PUT", f"{url.path}?{url.query}", body=iter(body), encode_chunked=True)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            assert content(seaweedfs.client(), bucket, "k") == b"".join(body)
    assert proxy.requests[0].headers["transfer-encoding"] == "chunked"


def test_the_proxy_relays_a_refusal_before_the_body(seaweedfs: S3Server, proxy: FaultProxy, bucket: str) -> None:
    with client_of(seaweedfs, proxy.url, secret=WRONG) as client:
        assert refusal(client.put_object, Bucket=bucket, Key="k", Body=PART) == "SignatureDoesNotMatch"


def test_the_proxy_holds_no_object_in_memory(client: S3Client, bucket: str, tmp_path: Path) -> None:
    size = 32 << 20
    with (tmp_path / "sparse").open("wb+") as file:
        file.truncate(size)
        tracemalloc.start()
        try:
            client.put_object(Bucket=bucket, Key="k", Body=file)
            with contextlib.closing(client.get_object(Bucket=bucket, Key="k")["Body"]) as body:
                assert sum(len(piece) for piece in body.iter_chunks(1 << 16)) == size
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (403, "ExpiredToken")])
def test_error_answers_instead_of_the_server(
    proxy: FaultProxy, client: S3Client, bucket: str, status: int, code: str
) -> None:
    proxy.fail(fault_proxy.error(status, code), times=None)
    assert refusal(client.put_object, Bucket=bucket, Key="k", Body=b"x") == code
    assert refusal(client.list_objects_v2, Bucket=bucket) == code
    assert refusal(client.head_object, Bucket=bucket, Key="k") == str(status)
    assert [request.status for request in proxy.requests] == [status] * 3
    proxy.clear()
    assert keys(client, bucket) == []
    assert [request.status for request in proxy.requests] == [200]


def test_error_with_status_200_is_an_error_that_came_late(
    proxy: FaultProxy, client: S3Client, bucket: str
) -> None:
    put(client, bucket, "a")
    proxy.fail(fault_proxy.error(200, "InternalError"))
    source = {"Bucket": bucket, "Key": "a"}
    assert refusal(client.copy_object, Bucket=bucket, Key="b", CopySource=source) == "InternalError"
    assert keys(client, bucket) == ["a"]


def test_fail_breaks_the_requests_that_it_names(proxy: FaultProxy, client: S3Client, bucket: str) -> None:
    proxy.fail(fault_proxy.error(400, "Second"), method="PUT", path="/k$", after=1)
    proxy.fail(fault_proxy.error(400, "Twice"), method="GET", query="list-type=2", times=2)
    codes = [refusal(client.put_object, Bucket=bucket, Key=key) for key in ("k", "other", "k", "k")]
    assert codes == ["", "", "Second", ""]
    codes = [refusal(client.list_objects_v2, Bucket=bucket) for _ in range(3)]
    assert codes == ["Twice", "Twice", ""]
    assert refusal(client.get_object, Bucket=bucket, Key="k") == ""


def test_a_client_that_tries_again_gets_through(seaweedfs: S3Server, proxy: FaultProxy, bucket: str) -> None:
    proxy.fail(fault_proxy.error(503, "SlowDown"))
    with client_of(seaweedfs, proxy.url, attempts=2) as client:
        put(client, bucket, "k")
    assert [request.status for request in proxy.requests] == [503, 200]


@pytest.mark.parametrize("body", [b"x", PART])
def test_reset_before_the_server_saw_it(proxy: FaultProxy, client: S3Client, bucket: str, body: bytes) -> None:
    proxy.fail(fault_proxy.reset())
    with pytest.raises(ConnectionClosedError):
        client.put_object(Bucket=bucket, Key="k", Body=body)
    assert keys(client, bucket) == []
    assert proxy.requests[0].status == 0


def test_reset_after_the_server_did_it(proxy: FaultProxy, client: S3Client, bucket: str) -> None:
    proxy.fail(fault_proxy.reset(after_forwarding=True))
    with pytest.raises(ConnectionClosedError):
        client.put_object(Bucket=bucket, Key="k", Body=b"x")
    assert keys(client, bucket) == ["k"]
    assert proxy.requests[0].status == 0


def test_reset_is_a_reset(proxy: FaultProxy) -> None:
    proxy.fail(fault_proxy.reset())
    url = urlsplit(proxy.url)
    with socket.create_connection((url.hostname, url.port), 20) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            raw.recv(1)


@pytest.mark.parametrize("resets", [False, True])
def test_truncate_ends_within_the_body(proxy: FaultProxy, client: S3Client, bucket: str, resets: bool) -> None:
    put(client, bucket, "k", body=b"0123456789" * 10000)
    proxy.fail(fault_proxy.truncate(70001, resets=resets), method="GET")
    answer = client.get_object(Bucket=bucket, Key="k")
    assert answer["ContentLength"] == 100000
    with contextlib.closing(answer["Body"]) as body:
        assert body.read(10) == b"0123456789"
        with pytest.raises(BotoCoreError):
            body.read()
    assert len(content(client, bucket, "k")) == 100000


def test_stall_before_the_server_sees_it(seaweedfs: S3Server, proxy: FaultProxy, bucket: str) -> None:
    released = threading.Event()
    proxy.fail(fault_proxy.stall(released))
    with client_of(seaweedfs, proxy.url, read_timeout_s=0.2) as client, pytest.raises(ReadTimeoutError):
        client.delete_object(Bucket=bucket, Key="other")  # which is done as late as the next
    with client_of(seaweedfs, proxy.url) as client, ThreadPoolExecutor() as pool:
        proxy.fail(fault_proxy.stall(released))
        putting = pool.submit(put, client, bucket, "k")
        wait_until(lambda: len(proxy.requests) == 2, "the second request")
        assert keys(seaweedfs.client(), bucket) == []
        released.set()
        putting.result(20)
    assert keys(seaweedfs.client(), bucket) == ["k"]


def test_stall_after_the_server_did_it(seaweedfs: S3Server, proxy: FaultProxy, bucket: str) -> None:
    proxy.fail(fault_proxy.stall(threading.Event(), after_forwarding=True))  # until the end of the proxy
    with client_of(seaweedfs, proxy.url, read_timeout_s=0.5) as client, pytest.raises(ReadTimeoutError):
        put(client, bucket, "k")
    wait_until(lambda: keys(seaweedfs.client(), bucket) == ["k"], "the object")


def test_stall_for_some_time(proxy: FaultProxy, client: S3Client, bucket: str) -> None:
    proxy.fail(fault_proxy.stall(0.1))
    started = time.monotonic()
    put(client, bucket, "k")
    assert time.monotonic() - started >= 0.1


def test_corrupt_changes_one_byte(proxy: FaultProxy, client: S3Client, bucket: str) -> None:
    put(client, bucket, "k", body=bytes(200000))
    proxy.fail(fault_proxy.corrupt(150000), method="GET", times=2)
    with pytest.raises(BotoCoreError, match="checksum"):
        content(client, bucket, "k")
    url = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", url.removeprefix(proxy.url))
        body = connection.getresponse().read()
    assert [at for at, byte in enumerate(body) if byte] == [150000]
    assert len(body) == 200000


def test_slow_body_waits_between_pieces(proxy: FaultProxy, client: S3Client, bucket: str) -> None:
    put(client, bucket, "k", body=b"0123456789")
    released = threading.Event()
    proxy.fail(fault_proxy.slow_body(4, released), method="GET")
    with contextlib.closing(client.get_object(Bucket=bucket, Key="k")["Body"]) as body:
        assert body.read(4) == b"0123"
        released.set()
        assert body.read() == b"456789"


def test_a_server_that_is_down_is_down_behind_the_proxy(seaweedfs: S3Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with FaultProxy(f"http://127.0.0.1:{port}") as proxy, client_of(seaweedfs, proxy.url) as client:
        with pytest.raises(BotoCoreError):
            client.list_buckets()
        assert proxy.requests == []


def test_requests_are_copies(proxy: FaultProxy, client: S3Client) -> None:
    client.list_buckets()
    proxy.requests.append(Request("GET", "/", "", {}))
    assert len(proxy.requests) == 1

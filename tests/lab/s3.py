"""Real S3 servers, each in a process of its own on loopback, and places in them for tests to write to.

What each does that AWS does not (moto 5.2, SeaweedFS 4.48; `tests/unit/test_lab_s3.py` proves it):

| | moto | seaweedfs |
|---|---|---|
| wrong secrets | accepted | refused |
| wrong checksums, Content-MD5 | accepted | refused |
| CopyObject with IfNoneMatch or CopySourceIfMatch | conditions ignored | right |
| IfNoneMatch=* on `d` where `d/x` is or was | right | 412 although nothing is there |
| listing | right | in tree order (`a/b` before `a-b`); StartAfter=`p` skips `p/...` |
| CommonPrefixes of deleted keys | right | stay for minutes |
| `a//b`, `a\\b` | right | become `a/b` |
| `.` and `..` as components, components above 255 bytes | right | refused |
| `a/` with content | right | the content is lost |
| newline in a key | 404 | right |
| CompleteMultipartUpload to `f` where `f/g` is | right | 500 |
| StorageClass of a copy | as asked, else STANDARD | as asked, else the source's |
| aws:kms | accepted | 500 |
| unknown upload | 500 | right |
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

_STOP_TIMEOUT_S = 20
_REAL_VARIABLES = ("ENDPOINT", "BUCKET", "REGION", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY")


@dataclass(frozen=True)
class S3Server:
    """Where a server listens, and who may use it."""

    name: str  # "moto", "seaweedfs", "real"
    endpoint_url: str
    region_name: str
    access_key_id: str
    secret_access_key: str = field(repr=False)

    def client(self) -> S3Client:
        """A plain boto3 client to look behind our own code with; the same one each time."""
        return _client(self)

    def credentials(self) -> dict[str, str]:
        """The credentials as a broker's configuration has them."""
        return {"access_key_id": self.access_key_id, "secret_access_key": self.secret_access_key}


class Place(NamedTuple):
    """What a test may fill: everything below `prefix`, which is empty or ends with a slash."""

    bucket: str
    prefix: str


@functools.cache
def _client(server: S3Server) -> S3Client:
    import boto3
    from botocore.config import Config

    return boto3.Session().client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name=server.region_name,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            retries={"mode": "standard", "total_max_attempts": 2},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=32,
            proxies={} if server.name != "real" else None,
        ),
    )


def moto_server() -> contextlib.AbstractContextManager[S3Server]:
    """moto in server mode."""
    return _kept("moto")


def seaweed_server() -> contextlib.AbstractContextManager[S3Server]:
    """SeaweedFS: master, volume server, filer and S3 gateway in one process."""
    return _kept("seaweedfs")


def real_server() -> S3Server | None:
    """The server that BROKERVOL_TEST_S3_ENDPOINT, _BUCKET, _REGION, _ACCESS_KEY_ID and _SECRET_ACCESS_KEY name.

    Raises:
        ValueError: some of them are set and some are not.
    """
    values = {name: os.environ.get(f"BROKERVOL_TEST_S3_{name}", "") for name in _REAL_VARIABLES}
    if not any(values.values()):
        return None
    if missing := [f"BROKERVOL_TEST_S3_{name}" for name, value in values.items() if not value]:
        raise ValueError(f"a real S3 server is named without {', '.join(missing)}")
    return S3Server(
        "real", values["ENDPOINT"], values["REGION"], values["ACCESS_KEY_ID"], values["SECRET_ACCESS_KEY"]
    )


@contextlib.contextmanager
def new_place(server: S3Server) -> Iterator[Place]:
    """A bucket of its own, or a prefix of its own in the real server's bucket; removed with all that it holds."""
    client, name = server.client(), f"lab-{secrets.token_hex(8)}"
    if server.name == "real":
        place = Place(os.environ["BROKERVOL_TEST_S3_BUCKET"], f"{name}/")
    else:
        place = Place(name, "")
        client.create_bucket(Bucket=name)
    try:
        yield place
    finally:
        _empty(client, place)
        if server.name != "real":
            client.delete_bucket(Bucket=name)


def _empty(client: S3Client, place: Place) -> None:
    where: dict[str, Any] = {"Bucket": place.bucket, "Prefix": place.prefix}
    for uploads in client.get_paginator("list_multipart_uploads").paginate(**where):
        for upload in uploads.get("Uploads", []):
            client.abort_multipart_upload(Bucket=place.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    for page in client.get_paginator("list_objects_v2").paginate(**where):
        _delete(client, place.bucket, [{"Key": item["Key"]} for item in page.get("Contents", [])])
    # What versions are left. moto fails to list them where a key has control characters: those went above.
    for versions in client.get_paginator("list_object_versions").paginate(**where):
        left = [*versions.get("Versions", []), *versions.get("DeleteMarkers", [])]
        _delete(client, place.bucket, [{"Key": item["Key"], "VersionId": item["VersionId"]} for item in left])


def _delete(client: S3Client, bucket: str, objects: Sequence[ObjectIdentifierTypeDef]) -> None:
    """Delete in one request, or one by one where a key has characters that XML has not."""
    if not objects:
        return
    with contextlib.suppress(client.exceptions.ClientError):
        if not client.delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True}).get("Errors"):
            return
    for identifier in objects:
        which: dict[str, Any] = {**identifier}
        client.delete_object(Bucket=bucket, **which)


@contextlib.contextmanager
def _kept(name: str) -> Iterator[S3Server]:
    with tempfile.TemporaryFile() as log, _keeper(name, log) as answers:
        answer = answers.readline()
        if not answer:
            raise AssertionError(f"{name} did not start:\n{_tail(log)}")
        server = S3Server(name=name, region_name="us-east-1", **json.loads(answer))
        try:
            yield server
        finally:
            server.client().close()


@contextlib.contextmanager
def _keeper(name: str, log: IO[bytes]) -> Iterator[IO[str]]:
    """Run s3_keeper.py until the block ends; what it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lab.s3_keeper", name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,  # a Ctrl-C is for the test run, whose end ends the keeper
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.stdin.close()
        exit_code = process.wait(_STOP_TIMEOUT_S)
        process.stdout.close()
    assert exit_code == 0, f"the keeper of {name} ended with {exit_code}:\n{_tail(log)}"


def _tail(log: IO[bytes]) -> str:
    size = os.fstat(log.fileno()).st_size
    return os.pread(log.fileno(), 16384, max(0, size - 16384)).decode(errors="replace")

"""Our broker types as the conformance suite sees them: each beside the place where its files really are."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from botocore.exceptions import ClientError

from lab.s3 import Place, S3Server, real_server
from storage.testing import TRAITS, Backend, DirectoryBackend

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import DeleteTypeDef

# Set, what takes minutes on a server of the laboratory is as large as on a disk.
_IS_LARGE = os.environ.get("BROKERVOL_TEST_LARGE") == "1"

# What a server does to names, see lab.s3: no broker can help it.
_UNSTORABLE = {"moto": {"new\nline"}, "seaweedfs": {"back\\slash"}}


class HostBackend(DirectoryBackend):
    wrong_values: ClassVar = {"host_path": [None, 1, "", "rel", "/a/../b", "/a//b", "/a/./b", "/a\0"]}
    unreachable: ClassVar = {"host_path": "/no/such/directory"}

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, {"type": "host", "host_path": "{workspace}"}, TRAITS["host"])
        self.volume = (None, str(self.workspace))


class NfsBackend(DirectoryBackend):
    """An export is for its broker a mounted directory; mounts by the kernel are the driver's matter."""

    wrong_values: ClassVar = {
        "nfs_path": [
            *(None, 1, "", "/export", "server", "server:", "server:export", ":/e", "a b:/e", "[::g]:/e", "::1:/e"),
            *("-s:/e", "s;reboot:/e", "s:/e/../x", "s:/e\0", "[server]:/e"),
        ]
    }
    unreachable: ClassVar = {"nfs_path": "192.0.2.1:/no/such/export"}
    volume = ("nfs", "server:/export")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, {"type": "nfs", "nfs_path": "server:/export"}, TRAITS["nfs"])


class S3Backend(Backend):
    """A prefix of a bucket, seen by a plain boto3 client. Objects lie beside it, and it is emptied by `close`."""

    wrong_values: ClassVar = {
        "bucket_name": [None, 1, "", "a", "b" * 64, "a/b", "a b", "..", "-b"],
        "region_name": [1, "", "not a region", "eu/central"],
        "credentials": [
            *(1, "", [], {}, {"access_key_id": "A"}, {"secret_access_key": "S"}),
            {"access_key_id": "A", "secret_access_key": 1},
            {"access_key_id": "A", "secret_access_key": "S", "typo": "x"},
            {"access_key_id": "A", "secret_access_key": "S\n"},
        ],
        "endpoint_url": [1, "", "host", "ftp://host", "http://", "http://user:secret@host", "http://host/path"],
        "prefix": [1, "/", "/a", "a//b", "../a", "a/..", ".", "a\0", ".brokervol-a", "x" * 1024],
        "storage_class": [1, "", "not a class"],
        "server_side_encryption": [1, "", "rot13"],
        "host_path": [1, "", "relative", "/a/../b"],
    }
    unreachable: ClassVar = {"bucket_name": "no-such-bucket-of-ours"}

    def __init__(self, directory: Path, server: S3Server, place: Place) -> None:
        self.client: S3Client = server.client()
        self.place = place
        self.root = f"{place.prefix}{secrets.token_hex(4)}/"
        self.prefix = f"{self.root}workspace/"
        self.client.put_object(Bucket=place.bucket, Key=f"{self.root}workspace-2/secret", Body=b"secret")
        self.secrets = [server.secret_access_key]
        self.many_files = {"moto": 200}.get(server.name, 10_000 if _IS_LARGE else 1_100)
        # moto holds objects in memory.
        self.large_file_bytes = (5 << 30) + 3 if _IS_LARGE and server.name != "moto" else (20 << 20) + 3
        self.has_any_key = server.name != "seaweedfs"
        configuration = {
            "type": "s3",
            "bucket_name": place.bucket,
            "region_name": server.region_name,
            "endpoint_url": server.endpoint_url,
            "prefix": self.prefix.removesuffix("/"),
            "credentials": server.credentials(),
        }
        traits = replace(
            TRAITS["s3"],
            largest_path_bytes=TRAITS["s3"].largest_path_bytes - len(self.prefix),
            unstorable_names=frozenset(_UNSTORABLE.get(server.name, ())),
        )
        super().__init__(directory, configuration, traits)

    def put(self, path: str, content: bytes = b"content") -> None:
        self.client.put_object(Bucket=self.place.bucket, Key=self.prefix + path, Body=content)

    def put_many(self, paths: Iterable[str]) -> None:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda path: self.put(path, b"1"), paths))

    def read(self, path: str) -> bytes | None:
        with contextlib.suppress(self.client.exceptions.NoSuchKey):
            return self.client.get_object(Bucket=self.place.bucket, Key=self.prefix + path)["Body"].read()
        return None

    def size(self, path: str) -> int:
        return self.client.head_object(Bucket=self.place.bucket, Key=self.prefix + path)["ContentLength"]

    def tail(self, path: str, count: int) -> bytes:
        key, wanted = self.prefix + path, f"bytes=-{count}"
        return self.client.get_object(Bucket=self.place.bucket, Key=key, Range=wanted)["Body"].read()

    def media_type(self, path: str) -> str | None:
        return self.client.head_object(Bucket=self.place.bucket, Key=self.prefix + path)["ContentType"]

    def remove(self, path: str) -> None:
        self.client.delete_object(Bucket=self.place.bucket, Key=self.prefix + path)

    def stored(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, content in self._objects(self.place.prefix):
            is_ours = key.startswith(self.root)
            found[key.removeprefix(self.root) if is_ours else f"elsewhere/{key}"] = content
        uploads = self.client.list_multipart_uploads(Bucket=self.place.bucket, Prefix=self.place.prefix)
        return found | {f"upload {upload['UploadId']}": upload["Key"] for upload in uploads.get("Uploads", [])}

    def put_unlisted(self) -> None:
        """Keys that are no path of a file; SeaweedFS refuses or changes most of them."""
        keys = ["directory/", ".brokervol-0011.part", "dir/.brokervol-x/f"]
        if self.has_any_key:
            keys += ["/", "/absolute", "a//b", ".", "..", "../up", "a/./b", "dir/", "x" * 256]
        for key in keys:
            self.put(key, b"")
        self.client.create_multipart_upload(Bucket=self.place.bucket, Key=f"{self.prefix}unfinished")

    def close(self) -> None:
        """Remove the test's objects. What it left unfinished goes with the bucket."""
        keys = [key for key, _ in self._objects(self.root)]
        for start in range(0, len(keys), 1000):
            some = keys[start : start + 1000]
            try:
                deleted: DeleteTypeDef = {"Objects": [{"Key": key} for key in some], "Quiet": True}
                failed = self.client.delete_objects(Bucket=self.place.bucket, Delete=deleted).get("Errors", [])
            except ClientError:  # of a key with characters that XML has not
                failed = [{"Key": key} for key in some]
            for found in failed:
                self.client.delete_object(Bucket=self.place.bucket, Key=found["Key"])

    def _objects(self, prefix: str) -> Iterator[tuple[str, tuple[int, str]]]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.place.bucket, Prefix=prefix)
        for page in pages:
            for listed in page.get("Contents", []):
                yield listed["Key"], (listed["Size"], listed["ETag"])


DIRECTORIES: dict[str, Callable[[Path], Backend]] = {"host": HostBackend, "nfs": NfsBackend}
S3_SERVERS = ["moto", "seaweedfs", *(["real"] if real_server() else [])]

# What every type is tested on: s3 with each server, and each SDK for the bulk of the work.
KINDS = [*DIRECTORIES, *(f"s3-{server}-{bulk}" for server in S3_SERVERS for bulk in ("obstore", "boto3"))]

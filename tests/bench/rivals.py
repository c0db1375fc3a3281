"""The rivals in the S3 races, with the verbs that ours has: the program s5cmd, and boto3 as its users write it."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import boto3

from bench.session import BUCKET, Tree, exhaust, run
from lab.s3 import S3Server


class S5cmd:
    """The program s5cmd, one process for all files, with its own defaults."""

    def __init__(self, server: S3Server, tree: Tree, *, root: str, downloads: Path) -> None:
        self._program = _program()
        self._tree, self._root, self._downloads = tree, root, downloads
        self._environment = {
            "S3_ENDPOINT_URL": server.endpoint_url,
            "AWS_REGION": server.region_name,
            "AWS_ACCESS_KEY_ID": server.access_key_id,
            "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
        }

    def upload(self, repetition: int) -> None:
        self._run("cp", f"{self._tree.directory}/", self._url(repetition))

    def download(self, repetition: int) -> None:
        self._run("cp", self._url(repetition) + "*", f"{self._target(repetition)}/")

    def download_synced(self, repetition: int) -> None:
        target = self._target(repetition, "-synced")
        self._run("cp", self._url(repetition) + "*", f"{target}/")
        run("sync", "-f", target)

    def move(self, repetition: int) -> None:
        self._run("mv", self._url(repetition) + "*", self._url(repetition, "moved/"))

    def copy(self, repetition: int) -> None:
        self._run("cp", self._url(repetition, "moved/") + "*", self._url(repetition, "copied/"))

    def delete(self, repetition: int) -> None:
        self._run("rm", self._url(repetition, "moved/") + "*")

    def list_keys(self, prefix: str) -> None:
        self._run("ls", f"s3://{BUCKET}/{prefix}*")

    def _run(self, *arguments: str) -> None:
        run(self._program, *arguments, **self._environment)

    def _url(self, repetition: int, above: str = "") -> str:
        return f"s3://{BUCKET}/{above}{self._root}/{repetition}/"

    def _target(self, repetition: int, suffix: str = "") -> Path:
        return self._downloads / f"{self._root}{suffix}" / str(repetition)


class PlainBoto3:
    """boto3's calls as they come, one file after another."""

    def __init__(self, server: S3Server, tree: Tree, *, count: int, root: str, downloads: Path) -> None:
        self._tree, self._paths, self._root, self._downloads = tree, tree.paths[:count], root, downloads
        self._client = boto3.Session().client(
            "s3",
            endpoint_url=server.endpoint_url,
            region_name=server.region_name,
            aws_access_key_id=server.access_key_id,
            aws_secret_access_key=server.secret_access_key,
        )

    def upload(self, repetition: int) -> None:
        for path in self._paths:
            self._client.upload_file(f"{self._tree.directory}/{path}", BUCKET, self._key(repetition, path))

    def download(self, repetition: int) -> None:
        target = self._downloads / self._root / str(repetition)
        self._tree.make_directories(target, self._paths)
        for path in self._paths:
            self._client.download_file(BUCKET, self._key(repetition, path), f"{target}/{path}")

    def move(self, repetition: int) -> None:
        self._copy(repetition, "", "moved/")
        self._delete(repetition, "")

    def copy(self, repetition: int) -> None:
        self._copy(repetition, "moved/", "copied/")

    def delete(self, repetition: int) -> None:
        self._delete(repetition, "moved/")

    def list_keys(self, prefix: str) -> None:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        exhaust((item["Key"], item["Size"]) for page in pages for item in page.get("Contents", []))

    def _copy(self, repetition: int, above: str, new_above: str) -> None:
        for path in self._paths:
            key = self._key(repetition, path)
            self._client.copy_object(Bucket=BUCKET, Key=new_above + key, CopySource=f"{BUCKET}/{above}{key}")

    def _delete(self, repetition: int, above: str) -> None:
        for start in range(0, len(self._paths), 1000):
            keys = [above + self._key(repetition, path) for path in self._paths[start : start + 1000]]
            self._client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key} for key in keys]})

    def _key(self, repetition: int, path: str) -> str:
        return f"{self._root}/{repetition}/{path}"


def _program() -> Path:
    """The program itself: the script before it costs a start of Python, and hands no signal on.

    Raises:
        PackageNotFoundError: s5cmd is not installed, which `make bench` does.
    """
    return Path(str(distribution("s5cmd").locate_file("s5cmd/bin/s5cmd")))

"""S3: one large object, many small ones, a long listing; ours, s5cmd and plain boto3 on one SeaweedFS."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from bench.frame import Case, Contender
from bench.ours import Ours
from bench.rivals import PlainBoto3, S5cmd
from bench.session import BUCKET, LISTED, Session, Tree, exhaust
from lab.directories import remove_tree
from lab.s3 import S3Server
from storage.brokers.s3_broker import BULK_VARIABLE, S3Broker

# Those that need a minute for what others do in seconds do a part of it.
_BOTO3_SHARE = 0.1
_BULK_BOTO3_SHARE = 0.2

_OURS = {
    "upload": "stored; catalog",
    "download": "each file fsynced, then renamed",
    "move": "copied, size verified, then deleted; catalog",
    "copy": "as above: a move, since ours has no copy",
    "delete": "deleted; catalog",
    "list_keys": "names and sizes, checked",
}
_S5CMD = {
    "upload": "stored",
    "download": "not synced",
    "download_synced": "file system synced",
    "move": "copied, then deleted, not verified",
    "copy": "copied, not verified",
    "delete": "listed, then deleted",
    "list_keys": "names, sizes and times, as text",
}
_BOTO3 = _S5CMD | {"delete": "deleted", "list_keys": "names and sizes"}


class _Way(NamedTuple):
    """One who takes part, and what each of its verbs includes."""

    name: str
    does: Ours | S5cmd | PlainBoto3
    includes: Mapping[str, str]
    tidy: Callable[[int], None]
    share: float = 1.0

    def contender(self, verb: str) -> Contender:
        return Contender(self.name, getattr(self.does, verb), self.includes[verb], self.share, self.tidy)


def measure(session: Session) -> None:
    """Race everything of this section."""
    _measure_large(session)
    _measure_small(session)
    session.race("s3", _listing(session))


def _measure_large(session: Session) -> None:
    mib, downloads = session.sizes.large_bytes >> 20, session.directory / "downloads" / "large"

    def forget(_: int) -> None:  # it is one file, and ext4's next do not suffer of that
        if downloads.exists():
            remove_tree(downloads)

    ways = _ways(session, session.large_file, downloads, forget)
    for verb in ("upload", "download"):
        session.race("s3", _case(verb, ways, f"{verb} one file of {mib:,} MiB", mib, "MiB"))


def _measure_small(session: Session) -> None:
    count, downloads = session.sizes.objects, session.directory / "downloads" / "small"
    ways = _ways(session, session.small_files("objects", count), downloads, lambda _: None)
    for verb in ("upload", "download", "move", "copy", "delete"):
        session.race("s3", _case(verb, ways, f"{verb} {count:,} files of 4 KiB", count, "files"))


def _ways(session: Session, tree: Tree, downloads: Path, tidy: Callable[[int], None]) -> list[_Way]:
    """Ours first."""
    server, count, root = session.server, len(tree.paths), downloads.name
    bulk_count, boto3_count = (max(1, round(count * share)) for share in (_BULK_BOTO3_SHARE, _BOTO3_SHARE))
    ours = Ours(open_broker(server), None, tree, count=count, root=f"{root}-ours", downloads=downloads)
    bulk_boto3 = Ours(
        open_broker(server, "boto3"), None, tree, count=bulk_count, root=f"{root}-bulk", downloads=downloads
    )
    boto3 = PlainBoto3(server, tree, count=boto3_count, root=f"{root}-boto3", downloads=downloads)
    return [
        _Way("ours", ours, _OURS, tidy),
        _Way("ours (bulk by boto3)", bulk_boto3, _OURS, tidy, bulk_count / count),
        _Way("s5cmd", S5cmd(server, tree, root=f"{root}-s5cmd", downloads=downloads), _S5CMD, tidy),
        _Way("boto3", boto3, _BOTO3, tidy, boto3_count / count),
    ]


def _case(verb: str, ways: list[_Way], name: str, amount: float, unit: str) -> Case:
    ours, *rivals = (way.contender(verb) for way in ways)
    if verb == "download":  # ours is on the disk when it returns
        s5cmd = next(way for way in ways if isinstance(way.does, S5cmd))
        rivals.append(s5cmd._replace(name="s5cmd + sync -f").contender("download_synced"))
    return Case(name, amount, unit, ours, rivals)


def _listing(session: Session) -> Case:
    prefix = f"{LISTED}/0/"
    server, count = session.server, session.listed_keys // 2
    broker, no_files = open_broker(server), Tree(session.directory, [])
    s5cmd = S5cmd(server, no_files, root="", downloads=session.directory)
    boto3 = PlainBoto3(server, no_files, count=0, root="", downloads=session.directory)
    return Case(
        f"list {count:,} keys",
        count,
        "keys",
        Contender("ours", lambda _: exhaust(broker.list_files(prefix, True)), _OURS["list_keys"]),
        [
            Contender("s5cmd", lambda _: s5cmd.list_keys(prefix), _S5CMD["list_keys"]),
            Contender("boto3", lambda _: boto3.list_keys(prefix), _BOTO3["list_keys"]),
        ],
    )


def configuration(server: S3Server) -> dict[str, object]:
    """The configuration of a broker for the bucket of the run."""
    return {
        "type": "s3",
        "bucket_name": BUCKET,
        "region_name": server.region_name,
        "endpoint_url": server.endpoint_url,
        "credentials": server.credentials(),
    }


def open_broker(server: S3Server, bulk: str = "obstore") -> S3Broker:
    """A broker for the bucket of the run, connected, whose bulk path is by the SDK named."""
    before = os.environ.get(BULK_VARIABLE)
    os.environ[BULK_VARIABLE] = bulk
    try:
        broker = S3Broker()
        broker.load_configuration(configuration(server))
    finally:
        if before is None:
            del os.environ[BULK_VARIABLE]
        else:
            os.environ[BULK_VARIABLE] = before
    exhaust(broker.list_files("none/", True))
    return broker

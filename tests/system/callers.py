"""The table of callers: what each kind of task may do, tried out in real containers on the real plugin.

`python -m system.callers` (with `tests` and `plugin` in PYTHONPATH, as root) prints it for a workspace of the host
and for a bucket, as the documentation shows it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.directories import temporary_directory
from lab.engine import Engine
from lab.images import TASK, USER
from lab.s3 import S3Server, new_place, seaweed_server
from lab.stage import PLUGIN, stage

GROUP = 2000
PROFILE = "lab"


@dataclass(frozen=True)
class Caller:
    """A task container: its user, its groups, and how it has the workspace mounted."""

    name: str
    key: str
    user: int
    groups: tuple[int, ...]
    mode: str | None


CALLERS = [
    Caller("root", "root", 0, (), "rw"),
    Caller(f"user, group {GROUP}", "user", USER, (GROUP,), "rw"),
    Caller("user, `:ro`", "reader", USER, (), "ro"),
    Caller("without the volume", "stranger", 0, (), None),
]


@dataclass(frozen=True)
class Row:
    """One operation, as each caller tries it on files of its own: `{who}` stands for the caller's key.

    Attributes:
        target: below `/v1/workspaces/NAME`, or absolute.
        body: of a batch, the one item; of anything else the whole document, or text as it is.
        local: a local path that is there afterwards if, and only if, it was done.
        stored: a path of the workspace that is there afterwards if, and only if, it was done.
        gone: one that is not.
    """

    operation: str
    method: str
    target: str
    body: Any = None
    local: str = ""
    stored: str = ""
    gone: str = ""


def _batch(operation: str, verb: str, **item: str) -> Row:
    row = Row(operation, "POST", f"/{verb}", {"files": [item]})
    if verb == "download":
        return Row(row.operation, row.method, row.target, row.body, local=item["local_path"])
    if verb == "upload":
        return Row(row.operation, row.method, row.target, row.body, stored=item["file_path"])
    if verb == "move":
        return Row(
            row.operation, row.method, row.target, row.body, stored=item["new_path"], gone=item["file_path"]
        )
    return Row(row.operation, row.method, row.target, row.body, gone=item["file_path"] if verb == "delete" else "")


def _put(operation: str, path: str) -> Row:
    return Row(operation, "PUT", f"/content/{path}", "put", stored=path)


_COMMON = [
    Row("workspaces", "GET", "/v1/workspaces"),
    Row("workspace", "GET", ""),
    Row("list", "GET", "/files"),
    Row("stat", "GET", "/files?prefix=open/public&limit=1"),
    _batch("download", "download", file_path="open/public", local_path="/tmp/downloaded"),
    _batch("download to a directory of root", "download", file_path="open/public", local_path="/etc/downloaded"),
    Row("content GET", "GET", "/content/open/public"),
    Row("content HEAD", "HEAD", "/content/open/public"),
    _batch("paths", "paths", file_path="open/public"),
    Row("catalog", "GET", "/catalog"),
    Row("validate", "POST", "/v1/validate", {"broker": {"type": "host", "host_path": "/srv"}}),
]

HOST_ROWS = [
    *_COMMON[:3],
    Row("list, recursive", "GET", "/files?recursive=true"),
    *_COMMON[3:6],
    _batch("download of root's private file", "download", file_path="open/private", local_path="/tmp/private"),
    *_COMMON[6:8],
    Row("content GET, root's private file", "GET", "/content/open/private"),
    Row("content HEAD, root's private file", "HEAD", "/content/open/private"),
    Row("content GET, the group's file", "GET", "/content/open/group"),
    _put("content PUT to root's directory", "roots/{who}-put"),
    _put("content PUT to the user's directory", "users/{who}-put"),
    _put("content PUT to the group's directory", "groups/{who}-put"),
    _batch("upload to root's directory", "upload", local_path="/etc/hostname", file_path="roots/{who}-up"),
    _batch("upload to the user's directory", "upload", local_path="/etc/hostname", file_path="users/{who}-up"),
    _batch("upload to the group's directory", "upload", local_path="/etc/hostname", file_path="groups/{who}-up"),
    _batch("upload of root's private local file", "upload", local_path="/private", file_path="open/{who}-private"),
    _batch("move of root's file", "move", file_path="roots/{who}-move", new_path="roots/{who}-moved"),
    _batch("move of the user's file", "move", file_path="users/{who}-move", new_path="users/{who}-moved"),
    _batch("move of the group's file", "move", file_path="groups/{who}-move", new_path="groups/{who}-moved"),
    _batch("delete of root's file", "delete", file_path="roots/{who}-delete"),
    _batch("delete of the user's file", "delete", file_path="users/{who}-delete"),
    _batch("delete of the group's file", "delete", file_path="groups/{who}-delete"),
    *_COMMON[8:],
]

S3_ROWS = [
    *_COMMON[:8],
    _put("content PUT", "new/{who}-put"),
    _batch("upload", "upload", local_path="/etc/hostname", file_path="new/{who}-up"),
    _batch("upload of root's private local file", "upload", local_path="/private", file_path="new/{who}-private"),
    _batch("move", "move", file_path="users/{who}-move", new_path="new/{who}-moved"),
    _batch("delete", "delete", file_path="users/{who}-delete"),
    *_COMMON[8:],
]

# Runs in the container: makes the requests, and tells of each its status, its code, and whether `local` is there.
_SCRIPT = """
import http.client, json, os, socket, sys
for row in json.loads(sys.argv[1]):
    connection = http.client.HTTPConnection("b")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect("/run/brokervol/broker.sock")
    body = row["body"] if row["body"] is None or isinstance(row["body"], str) else json.dumps(row["body"])
    connection.request(row["method"], row["target"], body)
    answer = connection.getresponse()
    text = answer.read().decode()
    code = json.loads(text).get("code") if text and answer.status >= 400 else None
    is_local = bool(row["local"]) and os.path.lexists(row["local"])
    print(json.dumps({"status": answer.status, "code": code, "text": text, "is_local": is_local}))
"""


@dataclass(frozen=True)
class Cell:
    """What a caller was answered.

    Attributes:
        is_done: whether what the operation does was found done, on the disk, in the bucket or in the container;
            None for one that changes nothing.
    """

    outcome: str
    text: str
    is_done: bool | None


Table = dict[str, list[Cell]]


class Site:
    """A workspace on an engine, and how to look behind it.

    Args:
        name: of its volume.
        stored: what is in it, by path, seen from outside.
    """

    def __init__(self, engine: Engine, name: str, stored: Callable[[], Mapping[str, Any]]) -> None:
        private = engine.directory / "private"
        private.touch(mode=0o600)
        self._private = str(private)
        self._engine = engine
        self._name = name
        self.stored = stored

    def table(self, rows: Sequence[Row]) -> Table:
        """Every row, tried by every caller."""
        found: Table = {row.operation: [] for row in rows}
        for caller in CALLERS:
            for row, cell in zip(rows, self._column(rows, caller), strict=True):
                found[row.operation].append(cell)
        return found

    def _column(self, rows: Sequence[Row], caller: Caller) -> list[Cell]:
        mine = [_of(row, self._name, caller) for row in rows]
        asked = [{"method": r.method, "target": r.target, "body": r.body, "local": r.local} for r in mine]
        volumes = {
            "broker": {"bind": "/run/brokervol", "mode": "ro"},
            self._private: {"bind": "/private", "mode": "ro"},
        }
        if caller.mode:
            volumes[self._name] = {"bind": "/data", "mode": caller.mode}
        exit_code, output = self._engine.run(
            TASK,
            *("python3", "-c", _SCRIPT, json.dumps(asked)),
            user=f"{caller.user}:{caller.user}",
            group_add=[str(group) for group in caller.groups],
            volumes=volumes,
        )
        assert exit_code == 0, output
        stored = self.stored()
        told = [json.loads(line) for line in output.splitlines()]
        return [_cell(row, answer, stored) for row, answer in zip(mine, told, strict=True)]


def _of(row: Row, workspace: str, caller: Caller) -> Row:
    """The row as this caller tries it."""
    text = json.dumps([row.target, row.body, row.local, row.stored, row.gone]).replace("{who}", caller.key)
    target, body, local, stored, gone = json.loads(text)
    if not target.startswith("/v1"):
        target = f"/v1/workspaces/{workspace}{target}"
    return Row(row.operation, row.method, target, body, local, stored, gone)


def _cell(row: Row, told: dict[str, Any], stored: Mapping[str, Any]) -> Cell:
    outcome = " ".join(str(part) for part in (told["status"], told["code"]) if part is not None)
    if row.operation == "workspaces":
        held = [("ro" if found["read_only"] else "rw") for found in json.loads(told["text"])["workspaces"]]
        outcome += f", holds {' '.join(held) or 'none'}"
    signs = []
    if row.local:
        signs.append(told["is_local"])
    if row.stored:
        signs.append(row.stored in stored)
    if row.gone:
        signs.append(row.gone not in stored)
    is_done = None if not signs else all(signs)
    assert all(sign == is_done for sign in signs), f"{row.operation} is half done: {told}"
    return Cell(outcome, told["text"], is_done)


def markdown(title: str, table: Table) -> str:
    """The table, for people."""
    lines = [f"| {title} | {' | '.join(caller.name for caller in CALLERS)} |", "|---" * (len(CALLERS) + 1) + "|"]
    lines += [f"| {operation} | {' | '.join(cell.outcome for cell in row)} |" for operation, row in table.items()]
    return "\n".join(lines)


# Workspaces with files of mixed ownership

_OWNERS = {"roots": (0, 0, 0o755), "users": (USER, USER, 0o755), "groups": (0, GROUP, 0o2770)}


@contextlib.contextmanager
def host_site(engine: Engine) -> Iterator[Site]:
    """A host directory as volume `data`: one part of it is root's, one the user's, one the group's."""
    directory = Path(f"/srv/brokervol-callers-{os.getpid()}")
    directory.mkdir()
    try:
        _fill(directory)
        engine.client.volumes.create(
            "data", driver=PLUGIN, driver_opts={"type": "host", "host_path": str(directory)}
        )
        yield Site(engine, "data", lambda: _files(directory))
    finally:
        for found in sorted(directory.rglob("*"), key=lambda path: len(path.parts), reverse=True):
            found.rmdir() if found.is_dir() and not found.is_symlink() else found.unlink()
        directory.rmdir()


def _files(directory: Path) -> dict[str, Path]:
    return {str(path.relative_to(directory)): path for path in directory.rglob("*") if not path.is_dir()}


def _fill(directory: Path) -> None:
    for name, (user, group, mode) in _OWNERS.items():
        place = directory / name
        place.mkdir()
        for caller in CALLERS:
            for what in ("move", "delete"):
                (place / f"{caller.key}-{what}").write_text("x")
        for path in (*place.iterdir(), place):
            os.chown(path, user, group)
        place.chmod(mode)
    place = directory / "open"
    place.mkdir()
    place.chmod(0o777)
    for name, group, mode in (("public", 0, 0o644), ("private", 0, 0o600), ("group", GROUP, 0o640)):
        (place / name).write_text(name)
        os.chown(place / name, 0, group)
        (place / name).chmod(mode)


def s3_site(engine: Engine, server: S3Server, bucket: str) -> Site:
    """A bucket as volume `imagery`, for a plugin that has the setting of `credentials_file`."""
    client = server.client()
    keys = ["open/public", *(f"users/{caller.key}-{what}" for caller in CALLERS for what in ("move", "delete"))]
    for key in keys:
        client.put_object(Bucket=bucket, Key=key, Body=b"public")
    options = {"endpoint_url": server.endpoint_url, "region_name": server.region_name, "credentials": PROFILE}
    engine.client.volumes.create("imagery", driver=PLUGIN, driver_opts={"bucket_name": bucket, **options})
    return Site(
        engine,
        "imagery",
        lambda: {found["Key"]: found for found in client.list_objects_v2(Bucket=bucket).get("Contents", [])},
    )


def credentials_file(directory: Path, server: S3Server) -> dict[str, str]:
    """The plugin's setting for a file in `directory` with the server's credentials, made here."""
    path = directory / "credentials"
    path.touch(mode=0o600)
    keys = (f"aws_{key} = {value}" for key, value in server.credentials().items())
    path.write_text("\n".join([f"[{PROFILE}]", *keys]))
    return {"BROKERVOL_CREDENTIALS": f"/hostfs{path}"}


def main() -> None:
    """Print both tables, from an engine that is gone afterwards."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(seaweed_server())
        bucket = stack.enter_context(new_place(server)).bucket
        directory = stack.enter_context(temporary_directory())
        engine = stack.enter_context(stage(settings=credentials_file(directory, server)))
        engine.client.volumes.create("broker", driver=PLUGIN, driver_opts={"type": "sidecar"})
        with host_site(engine) as host:
            print(markdown("host", host.table(HOST_ROWS)), end="\n\n")
        print(markdown("S3", s3_site(engine, server, bucket).table(S3_ROWS)))


if __name__ == "__main__":
    main()

"""Where the soak plays: a workspace, callers with roots of their own, and sentinels on every side of both."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fuzz.site import Site
from lab.cage import caged
from lab.sentinels import Sentinels
from lab.sidecar import caller_sidecar, self_sidecar
from lab.task import SOCKET, Identity, Task, ask
from soak.places import FILES, LOCAL, MARK, WORKSPACE

# Root, a user of groups, a user whose mount is read-only, and one without the workspace.
CALLERS = [
    (Identity(), "rw"),
    (Identity(1000, 1000, [2000]), "rw"),
    (Identity(1001, 1001), "ro"),
    (Identity(), None),
]


@contextlib.contextmanager
def soak_site(directory: Path) -> Iterator[Site]:
    """A sidecar that acts as its callers, caged, and the tasks' plans.

    The sentinels: beside the workspace, beside each task's root, another workspace, the sidecar's own files at the
    very place that callers name for theirs, its state and socket directory, and the machine's users.
    """
    workspace = directory / "host" / "data"
    _fill(workspace, is_workspace=True)
    roots = [directory / "tasks" / str(number) / "root" for number in range(len(CALLERS))]
    watched = [directory / "host" / "outside", directory / "other", directory / "own"]
    watched += [root.parent / "outside" for root in roots]
    for place in watched:
        _guard(place)
    plans = [_task(directory, root, workspace, *who) for root, who in zip(roots, CALLERS, strict=True)]
    volumes = {"data": workspace, "other": directory / "other"}
    with caller_sidecar(directory, volumes, caged(directory, f"{directory / 'own'}={LOCAL}")) as sidecar:
        socket_directory = directory / "root" / "sidecar"
        (directory / "root" / ".state" / "guarded").mkdir()
        (directory / "root" / ".state" / "guarded" / "f").write_text(MARK)
        still = [socket_directory, *(Path("/etc", name) for name in ("passwd", "shadow", "group", "hosts"))]
        unread = Sentinels(still, with_reads=False)
        mounts = _mounts(sidecar.pid)
        binds = [(socket_directory, "/run/brokervol", "ro"), (workspace, WORKSPACE, "rw")]
        (directory / "quiet").mkdir()
        with Task(directory / "quiet", binds) as task:
            yield Site(
                "caller",
                sidecar,
                directory,
                plans,
                [MARK, str(directory / "root"), "site-packages"],
                [directory / "tasks", directory / "host"],
                Sentinels([*watched, directory / "root" / ".state" / "guarded"]),
                SOCKET,
                task.request,
                further_checks=[
                    unread.touched,
                    lambda: [] if _mounts(sidecar.pid) == mounts else ["the sidecar's mounts have changed"],
                    lambda: _leaked(directory / "host" / "data", *roots),
                ],
            )


@contextlib.contextmanager
def self_soak_site(directory: Path) -> Iterator[Site]:
    """A sidecar in its own view of the same workspace, within a `soak_site` of this directory.

    Whoever reaches its socket may name any local path, so that its local files are attacked by nobody.
    """
    ours = directory / "self"
    _fill(ours / "local", is_workspace=False)
    workspaces = {"data": {"broker": {"type": "host", "host_path": str(directory / "host" / "data")}}}
    with self_sidecar(ours, workspaces, caged(directory, f"{ours / 'local'}={LOCAL}")) as sidecar:
        yield Site(
            "self",
            sidecar,
            directory,
            [None],
            [MARK, "site-packages"],
            [ours / "local"],
            Sentinels([]),
            sidecar.socket_path,
            partial(ask, sidecar.socket_path),
            further_checks=[lambda: _leaked(ours / "local")],
        )


def _task(directory: Path, root: Path, workspace: Path, identity: Identity, mode: str | None) -> dict[str, Any]:
    """The plan of a task, its root filled. The root is that of its mounts, as an engine makes it."""
    _fill(root / LOCAL.lstrip("/"), is_workspace=False)
    for name in ("data", "run/brokervol", "etc", "proc"):
        (root / name).mkdir(parents=True)
    binds = [[str(directory / "root" / "sidecar"), "/run/brokervol", "ro"]]
    binds += [[str(workspace), WORKSPACE, mode]] if mode else []
    return {"root": str(root), "binds": binds, "identity": asdict(identity), "is_pivoted": True}


def _fill(place: Path, *, is_workspace: bool) -> None:
    """What is attacked, open to all."""
    for name in ("still", "race", "deep/a/b", "tree/x/y", "cover"):
        (place / name).mkdir(parents=True)
    for name in (
        "still/in",
        "race/in",
        "race/f",
        "deep/a/b/f",
        "tree/x/y/f",
        "tree/x/f",
        "kind",
        "kind-out",
        "cover/in",
    ):
        (place / name).write_text("inside")
    for name in ("race.link", "deep/a.link", "kind.other"):
        (place / name).symlink_to("still")
    if is_workspace:
        (place / "to-outside").symlink_to("../outside")
        (place / "to-own").symlink_to(LOCAL)
    _open_to_all(place)


def _guard(place: Path) -> None:
    """A sentinel: on every name that is attacked elsewhere, open to all, so that no permission protects it."""
    for name in FILES:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            path.write_text(MARK)
    _open_to_all(place)


def _open_to_all(place: Path) -> None:
    for path in (place, *place.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o777 if path.is_dir() else 0o666)


def _mounts(pid: int) -> str:
    return Path(f"/proc/{pid}/mountinfo").read_text()


def _leaked(*places: Path) -> Iterator[str]:
    """Files that hold what was to be read by nobody."""
    for place in places:
        for found, _, names in os.walk(place):
            for name in names:
                path = Path(found, name)
                if path.is_file() and not path.is_symlink() and MARK.encode() in path.read_bytes():
                    yield f"{path} holds a sentinel's content"

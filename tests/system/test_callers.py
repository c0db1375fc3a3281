"""Three containers that hold a workspace, each in its way, and one that does not: what each operation is answered.

The tables are printed into the test's output; `python -m system.callers` prints them alone. What was said to be
done was looked for on the disk, in the bucket or in the container, and so was what was refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docker.models.plugins import Plugin

import build
from lab.engine import Engine
from lab.images import USER
from lab.s3 import S3Server
from lab.stage import PLUGIN
from system.callers import GROUP, HOST_ROWS, S3_ROWS, Table, credentials_file, host_site, markdown, s3_site

_OK = ("200", "200", "200")
_NONE = "404 unknown-workspace"
_DENIED = "403 permission-denied"
_READ_ONLY = "403 read-only"

_READING = (*_OK, _NONE)
_BY_ROOT_ONLY = ("200", _DENIED, _DENIED, _NONE)
_WRITING = ("200", "200", _READ_ONLY, _NONE)
_WRITING_BY_ROOT_ONLY = ("200", _DENIED, _READ_ONLY, _NONE)

# Operation -> what each caller gets: root, the user in the group, the user with `:ro`, one without the volume.
Outcomes = dict[str, tuple[str, str, str, str]]

_BOTH: Outcomes = {
    "workspaces": ("200, holds rw", "200, holds rw", "200, holds ro", "200, holds none"),
    "workspace": _READING,
    "list": _READING,
    "stat": _READING,
    "download": _READING,
    "download to a directory of root": _BY_ROOT_ONLY,
    "content GET": _READING,
    "content HEAD": (*_OK, "404"),
    "paths": _READING,
    "catalog": _READING,
    "validate": (*_OK, "200"),
    "upload of root's private local file": _WRITING_BY_ROOT_ONLY,
}
HOST: Outcomes = {
    **_BOTH,
    "list, recursive": ("200", "200", _DENIED, _NONE),
    "download of root's private file": _READING,  # a link: who follows it is held to its permissions
    "content GET, root's private file": _BY_ROOT_ONLY,
    "content HEAD, root's private file": ("200", "403", "403", "404"),
    "content GET, the group's file": ("200", "200", _DENIED, _NONE),
    "content PUT to root's directory": ("201", _DENIED, _READ_ONLY, _NONE),
    "content PUT to the user's directory": ("201", "201", _READ_ONLY, _NONE),
    "content PUT to the group's directory": ("201", "201", _READ_ONLY, _NONE),
    **{
        f"{verb} of {whose} file": _WRITING
        for verb in ("move", "delete")
        for whose in ("the user's", "the group's")
    },
    **{f"upload to {whose} directory": _WRITING for whose in ("the user's", "the group's")},
    "upload to root's directory": _WRITING_BY_ROOT_ONLY,
    "move of root's file": _WRITING_BY_ROOT_ONLY,
    "delete of root's file": _WRITING_BY_ROOT_ONLY,
}
S3: Outcomes = {
    **_BOTH,
    "content PUT": ("201", "201", _READ_ONLY, _NONE),
    "upload": _WRITING,
    "move": _WRITING,
    "delete": _WRITING,
}


@pytest.fixture
def engine(engine: Engine) -> Engine:
    """The shared engine, with a volume of the sidecar."""
    engine.client.volumes.create("broker", driver=PLUGIN, driver_opts={"type": "sidecar"})
    return engine


def _assert_table(table: Table, expected: Outcomes) -> None:
    assert {operation: tuple(cell.outcome for cell in row) for operation, row in table.items()} == expected
    for operation, row in table.items():
        for cell in row:
            assert cell.is_done in (None, cell.outcome.startswith("20")), (operation, cell)


def test_callers_of_a_workspace_of_the_host(engine: Engine, told: Callable[[str], None]) -> None:
    with host_site(engine) as site:
        table = site.table(HOST_ROWS)
        told(markdown("host", table))
        _assert_table(table, HOST)
        owners = {path: (found.stat().st_uid, found.stat().st_gid) for path, found in site.stored().items()}
        for key, user in (("root", 0), ("user", USER)):
            for path in ("users/{}-put", "users/{}-up"):
                assert owners[path.format(key)] == (user, user)
            for path in ("groups/{}-put", "groups/{}-up"):  # the directory hands down its group
                assert owners[path.format(key)] == (user, GROUP)
        assert owners["roots/root-up"] == (0, 0)
    assert [cell.text for cell in table["content GET, the group's file"][:2]] == ["group", "group"]


@pytest.fixture(scope="module")
def profile(
    shared_engine: Engine, seaweedfs: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    plugin: Plugin = shared_engine.client.plugins.get(PLUGIN)  # type: ignore[no-untyped-call]
    build.enable(plugin, credentials_file(Path(tmp_path_factory.mktemp("s3")), seaweedfs))
    yield
    plugin.reload()
    build.enable(plugin, {"BROKERVOL_CREDENTIALS": "/hostfs/etc/brokervol/credentials"})


@pytest.mark.usefixtures("profile")
def test_callers_of_a_bucket(
    engine: Engine,
    seaweedfs: S3Server,
    new_bucket: Callable[[S3Server], str],
    told: Callable[[str], None],
) -> None:
    site = s3_site(engine, seaweedfs, new_bucket(seaweedfs))
    table = site.table(S3_ROWS)
    told(markdown("S3", table))
    _assert_table(table, S3)
    assert [cell.text for cell in table["content GET"][:3]] == ["public"] * 3
    stored = site.stored()
    assert {key for key in stored if key.startswith("new/")} == {
        f"new/{key}"
        for key in ("root-put", "root-up", "root-private", "root-moved", "user-put", "user-up", "user-moved")
    }

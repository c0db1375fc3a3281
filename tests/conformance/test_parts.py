"""Sub-path mounts: who has only a directory of a volume mounted holds that part of the workspace, and no more."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.directories import temporary_directory
from lab.processes import Running
from lab.sidecar import caller_sidecar
from lab.task import Identity, Task
from lab.unix_http import without_request
from lab.world import USER, WS, World, empty, one, world_of
from sidecar.holdings import Holding
from sidecar.records import Records
from storage.catalog import Catalog
from storage.models import ScaleFile

root = pytest.mark.root


@pytest.fixture
def world(served: tuple[Path, Running]) -> Iterator[World]:
    """A workspace with the directories `sub` and, as likely mistakes, `sub2`, `SUB` and `s%b`."""
    with world_of(*served) as world:
        for name in ("sub", "sub2", "SUB", "s%b"):
            (world.data / name).mkdir(mode=0o777)
            (world.data / name).chmod(0o777)
        yield world
    with sqlite3.connect(served[0] / "root/.state/catalog.sqlite", timeout=30) as catalog:
        catalog.execute("DELETE FROM scale_file")
    catalog.close()


def part(world: World, name: str = "sub", mode: str = "rw", identity: Identity | None = None) -> Task:
    """A task with a directory of the workspace at `/data`."""
    return world.task((world.data / name, "/data", mode), identity=identity)


def names(task: Task, query: str = "") -> list[str]:
    return [found["file"] for found in task.get(f"{WS}/files{query}").json["files"]]


def recorded(task: Task, query: str = "") -> list[str]:
    return [record["file_path"] for record in task.get(f"{WS}/catalog{query}").json["files"]]


def done(task: Task, verb: str, **item: Any) -> dict[str, Any]:
    """The record that the answer to a batch of one has."""
    answer = task.post(*one(verb, **item))
    assert answer.status == 200, answer.text
    (result,) = answer.json["results"]
    found: dict[str, Any] = result["file"]
    return found


@root
@pytest.mark.parametrize("identity", [None, USER])
def test_the_part_is_the_workspace_to_its_caller(world: World, identity: Identity | None) -> None:
    (world.data / "sub" / "deep").mkdir()
    (world.data / "sub" / "deep" / "old").write_text("1")
    (world.data / "sub" / "deep").chmod(0o777)
    with part(world, identity=identity) as task, world.holder() as whole:
        assert [(found["name"], found["volume_path"]) for found in task.workspaces()] == [("data", "/data")]
        assert names(task, "?recursive=true") == ["deep/old"]
        assert names(task, "?prefix=deep/") == ["deep/old"]
        record = done(task, "upload", local_path="/tmp/in", file_path="new")
        assert (record["file_path"], record["file_name"]) == ("new", "new")
        assert (world.data / "sub" / "new").read_text() == "x"
        assert recorded(task) == ["new"]
        assert recorded(whole) == ["sub/new"]
        assert done(task, "move", id=record["id"], new_path="deep/moved")["file_path"] == "deep/moved"
        assert done(whole, "move", file_path="sub/deep/moved", new_path="sub/again")["id"] == record["id"]
        assert done(task, "download", uuid=record["uuid"], local_path="/tmp/out")["file_path"] == "again"
        assert os.readlink(task.root / "tmp/out") == "/data/again"
        assert task.post(f"{WS}/paths", {"files": [{"id": record["id"]}]}).json == {"paths": ["/data/again"]}
        assert done(task, "delete", file_path="again")["is_deleted"] is True
        assert recorded(whole, "?is_deleted=true") == ["sub/again"]
        assert sorted(os.listdir(world.data / "sub")) == ["deep"]


@root
def test_the_bytes_of_a_part_are_got_and_put_by_its_paths(world: World) -> None:
    (world.data / "f").write_text("outside")
    with part(world) as task, world.holder() as whole:
        assert task.request("PUT", f"{WS}/content/f", "inside").status in (200, 201)
        assert (world.data / "sub" / "f").read_text() == "inside"
        assert task.get(f"{WS}/content/f").text == "inside"
        assert whole.get(f"{WS}/content/sub/f").text == "inside"
        assert task.get(f"{WS}/content/sub/f").status == 404
        assert recorded(whole) == ["sub/f"]
    assert (world.data / "f").read_text() == "outside"


@root
def test_what_is_outside_the_part_is_as_if_it_were_not(world: World) -> None:
    """By path, id and uuid, with every operation: the very answer, but for the name, that what never was gets."""
    with world.holder() as whole, part(world) as task:
        for path in ("outside", "sub2/outside", "SUB/outside", "s%b/outside", "sub/inside"):
            done(whole, "upload", local_path="/tmp/in", file_path=path)
        records = {found["file_path"]: found for found in whole.get(f"{WS}/catalog").json["files"]}
        never = {"id": 10**9, "uuid": "00000000-0000-4000-8000-000000000000"}
        for path in ("outside", "sub2/outside", "SUB/outside", "s%b/outside"):
            for kind in ("id", "uuid"):
                for verb, rest in (
                    ("download", {"local_path": "/tmp/out"}),
                    ("move", {"new_path": "mine"}),
                    ("delete", {}),
                    ("paths", {}),
                ):
                    known, unknown = f"{kind} {records[path][kind]}", f"{kind} {never[kind]}"
                    answers = [
                        task.post(*one(verb, **{kind: found}, **rest))
                        for found in (records[path][kind], never[kind])
                    ]
                    assert answers[0].status == 404
                    assert without_request(answers[0].text).replace(known, unknown) == without_request(
                        answers[1].text
                    )
            for named in (path, f"sub/{path}", f"../{path}", f"{world.data}/{path}"):
                answer = task.post(*one("download", file_path=named, local_path="/tmp/out"))
                assert answer.status in (400, 404), (named, answer.text)
            assert recorded(task, f"?file_path={path.replace('%', '%25')}") == []
        assert recorded(task) == ["inside"]
        assert names(task, "?recursive=true") == ["inside"]
        for prefix in ("sub", "../", "s"):
            assert task.get(f"{WS}/files?recursive=true&prefix={prefix}").text.count("outside") == 0
    assert (world.data / "sub2" / "outside").exists()


@root
def test_pages_of_the_catalog_are_full_and_have_nothing_of_others(world: World) -> None:
    with world.holder() as whole, part(world) as task:
        for number in range(9):
            for directory in ("sub", "sub2", "SUB"):
                path = f"{directory}/{number}"
                done(whole, "upload", local_path="/tmp/in", file_path=path)
        pages: list[list[str]] = []
        cursor: Any = ""
        while cursor is not None:
            found = task.get(f"{WS}/catalog?limit=3&cursor={cursor}").json
            pages.append([record["file_path"] for record in found["files"]])
            cursor = found["next_cursor"]
        assert [len(page) for page in pages] == [3, 3, 3, 0]
        seen = [path for page in pages for path in page]
        assert seen == [str(number) for number in range(9)]
        lines = task.get(f"{WS}/catalog", Accept="application/x-ndjson").lines
        assert [record["file_path"] for record in lines] == seen
        listed = task.get(f"{WS}/files?limit=5").json
        rest = task.get(f"{WS}/files?limit=5&cursor={listed['next_cursor']}").json
        assert [file["file"] for file in listed["files"] + rest["files"]] == seen


@root
def test_a_link_out_of_the_part_leads_nowhere(world: World) -> None:
    (world.data / "secret").write_text("sentinel")
    for target in ("../secret", "/data/../secret", str(world.data / "secret"), "../sub2"):
        (world.data / "sub" / "link").symlink_to(target)
        with part(world) as task:
            for verb, item in (
                ("download", {"file_path": "link", "local_path": "/tmp/out"}),
                ("download", {"file_path": "link/f", "local_path": "/tmp/out"}),
                ("upload", {"local_path": "/tmp/in", "file_path": "link/planted"}),
            ):
                answer = task.post(*one(verb, **item))
                assert answer.status in (400, 404), (target, answer.text)
        (world.data / "sub" / "link").unlink()
    assert os.listdir(world.data / "sub2") == []


@root
def test_of_several_mounts_the_widest_counts_and_then_one_that_can_be_written(world: World) -> None:
    (world.data / "sub" / "deep").mkdir()
    mounts = {"whole": world.data, "part": world.data / "sub", "deep": world.data / "sub/deep"}
    for given, expected in (
        ([("part", "rw"), ("whole", "ro")], ("/whole-ro", True)),
        ([("deep", "rw"), ("part", "rw"), ("whole", "rw")], ("/whole-rw", False)),
        ([("deep", "rw"), ("part", "ro")], ("/part-ro", True)),
        ([("part", "ro"), ("part", "rw")], ("/part-rw", False)),
        ([("deep", "ro")], ("/deep-ro", True)),
    ):
        binds = [(mounts[name], f"/{name}-{mode}", mode) for name, mode in given]
        with world.task(*binds) as task:
            (found,) = task.workspaces()
            assert (found["volume_path"], found["read_only"]) == expected, given


@root
def test_a_part_that_is_read_only_is(world: World) -> None:
    (world.data / "sub" / "f").write_text("1")
    with part(world, mode="ro") as task:
        for verb, item in (
            ("upload", {"local_path": "/tmp/in", "file_path": "g"}),
            ("move", {"file_path": "f", "new_path": "g"}),
            ("delete", {"file_path": "f"}),
            ("delete", {"file_path": "gone"}),
        ):
            answer = task.post(*one(verb, **item))
            assert (answer.status, answer.json["code"]) == (403, "read-only")
        assert names(task) == ["f"]


@root
def test_a_part_follows_its_directory_and_ends_with_it(world: World) -> None:
    with world.holder() as whole, part(world) as task:
        done(task, "upload", local_path="/tmp/in", file_path="f")
        (world.data / "sub").rename(world.data / "renamed")
        done(task, "upload", local_path="/tmp/in", file_path="g")
        assert recorded(whole) == ["sub/f", "renamed/g"]
        assert recorded(task) == ["g"], "what is recorded at the old path is no more below the part"
        outside = world.directory / "moved-out"
        (world.data / "renamed").rename(outside)
        assert task.workspaces() == []
        outside.rename(world.data / "renamed")
        assert names(task) == ["f", "g"]
        empty(world.data / "renamed")
        (world.data / "renamed").rmdir()
        (world.data / "renamed").mkdir()
        (world.data / "renamed" / "f").write_text("of another directory of that name")
        assert task.workspaces() == []
        assert task.get(f"{WS}/files").json["code"] == "unknown-workspace"


@root
def test_a_file_that_is_mounted_is_no_part(world: World) -> None:
    (world.data / "f").write_text("x")
    (world.data / "sub" / "g").write_text("x")
    with part(world, "sub") as task:
        for source in ("f", "sub/g"):
            (task.root / "tmp" / "file").touch()
            task.mount_file(world.data / source, "/tmp/file")
        assert [found["volume_path"] for found in task.workspaces()] == ["/data"]
    with world.task() as task:
        (task.root / "tmp" / "file").touch()
        task.mount_file(world.data / "f", "/tmp/file")
        assert task.workspaces() == []


@root
def test_a_part_that_the_user_cannot_reach_is_not_read(world: World) -> None:
    with world.task((world.data / "sub", "/closed/data", "rw"), identity=USER) as task, world.holder() as whole:
        done(whole, "upload", local_path="/tmp/in", file_path="sub/f")
        (task.root / "closed").chmod(0o700)
        for path in ("files", "catalog"):
            assert task.get(f"{WS}/{path}").json["code"] == "permission-denied"


@root
def test_of_volumes_in_each_other_a_mount_counts_for_the_nearest_only() -> None:
    """Who was given the inner volume is not told what the outer one's catalog says of its files."""
    with temporary_directory() as directory:
        outer, inner = directory / "data", directory / "data" / "sub" / "inner"
        (inner / "deep").mkdir(parents=True)
        with caller_sidecar(directory, {"data": outer, "inner": inner}) as sidecar:
            world = World(directory, outer, directory / "root/sidecar", sidecar)
            for source, held in (
                (outer, ["data"]),
                (outer / "sub", ["data"]),
                (inner, ["inner"]),
                (inner / "deep", ["inner"]),
            ):
                with world.task((source, "/data", "rw")) as task:
                    assert [found["name"] for found in task.workspaces()] == held
            with world.task((outer, "/data", "rw"), (inner, "/inner", "ro")) as task:
                both = [(found["name"], found["volume_path"], found["read_only"]) for found in task.workspaces()]
                assert both == [("data", "/data", False), ("inner", "/inner", True)]
                done(task, "upload", local_path="/tmp/in", file_path="sub/inner/f")
            with world.task((inner, "/data", "rw")) as task:
                assert task.get("/v1/workspaces/inner/files").json["files"] == [{"file": "f", "size": 1}]
                assert task.get("/v1/workspaces/inner/catalog").json["files"] == []
                assert task.get(f"{WS}/catalog").status == 404


def test_records_are_found_below_the_part_on_every_database(records: Catalog) -> None:
    holding = Holding("w", {}, "/data", is_read_only=False, is_by_mount=True, part="a_%/ü")
    mine = Records(records, holding)
    others = ["f", "a_%", "a_%/ü", "a_%/üb/f", "a_%/Ü/f", "A_%/ü/f", "abc/ü/f", "a_%/u/f"]
    records.save_all([ScaleFile(file_path=path, workspace="w") for path in others])
    records.save_all([ScaleFile(file_path="a_%/ü/f", workspace="other")])
    file = mine.new("x/f")
    file.save()
    found = records.find_path("w", "a_%/ü/x/f")
    assert found is not None
    assert (found.id, found.uuid, found.file_name) == (file.id, file.uuid, "f")
    assert mine.at_path("x/f") == mine.with_id(found.id or 0) == mine.with_uuid(found.uuid)
    page = mine.page(file_path=None, is_deleted=None, after_id=0, limit=1)
    assert [seen.file_path for seen in page] == ["x/f"]
    assert mine.page(file_path=None, is_deleted=None, after_id=found.id or 0, limit=9) == []
    for other in records.page("w"):
        if other.id != found.id:
            assert mine.with_id(other.id or 0) is None
            assert mine.with_uuid(other.uuid) is None
    (seen,) = page
    seen.set_deleted()
    seen.save()
    assert mine.at_path("x/f") is None
    assert [json.dumps(record.file_path) for record in records.page("w", is_deleted=True)] == ['"a_%/\\u00fc/x/f"']

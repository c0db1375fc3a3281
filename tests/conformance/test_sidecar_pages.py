"""Pages of listings and of the catalog, while files come, go and change their names: host and bucket."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.s3 import Place, S3Server
from lab.sidecar import self_sidecar
from lab.task import Answer, ask

NAMES = [f"f{number:02}" for number in range(0, 40, 2)]


class Site:
    """A running sidecar with the workspaces `data` and `other`, on the host or in buckets."""

    def __init__(self, socket_path: str, directory: Path) -> None:
        self._socket_path = socket_path
        self.directory = directory
        (directory / "in").write_text("hello")

    def get(self, path: str, ws: str = "data") -> Answer:
        return ask(self._socket_path, "GET", f"/v1/workspaces/{ws}/{path}")

    def batch(self, verb: str, *items: dict[str, Any], ws: str = "data") -> None:
        answer = ask(self._socket_path, "POST", f"/v1/workspaces/{ws}/{verb}", {"files": items})
        assert answer.status == 200, answer.text

    def add(self, *names: str, ws: str = "data") -> None:
        self.batch("upload", *({"file_path": name, "local_path": f"{self.directory}/in"} for name in names), ws=ws)

    def remove(self, *names: str) -> None:
        self.batch("delete", *({"file_path": name} for name in names))

    def rename(self, old: str, new: str) -> None:
        self.batch("move", {"file_path": old, "new_path": new})


@pytest.fixture(params=["host", "s3"])
def site(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[Site]:
    workspaces: dict[str, Any] = {}
    for name in ("data", "other"):
        if request.param == "host":
            (short_dir / name).mkdir()
            broker: dict[str, Any] = {"type": "host", "host_path": str(short_dir / name)}
        else:
            server: S3Server = request.getfixturevalue("seaweedfs")
            place: Place = request.getfixturevalue("new_place")(server)
            broker = {
                "type": "s3",
                "endpoint_url": server.endpoint_url,
                "region_name": server.region_name,
                "bucket_name": place.bucket,
                "credentials": server.credentials(),
            }
        workspaces[name] = {"broker": broker}
    with self_sidecar(short_dir, workspaces) as process:
        yield Site(process.socket_path, short_dir)


def names(page: dict[str, Any]) -> list[str]:
    return [found.get("file", found.get("file_path")) for found in page["files"]]


def test_pages_of_a_listing_stay_right_while_files_change(site: Site) -> None:
    site.add(*NAMES)
    seen: list[str] = []

    def page() -> str:
        cursor = f"&cursor={cursors[-1]}" if cursors else ""
        found = site.get(f"files?limit=3{cursor}").json
        seen.extend(names(found))
        return str(found["next_cursor"] or "")

    cursors: list[str] = []
    cursors.append(page())
    assert seen == ["f00", "f02", "f04"]
    site.remove("f04")  # the one that the cursor names
    cursors.append(page())
    assert seen[3:] == ["f06", "f08", "f10"]
    site.rename("f10", "f01")  # that one again, to before it
    cursors.append(page())
    assert seen[6:] == ["f12", "f14", "f16"]
    site.rename("f16", "f99")  # and again, to after it
    site.add("f03", "f17")
    site.remove("f00", "f18")
    cursors.append(page())
    assert seen[9:] == ["f17", "f20", "f22"]
    while cursors[-1]:
        cursors.append(page())
    assert seen[12:] == ["f24", "f26", "f28", "f30", "f32", "f34", "f36", "f38", "f99"]


def test_a_cursor_is_good_after_every_file_is_gone(site: Site) -> None:
    site.add(*NAMES[:4])
    cursor = site.get("files?limit=2").json["next_cursor"]
    site.remove(*NAMES[:4])
    assert site.get(f"files?limit=2&cursor={cursor}").json == {"files": [], "next_cursor": None}
    site.add("f05")
    assert names(site.get(f"files?limit=2&cursor={cursor}").json) == ["f05"]


def test_pages_of_the_catalog_stay_right_while_records_change(site: Site) -> None:
    site.add(*NAMES[:6])
    first = site.get("catalog?limit=2").json
    assert names(first) == ["f00", "f02"]
    site.remove("f02")  # the one that the cursor names
    site.rename("f04", "a-before-all")
    site.add("f01")
    second = site.get(f"catalog?limit=2&is_deleted=false&cursor={first['next_cursor']}").json
    assert names(second) == ["a-before-all", "f06"]
    site.remove("f06", "f08")
    rest = site.get(f"catalog?limit=10&is_deleted=false&cursor={second['next_cursor']}").json
    assert (names(rest), rest["next_cursor"]) == (["f10", "f01"], None)


def test_a_cursor_opens_nothing_of_another_workspace_or_prefix(site: Site) -> None:
    site.add("a/1", "a/2", "b/1", "b/2")
    site.add("a/x", "a/0", ws="other")
    listing = site.get("files?prefix=a/&limit=1").json["next_cursor"]
    records = site.get("catalog?limit=1").json["next_cursor"]
    assert names(site.get(f"files?prefix=a/&cursor={listing}", ws="other").json) == ["a/x"]
    assert names(site.get(f"files?prefix=b/&cursor={listing}").json) == ["b/1", "b/2"]
    beyond = site.get("files?prefix=b/&limit=1").json["next_cursor"]
    assert names(site.get(f"files?prefix=a/&cursor={beyond}").json) == []
    assert {"a/x", "a/0"} >= {*names(site.get(f"catalog?cursor={records}", ws="other").json)}
    for path in (f"files?cursor={records}", f"catalog?cursor={listing}"):
        answer = site.get(path)
        assert (answer.status, answer.json["code"]) == (400, "invalid-request")
        assert "cursor" in answer.json["detail"]


def test_a_forged_cursor_is_a_place_in_the_listing_and_nothing_else(site: Site) -> None:
    site.add("a/1", "zz")
    for name in ("../../etc", "/etc/passwd", "a\0b", "x" * 5000, "a/../../b", "z/"):
        cursor = base64.urlsafe_b64encode(json.dumps(name).encode()).decode()
        for recursive in ("true", "false"):
            answer = site.get(f"files?recursive={recursive}&cursor={cursor}")
            assert answer.status in (200, 400)
            if answer.status == 200:
                assert {*names(answer.json)} <= {"a/1", "zz"}

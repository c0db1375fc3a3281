"""Every hostile path against every operation, in both views: refused, and nothing outside is touched or told.

The racing part, where paths become hostile while they are worked on, is `tests/soak`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest

from fuzz.corpus import LOCAL, WS
from fuzz.site import Site, caller_site, self_site
from lab.directories import temporary_directory
from lab.hostile import ESCAPING_LINKS, REFUSED_PATHS
from lab.task import Answer
from storage.testing.hostile import REFUSED_PREFIXES

pytestmark = pytest.mark.root

# Through each link that leads out of the workspace, to what is there or could be made there.
_THROUGH_LINKS = [
    f"{link}/{name}" for link, _ in ESCAPING_LINKS for name in ("secret", "outside/secret", "etc/passwd", "new")
]
_LINKS = [link for link, _ in ESCAPING_LINKS]
_HOSTILE = [*REFUSED_PATHS, *_THROUGH_LINKS]


@pytest.fixture(scope="module", params=["self", "caller"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    make = self_site if request.param == "self" else caller_site
    with temporary_directory() as directory, make(directory) as made:
        yield made
        assert made.faults_in_log() == []


@pytest.fixture(autouse=True)
def _untouched(site: Site) -> Iterator[None]:
    """What lies outside, and every name in the workspace and among the local files, stays as it is."""
    before = _names(site)
    yield
    assert site.sentinels.touched() == []
    assert _names(site) == before


def _names(site: Site) -> list[str]:
    places = [site.directory / "data", *site.local_directories]
    return sorted(str(path) for place in places for path in place.rglob("*"))


def _batch(site: Site, verb: str, **item: str) -> Answer:
    return site.ask("POST", f"{WS}/{verb}", {"files": [item]})


def _content(site: Site, method: str, path: str) -> Answer:
    body = "planted" if method == "PUT" else None
    return site.ask(method, f"{WS}/content/{quote(path, safe='', errors='surrogatepass')}", body)


_OPERATIONS: dict[str, Callable[[Site, str], Answer]] = {
    "download": lambda site, path: _batch(site, "download", file_path=path, local_path=f"{LOCAL}/new"),
    "upload": lambda site, path: _batch(site, "upload", file_path=path, local_path=f"{LOCAL}/in"),
    "move": lambda site, path: _batch(site, "move", file_path=path, new_path="new"),
    "move to": lambda site, path: _batch(site, "move", file_path="keep", new_path=path),
    "delete": lambda site, path: _batch(site, "delete", file_path=path),
    "content GET": lambda site, path: _content(site, "GET", path),
    "content HEAD": lambda site, path: _content(site, "HEAD", path),
    "content PUT": lambda site, path: _content(site, "PUT", path),
}


# What replaces or removes a name does so with a link's own, and never follows it.
_CHANGING = ("upload", "move to", "delete", "content PUT")


@pytest.mark.parametrize("operation", _OPERATIONS)
def test_hostile_paths_are_refused(site: Site, operation: str) -> None:
    for path in _HOSTILE if operation in _CHANGING else [*_HOSTILE, *_LINKS]:
        answer = _OPERATIONS[operation](site, path)
        assert answer.status in (400, 404, 409), (path, answer.text)
        assert "secret that nobody" not in answer.text, path
        if operation != "content HEAD":
            assert answer.json["code"] in ("invalid-path", "invalid-request", "missing-file"), (path, answer.text)


@pytest.mark.parametrize("operation", _CHANGING)
def test_a_link_itself_is_replaced_or_removed(site: Site, operation: str) -> None:
    data = site.directory / "data"
    for path in _LINKS:
        target = os.readlink(data / path)
        assert _OPERATIONS[operation](site, path).status == 200
        assert not (data / path).is_symlink()
        assert (data / path).is_file() == (operation != "delete")
        (data / path).unlink(missing_ok=True)
        (data / path).symlink_to(target)
        (data / "keep").write_bytes(b"kept")


@pytest.mark.parametrize("path", REFUSED_PATHS)
def test_paths_of_hostile_names_are_not_made(site: Site, path: str) -> None:
    answer = _batch(site, "paths", file_path=path)
    assert (answer.status, answer.json["code"]) in ((400, "invalid-path"), (400, "invalid-request")), answer.text


def test_hostile_prefixes_list_nothing(site: Site) -> None:
    for prefix in [*REFUSED_PREFIXES, *(f"{path}/" for path in (*_THROUGH_LINKS, *_LINKS))]:
        for recursive in ("true", "false"):
            answer = site.ask("GET", f"{WS}/files?recursive={recursive}&prefix={quote(prefix, safe='')}")
            assert answer.status in (200, 400), answer.text
            assert answer.status == 400 or answer.json["files"] == [], (prefix, answer.text)


def test_a_listing_goes_through_no_link(site: Site) -> None:
    listed = site.ask("GET", f"{WS}/files?recursive=true").json["files"]
    assert [found["file"] for found in listed] == ["a/keep", "keep"]


def test_the_catalog_has_no_hostile_names(site: Site) -> None:
    for path in _HOSTILE:
        query = quote(path, safe="", errors="surrogatepass")
        answer = site.ask("GET", f"{WS}/catalog?file_path={query}")
        assert answer.status == 400 or not path or answer.json["files"] == [], (path, answer.text)
    recorded = {found["file_path"] for found in site.ask("GET", f"{WS}/catalog").json["files"]}
    assert recorded.isdisjoint(_HOSTILE)

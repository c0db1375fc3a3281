"""The page of the status, from documents: nothing in it is markup, and it says what does not work."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pictures import OF_HOST, OF_SITE
from sidecar import page
from sidecar.page import duration

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SIDECAR = {"uptime_s": 61, "connections": 3, "running": 2, "waiting": 1, "refused": {"head": 4, "body": 5}}


def volume(**fields: object) -> dict[str, Any]:
    usual = {"name": "data", "type": "host", "source": "/srv", "read_only": False, "health": None, "reason": ""}
    return {**usual, "references": [{"id": "a", "count": 2}], "is_mounted": True, **fields}


def server(**fields: object) -> dict[str, Any]:
    since = (NOW - timedelta(hours=3, minutes=12)).isoformat()
    usual = {"server": "nas", "state": "healthy", "since": since, "reason": "", "is_open": False}
    return {**usual, "round_trip_ms": 0.25, "retransmits": 3, **fields}


def document(
    *volumes: dict[str, Any], servers: tuple[dict[str, Any], ...] = (), **fields: object
) -> dict[str, Any]:
    usual = {"version": "1.0", "uptime_s": 5, "root": "/root", "problems": [], "sidecar": SIDECAR}
    return {**usual, "volumes": [*volumes], "nfs_servers": [*servers], **fields}


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.all: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.all.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def rows(text: str) -> list[list[str]]:
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    return [[html.unescape(cell) for cell in row] for row in found]


@given(st.text())
def test_every_text_is_escaped(text: str) -> None:
    """Whatever names, sources and reasons are, the page has the same elements."""
    problem = {"subject": text, "health": "stale", "reason": text}
    odd = volume(name=text, type=text, source=text, health=text)
    dead = server(server=text, state=text, reason=text)
    made = page.page(document(odd, servers=(dead,), version=text, root=text, problems=[problem]), NOW)
    tags = _Tags(made)
    plain = _Tags(page.page(document(volume(), servers=(server(),), problems=[problem]), NOW))
    assert (tags.open, tags.all) == ([], plain.all)
    assert "\0" not in made


def test_each_volume_and_server_has_a_row() -> None:
    made = page.page(
        document(
            volume(),
            volume(name="far", type="nfs", source="nas:/x", health="stale", read_only=True, references=[]),
            servers=(server(), server(server="dead", state="unreachable", is_open=True, round_trip_ms=None)),
            problems=[{"subject": "volume far", "health": "stale", "reason": "it is another"}],
        ),
        NOW,
    )
    found = rows(made)
    assert ["data", "host", "/srv", "read-write", "2", "-"] in found
    assert ["far", "nfs", "nas:/x", "read-only", "0", "stale"] in found
    assert ["nas", "healthy", "3 h 12 min", "0.2 ms", "3", "tried", "-"] in found
    assert ["dead", "unreachable", "3 h 12 min", "-", "3", "refused", "-"] in found
    assert ["Refused since its start", "9"] in found
    assert "<li>volume far is stale: it is another</li>" in made
    assert "<title>brokervol: 1 not well</title>" in made


def test_a_driver_that_is_silent_is_told() -> None:
    made = page.page({"error": "the driver does not answer: <x>", "sidecar": SIDECAR}, NOW)
    assert "<li>the driver does not answer: &lt;x&gt;</li>" in made
    assert ["Requests waiting", "1"] in rows(made)


def test_of_ten_thousand_volumes_the_first_are_shown_and_the_others_counted() -> None:
    made = page.page(document(*(volume(name=f"v{number}") for number in range(10_000))), NOW)
    assert "9000 more are not shown here" in made
    assert len(made) < 300_000


def test_the_digest_is_of_the_style_in_the_page() -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", page.page(document(), NOW), re.DOTALL)
    assert f"sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}" == page.STYLE_HASH
    assert "script" not in page.page(document(), NOW)


def test_durations_are_for_people() -> None:
    found = [duration(seconds) for seconds in (-1, 0, 59, 60, 3599, 3600, 86_399, 86_400 * 4 + 7200)]
    assert found == ["0 s", "0 s", "59 s", "1 min", "59 min", "1 h 0 min", "23 h 59 min", "4 d 2 h"]


def test_each_picture_is_there_and_shown_in_the_docs() -> None:
    pages = "".join(path.read_text() for path in (*ROOT.glob("docs/*.md"), ROOT / "README.md"))
    for name in (*OF_HOST, *OF_SITE):
        assert (ROOT / "docs/pictures" / name).exists(), "draw it: make pictures"
        assert f"pictures/{name})" in pages

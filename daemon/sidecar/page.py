"""The page of the status: HTML that is whole without script, picture or a second request. Reads nothing itself."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

_REFRESH_S = 10
_MOST_ROWS = 1000
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_CLASSES = {"number", "text", "refused", "healthy", "slow", "unknown", "unreachable", "stale", "unusable"}

_STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --soft: #5b6675; --line: #d9dee5; --back: #fff; --card: #f5f7fa;
  --good: #14743c; --warn: #8a5a00; --bad: #b3261e }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ee; --soft: #9aa5b4; --line: #313a46; --back: #14181e;
  --card: #1c222a; --good: #6fcf97; --warn: #f0c05a; --bad: #ff8a80 } }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.5rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
h1 { margin: 0; font-size: 1.5rem }
p { margin: .25rem 0 1rem; color: var(--soft) }
table { width: 100%; margin: 1.5rem 0; border-collapse: collapse }
caption { padding: .25rem 0; font-weight: 600; text-align: left }
th, td { padding: .4rem 1rem .4rem 0; border-bottom: 1px solid var(--line); font-weight: normal; text-align: left;
  vertical-align: top; white-space: nowrap }
thead th { color: var(--soft); font-size: .8rem; letter-spacing: .04em; text-transform: uppercase }
tbody th { font-weight: 600 }
tbody th, .text { min-width: 9rem; overflow-wrap: anywhere; white-space: normal }
table:last-of-type { width: auto; min-width: 20rem }
.number { text-align: right; font-variant-numeric: tabular-nums }
.problems { margin: 1rem 0; padding: .75rem 1rem .75rem 2rem; border-left: 4px solid var(--bad);
  background: var(--card) }
.healthy { color: var(--good) } .slow, .unknown { color: var(--warn) }
.unreachable, .stale, .unusable, .refused { color: var(--bad); font-weight: 600 }
footer { color: var(--soft) } a { color: inherit }
"""

STYLE_HASH = "sha256-" + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode("ascii")
"""By which a browser is told that this style is ours."""

Document = Mapping[str, Any]
Cells = Sequence[tuple[str, str]]
"""Of a row: text and class."""


def page(document: Document, now: datetime) -> str:
    """The page of a status (see docs/operations.md), or of its `error`, and of its `sidecar`."""
    parts = [
        *(_silence(document) if "error" in document else _driver(document, now)),
        *_sidecar(document["sidecar"]),
    ]
    problems = [
        f"{problem['subject']} is {problem['health']}: {problem['reason']}" for problem in _problems(document)
    ]
    title = f"brokervol: {len(problems)} not well" if problems else "brokervol"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="{_REFRESH_S}">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{"".join(parts)}</main>
<footer>Seen at {now:%Y-%m-%d %H:%M:%S} UTC, again every {_REFRESH_S} s. The same as <a href="/status">JSON</a>; <a
href="/metrics">metrics</a> for Prometheus. Who has a volume: <code>brokervol status</code>.</footer>
</body>
</html>
"""


def _problems(document: Document) -> Sequence[Mapping[str, str]]:
    found: Sequence[Mapping[str, str]] = document.get("problems", ())
    return found


def _silence(document: Document) -> Iterator[str]:
    yield "<h1>brokervol</h1>\n"
    yield _list([str(document["error"])])


def _driver(document: Document, now: datetime) -> Iterator[str]:
    volumes, servers = document["volumes"], document["nfs_servers"]
    mounted = sum(volume["is_mounted"] for volume in volumes)
    yield f"<h1>brokervol {_text(document['version'])}</h1>\n"
    up, root = duration(document["uptime_s"]), _text(document["root"])
    yield f"<p>{len(volumes)} volumes, {mounted} mounted. The driver is up {up}, below {root}.</p>\n"
    yield _list(f"{told['subject']} is {told['health']}: {told['reason']}" for told in _problems(document))
    head: Cells = (
        ("Name", ""),
        ("Type", ""),
        ("Source", ""),
        ("Access", ""),
        ("Mounts", "number"),
        ("Health", ""),
    )
    yield _table("Volumes", head, (_volume(volume) for volume in volumes[:_MOST_ROWS]))
    if len(volumes) > _MOST_ROWS:
        yield f"<p>{len(volumes) - _MOST_ROWS} more are not shown here.</p>\n"
    if servers:
        columns = ("Server", "State", "For", "Round trip", "Resent", "Mounts are", "Reason")
        head = tuple((name, "number" if name in ("Round trip", "Resent") else "") for name in columns)
        yield _table("NFS servers", head, (_server(server, now) for server in servers))


def _volume(volume: Document) -> Cells:
    mounts = sum(reference["count"] for reference in volume["references"])
    health = volume["health"] or ""
    return (
        (volume["name"], ""),
        (volume["type"], ""),
        (volume["source"] or "-", "text"),
        ("read-only" if volume["read_only"] else "read-write", ""),
        (str(mounts), "number"),
        (health or "-", health),
    )


def _server(server: Document, now: datetime) -> Cells:
    trip, resent, state = server["round_trip_ms"], server["retransmits"], server["state"]
    refused = "refused" if server["is_open"] else ""
    return (
        (server["server"], ""),
        (state, state),
        (duration((now - datetime.fromisoformat(server["since"])).total_seconds()), ""),
        ("-" if trip is None else f"{trip:.1f} ms", "number"),
        ("-" if resent is None else str(resent), "number"),
        (refused or "tried", refused),
        (server["reason"] or "-", "text"),
    )


def _sidecar(told: Document) -> Iterator[str]:
    rows = [
        ("Up", duration(told["uptime_s"])),
        ("Connections", str(told["connections"])),
        ("Requests worked on", str(told["running"])),
        ("Requests waiting", str(told["waiting"])),
        ("Refused since its start", str(sum(told["refused"].values()))),
    ]
    cells = (((name, ""), (value, "number")) for name, value in rows)
    yield _table("Sidecar", (("What", ""), ("Now", "number")), cells)


def _list(sentences: Iterable[str]) -> str:
    items = "".join(f"<li>{_text(sentence)}</li>" for sentence in sentences)
    return f'<ul class="problems">{items}</ul>\n' if items else ""


def _table(caption: str, head: Cells, rows: Iterable[Cells]) -> str:
    titles = "".join(f'<th scope="col"{_class(kind)}>{_text(title)}</th>' for title, kind in head)
    body = "".join(f"<tr>{_row(row)}</tr>\n" for row in rows)
    return (
        f"<table>\n<caption>{_text(caption)}</caption>\n<thead><tr>{titles}</tr></thead>\n"
        f"<tbody>\n{body}</tbody>\n</table>\n"
    )


def _row(row: Cells) -> str:
    (name, _), *others = row
    cells = "".join(f"<td{_class(kind)}>{_text(text)}</td>" for text, kind in others)
    return f'<th scope="row">{_text(name)}</th>{cells}'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind in _CLASSES else ""


def _text(text: str) -> str:
    """Text as it may stand anywhere in the page: names are strangers', and could have control characters."""
    return escape(_CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text))


def duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 12 min, 4 d 2 h."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{rest} s"

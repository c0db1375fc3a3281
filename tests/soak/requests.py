"""The requests of the soak: every operation, on names that are attacked and on some that are not."""

from __future__ import annotations

import json
from random import Random
from urllib.parse import quote

from fuzz.corpus import WS, post, request
from fuzz.play import Play
from soak.places import LOCAL, RACED, SOURCES, STILL, TARGETS

_OPERATIONS = [
    *("upload", "upload", "download", "download", "move", "move", "delete", "paths", "list", "list all", "stat"),
    *("content GET", "content GET", "content HEAD", "content PUT", "content PUT", "catalog", "workspaces"),
]


def make(seed: int, number: int) -> Play:
    """The play of this number: one to four requests, and what each asks."""
    rng = Random(f"soak {seed}/{number}")  # noqa: S311
    operations = [rng.choice(_OPERATIONS) for _ in range(rng.choice((1, 1, 2, 4)))]
    sent = [_request(rng, operation) for operation in operations]
    methods = tuple(one.partition(b" ")[0].decode() for one in sent)
    return Play(number, (b"".join(sent),), methods=methods, labels=tuple(operations))


def _file(rng: Random) -> str:
    return rng.choice(STILL if rng.random() < 0.35 else RACED)


def _local(rng: Random, names: list[str]) -> str:
    return f"{LOCAL}/{rng.choice(names)}"


def _request(rng: Random, operation: str) -> bytes:
    if operation.startswith("content"):
        method = operation.split()[1]
        headers = [("Range", "bytes=0-10")] if method == "GET" and rng.random() < 0.3 else []
        body = json.dumps({"put": rng.random()}).encode() if method == "PUT" else None
        return request(method, f"{WS}/content/{quote(_file(rng))}", body, *headers)
    target = {
        "list": f"{WS}/files?prefix={rng.choice(('race/', 'tree/x/', 'cover/', 'deep/a/', 'still/'))}",
        "list all": f"{WS}/files?recursive=true",
        "stat": f"{WS}/files?prefix={quote(_file(rng))}",
        "catalog": f"{WS}/catalog?limit=5",
        "workspaces": "/v1/workspaces",
    }.get(operation)
    if target is not None:
        return request("GET", target)
    item = {"file_path": _file(rng)}
    if operation == "upload":
        item["local_path"] = _local(rng, SOURCES)
    if operation == "download":
        item["local_path"] = _local(rng, TARGETS)
    if operation == "move":
        item["new_path"] = _file(rng)
    return post(f"{WS}/{operation}", {"files": [item]})

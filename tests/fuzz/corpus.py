"""The requests that fuzzing starts from: valid ones of every route, and those that were once answered wrongly.

Local paths are below `LOCAL` and workspaces have the names of `fuzz.site`, so that these bytes mean the same in
every run.
"""

from __future__ import annotations

import json
from typing import NamedTuple

LOCAL = "/mnt"
WS = "/v1/workspaces/data"
LINES = ("Accept", "application/x-ndjson")


def request(method: str, target: str, body: bytes | None = None, *headers: tuple[str, str]) -> bytes:
    """A well-formed request, with the length of its body."""
    lines = [f"{method} {target} HTTP/1.1", "Host: b", *(f"{name}: {value}" for name, value in headers)]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def post(target: str, document: object, *headers: tuple[str, str]) -> bytes:
    return request("POST", target, json.dumps(document).encode(), ("Content-Type", "application/json"), *headers)


def lines(target: str, *documents: object) -> bytes:
    """NDJSON in and out."""
    body = "".join(json.dumps(document) + "\n" for document in documents).encode()
    return request("POST", target, body, ("Content-Type", "application/x-ndjson"), LINES)


def chunked(method: str, target: str, *chunks: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))
    return request(method, target, None, ("Transfer-Encoding", "chunked")) + body


def _valid() -> list[bytes]:
    upload = {"local_path": f"{LOCAL}/in", "file_path": "a/f0", "media_type": "text/plain"}
    download = {"file_path": "keep", "local_path": f"{LOCAL}/out"}
    files = json.dumps({"files": [download]}).encode()
    return [
        request("GET", "/healthz"),
        request("GET", "/v1/openapi.json"),
        request("GET", "/v1/workspaces"),
        request("GET", WS),
        request("GET", f"{WS}/files"),
        request("GET", f"{WS}/files?recursive=true&prefix=a/&limit=10"),
        request("GET", f"{WS}/files?cursor=ImEi&limit=2"),
        request("GET", f"{WS}/files?recursive=true", None, LINES),
        request("GET", f"{WS}/catalog?file_path=keep&is_deleted=false&limit=3"),
        request("GET", f"{WS}/catalog?limit=2&cursor=MQ==", None, ("Connection", "keep-alive")),
        request("GET", f"{WS}/catalog?limit=20", None, LINES),
        post(f"{WS}/upload", {"files": [upload], "overwrite": True}),
        post(f"{WS}/upload", {"files": [upload, {**upload, "file_path": "f1"}], "on_error": "continue"}, LINES),
        post(f"{WS}/download", {"files": [download]}),
        post(f"{WS}/download", {"files": [{**download, "partial": True}], "overwrite": False}),
        post(f"{WS}/move", {"files": [{"file_path": "f1", "new_path": "b/f1"}]}),
        post(f"{WS}/move", {"files": [{"id": 3, "new_path": "f2"}]}, ("Idempotency-Key", "key-1")),
        post(f"{WS}/delete", {"files": [{"file_path": "f2"}], "update_model": False}),
        post(f"{WS}/delete", {"files": [{"uuid": "3fa85f64-5717-4562-b3fc-2c963f66afa6"}, {"id": 99}]}),
        post(f"{WS}/paths", {"files": [{"file_path": "keep"}, {"file_path": "a/f0"}]}),
        post("/v1/validate", {"broker": {"type": "host", "host_path": "/srv/data"}}),
        post("/v1/validate", {"broker": {"type": "s3", "bucket_name": "imagery", "region_name": "eu-west-1"}}),
        post("/v1/validate", {"broker": {"type": "nfs", "nfs_path": "nas:/imagery"}}),
        chunked("POST", f"{WS}/download", files[:9], files[9:]),
        lines(f"{WS}/upload", upload, {**upload, "file_path": "f3"}),
        lines(f"{WS}/delete", {"file_path": "f3"}, {"file_path": "f4"}),
        lines(f"{WS}/download", download),
        lines(f"{WS}/move", {"file_path": "f5", "new_path": "f6"}),
        lines(f"{WS}/paths", {"file_path": "keep"}),
        request("GET", f"{WS}/content/keep"),
        request("GET", f"{WS}/content/keep", None, ("Range", "bytes=2-7")),
        request("GET", f"{WS}/content/keep", None, ("Range", "bytes=-3"), ("If-Range", '"x"')),
        request("HEAD", f"{WS}/content/keep"),
        request("HEAD", f"{WS}/content/a%2Ff0"),
        request("PUT", f"{WS}/content/c/f7", b"seven", ("Content-Type", "text/plain")),
        request("PUT", f"{WS}/content/f8", b"eight", ("Expect", "100-continue"), ("If-None-Match", "*")),
        chunked("PUT", f"{WS}/content/f9", b"ni", b"ne"),
        request("HEAD", "/healthz"),
        request("OPTIONS", f"{WS}/files"),
    ]


VALID = _valid()


class Regression(NamedTuple):
    """What was once answered wrongly: sent whole, and then `ending` as of `play.Play`."""

    fact: str
    sent: bytes
    ending: str = "whole"


_NEWLINE = {"files": [{"local_path": f"{LOCAL}/in", "file_path": "f0", "media_type": "\n"}]}

# Each is played by each caller in every run.
REGRESSIONS = [
    Regression("a lone surrogate, told in an error: 500", post("/v1/validate", {"broker": "\udcff"})),
    Regression("a lone surrogate for a list: 500", post(f"{WS}/upload", {"files": ["\ud800"]})),
    Regression("a folded line for the first header: 500", b"GET /healthz HTTP/1.1\r\n x: y\r\nHost: b\r\n\r\n"),
    Regression("no IPv6 address: 500", b"GET //[x HTTP/1.1\r\nHost: b\r\n\r\n"),
    Regression("no IP address: 500", b"GET //[x]/ HTTP/1.1\r\nHost: b\r\n\r\n"),
    Regression("a media type that is a newline: 500 of a bucket", post("/v1/workspaces/bucket/upload", _NEWLINE)),
    *(Regression("HEAD and gone: a descriptor left", request("HEAD", f"{WS}/files"), "dropped"),) * 5,
]

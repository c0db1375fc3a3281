"""Requests that are well-formed HTTP and hostile in what they say: paths, queries, JSON and NDJSON bodies."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from urllib.parse import quote

from fuzz.corpus import LOCAL
from storage.testing.hostile import ALIKE_NAMES, REFUSED_PATHS, REFUSED_PREFIXES, WEIRD_NAMES

# Few, so that requests meet on them; and some that are at once directory and file of each other.
_NAMES = [
    *(
        "keep",
        "a",
        "a/b",
        "f0/x",
        "a/keep",
        "roots/f",
        "fifo",
        "to-secret",
        "to-parent/outside/secret",
        "to-etc/passwd",
    ),
    *(f"f{number}" for number in range(12)),
    *(f"a/f{number}" for number in range(6)),
]
_SOURCES = ["in", "in", "empty", "big", "link", "loop", "fifo", "dir", "none", "out"]
_TARGETS = ["out", "out2", "dir/out", "none/out", "dir", ".", "fifo", "loop", "link/out"]
_WORKSPACES = [
    "frozen",
    "gone",
    "bucket",
    "bucket",
    "bucket",
    "other",
    "",
    "..",
    "da ta",
    "data\0",
    "DATA",
    "%",
    "x" * 300,
    "漢",
]
_STRANGE_TEXTS = ["", "\0", "\ud800", "\udcff", "'\"", "${x}", "{0}", "%s%n", "\u2028", "a" * 5000, "-1", "true"]
_TYPES = ["host", "nfs", "s3", "sidecar", "floppy", "", None, 1]
_BROKER_KEYS = [
    "host_path",
    "nfs_path",
    "bucket_name",
    "region_name",
    "credentials",
    "endpoint_url",
    "prefix",
    "x",
]
_RANGES = [
    "bytes=0-",
    "bytes=0-0",
    "bytes=-5",
    "bytes=3-1",
    "bytes=9999-",
    "bytes=0-1,4-5",
    "lines=1-2",
    "bytes=a-b",
]
_KEYS = ["k1", "k2", "k" * 64, "", "a b", "k" * 1000, "clé"]


def structured(rng: Random) -> bytes:
    """One request."""
    return rng.choice(_KINDS)(rng)


def _file_path(rng: Random) -> str:
    if rng.random() < 0.85:
        return rng.choice(_NAMES)
    return rng.choice(rng.choice((REFUSED_PATHS, WEIRD_NAMES, ALIKE_NAMES, _STRANGE_TEXTS)))


def _local_path(rng: Random, names: list[str]) -> str:
    if rng.random() < 0.85:
        return f"{LOCAL}/{rng.choice(names)}"
    return rng.choice(
        (
            "",
            "relative",
            "/",
            "/proc/self/environ",
            "/dev/zero",
            "/sys/kernel/notes",
            f"{LOCAL}/\0",
            f"{LOCAL}/\udcff",
            f"{LOCAL}/../{LOCAL}/out",
            f"{LOCAL}/{'x' * 300}",
            "/" + "y/" * 2100,
        )
    )


def _workspace(rng: Random) -> str:
    name = rng.choice(_WORKSPACES) if rng.random() < 0.15 else "data"
    return f"/v1/workspaces/{quote(name, safe='')}"


def _value(rng: Random, depth: int = 0) -> object:
    """Any JSON value."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.choice((0, 1, -1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**300, 3))
    if kind == 2:
        return rng.choice((0.5, -0.0, 1e308, float("nan"), float("inf")))
    if kind < 6:
        return rng.choice((*_STRANGE_TEXTS, rng.choice(_NAMES), _local_path(rng, _TARGETS)))
    if kind < 8:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {_key(rng): _value(rng, depth + 1) for _ in range(rng.randrange(4))}


def _key(rng: Random) -> str:
    return rng.choice(
        ("files", "file_path", "local_path", "new_path", "id", "uuid", "on_error", "broker", "", "\0x")
    )


def _name(rng: Random) -> dict[str, object]:
    kind = rng.random()
    if kind < 0.8:
        return {"file_path": _file_path(rng)}
    if kind < 0.9:
        return {"id": rng.choice((1, 2, 3, 50, 2**63 - 1, 0, -1, 2**63, 1.0, "1", True))}
    return {"uuid": rng.choice(("3fa85f64-5717-4562-b3fc-2c963f66afa6", "x", "", "\0", "z" * 65, 5))}


def _item(rng: Random, verb: str) -> object:
    item: dict[str, object]
    if verb == "upload":
        item = {"local_path": _local_path(rng, _SOURCES), "file_path": _file_path(rng)}
        if rng.random() < 0.3:
            item["media_type"] = rng.choice(("text/plain", "", "x" * 256, "\n", "ü", 5))
    else:
        item = _name(rng)
        if verb == "download":
            item["local_path"] = _local_path(rng, _TARGETS)
            if rng.random() < 0.2:
                item["partial"] = rng.choice((True, False, "yes", None))
        if verb == "move":
            item["new_path"] = _file_path(rng)
    return _spoilt(rng, item)


def _spoilt(rng: Random, document: dict[str, object]) -> object:
    """Usually the document as it is; else with a wrong, missing or unknown field, or something else altogether."""
    chance = rng.random()
    if chance < 0.96:
        return document
    if chance < 0.97:
        return {**document, rng.choice(list(document) or ["x"]): _value(rng)}
    if chance < 0.98:
        return {**document, _key(rng): _value(rng)}
    if chance < 0.99 and document:
        missing = rng.choice(list(document))
        return {key: value for key, value in document.items() if key != missing}
    return _value(rng)


def _options(rng: Random, verb: str) -> dict[str, object]:
    found: dict[str, object] = {}
    if rng.random() < 0.4:
        found["on_error"] = rng.choice(("continue", "continue", "stop", "ignore", None))
    if rng.random() < 0.3:
        found["update_model" if verb == "delete" else "overwrite"] = rng.choice((True, False, 1))
    return found


def _verb(rng: Random) -> str:
    return rng.choice(("upload", "upload", "download", "download", "move", "delete", "delete", "paths"))


def _batch(rng: Random) -> bytes:
    verb = _verb(rng)
    items = [_item(rng, verb) for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 3, 10)))]
    body = _spoilt(rng, {"files": items, **_options(rng, verb)})
    return _request(rng, "POST", f"{_workspace(rng)}/{verb}", _json(rng, body))


def _lines(rng: Random) -> bytes:
    verb = _verb(rng)
    documents = [_json(rng, _item(rng, verb)) for _ in range(rng.choice((0, 1, 2, 3, 20)))]
    end = rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b"", b"\0"))
    options = _query(rng, {name: str(value).lower() for name, value in _options(rng, verb).items()})
    headers = [("Content-Type", rng.choice(("application/x-ndjson", "application/x-ndjson; charset=utf-8")))]
    return _request(rng, "POST", f"{_workspace(rng)}/{verb}{options}", end.join((*documents, b"")), headers)


def _validate(rng: Random) -> bytes:
    broker: dict[str, object] = {"type": rng.choice(_TYPES)}
    for _ in range(rng.randrange(4)):
        broker[rng.choice(_BROKER_KEYS)] = rng.choice(("/srv", "nas:/x", "imagery", _value(rng)))
    return _request(rng, "POST", "/v1/validate", _json(rng, _spoilt(rng, {"broker": _spoilt(rng, broker)})))


def _listing(rng: Random) -> bytes:
    what = rng.choice(("files", "files", "catalog"))
    values = {}
    choices: dict[str, Callable[[], str]] = {
        "limit": lambda: rng.choice(("1", "3", "50", "0", "-1", "10001", "1e3", "٣", "9" * 5000, "")),
        "cursor": lambda: rng.choice(("ImEi", "MQ==", "MQ", "bnVsbA==", "!", "\0", "é", "W" * 9000, "")),
    }
    if what == "files":
        choices["recursive"] = lambda: rng.choice(("true", "false", "1", "yes", ""))
        choices["prefix"] = lambda: rng.choice(("a/", "a", "f", rng.choice(REFUSED_PREFIXES), _file_path(rng)))
    else:
        choices["is_deleted"] = lambda: rng.choice(("true", "false", "maybe"))
        choices["file_path"] = lambda: _file_path(rng)
    for name in rng.sample(list(choices), rng.randrange(len(choices) + 1)):
        values[name] = choices[name]()
    if rng.random() < 0.05:
        values[_key(rng)] = rng.choice(_STRANGE_TEXTS)
    method = "HEAD" if rng.random() < 0.1 else "GET"
    return _request(rng, method, f"{_workspace(rng)}/{what}{_query(rng, values)}")


def _content(rng: Random) -> bytes:
    method = rng.choice(("GET", "GET", "HEAD", "PUT", "PUT", "DELETE"))
    headers = []
    if rng.random() < 0.5:
        headers.append(("Range", rng.choice(_RANGES)))
    if rng.random() < 0.2:
        name = rng.choice(("If-Match", "If-None-Match", "If-Range", "If-Modified-Since", "If-Unmodified-Since"))
        headers.append((name, rng.choice(("*", '"a"', 'W/"a"', "Thu, 01 Jan 1970 00:00:00 GMT", "x"))))
    if method == "PUT" and rng.random() < 0.2:
        headers.append(("Content-Type", rng.choice(("text/plain", "x", "a/b; c=d", "t" * 300))))
    body = rng.randbytes(rng.choice((0, 1, 10, 1000, 70_000))) if method == "PUT" else None
    path = quote(_file_path(rng), safe=rng.choice(("/", "")), errors="surrogatepass")
    return _request(rng, method, f"{_workspace(rng)}/content/{path}", body, headers)


def _place(rng: Random) -> bytes:
    method = rng.choice(("GET", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"))
    below = rng.choice(
        ("", "", "/files", "/catalog", "/upload", "/content/", "/nothing", "/", "//files", "/files/")
    )
    target = rng.choice(("/healthz", "/v1/workspaces", "/v1/openapi.json", "/v1", "/", _workspace(rng) + below))
    return _request(rng, method, target, b"x" if method in ("PUT", "PATCH") else None)


_KINDS = [_batch, _batch, _batch, _batch, _lines, _validate, _listing, _listing, _content, _content, _place]


def _json(rng: Random, document: object) -> bytes:
    """The document as JSON, in some spelling of it; rarely as something that is none."""
    chance = rng.random()
    if chance < 0.01:
        return rng.choice(
            (b"", b"[" * 20_000, b'{"a":' * 5_000, b"{", b"\xff", b"\xef\xbb\xbf{}", b"9" * 5000, b"nul")
        )
    text = json.dumps(document, ensure_ascii=rng.random() < 0.7, separators=(",", ":") if chance < 0.5 else None)
    if chance > 0.98:
        text = text.replace("{", '{"files":[],"file_path":"a",', 1)  # a key twice
    return text.encode("utf-8", "surrogatepass")


def _query(rng: Random, values: dict[str, str]) -> str:
    pairs = []
    for name, value in values.items():
        text = quote(value, safe=rng.choice(("", "/=:,")), errors="surrogatepass")
        pairs.append(f"{name}={text}")
        if rng.random() < 0.03:
            pairs.append(f"{name}={text}")
    if rng.random() < 0.02:
        pairs.append(rng.choice(("&&", "=", "%", "a", "[]=1", "%ff=%00")))
    return f"?{'&'.join(pairs)}" if pairs else ""


def _request(
    rng: Random, method: str, target: str, body: bytes | None = None, headers: list[tuple[str, str]] | None = None
) -> bytes:
    """A well-formed request, its body framed by length or in chunks."""
    found = [("Host", "b"), *(headers or [])]
    if rng.random() < 0.2:
        found.append(("Accept", rng.choice(("application/x-ndjson", "application/json", "*/*", "text/html", "q"))))
    if body is not None and not headers and rng.random() < 0.5:
        found.append(("Content-Type", rng.choice(("application/json", "text/plain", "application/x-ndjson"))))
    if rng.random() < 0.1:
        found.append(("Idempotency-Key", rng.choice(_KEYS)))
    if rng.random() < 0.02:
        found.append(("Connection", "close"))
    framed = body
    if body is not None and rng.random() < 0.2:
        found.append(("Transfer-Encoding", "chunked"))
        framed = _chunks(rng, body)
    elif body is not None:
        found.append(("Content-Length", str(len(body))))
    if body is not None and rng.random() < 0.05:
        found.append(("Expect", "100-continue"))
    version = "1.0" if rng.random() < 0.03 and framed is body else "1.1"
    head = [f"{method} {target} HTTP/{version}", *(f"{name}: {value}" for name, value in found), "", ""]
    return "\r\n".join(head).encode("utf-8", "surrogatepass") + (framed or b"")


def _chunks(rng: Random, body: bytes) -> bytes:
    found = []
    while body:
        size = rng.choice((1, 7, 100, 5000, len(body)))
        piece, body = body[:size], body[size:]
        extension = rng.choice((b"", b"", b"", b";x=y", b" ;a"))
        found.append(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece))
        if len(found) > 30:
            found.append(b"%x\r\n%s\r\n" % (len(body), body) if body else b"")
            break
    trailer = rng.choice((b"", b"", b"", b"X-Trailer: 1\r\n"))
    return b"".join((*found, b"0\r\n", trailer, b"\r\n"))

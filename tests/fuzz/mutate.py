"""Mutations of raw requests: what a broken or malicious client sends, without regard to its meaning."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from random import Random

Mutation = Callable[[Random, bytes], bytes]

_NUMBERS = [
    *(
        b"0",
        b"-0",
        b"-1",
        b"+1",
        b"1e9",
        b"1.5",
        b" 7 ",
        b"0x10",
        b"1_0",
        b"\xd9\xa1",
        b"NaN",
        b"Infinity",
        b"1e999",
    ),
    *(str(number).encode() for power in (8, 16, 31, 32, 63, 64) for number in (2**power - 1, 2**power)),
    b"9" * 400,
    b"9" * 5000,
]
_PIECES = [
    *(
        b"\0",
        b"\r",
        b"\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\r\n ",
        b"\t",
        b" ",
        b":",
        b";",
        b",",
        b"/",
        b"//",
        b"\\",
        b"%",
    ),
    *(b"/../", b"..", b"%2f", b"%2e%2e/", b"%00", b"%ff", b"%zz", b"%", b"?", b"#", b"&", b"=", b"[", b"]", b"@"),
    *(b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf0\x9f\x98\x80", b"\\ud800", b"\\u0000", b"\\"),
    *(b'"', b"'", b"{", b"}", b"[[[[", b"null", b"true", b"{}", b'"":', b"//[", b"//[::1", b"//a:b@c:99999/"),
    *(b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.1.1", b"HTTP/-1.1", b"GET ", b"PRI * "),
    *(b"chunked", b"gzip, chunked", b"chunked, chunked", b"identity", b"close", b"keep-alive", b"100-continue"),
    *(b"bytes=", b"bytes=0-", b"bytes=5-2", b"bytes=-0", b"bytes=0-0,2-3", b"q=0", b"q=nan", b"*", b"*/*"),
]
_HEADERS = [
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length:",
    b"Content-Length: 5, 5",
    b"content-length: 3",
    b"Content_Length: 3",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding : chunked",
    b"TRANSFER-ENCODING:\tchunked",
    b"Expect: 100-continue",
    b"Expect: nothing",
    b"Connection: close",
    b"Connection: keep-alive, close, upgrade",
    b"Upgrade: h2c",
    b"Accept: application/x-ndjson;q=0.1, */*;q=x",
    b"Accept: " + b"a/b," * 2000,
    b"Content-Encoding: gzip",
    b"Content-Type: application/x-ndjson",
    b"Content-Type: text/plain; charset=utf-7",
    b"Content-Type: multipart/form-data; boundary=x",
    b"Content-Type: application/x-www-form-urlencoded",
    b"Range: bytes=0-1,3-",
    b"Range: bytes=99999999999999999999-",
    b"If-Match: *",
    b'If-None-Match: "a", W/"b"',
    b"If-Modified-Since: Thu, 99 Foo 1970 00:00:00 GMT",
    b"If-Range: Thu, 01 Jan 1970 00:00:00 GMT",
    b"Idempotency-Key: " + b"k" * 300,
    b"Idempotency-Key: \xff\x00",
    b"Host: \xff",
    b"Host: b\r\nHost: c",
    b"Cookie: a=b; " + b"c" * 5000,
    b"Authorization: Basic !!!",
    b"X-Forwarded-For: 127.0.0.1",
    b"X-HTTP-Method-Override: DELETE",
    b" folded: line",
    b": no name",
    b"no colon",
    b"X-Long: " + b"x" * 9000,
    b"X-Very-Long: " + b"x" * 70_000,
    b"SCRIPT_NAME: /x",
    b"wsgi.input: x",
]
# Found now: a worker may change its root directory, and codecs are modules.
_ENCODINGS = [codecs.lookup(name).name for name in ("utf-16", "utf-16-le", "utf-32", "utf-7", "utf-8-sig")]
_METHODS = [
    *(b"GET", b"HEAD", b"PUT", b"POST", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"PROPFIND"),
    *(b"get", b"", b"G\0T", b"G" * 9000, b"\xff", b"PRI"),
]
_TARGETS = [
    *(
        b"//[",
        b"//[::1",
        b"//[x]/",
        b"//a:b@c:99999/",
        b"http://[/",
        b"http://b/v1/workspaces",
        b"http:",
        b"*",
        b"b:80",
    ),
    *(
        b"",
        b"/" * 5000,
        b"/" + b"a/" * 5000,
        b"/%",
        b"/%2",
        b"/%zz",
        b"/%00",
        b"/%ff%fe",
        b"/\xff",
        b"/;a=b",
        b"/#x",
    ),
    *(
        b"/v1/../v1/workspaces",
        b"/v1/workspaces/..",
        b"/v1/workspaces/%2e%2e/files",
        b"//v1//workspaces",
        b"?",
        b"/?&&=&",
    ),
    *(
        b"/v1/workspaces/data/files?" + b"&".join(b"a%d=1" % number for number in range(3000)),
        b"/v1/workspaces?x=%ff",
    ),
    *(
        b"/v1/workspaces/data/content/",
        b"/v1/workspaces/data/content/..",
        b"/v1/workspaces/data/content/%2e%2e%2fsecret",
    ),
    *(
        b"/v1/workspaces/data/content//etc/passwd",
        b"/v1/workspaces/data/content/to-etc/passwd",
        b"/v1/workspaces/data/",
    ),
]


def mutate(rng: Random, data: bytes, other: bytes) -> bytes:
    """`data`, changed in one to six places. `other` is a second request, to splice with."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6))):
        data = rng.choice(_MUTATIONS)(rng, data) if rng.random() < 0.93 else _splice(rng, data, other)
    return data


def _flip(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _insert(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(_PIECES) + data[at:]


def _insert_noise(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 8, 64))) + data[at:]


def _delete(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 1, 2, 4, 16)) :]


def _duplicate(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    piece = data[at : at + rng.choice((1, 4, 16, 64))]
    return data[:at] + piece * rng.choice((2, 2, 3, 200)) + data[at:]


def _truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _splice(rng: Random, data: bytes, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _number(rng: Random, data: bytes) -> bytes:
    """Another number for one that is there: a length, a chunk's size, a limit, an id, a version."""
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return data
    start, end = rng.choice(found).span()
    return data[:start] + rng.choice(_NUMBERS) + data[end:]


def _header(rng: Random, data: bytes) -> bytes:
    """One more header line, at any place of the head."""
    ends = [match.end() for match in re.finditer(rb"\r\n", data.partition(b"\r\n\r\n")[0] + b"\r\n")]
    at = rng.choice(ends) if ends else 0
    return data[:at] + rng.choice(_HEADERS) + b"\r\n" + data[at:]


def _header_value(rng: Random, data: bytes) -> bytes:
    """Another value for a header that is there."""
    found = list(re.finditer(rb"\r\n[^:\r\n]+:([^\r\n]*)", data))
    if not found:
        return data
    start, end = rng.choice(found).span(1)
    value = rng.choice((*_PIECES, *_NUMBERS, rng.randbytes(12)))
    return data[:start] + rng.choice((b" ", b"", b"\t")) + value + data[end:]


def _method(rng: Random, data: bytes) -> bytes:
    return rng.choice(_METHODS) + b" " + data.partition(b" ")[2]


def _target(rng: Random, data: bytes) -> bytes:
    method, _, rest = data.partition(b" ")
    return b" ".join((method, rng.choice(_TARGETS), rest.partition(b" ")[2]))


def _line_ends(rng: Random, data: bytes) -> bytes:
    return data.replace(
        b"\r\n", rng.choice((b"\n", b"\r", b"\r\r\n", b"\r\n\r\n", b"\n\r")), rng.choice((1, 2, -1))
    )


def _encoding(rng: Random, data: bytes) -> bytes:
    """The body in another encoding of text."""
    head, end, body = data.partition(b"\r\n\r\n")
    text = body.decode("utf-8", "replace")
    return head + end + text.encode(rng.choice(_ENCODINGS))


def _percent(rng: Random, data: bytes) -> bytes:
    """Some bytes of the target percent-encoded, once or twice."""
    method, _, rest = data.partition(b" ")
    target, _, rest = rest.partition(b" ")
    sign = rng.choice((b"%", b"%", b"%25"))
    coded = b"".join(b"%s%02x" % (sign, byte) if rng.random() < 0.2 else bytes((byte,)) for byte in target)
    return b" ".join((method, coded, rest))


_MUTATIONS: list[Mutation] = [
    *(_flip, _insert, _insert, _insert_noise, _delete, _duplicate, _truncate),
    *(_number, _number, _header, _header, _header_value, _method, _target, _line_ends, _encoding, _percent),
]

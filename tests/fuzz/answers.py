"""What came back on a connection, read strictly, and what must hold of each answer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.errors import STATUS_OF_CODE

# 5xx that are said on purpose; each other one is a fault of the server.
_DELIBERATE = frozenset((501, 503, 505, 507))
_CLIENT_ERRORS = frozenset(
    (400, 403, 404, 405, 406, 408, 409, 411, 412, 413, 414, 415, 416, 417, 422, 428, 429, 431)
)
_SUCCESSES = frozenset((200, 201, 204, 206, 304))

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [ -~]*)?\Z")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*)\Z")
_NEXT_ANSWER = re.compile(rb"HTTP/1\.[01] \d{3} ")


class Wrong(Exception):
    """What must not be in an answer is."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. `is_complete` is false where the connection ended within the body."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_complete: bool = True

    @property
    def outcome(self) -> str:
        """`ok`, or the problem's code, or the status where there is neither."""
        if self.status < 400:
            return "ok"
        return str(json.loads(self.body)["code"]) if self.body else str(self.status)

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "").lower() == "close"


def read_answers(received: bytes, methods: Sequence[str] = ()) -> list[Answer]:
    """All answers in what a connection gave; those before the final one (1xx) left out.

    Args:
        methods: of the requests, as far as they are known: whether an answer has a body goes by it.

    Raises:
        Wrong: it is no HTTP.
    """
    answers: list[Answer] = []
    at = 0
    while at < len(received):
        end = received.find(b"\r\n\r\n", at)
        if end < 0:
            raise Wrong(f"an answer's head has no end: {received[at : at + 200]!r}")
        status, headers = _head(received[at:end])
        at = end + 4
        if status < 200:
            continue
        method = methods[len(answers)] if len(answers) < len(methods) else ""
        body, at, is_complete = _body(received, at, status, headers, method)
        answers.append(Answer(status, headers, body, is_complete))
    return answers


def _head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.split(b"\r\n")
    found = _STATUS_LINE.match(first)
    if found is None:
        raise Wrong(f"not a status line: {first[:200]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        header = _HEADER.match(line)
        if header is None:
            raise Wrong(f"not a header: {line[:200]!r}")
        name = header[1].decode().lower()
        if name in headers and name in ("content-length", "transfer-encoding", "content-type"):
            raise Wrong(f"{name} is said twice")
        headers[name] = header[2].decode("latin-1")
    return int(found[1]), headers


def _body(data: bytes, at: int, status: int, headers: dict[str, str], method: str) -> tuple[bytes, int, bool]:
    """Body, where the next answer begins, and whether the body is whole."""
    has_none = status in (204, 304) or method == "HEAD"
    # Of a request that was mutated nobody knows whether it was a HEAD: then the next answer stands there.
    if has_none or (not method and (at == len(data) or _NEXT_ANSWER.match(data, at))):
        return b"", at, True
    if headers.get("transfer-encoding", "").lower() == "chunked":
        if "content-length" in headers:
            raise Wrong("an answer has both a length and chunks")
        return _chunks(data, at)
    if "content-length" not in headers:
        return data[at:], len(data), True
    if not headers["content-length"].isdigit():
        raise Wrong(f"Content-Length is {headers['content-length']!r}")
    end = at + int(headers["content-length"])
    return data[at:end], min(end, len(data)), end <= len(data)


def _chunks(data: bytes, at: int) -> tuple[bytes, int, bool]:
    found = []
    while (end := data.find(b"\r\n", at)) >= 0:
        if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", data[at:end]):
            raise Wrong(f"not the size of a chunk: {data[at:end][:80]!r}")
        size = int(data[at:end], 16)
        at = end + 2
        found.append(data[at : at + size])
        at += size
        if data[at : at + 2] != b"\r\n":
            break
        at += 2
        if size == 0:
            return b"".join(found), at, True
    return b"".join(found), len(data), False


def check(answer: Answer, forbidden: Sequence[bytes]) -> None:
    """Raise `Wrong` unless the answer is one that the API documents.

    Args:
        forbidden: what no body or header may hold: paths of the server, secrets.
    """
    status, kind = answer.status, answer.headers.get("content-type", "").partition(";")[0]
    if status not in _SUCCESSES | _CLIENT_ERRORS | _DELIBERATE:
        raise Wrong(f"status {status}")
    told = answer.body + repr(answer.headers).encode()
    for secret in forbidden:
        if secret in told:
            raise Wrong(f"{secret!r} is told")
    if status >= 400 and kind != "application/problem+json":
        raise Wrong(f"status {status} comes as {kind!r}, not as a problem document")
    is_file = "accept-ranges" in answer.headers  # then its record says what it is, and it need not be so
    if answer.body and answer.is_complete and not is_file:
        _check_document(answer, kind)


def _check_document(answer: Answer, kind: str) -> None:
    if kind == "application/problem+json":
        _check_problem(answer.status, _json(answer.body), answer.headers)
    elif kind == "application/json":
        _check_results(_json(answer.body))
    elif kind == "application/x-ndjson":
        for line in answer.body.splitlines():
            _check_result(_json(line))


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Wrong(f"not JSON: {error}: {text[:200]!r}") from error


def _check_problem(status: int, problem: Any, headers: dict[str, str]) -> None:
    if not isinstance(problem, dict) or not {"type", "title", "status", "detail", "code"} <= set(problem):
        raise Wrong(f"a problem document lacks something: {str(problem)[:300]}")
    code = problem["code"]
    if code == "internal-error" or code not in STATUS_OF_CODE:
        raise Wrong(f"code {code!r}: {problem['detail']}")
    if problem["status"] != status:
        raise Wrong(f"status {status} of the line, {problem['status']} of the document")
    if STATUS_OF_CODE[code] != status and code not in ("invalid-request", "too-large"):
        raise Wrong(f"code {code} with status {status}")
    if not isinstance(problem["detail"], str) or not problem["detail"].strip():
        raise Wrong("a problem without a sentence")
    if status == 503 and not headers.get("retry-after", "").isdigit():
        raise Wrong("503 without Retry-After")
    _check_results(problem)


def _check_results(document: Any) -> None:
    results = document.get("results", []) if isinstance(document, dict) else []
    for result in results:
        _check_result(result)


def _check_result(result: Any) -> None:
    """One item of a batch, or one line of a stream."""
    if not isinstance(result, dict):
        raise Wrong(f"not a result: {str(result)[:200]}")
    error = result.get("error")
    if isinstance(error, dict):
        code = error.get("code")
        if code == "internal-error" or code not in STATUS_OF_CODE:
            raise Wrong(f"code {code!r} in a result: {error.get('detail')}")

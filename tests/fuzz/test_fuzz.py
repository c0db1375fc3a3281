"""A short run of the fuzzer: `make fuzz` plays more. And what it is made of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz import play
from fuzz.answers import Answer, Wrong, check, read_answers
from fuzz.run import Plan, run
from fuzz.site import Site, caller_site, self_site
from lab.directories import temporary_directory

_SEED = 20_261_122
_SECONDS = 12
_LEAST_JUDGED = 200  # on a machine that is very busy


@pytest.fixture
def sites() -> Iterator[list[Site]]:
    with contextlib.ExitStack() as stack:
        directories = [stack.enter_context(temporary_directory()) for _ in range(2)]
        yield [
            stack.enter_context(make(path))
            for make, path in zip((self_site, caller_site), directories, strict=True)
        ]


@pytest.mark.root
def test_hostile_requests_find_no_fault(sites: list[Site], tmp_path: Path) -> None:
    report = run(sites, Plan(requests=10**9, seed=_SEED, seconds=_SECONDS, saved=tmp_path))
    print(*report.lines(), sep="\n")
    assert report.faults == []
    assert report.judged > _LEAST_JUDGED
    assert min(report.statuses[status] for status in ("200", "400", "403", "404")) > 0


def test_a_number_makes_the_same_play_every_time() -> None:
    for number in (-1, 0, 1, 12_345):
        assert play.make(1, number) == play.make(1, number)
        assert play.Play.from_json(play.make(1, number).to_json()) == play.make(1, number)
    assert len({play.make(seed, 0) for seed in range(20)}) == 20


_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def test_answers_are_read_one_after_the_other() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n0\r\n\r\n"
    continued = b"HTTP/1.1 100 Continue\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"
    found = read_answers(_OK + continued + chunked + head + _OK)
    assert [answer.body for answer in found] == [b"{}", b"{}\n", b"", b"{}"]
    assert not read_answers(_OK[:-1])[0].is_complete


@pytest.mark.parametrize(
    "received",
    [
        b"Traceback (most recent call last):\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\nb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_answer_is_a_fault(received: bytes) -> None:
    with pytest.raises(Wrong):
        read_answers(received)


_PROBLEM = (
    b'{"type": "urn:brokervol:problem:missing-file", "title": "Not Found", "status": 404, "detail": "no file", '
    b'"code": "missing-file"}'
)


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (500, "application/problem+json", _PROBLEM),
        (404, "text/html", b"<p>"),
        (404, "application/problem+json", b"{"),
        (404, "application/problem+json", b'{"code": "missing-file"}'),
        (404, "application/problem+json", _PROBLEM.replace(b"missing-file", b"lost-file")),
        (400, "application/problem+json", _PROBLEM),
        (404, "application/problem+json", _PROBLEM.replace(b"no file", b"/secret")),
        (200, "application/json", b'{"results": [{"error": {"code": "internal-error"}}]}'),
        (200, "application/x-ndjson", b'{"error": {"code": "internal-error"}}\n'),
    ],
)
def test_what_the_api_does_not_document_is_a_fault(status: int, kind: str, body: bytes) -> None:
    check(Answer(404, {"content-type": "application/problem+json"}, _PROBLEM), [b"/secret"])
    with pytest.raises(Wrong):
        check(Answer(status, {"content-type": kind}, body), [b"/secret"])

"""One play: what is sent on one connection, how, and what may come back."""

from __future__ import annotations

import base64
import contextlib
import json
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from fuzz import corpus
from fuzz.answers import Answer, Wrong, check, read_answers
from fuzz.grammar import structured
from fuzz.mutate import mutate

_DEADLINE_S = 60.0
_BUFFER = 1 << 18

WHOLE, HALF, DROPPED = "whole", "half", "dropped"


@dataclass(frozen=True, slots=True)
class Play:
    """What happens on one connection.

    Attributes:
        pieces: sent one after another, each by a call of its own.
        ending: `whole`: the sending side is closed, everything is read. `half`: the connection is closed after the
            first bytes of an answer. `dropped`: it is closed at once.
        methods: of the requests, where they are well-formed and must all be answered.
        labels: what each asks, to count by.
    """

    number: int
    pieces: tuple[bytes, ...]
    ending: str = WHOLE
    methods: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        pieces = [base64.b64encode(piece).decode() for piece in self.pieces]
        return {
            "number": self.number,
            "pieces": pieces,
            "ending": self.ending,
            "methods": self.methods,
            "labels": self.labels,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Play:
        pieces = tuple(base64.b64decode(piece) for piece in found["pieces"])
        return cls(found["number"], pieces, found["ending"], tuple(found["methods"]), tuple(found["labels"]))


def make(seed: int, number: int) -> Play:
    """The play of this number, the same in every run. Those below 0 are the regressions."""
    if number < 0:
        regression = corpus.REGRESSIONS[number]
        return Play(number, (regression.sent,), regression.ending)
    rng = Random(f"{seed}/{number}")  # noqa: S311
    if rng.random() < 0.5:
        requests = _up_to_closing([structured(rng) for _ in range(rng.choice((1, 2, 4, 8, 16)))])
        methods = tuple(request.partition(b" ")[0].decode() for request in requests)
    else:
        requests, methods = _mutated(rng), ()
    return Play(number, _pieces(rng, b"".join(requests)), _ending(rng), methods)


def _up_to_closing(requests: list[bytes]) -> list[bytes]:
    """Up to the first of HTTP/1.0, after which a server closes and need not say so."""
    ends = (number for number, request in enumerate(requests, 1) if b" HTTP/1.0\r\n" in request)
    return requests[: next(ends, len(requests))]


def _mutated(rng: Random) -> list[bytes]:
    """Valid requests before one that is none: the server closes after it, in most cases."""
    before = [_seed(rng) for _ in range(rng.choice((0, 0, 0, 1, 3)))]
    after = [_seed(rng) for _ in range(rng.choice((0, 0, 1)))]
    return [*before, mutate(rng, _seed(rng), _seed(rng)), *after]


def _seed(rng: Random) -> bytes:
    return rng.choice(corpus.VALID) if rng.random() < 0.7 else structured(rng)


def _pieces(rng: Random, data: bytes) -> tuple[bytes, ...]:
    if rng.random() < 0.85 or len(data) < 2:
        return (data,)
    cuts = sorted(rng.randrange(len(data)) for _ in range(rng.choice((1, 2, 5))))
    return tuple(data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True))


def _ending(rng: Random) -> str:
    return rng.choices((WHOLE, HALF, DROPPED), (94, 3, 3))[0]


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of a play: the answers, and whether the server ended the connection without one."""

    answers: list[Answer]
    is_refused: bool
    received: bytes


def perform(socket_path: str, play: Play, forbidden: Sequence[bytes] = ()) -> Seen:
    """Play it on a new connection.

    Raises:
        Wrong: what came back must not.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(socket_path)
        connection.setblocking(False)
        received, is_refused = _exchange(connection, play)
    finally:
        connection.close()
    if play.ending != WHOLE:
        return Seen([], False, received)
    answers = read_answers(received, play.methods)
    for answer in answers:
        check(answer, forbidden)
    _check_all(play, answers)
    return Seen(answers, is_refused, received)


def _check_all(play: Play, answers: list[Answer]) -> None:
    """Well-formed requests are answered, each and wholly, up to one after which the server closes.

    A stream of lines ends with its request's body, also where that is malformed half-way.
    """
    for answer in answers:
        if not answer.is_complete and (play.methods or "content-length" in answer.headers):
            raise Wrong(f"the connection ended within a body: {answer}")
    if len(answers) > len(play.methods) > 0:
        raise Wrong(f"{len(answers)} answers to {len(play.methods)} requests")
    if len(answers) < len(play.methods) and not (answers and answers[-1].closes):
        raise Wrong(f"{len(answers)} answers to {len(play.methods)} requests, and no word of closing")


def _exchange(connection: socket.socket, play: Play) -> tuple[bytes, bool]:
    """Send and receive at once, so that nobody waits for the other with full buffers; see `Play.ending`."""
    deadline = time.monotonic() + _DEADLINE_S
    pending = list(play.pieces)
    received = bytearray()
    poll = select.poll()
    poll.register(connection, select.POLLIN | select.POLLOUT)
    while True:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Wrong(f"nothing happens for {_DEADLINE_S:.0f} s; received so far: {bytes(received[:300])!r}")
        if pending and not _send(connection, pending):
            pending.clear()
        if not pending:
            if play.ending == DROPPED:
                return bytes(received), False
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            poll.modify(connection, select.POLLIN)
        part = _receive(connection)
        if part is None:
            continue
        received += part
        if not part or (play.ending == HALF and received):
            return bytes(received), not received


def _send(connection: socket.socket, pending: list[bytes]) -> bool:
    """Send what goes of the first piece; false when the server has closed."""
    try:
        sent = connection.send(pending[0])
    except BlockingIOError:
        return True
    except (BrokenPipeError, ConnectionResetError):
        return False
    if sent == len(pending[0]):
        pending.pop(0)
    else:
        pending[0] = pending[0][sent:]
    return True


def _receive(connection: socket.socket) -> bytes | None:
    """What is there; None for nothing yet, nothing for the end."""
    try:
        return connection.recv(_BUFFER)
    except BlockingIOError:
        return None
    except ConnectionResetError:  # the server closed with some of ours unread
        return b""


def save(play: Play, seed: int, path: str) -> None:
    with open(path, "a", encoding="ascii") as file:
        file.write(json.dumps({"seed": seed, **play.to_json()}) + "\n")

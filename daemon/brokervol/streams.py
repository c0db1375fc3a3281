"""A client's socket: what it sends and reads, with an end to how long it may keep us waiting.

Sockets never block; who waits does so here, and only the time spent waiting for the client counts against it.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import select
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_HEAD_BYTES = 64 * 1024
BLOCK_BYTES = 64 * 1024

_LONGEST_CHUNK_LINE = 8192
_MOST_TRAILERS = 100
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
# Where a head ends; a bare LF is refused when it is parsed, and must not be waited behind.
_END_OF_HEAD = re.compile(rb"\n\r?\n")


class BodyFailed(ValueError):
    """A request's body did not come as announced; `status` says what that is in HTTP."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class ClientGone(Exception):
    """Nobody reads the answer any more."""


class AnswerNotRead(ClientGone):
    """The client reads its answer too slowly."""


class Pace:
    """Whether a client keeps up, in one direction.

    Args:
        silence_s: how long it may do nothing at all; also what it has in advance of the rate.
        least_rate: bytes for each second that it is waited for, on average; 0 for no such demand.
    """

    def __init__(self, client: socket.socket, event: int, silence_s: float, least_rate: int) -> None:
        self._client, self._event = client, event
        self._silence_s = silence_s
        self._least_rate = least_rate
        self._bytes = 0
        self._waited_s = 0.0

    def moved(self, count: int) -> None:
        self._bytes += count

    def wait(self) -> bool:
        """Wait for the client; False when that has taken too long."""
        earned_s = self._bytes / self._least_rate if self._least_rate else math.inf
        left_s = min(self._silence_s, self._silence_s + earned_s - self._waited_s)
        if left_s <= 0:
            return False
        poll = select.poll()
        poll.register(self._client, self._event)
        started = time.monotonic()
        is_ready = bool(poll.poll(left_s * 1000))
        self._waited_s += time.monotonic() - started
        return is_ready


class Stream:
    """What comes from a client.

    Attributes:
        received: bytes that nobody has taken yet.
        has_ended: the client sends no more.
    """

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._searched = 0
        self.received = bytearray()
        self.has_ended = False

    def receive(self) -> int:
        """Take in what is there, one block at most; returns how much that was. Never waits.

        Raises:
            BlockingIOError: nothing is there.
            OSError: the connection is broken.
        """
        block = self._client.recv(BLOCK_BYTES)
        self.has_ended = not block
        self.received += block
        return len(block)

    def has_head(self) -> bool:
        """Whether there is a whole head of a request, or as much as there will be of one."""
        if len(self.received) > MAX_HEAD_BYTES or (self.has_ended and self.received):
            return True
        is_whole = _END_OF_HEAD.search(self.received, self._searched) is not None
        self._searched = 0 if is_whole else max(0, len(self.received) - 2)
        return is_whole

    def take_head(self) -> bytes:
        """The head that is there; what is too long, or cut off, as it is."""
        end = _END_OF_HEAD.search(self.received)
        head = bytes(self.received[: end.end() if end else None])
        del self.received[: len(head)]
        self._searched = 0
        return head

    def read_into(self, view: memoryview, pace: Pace) -> int:
        """Fill (a part of) `view`, as soon as anything is there; returns how much, 0 at the end.

        Raises:
            BodyFailed: the client is too slow, or the connection broke.
        """
        if not self.received:
            return self._wait_for(view, pace)
        count = min(len(view), len(self.received))
        view[:count] = self.received[:count]
        del self.received[:count]
        return count

    def read_line(self, pace: Pace) -> bytes:
        """The next line of the chunked coding, with its end. Raises as `read_into`."""
        block = bytearray(_LONGEST_CHUNK_LINE)
        while (end := self.received.find(b"\n")) < 0:
            if len(self.received) > _LONGEST_CHUNK_LINE:
                raise BodyFailed(400, "a line of the chunked body is too long")
            count = self._wait_for(memoryview(block), pace)
            if not count:
                raise BodyFailed(400, "the chunked body ends early")
            self.received += block[:count]
        line = bytes(self.received[: end + 1])
        del self.received[: end + 1]
        return line

    def _wait_for(self, view: memoryview, pace: Pace) -> int:
        while True:
            try:
                count = self._client.recv_into(view)
            except BlockingIOError:
                if not pace.wait():
                    raise BodyFailed(408, "the body is sent too slowly") from None
            except OSError as error:
                raise BodyFailed(400, f"the connection broke: {error.strerror}") from error
            else:
                self.has_ended = count == 0
                pace.moved(count)
                return count

    def discard(self, most_s: float, most_bytes: int) -> None:
        """Read what the client still sends, so that it comes to reading its answer."""
        poll = select.poll()
        poll.register(self._client, select.POLLIN)
        deadline = time.monotonic() + most_s
        self.received.clear()
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_WR)
            while most_bytes > 0 and poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                count = len(self._client.recv(BLOCK_BYTES))
                if not count:
                    return
                most_bytes -= count


class Answer:
    """The way back to the client: what cheroot writes an answer to."""

    def __init__(self, client: socket.socket, pace: Pace) -> None:
        self._client = client
        self._pace = pace
        self._kept = b""

    def keep(self, content: bytes) -> None:
        """Let this be sent with what is written next: two writes wake the client twice."""
        self._kept += content

    def write(self, content: bytes) -> int:
        """Send all of it, and what was kept.

        Raises:
            ClientGone: it is not to be had there.
        """
        left, self._kept = memoryview(self._kept + content if self._kept else content), b""
        while left:
            try:
                count = self._client.send(left)
            except BlockingIOError:
                if not self._pace.wait():
                    raise AnswerNotRead("the answer is read too slowly") from None
            except OSError as error:
                raise ClientGone(f"the client is gone: {error.strerror}") from error
            else:
                self._pace.moved(count)
                left = left[count:]
        return len(content)


class Body(io.RawIOBase):
    """A request's body, of a length or in chunks, up to its end and no further.

    Args:
        length: bytes; None for chunks.
        before_waiting: called once, before the client is first waited for.

    Attributes:
        failure: why it cannot be read to its end; every further read raises it again.
        is_complete: it was read to its end.
    """

    def __init__(self, stream: Stream, length: int | None, pace: Pace, before_waiting: Callable[[], None]) -> None:
        super().__init__()
        self._stream = stream
        self._is_chunked = length is None
        self._has_chunk = False
        self._left = length or 0
        self._pace = pace
        self._before_waiting: Callable[[], None] | None = before_waiting
        self.failure: BodyFailed | None = None
        self.is_complete = length == 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Raises BodyFailed."""
        if self.failure is not None:
            raise self.failure
        try:
            return self._read(memoryview(buffer).cast("B"))
        except BodyFailed as failure:
            self.failure = failure
            raise

    def skip(self) -> bool:
        """Pass over a short body that nobody has begun to read, without waiting; returns if it is complete."""
        is_untouched = self._before_waiting is not None
        if is_untouched and not self._is_chunked and self._left <= BLOCK_BYTES:
            with contextlib.suppress(OSError):
                while len(self._stream.received) < self._left and self._stream.receive():
                    pass
            if len(self._stream.received) >= self._left:
                del self._stream.received[: self._left]
                self._left = 0
                self.is_complete = True
        return self.is_complete

    def _read(self, view: memoryview) -> int:
        if self.is_complete or not view:
            return 0
        self._invite()
        if self._is_chunked and not self._left and not self._begin_chunk():
            self.is_complete = True
            return 0
        count = self._stream.read_into(view[: self._left], self._pace)
        if not count:
            raise BodyFailed(400, "the body ends early")
        self._left -= count
        self.is_complete = not self._left and not self._is_chunked
        return count

    def _invite(self) -> None:
        before_waiting, self._before_waiting = self._before_waiting, None
        if before_waiting is not None and not self._stream.received:
            try:
                before_waiting()
            except ClientGone as error:
                raise BodyFailed(400, str(error)) from error

    def _begin_chunk(self) -> bool:
        """Read up to the content of the next chunk, or to the end of the body; returns whether there is one."""
        if self._has_chunk and self._stream.read_line(self._pace) != b"\r\n":
            raise BodyFailed(400, "a chunk is longer than its size says")
        self._has_chunk = True
        size = _CHUNK_SIZE.fullmatch(self._stream.read_line(self._pace))
        if size is None:
            raise BodyFailed(400, "the size of a chunk is not a hexadecimal number")
        self._left = int(size[1], 16)
        if self._left:
            return True
        for _ in range(_MOST_TRAILERS):
            if self._stream.read_line(self._pace) == b"\r\n":
                return False
        raise BodyFailed(400, "the chunked body has too many trailers")

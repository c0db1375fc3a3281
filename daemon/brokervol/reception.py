"""The one thread that never waits for a client: it accepts, gathers the heads of requests, refuses, hands over.

A request takes a thread only when its whole head has come and it is its caller's turn. So silent connections and
heads that trickle in cost a descriptor and some memory, of which a caller may have so much.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import math
import os
import resource
import select
import selectors
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from brokervol.admission import Admission, Pool, Verdict
from brokervol.seldom import seldom
from brokervol.streams import Stream

log = structlog.get_logger()

_TICK_S = 0.25
_ACCEPTS_A_TURN = 32
_LINGER_S = 1.0
_LINGER_BYTES = 256 * 1024
_PAUSE_S = 1.0
# How long a thread stays with a connection whose client may have a next request at hand.
_STAY_MS = 1
# Of each connection, and of what is opened to work for it.
_DESCRIPTORS_A_CONNECTION = 8


@dataclass(frozen=True)
class Limits:
    """What a server grants its clients.

    Attributes:
        requests: worked on at once.
        requests_per_caller: of one caller; None for no such limit.
        waiting_per_caller: requests of one caller that wait for their turn.
        connections_per_caller: open at once, idle ones too; None for no such limit.
        wait_s: how long a request waits for its turn.
        head_s: how long request line and headers may take to come, from their first byte.
        client_s: how long a client may send nothing of a body, or read nothing of an answer.
        client_bytes_per_s: what it must send or read on average while it is waited for, after `client_s`.
        idle_s: how long a connection may be silent between requests.
        drain_s: how long requests that are being worked on may take when the server is told to end.
    """

    requests: int = 64
    requests_per_caller: int | None = None
    waiting_per_caller: int = 1024
    connections_per_caller: int | None = None
    wait_s: float = 10
    head_s: float = 10
    client_s: float = 30
    client_bytes_per_s: int = 64
    idle_s: float = 60
    drain_s: float = 7


class Load(NamedTuple):
    """What a server has to do at a moment, and whom it has refused since its start, by the reason in a word."""

    connections: int
    running: int
    waiting: int
    refused: dict[str, int]


class Refusals:
    """Counts what was refused. Safe for several threads.

    Attributes:
        KINDS: too many connections or requests; a request that waited too long for its turn; a head, a body or an
            answer that was sent or read too slowly; what is no request.
    """

    KINDS = ("connections", "requests", "wait", "head", "body", "answer", "malformed")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(self.KINDS, 0)

    def add(self, kind: str) -> None:
        with self._lock:
            self._counts[kind] += 1

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)


class State(enum.Enum):
    WAITING = "waiting"  # for a request, or for the rest of its head
    QUEUED = "queued"
    RUNNING = "running"
    REFUSED = "refused"  # until the client has read why


class Client(ABC):
    """A connection, as far as it matters here. A thread works on it while it is RUNNING, and nobody else then.

    Attributes:
        caller: whom it counts for.
        deadline: when it is given up, unless it is RUNNING; of `time.monotonic`.
    """

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.stream = Stream(accepted)
        self.caller: Hashable = None
        self.state = State.WAITING
        self.deadline = 0.0
        self.discarded_bytes = 0

    @abstractmethod
    def communicate(self) -> bool:
        """Answer the request whose head has come; returns whether there may be another. In a thread."""

    def is_peer_gone(self) -> bool:
        """Whether the client has closed its side altogether, so that nobody will read an answer."""
        poll = select.poll()
        poll.register(self.socket, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    def close(self) -> None:
        self.socket.close()


class Reception:
    """Serves the connections of a listening socket until told to stop, all in the thread of `run`.

    Args:
        connect: makes a connection of an accepted socket, and finds out whose it is.
        refusal: the bytes of an answer, from status and sentence.

    Attributes:
        refusals: what was refused here; who works on a request adds what it refuses.
    """

    def __init__(
        self,
        listener: socket.socket,
        limits: Limits,
        connect: Callable[[socket.socket], Client],
        refusal: Callable[[int, str], bytes],
    ) -> None:
        self._listener = listener
        self._limits = limits
        self._connect = connect
        self._refusal = refusal
        self._admission: Admission[Client] = Admission(
            limits.requests, limits.requests_per_caller, limits.waiting_per_caller
        )
        self._pool: Pool[Client] = Pool(self._work)
        self.refusals = Refusals()
        self._worked: deque[tuple[Client, bool]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._open: set[Client] = set()
        self._open_per_caller: Counter[Hashable] = Counter()
        self._most_open = max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _DESCRIPTORS_A_CONNECTION)
        self._next_tick = 0.0
        self._accepts_from = 0.0  # listens already, if 0
        self.is_stopping = False

    def stop(self) -> None:
        """Have `run` end. For any thread, and for signal handlers."""
        self.is_stopping = True
        os.eventfd_write(self._wake, 1)

    def load(self) -> Load:
        """What there is to do now. For any thread, as an estimate."""
        return Load(len(self._open), self._admission.running, self._admission.waiting, self.refusals.counts())

    def run(self, ending: Callable[[], object] = lambda: None) -> bool:
        """Serve until stopped, then finish what is being worked on; returns whether all of it was.

        Args:
            ending: called once, when nothing new is begun any more; must not wait.
        """
        self._listener.setblocking(False)
        self._watch(self._listener)
        while not self.is_stopping:
            self._turn(_TICK_S if self._open or self._accepts_from else None)
        ending()
        return self._drain()

    def _turn(self, timeout_s: float | None) -> None:
        """Wait until there is something to do, and do it."""
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._listener:
                self._accept()
            elif key.data is not None:
                self._guarded(self._read, key.data)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._worked:
            self._guarded(self._take_back, *self._worked.popleft())
        now = time.monotonic()
        if now >= self._next_tick:
            self._next_tick = now + _TICK_S
            self._tick(now)

    def _guarded(self, step: Callable[..., None], client: Client, *arguments: object) -> None:
        try:
            step(client, *arguments)
        except Exception:  # of one connection; the others go on
            log.exception("a connection failed unexpectedly")
            self._close(client)

    def _tick(self, now: float) -> None:
        if 0 < self._accepts_from <= now:
            self._accepts_from = 0.0
            self._watch(self._listener)
        for client in [client for client in self._open if client.deadline <= now]:
            if client.state is not State.RUNNING:
                self._guarded(self._give_up, client)

    def _drain(self) -> bool:
        self._unwatch(self._listener)
        self._listener.close()
        for client in [client for client in self._open if client.state is not State.RUNNING]:
            if client.state is State.QUEUED:
                self._guarded(self._give_up, client)
            self._close(client)
        deadline = time.monotonic() + self._limits.drain_s
        while self._open and time.monotonic() < deadline:
            self._turn(_TICK_S)
        return not self._open

    # Connections

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                accepted, _ = self._listener.accept()
            except OSError as error:  # mostly that nobody is there
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.warning("too many connections; waiting for some to end", reason=error.strerror)
                    self._unwatch(self._listener)  # it would wake us at once, again and again
                    self._accepts_from = time.monotonic() + _PAUSE_S
                return
            accepted.setblocking(False)
            try:
                client = self._connect(accepted)
            except Exception:
                log.exception("a connection could not be accepted")
                accepted.close()
            else:
                self._open.add(client)
                self._open_per_caller[client.caller] += 1
                self._guarded(self._welcome, client)

    def _welcome(self, client: Client) -> None:
        count, most = self._open_per_caller[client.caller], self._limits.connections_per_caller or math.inf
        if count <= most and len(self._open) <= self._most_open:
            self._await_request(client)
            return
        self.refusals.add("connections")
        self._refuse(client, 503, "there are too many connections; close some, then try again")
        if count > 2 * most or len(self._open) > self._most_open:  # no time to read that, either
            self._close(client)

    def _await_request(self, client: Client) -> None:
        """Begin to wait for the head of a request, some of which may be there."""
        client.state = State.WAITING
        limit_s = self._limits.head_s if client.stream.received else self._limits.idle_s
        client.deadline = time.monotonic() + limit_s
        self._look_for_request(client)

    def _look_for_request(self, client: Client) -> None:
        if client.stream.has_head():
            self._unwatch(client.socket)
            self._admit(client)
        elif client.stream.has_ended:
            self._close(client)
        else:
            self._watch(client.socket, client)

    def _read(self, client: Client) -> None:
        """Something has come from a client that is WAITING or REFUSED."""
        was_silent = not client.stream.received
        try:
            count = client.stream.receive()
        except BlockingIOError:
            return
        except OSError:
            self._close(client)
            return
        if client.state is State.REFUSED:
            client.stream.received.clear()
            client.discarded_bytes += count
            if not count or client.discarded_bytes > _LINGER_BYTES:
                self._close(client)
            return
        if was_silent:
            client.deadline = time.monotonic() + self._limits.head_s
        self._look_for_request(client)

    def _give_up(self, client: Client) -> None:
        """A client's time is over."""
        if client.state is State.QUEUED:
            self._admission.withdraw(client.caller, client)
            self.refusals.add("wait")
            self._refuse(client, 503, "too many requests are being worked on; try again")
        elif client.state is State.WAITING and client.stream.received:
            seldom.warning("a request's head came too slowly", caller=client.caller)
            self.refusals.add("head")
            self._refuse(client, 408, f"the request's head did not come within {self._limits.head_s:g} s")
        else:
            self._close(client)

    def _refuse(self, client: Client, status: int, sentence: str) -> None:
        """Answer without a thread. The connection ends when the client has read that, or soon after."""
        client.state = State.REFUSED
        client.deadline = time.monotonic() + _LINGER_S
        with contextlib.suppress(OSError):  # who does not read has had its answer
            client.socket.send(self._refusal(status, sentence))
            client.socket.shutdown(socket.SHUT_WR)
        client.stream.received.clear()
        self._watch(client.socket, client)

    def _close(self, client: Client) -> None:
        if client not in self._open:
            return
        self._unwatch(client.socket)
        self._open.remove(client)
        self._open_per_caller[client.caller] -= 1
        if not self._open_per_caller[client.caller]:
            del self._open_per_caller[client.caller]
        client.close()

    def _watch(self, listened: socket.socket, client: Client | None = None) -> None:
        if listened not in self._selector.get_map():
            self._selector.register(listened, selectors.EVENT_READ, client)

    def _unwatch(self, listened: socket.socket) -> None:
        if listened in self._selector.get_map():
            self._selector.unregister(listened)

    # Requests

    def _admit(self, client: Client) -> None:
        """A whole head has come."""
        verdict = self._admission.enter(client.caller, client)
        if verdict is Verdict.STARTS:
            self._start(client)
        elif verdict is Verdict.WAITS:
            client.state = State.QUEUED
            client.deadline = time.monotonic() + self._limits.wait_s
        else:
            seldom.warning("a caller has too many requests", caller=client.caller)
            self.refusals.add("requests")
            self._refuse(client, 503, "you have too many requests at once; try again when some have ended")

    def _start(self, client: Client) -> None:
        client.state = State.RUNNING
        try:
            self._pool.submit(client)
        except RuntimeError:
            log.exception("no thread can be started")
            self._next_after(client)
            self._refuse(client, 503, "the server has no thread; try again")

    def _work(self, client: Client) -> None:
        goes_on = False
        try:
            goes_on = client.communicate()
            while goes_on and self._has_next(client):
                goes_on = client.communicate()
        finally:
            self._worked.append((client, goes_on))
            os.eventfd_write(self._wake, 1)

    def _has_next(self, client: Client) -> bool:
        """Whether the thread goes on with a next request that comes at once, while there is room for many more.

        To hand the connection back, wait for it there and wake a thread again would cost more than many a request.
        """
        stream = client.stream
        if self.is_stopping or not self._admission.has_room(client.caller):
            return False
        if not stream.has_head():
            poll = select.poll()
            poll.register(client.socket, select.POLLIN)
            if not poll.poll(_STAY_MS):
                return False
            with contextlib.suppress(OSError):  # which will be found again
                stream.receive()
        return stream.has_head() and not self.is_stopping

    def _take_back(self, client: Client, goes_on: bool) -> None:
        self._pool.release()
        self._next_after(client)
        if goes_on and not self.is_stopping:
            self._await_request(client)
        else:
            self._close(client)

    def _next_after(self, client: Client) -> None:
        for next_client in self._admission.leave(client.caller):
            self._start(next_client)

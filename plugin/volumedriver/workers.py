"""The pool of worker processes (`nfs_worker`) in which the driver has done what may hang."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import structlog

from volumedriver import mountcalls
from volumedriver.nfs_worker import LONGEST_MESSAGE

log = structlog.get_logger()

Facts = Mapping[str, Any]

_NURSERY = (sys.executable, "-P", "-m", "volumedriver.nfs_worker")  # -P: a module in / is none of ours
_LONGEST_STEPS = 1 << 16  # all that a pipe holds
_WARM = 2
_ATTEMPTS = 3
_SPARE_S = 2  # we kill what takes too long; the kernel does so if we cannot any more
_DEATH_S = 0.5  # how long to look whether a killed worker is gone
_LATE_S = 1.0  # for a new worker, which takes milliseconds
_ENDING = "the driver is ending"
_END_S = 5


class NoAnswer(Exception):
    """A request was not answered in time, and whoever worked on it was killed. `step` is what it was at."""

    def __init__(self, step: Facts) -> None:
        super().__init__(step.get("step"))
        self.step = step


class NoWorker(OSError):
    """Workers cannot be started, or die by themselves."""


class Workers:
    """As many workers as there are requests at once; a few are kept for the next.

    No thread or process of ours waits for one that does not die: the kernel ends it when it can, and the nursery
    needs no answer from it.

    Args:
        command: what starts a nursery; the number of a descriptor is added.
    """

    def __init__(self, command: Sequence[str] = _NURSERY, warm: int = _WARM) -> None:
        self._command = command
        self._warm = warm
        self._lock = threading.Lock()
        self._nursery: _Nursery | None = None
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._leaving: set[_Worker] = set()
        self._has_given_up = self._is_closed = False

    def prepare(self) -> None:
        """Have workers ready for the first request. Waits for nothing."""
        with self._lock:
            if self._nursery is None and not self._is_closed:
                with contextlib.suppress(ConnectionError):
                    self._idle += [self._spawned() for _ in range(self._warm)]

    def run(self, request: Facts, timeout_s: float, fds: Sequence[int] = ()) -> Facts:
        """Have `request` done, with the descriptors `fds`; returns the answer.

        Raises:
            NoAnswer: there was none in time. The worker was killed.
            NoWorker: there is none to do it.
        """
        deadline = time.monotonic() + timeout_s
        request = {**request, "limit_s": timeout_s + _SPARE_S}
        return self._attempts(lambda worker: self._asked(worker, request, fds, deadline), deadline)

    def run_and_leave(self, request: Facts, patience_s: float, limit_s: float) -> Facts | None:
        """The same, but who takes longer than `patience_s` goes on, for at most `limit_s`; None then.

        Who has not even begun by then, on an overloaded host, is replaced by another one.
        """
        request = {**request, "limit_s": limit_s}

        def asked(worker: _Worker) -> Facts:
            return self._asked(worker, request, (), time.monotonic() + patience_s, is_left=True)

        try:
            return self._attempts(asked, time.monotonic() + limit_s)
        except NoAnswer:
            return None

    def counts(self) -> Mapping[str, int]:
        """How many are `idle`, and how many `busy` with a request that somebody waits for."""
        return {"idle": len(self._idle), "busy": len(self._busy) + len(self._leaving)}

    def give_up(self) -> None:
        """Have what is under way by `run` fail, and refuse more of it. What may be left goes on, and may begin."""
        with self._lock:
            self._has_given_up = True
            for worker in self._busy:
                worker.hang_up()

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            nursery, self._nursery = self._nursery, None
        for worker in idle:
            worker.dismiss()
        if nursery is not None:
            nursery.end()

    def _attempts(self, ask: Callable[[_Worker], Facts], deadline: float) -> Facts:
        """Ask one worker after the other: those that died before they began (or long ago, idle) are replaced."""
        failure: OSError | None = None
        for _ in range(self._warm + _ATTEMPTS):
            try:
                with self._lock:
                    worker = self._idle.pop() if self._idle else self._spawned()
                worker.await_ready(deadline, self._wake)
                return ask(worker)
            except TimeoutError as error:
                raise NoWorker("no worker process was ready in time: this host is overloaded") from error
            except ConnectionError as error:
                failure = error
        raise NoWorker("no worker process can be started") from failure

    @contextlib.contextmanager
    def _counted(self, worker: _Worker, *, is_left: bool) -> Iterator[None]:
        counted = self._leaving if is_left else self._busy
        with self._lock:
            if self._has_given_up and not is_left:
                raise NoWorker(_ENDING)
            counted.add(worker)
        try:
            yield
        finally:
            with self._lock:
                counted.remove(worker)

    def _asked(
        self, worker: _Worker, request: Facts, fds: Sequence[int], deadline: float, *, is_left: bool = False
    ) -> Facts:
        """Raises ConnectionError if the worker died before it began."""
        with contextlib.ExitStack() as undo:
            undo.callback(worker.dismiss)
            try:
                with self._counted(worker, is_left=is_left):
                    answer = worker.asked(request, fds, deadline)
            except NoWorker:
                raise
            except OSError as error:
                is_late = isinstance(error, TimeoutError)
                if not is_left:
                    worker.kill()
                    if self._has_given_up:
                        raise NoWorker(_ENDING) from error
                step = worker.last_step()
                if is_late and is_left and not step:  # nobody does it, so another one must
                    worker.kill()
                    raise ConnectionAbortedError from None
                if is_late:
                    raise NoAnswer(step) from None
                if step:
                    raise NoWorker(error.errno, f"a worker died at {step['step']}") from error
                raise
            undo.pop_all()
        self._give_back(worker)
        return answer

    def _give_back(self, worker: _Worker) -> None:
        with self._lock:
            if len(self._idle) < self._warm and not self._is_closed:
                self._idle.append(worker)
                return
        worker.dismiss()

    def _spawned(self) -> _Worker:
        """A new worker, which has not said yet that it is there. Needs the lock.

        Raises:
            ConnectionError: the nursery was killed; the next time there is another.
        """
        if self._is_closed:
            raise NoWorker(_ENDING)
        if self._nursery is None:
            self._nursery = _Nursery(self._command)
        try:
            return self._nursery.worker()
        except ConnectionError as error:
            log.warning("the nursery of workers has died and is replaced", reason=str(error))
            self._nursery.end()
            self._nursery = None
            raise

    def _wake(self) -> None:
        with self._lock:
            if self._nursery is not None:
                log.debug("a worker is late, and its nursery is woken")
                self._nursery.wake()


class _Nursery:
    def __init__(self, command: Sequence[str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            fd = theirs.fileno()
            self._process = subprocess.Popen(
                [*command, str(fd)], stdin=subprocess.DEVNULL, pass_fds=(fd,), cwd="/"
            )

    def worker(self) -> _Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading_fd, writing_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading_fd, False)
        worker = _Worker(ours, reading_fd)
        try:
            with theirs, mountcalls.closing(writing_fd):
                socket.send_fds(self._control, [b"w"], [theirs.fileno(), writing_fd], socket.MSG_DONTWAIT)
        except OSError:
            worker.dismiss()
            raise
        return worker

    def wake(self) -> None:
        """Have it go on if somebody has stopped it (SIGSTOP); nothing happens to one that runs."""
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self._control.close()
        self.wake()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Worker:
    """Our end of the connection with one worker, and of the pipe into which it writes what it is at."""

    def __init__(self, connection: socket.socket, steps_fd: int) -> None:
        self._connection = connection
        self._steps_fd = steps_fd
        self._pidfd: int | None = None

    def await_ready(self, deadline: float, wake: Callable[[], None]) -> None:
        """Wait until it is there; `wake` is called once if that takes long.

        Raises ConnectionError if it is not there any more, TimeoutError if not yet; it is dismissed then.
        """
        try:
            if self._pidfd is None:
                if not _has_come(self._connection.fileno(), min(_LATE_S, deadline - time.monotonic())):
                    wake()
                self._await(deadline)
                message, fds, _, _ = socket.recv_fds(self._connection, LONGEST_MESSAGE, 1)
                if not message:
                    raise ConnectionResetError
                self._pidfd = fds[0]
            elif self._has_ended(wait_s=0):
                raise ConnectionResetError
        except OSError:
            self.dismiss()
            raise

    def asked(self, request: Facts, fds: Sequence[int], deadline: float) -> Facts:
        """The answer to `request`. If there is none, `last_step` is what the worker was at."""
        self.last_step()  # of the request before
        self._await(deadline)
        socket.send_fds(self._connection, [json.dumps(request).encode()], fds)
        message = self._connection.recv(LONGEST_MESSAGE)
        if not message:
            raise ConnectionResetError
        try:
            facts: Facts = json.loads(message)
        except ValueError as error:
            raise NoWorker(errno.EBADMSG, "a worker's answer cannot be read") from error
        return facts

    def last_step(self) -> Facts:
        """What it has begun last since this was asked; nothing if it has begun nothing."""
        try:
            steps = os.read(self._steps_fd, _LONGEST_STEPS)
        except BlockingIOError:
            return {}
        whole = steps[: steps.rfind(b"\n") + 1].splitlines()
        return json.loads(whole[-1]) if whole else {}

    def hang_up(self) -> None:
        """Have `asked` fail, in whatever thread."""
        with contextlib.suppress(OSError):  # it has just been dismissed
            self._connection.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """Kill it, and wait for a moment: one that is gone has not finished what it was at."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if not self._has_ended(wait_s=_DEATH_S):
            log.warning("a killed worker waits in the kernel still")

    def dismiss(self) -> None:
        """Let go of it: it ends when it has nothing more to do."""
        self._connection.close()
        os.close(self._steps_fd)
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def _has_ended(self, *, wait_s: float) -> bool:
        return self._pidfd is None or _has_come(self._pidfd, wait_s)

    def _await(self, deadline: float) -> None:
        self._connection.settimeout(max(deadline - time.monotonic(), 0.001))


def _has_come(fd: int, wait_s: float) -> bool:
    """Whether there is something to read, or its end."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(wait_s, 0) * 1000))

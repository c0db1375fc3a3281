"""Processes that may hang, because they can be killed: `python -m volumedriver.nfs_worker FD`.

Whatever may wait for an NFS server is done in a worker: mounting, and detaching too, since to let go of the last
use of a file system is to tell its server. The *nursery*, this module's process, does nothing but fork workers
when the driver asks for one: a fork of this small process takes a millisecond or two, a new interpreter forty.

The driver sends, for each worker it wants, one end of a connection and one of a pipe. Over the connection the
worker first sends a descriptor of itself (a pidfd, by which to kill it without mistaking it), and then answers
requests, one at a time. A request or an answer is one message of JSON. Into the pipe goes, as a line of JSON, each
step that is begun: the driver reads that only where there is no answer, so that no step wakes it.

None of them outlives the driver: a worker ends when nobody is at the other end of its connection, the nursery
likewise, and whatever a worker is doing the kernel kills it with the nursery. A request has a limit by which the
kernel kills the worker, too: so one that nobody waits for any more ends.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from storage import linux
from volumedriver import held_mounts, mountcalls, nfs_mount, private_mounts
from volumedriver.nfs_request import Facts, Failure, Request

LONGEST_MESSAGE = 1 << 17

Action = Callable[[Mapping[str, Any], list[int], Callable[[Facts], None]], Facts]


def _mount(request: Mapping[str, Any], fds: list[int], report: Callable[[Facts], None]) -> Facts:
    return nfs_mount.mount(Request(**request["mount"]), fds[0], report)


def _probe(request: Mapping[str, Any], fds: list[int], report: Callable[[Facts], None]) -> Facts:
    del fds
    return nfs_mount.probe(Request(**request["probe"]), report, is_whole=request["is_whole"])


def _detach(request: Mapping[str, Any], fds: list[int], report: Callable[[Facts], None]) -> Facts:
    """Detach one mount. Not all there are: while this waits somebody may mount there again."""
    del fds, report
    return {"detached": mountcalls.detached_one(request["mountpoint"])}


def _remove(request: Mapping[str, Any], fds: list[int], report: Callable[[Facts], None]) -> Facts:
    """Remove an empty mountpoint, which detaches what other mount namespaces have mounted there."""
    del fds, report
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(request["mountpoint"])
    return {}


def _stale(request: Mapping[str, Any], fds: list[int], report: Callable[[Facts], None]) -> Facts:
    del fds, report
    return {"stale": held_mounts.stale(request["holds"])}


def _adopt(request: Mapping[str, Any], fds: list[int], report: Callable[[Facts], None]) -> Facts:
    del report
    held_mounts.adopt(request["hold"], request["attributes"], fds[0])
    return {}


ACTIONS: dict[str, Action] = {
    "mount": _mount,
    "probe": _probe,
    "detach": _detach,
    "remove": _remove,
    "stale": _stale,
    "adopt": _adopt,
}


def work(connection: socket.socket, steps_fd: int, actions: Mapping[str, Action]) -> None:
    """Answer requests until nobody is there to ask."""

    def report(facts: Facts) -> None:
        with _somebody_waiting():
            os.write(steps_fd, json.dumps(facts).encode() + b"\n")

    while True:
        message, fds, _, _ = socket.recv_fds(connection, LONGEST_MESSAGE, 1)
        if not message:
            return
        request = json.loads(message)
        signal.setitimer(signal.ITIMER_REAL, request["limit_s"])
        report({"step": "begin"})  # who is killed before has done nothing, and another can be asked
        try:
            answer = actions[request["do"]](request, fds, report)
        except Failure as failure:
            answer = failure.facts
        except OSError as error:
            answer = nfs_mount.facts_of(error)
        finally:
            for fd in fds:
                os.close(fd)
        signal.setitimer(signal.ITIMER_REAL, 0)
        with _somebody_waiting():
            connection.sendall(_message(answer))


def _message(answer: Facts) -> bytes:
    """It is one message in any case: what a server says may be as long as it likes."""
    message = json.dumps(answer).encode()
    if len(message) <= LONGEST_MESSAGE:
        return message
    return json.dumps(nfs_mount.facts_of(OSError(errno.EMSGSIZE, "what the server says is too long"))).encode()


@contextlib.contextmanager
def _somebody_waiting() -> Iterator[None]:
    """End this worker if nobody waits for what it says."""
    try:
        yield
    except BrokenPipeError:
        sys.exit()


def _be_worker(connection: socket.socket, steps_fd: int, nursery: int, actions: Mapping[str, Action]) -> NoReturn:
    try:
        linux.die_with_parent(nursery, signal.SIGKILL)
        with contextlib.suppress(PermissionError):
            os.setgroups([])  # what is done as a volume's owner is not done with root's groups
        os.umask(0)
        pidfd = os.pidfd_open(os.getpid())
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd]))]
        connection.sendmsg([b"{}"], ancillary)
        os.close(pidfd)
        work(connection, steps_fd, actions)
    finally:
        os._exit(0)


def main(control_fd: int, actions: Mapping[str, Action] = ACTIONS) -> None:
    """The nursery, until nobody is at the other end of `control_fd`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the driver's, which lets its calls end first
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies, and nobody to wait for those that do not die
    own_pid = os.getpid()
    with contextlib.suppress(OSError):  # who needs it will meet the error again, and say so
        private_mounts.prepare()
    with socket.socket(fileno=control_fd) as control:
        while True:
            message, fds, _, _ = socket.recv_fds(control, 1, 2)
            if not message:
                return
            # If this host has no more processes, the connection ends, which says so.
            with (
                socket.socket(fileno=fds[0]) as connection,
                mountcalls.closing(fds[1]) as steps_fd,
                contextlib.suppress(BlockingIOError, MemoryError),
            ):
                if os.fork() == 0:
                    control.close()
                    _be_worker(connection, steps_fd, own_pid, actions)


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""The driver as a process: `python -m volumedriver`. The only place that reads the environment and constructs."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import structlog

from brokervol.server import UnixServer
from storage import linux
from storage.definitions import DefinitionStore, definitions_path, mountpoint
from storage.mountinfo import read_mounts
from volumedriver.api import MAX_BODY_BYTES, create_app, refusal
from volumedriver.driver import Driver, Parts
from volumedriver.errors import DriverError, StateUnavailable, reason
from volumedriver.holders import holders
from volumedriver.hostfs import follow_host
from volumedriver.hostpaths import HostDirectories
from volumedriver.mounter import KernelMounter
from volumedriver.policy import HostPathPolicy, host_views, owned_directories, parse_allowed
from volumedriver.sources import Sources
from volumedriver.store import ReferenceStore, sole_user

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = structlog.get_logger()

_THREADS = 64
_IDLE_CONNECTION_S = 3600  # the engine keeps connections open for reuse


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM. Mounts stay when the process ends: containers use them."""
    options = _arguments(argv)
    _configure_log(options.log_level)
    linux.die_with_supervisor(os.environ.get("BROKERVOL_SUPERVISED"))
    try:
        _serve(options)
    except DriverError as error:
        log.critical("brokervol driver cannot work", reason=str(error))
    except OSError as error:
        log.critical("brokervol driver cannot work", reason=f"{error.filename or options.socket}: {reason(error)}")
    else:
        return 0
    return 1


def _serve(options: argparse.Namespace) -> None:
    """Listen first, recover then: the engine gives a plugin some 9 s to open its socket, calls can wait.

    Only the lock comes before, so that a second driver cannot take the socket of the first.
    """
    root = os.path.realpath(options.root)  # as mountinfo will show it
    state = _prepared(root)
    with contextlib.ExitStack() as stack:
        stack.enter_context(sole_user(state))
        follow_host(os.path.realpath(options.hostfs))  # before there are threads
        server = _listening(options.socket)
        stack.callback(server.stop)  # its threads would outlive a failure
        log.info("listening", socket=options.socket)
        hosts = HostDirectories(options.hostfs)
        stack.callback(hosts.close)
        definitions = stack.enter_context(_definitions(definitions_path(root)))
        references = stack.enter_context(contextlib.closing(ReferenceStore(os.path.join(state, "mounts.sqlite"))))
        parts = Parts(
            root=root,
            definitions=definitions,
            references=references,
            mounter=KernelMounter(),
            sources=Sources(hosts, _policy(options, root), root),
            holders=holders,
            boot_id=_boot_id(),
        )
        driver = Driver(parts)
        server.wsgi_app = create_app(driver)
        log.info("serving", volumes=len(driver.list()), root=root, hostfs=options.hostfs)
        server.run()
        log.info("stopped")


def _prepared(root: str) -> str:
    """Make the directories below `root`; returns the one of the state.

    Mountpoints are for root: what a token stands for is anybody's who can go there.
    """
    state, volumes = os.path.dirname(definitions_path(root)), os.path.dirname(mountpoint(root, "any"))
    os.makedirs(root, 0o755, exist_ok=True)
    for path in (state, volumes):
        os.makedirs(path, 0o700, exist_ok=True)
        os.chmod(path, 0o700)  # earlier versions were less strict
    return state


def _listening(path: str) -> UnixServer:
    """The server, which accepts nothing yet: connections wait until it runs."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    server = UnixServer(
        path,
        _not_ready,
        mode=0o600,
        threads=_THREADS,
        timeout_s=_IDLE_CONNECTION_S,
        max_body_bytes=MAX_BODY_BYTES,
        refusal=refusal,
    )
    server.prepare()
    return server


def _not_ready(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("503 Service Unavailable", [("Content-Type", "application/json")])
    return [b'{"Err": "the driver is starting"}']


@contextlib.contextmanager
def _definitions(path: str) -> Iterator[DefinitionStore]:
    try:
        store = DefinitionStore(path)
    except sqlite3.Error as error:
        raise StateUnavailable(f"the definitions in {path} are not usable: {error}") from error
    with store:
        yield store


def _policy(options: argparse.Namespace, root: str) -> HostPathPolicy:
    mounts, hostfs = read_mounts(), os.path.realpath(options.hostfs)
    if not host_views(mounts, hostfs, root):
        log.warning("the driver's own directory is not visible on the host", root=root, hostfs=hostfs)
    owned = owned_directories(mounts, hostfs, root)
    log.info("host paths", owned=owned, allowed=options.allowed_host_paths or "all that are not refused")
    return HostPathPolicy(owned, options.allowed_host_paths)


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="brokervol driver",
        description="The Docker volume driver: answers the engine and owns the mounts.",
        epilog="Each option may be given by the environment variable in brackets instead.",
    )

    def add(flag: str, variable: str, default: str, text: str) -> None:
        parser.add_argument(
            flag,
            default=os.environ.get(variable) or default,
            metavar=flag.rpartition("-")[2].upper(),
            help=f"{text} [{variable}] (default: {default or 'empty'})",
        )

    add("--socket", "BROKERVOL_SOCKET", "/run/docker/plugins/brokervol.sock", "the socket to listen on")
    add("--root", "BROKERVOL_ROOT", "/var/lib/brokervol", "the directory of mountpoints and state")
    add("--hostfs", "BROKERVOL_HOSTFS", "/", "where the host's root directory is visible")
    add(
        "--allowed-host-paths",
        "ALLOWED_HOST_PATHS",
        "",
        "the only host directories to give out, separated by colons or commas; empty: all that are not refused",
    )
    add("--log-level", "LOG_LEVEL", "info", "debug, info, warning or error")
    options = parser.parse_args(argv)
    try:
        options.allowed_host_paths = parse_allowed(options.allowed_host_paths)
    except ValueError as error:
        parser.error(str(error))
    if options.log_level.upper() not in logging.getLevelNamesMapping():
        parser.error(f"the log level {options.log_level!r} is not accepted: debug, info, warning or error")
    return options


def _configure_log(level: str) -> None:
    """JSON lines on stdout: the engine takes what a plugin writes to stderr for errors."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
    )


if __name__ == "__main__":
    sys.exit(main())

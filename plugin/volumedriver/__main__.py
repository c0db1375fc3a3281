"""The driver as a process: `python -m volumedriver`. The only place that reads the environment and constructs."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import structlog

from brokervol import premises, settings
from brokervol.server import Limits, UnixServer
from brokervol.settings import Setting, Settings
from storage import linux
from storage.definitions import definitions_path, mountpoint
from storage.mountinfo import read_mounts
from volumedriver.api import create_app, refusal
from volumedriver.driver import Driver, Parts
from volumedriver.errors import DriverError, NfsServerRefused, StateUnavailable, reason
from volumedriver.holders import Namespaces
from volumedriver.holds import Holds
from volumedriver.hostfs import follow_host
from volumedriver.hostpaths import HostDirectories
from volumedriver.mending import keep_room, make_room, opened_definitions, opened_references
from volumedriver.metrics import Metrics
from volumedriver.mounter import KernelMounter
from volumedriver.nfs import NfsMounts, NfsSource
from volumedriver.nfs_policy import NfsServerPolicy
from volumedriver.nfs_policy import parse_allowed as parse_allowed_servers
from volumedriver.nfs_probes import Prober
from volumedriver.nfs_servers import MOST_DOUBTFUL, Servers
from volumedriver.options import NfsOptions
from volumedriver.policy import HostPathPolicy, host_views, owned_directories, parse_allowed
from volumedriver.reconcile import Reconciler, Timer
from volumedriver.sources import Sources
from volumedriver.status import Status
from volumedriver.store import sole_user
from volumedriver.workers import Workers

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = structlog.get_logger()

_LISTENER_ENDS_S, _LISTENER_POLL_S = 1.0, 0.05
_MERCY_S = 1.0  # for NFS mounts under way when the driver is told to end

# Only the engine calls. It keeps connections open for reuse, and forgets a volume when a Get is refused.
# Threads are made on demand; that there are twice as many as mounts may wait for NFS servers of which nobody knows
# whether they are well leaves room for all other calls.
_LIMITS = Limits(requests=2 * MOST_DOUBTFUL, wait_s=3600, idle_s=3600)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM. Mounts stay when the process ends: containers use them."""
    options = _options(argv)
    premises.check(settings.DRIVER, options)
    _configure_log(options.log_level)
    for name, meant in settings.mistaken(settings.DRIVER, os.environ).items():
        log.warning("a variable is no setting", variable=name, meant=meant)
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


def _serve(options: Settings) -> None:
    """Listen first, recover then: the engine gives a plugin some 9 s to open its socket, calls can wait.

    Only the lock comes before, so that a second driver cannot take the socket of the first.
    """
    root = os.path.realpath(options.root)  # as mountinfo will show it
    state = _prepared(root)
    with contextlib.ExitStack() as stack:
        stack.enter_context(sole_user(state))
        follow_host(os.path.realpath(options.hostfs))  # before there are threads
        server = _listening(options.socket)
        log.info("listening", socket=options.socket)
        hosts = HostDirectories(options.hostfs)
        stack.callback(hosts.close)
        make_room(state)
        definitions = stack.enter_context(opened_definitions(definitions_path(root)))
        references = opened_references(os.path.join(state, "mounts.sqlite"))
        stack.callback(references.close)
        servers = Servers(boot_s=options.nfs_boot_s, interval_s=options.nfs_probe_s)
        workers = Workers()
        stack.callback(workers.close)
        mounts = NfsMounts(workers, options.nfs_mount_timeout_s, servers)
        nfs_policy = NfsServerPolicy(parse_allowed_servers(options.allowed_nfs_servers))
        parts = Parts(
            root=root,
            definitions=definitions,
            references=references,
            mounter=KernelMounter(mounts, Holds(workers)),
            sources=Sources(hosts, _policy(options, root), root, nfs_policy),
            holders=Namespaces(),
            boot_id=_boot_id(),
        )
        driver = Driver(parts)
        keep_room(state)
        if any(isinstance(volume.options, NfsOptions) for volume in driver.list()):
            workers.prepare()
        prober = Prober(servers, mounts, lambda: _mounted(driver, nfs_policy))
        stack.callback(prober.close)
        prober.start()
        timer = Timer(Reconciler(driver, parts, grace_s=options.reference_grace_s), options.reconcile_s)
        stack.callback(timer.stop)
        timer.start()
        status = Status(driver, servers, workers, root)
        server.wsgi_app = create_app(driver, status, Metrics(status))
        log.info("serving", volumes=len(driver.list()), root=root, hostfs=options.hostfs)
        stack.callback(mounts.give_up)  # the timer and the probes must not wait for servers either
        giving_up = threading.Timer(_MERCY_S, mounts.give_up)
        stack.callback(giving_up.cancel)
        server.run(ending=giving_up.start)
        log.info("stopped")


def _mounted(driver: Driver, policy: NfsServerPolicy) -> Iterator[NfsSource]:
    """The NFS volumes that are mounted."""
    for volume in driver.list():
        if volume.is_mounted and isinstance(volume.options, NfsOptions):
            with contextlib.suppress(NfsServerRefused):
                yield NfsSource(volume.options, policy.networks(volume.options.place))


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
    _refuse_listener(path)
    server = UnixServer(
        path,
        _not_ready,
        mode=0o600,
        limits=_LIMITS,
        refusal=refusal,
    )
    server.prepare()
    return server


def _refuse_listener(path: str) -> None:
    """Who listens there works with another root; its socket must not be taken. One that is left over may be.

    One that is about to end is waited for.
    """
    deadline = time.monotonic() + _LISTENER_ENDS_S
    while _has_listener(path):
        if time.monotonic() >= deadline:
            raise StateUnavailable(
                f"another process listens on {path}: two brokervol drivers need two sockets (--socket)"
            )
        time.sleep(_LISTENER_POLL_S)


def _has_listener(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:  # it has much to do
            return True
        except OSError:
            return False
    return True


def _not_ready(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("503 Service Unavailable", [("Content-Type", "application/json")])
    return [b'{"Err": "the driver is starting"}']


def _policy(options: Settings, root: str) -> HostPathPolicy:
    mounts, hostfs = read_mounts(), os.path.realpath(options.hostfs)
    if not host_views(mounts, hostfs, root):
        log.warning("the driver's own directory is not visible on the host", root=root, hostfs=hostfs)
    owned = owned_directories(mounts, hostfs, root)
    allowed = parse_allowed(options.allowed_host_paths)
    log.info("host paths", owned=owned, allowed=allowed or "all that are not refused")
    return HostPathPolicy(owned, allowed)


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _options(argv: Sequence[str] | None) -> Settings:
    """The settings, of which lists are read here: only the driver knows what they are of."""
    description = "The Docker volume driver: answers the engine and owns the mounts."
    options = settings.read(settings.DRIVER, description, argv, os.environ)
    lists: Sequence[tuple[Setting[str], str, Callable[[str], object]]] = (
        (Settings.allowed_host_paths, options.allowed_host_paths, parse_allowed),
        (Settings.allowed_nfs_servers, options.allowed_nfs_servers, parse_allowed_servers),
    )
    for setting, text, parse in lists:
        try:
            parse(text)
        except ValueError as error:
            settings.refuse(settings.DRIVER, setting.refusal(text, str(error)))
    return options


def _configure_log(level: str) -> None:
    """JSON lines on stdout: the engine takes what a plugin writes to stderr for errors."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
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

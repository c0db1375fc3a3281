"""NFS mounts from the driver's side: what a worker is asked to do, and the sentence for what it could not."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from volumedriver import mountcalls
from volumedriver.errors import DriverError, InvalidVolume, MountFailed, NfsServerRefused, NfsUnavailable, shown
from volumedriver.nfs_options import Place
from volumedriver.options import NfsOptions
from volumedriver.rpc import PORTMAPPER_PORT
from volumedriver.workers import NoAnswer, NoWorker, Workers

log = structlog.get_logger()

TIMEOUT_S = 20
LONGEST_TIMEOUT_S = 24

_PATIENCE_S = 0.5  # with what is done already and only not yet acknowledged
_SHORTEST_S = 1.0
_MOST_SHOWN = 5
_NOWHERE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL))
_DENIED = frozenset((errno.EACCES, errno.EPERM))
_UNSECURED = _DENIED | {errno.EINVAL}

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NfsSource:
    """An export to mount. `networks` are those that the server's address must lie in, None for any."""

    options: NfsOptions
    networks: list[str] | None
    deadline: float | None = None  # of time.monotonic(), by which the call that wants it must have its answer


class NfsMounts:
    """Mounts and detaches in workers.

    Args:
        timeout_s: the longest that one mount may take.
    """

    def __init__(self, workers: Workers, timeout_s: float = TIMEOUT_S) -> None:
        self._workers = workers
        self._timeout_s = timeout_s

    def mount(self, source: NfsSource, target_fd: int, *, read_only: bool) -> None:
        """Mount on the directory behind `target_fd`.

        Raises:
            DriverError: with the step that failed. Where the time was over, the mount may be there nonetheless.
        """
        timeout_s = self._timeout_s
        if source.deadline is not None:
            timeout_s = max(min(timeout_s, source.deadline - time.monotonic()), _SHORTEST_S)
        place = source.options.place
        request = {"do": "mount", "mount": _request(source, read_only=read_only)}
        try:
            facts = self._workers.run(request, timeout_s, [target_fd])
        except NoAnswer as silence:
            raise _too_late(place, silence.step, timeout_s) from silence
        except NoWorker as error:
            raise MountFailed(f"cannot mount {shown(place.text)}: {error.strerror or error}") from error
        if "failed" in facts:
            log.info("nfs mount failed", nfs_path=place.text, **facts)
            raise _explained(source, facts)
        log.info("nfs mounted", nfs_path=place.text, version=facts["version"], address=facts["address"])

    def detach(self, mountpoint: str) -> None:
        """Take the top mount off `mountpoint`. What its server does not acknowledge is left to the worker."""
        self._left({"do": "detach", "mountpoint": mountpoint})

    def remove(self, mountpoint: str) -> None:
        """Remove an empty mountpoint, on which something may be mounted in other mount namespaces.

        Raises:
            OSError: it is still there.
        """
        self._left({"do": "remove", "mountpoint": mountpoint})

    def _left(self, request: Facts) -> None:
        facts = self._workers.run_and_leave(request, _PATIENCE_S, self._timeout_s)
        if facts is None:
            log.warning("the server of a detached mount does not answer", mountpoint=request["mountpoint"])
        elif "failed" in facts:
            raise OSError(facts["errno"], facts["reason"])


def _request(source: NfsSource, *, read_only: bool) -> dict[str, Any]:
    options, given = source.options, source.options.mount_options
    creation = options.creation
    return {
        "server": options.place.server,
        "path": options.place.path,
        "options": given.parameters,
        "versions": given.versions,
        "proto": given.value("proto"),
        "port": given.number("port"),
        "mountproto": given.value("mountproto"),
        "mountport": given.number("mountport"),
        "attributes": given.attributes | (mountcalls.RDONLY if read_only else 0),
        "networks": source.networks,
        "creation": None if creation is None else (creation.mode, creation.uid, creation.gid),
    }


def _too_late(place: Place, step: Facts, timeout_s: float) -> DriverError:
    """The deadline is over: what did not end is the step that was announced last."""
    server, within = _server(place, step), f"within {timeout_s:.0f} s"
    match step.get("step"):
        case "resolve":
            fact = f"this host's name servers do not say {within} what {place.server} is"
        case "connect":
            fact = (
                f"{server} does not answer on port {step['port']} {within}: it is down, or a firewall is between"
            )
        case "ask":
            fact = (
                f"{server} accepts connections on port {step['port']} but answers no request {within}:"
                " its NFS service hangs, or something else listens there"
            )
        case "mount":
            fact = f"{server} did not let the mount with NFS {step['version']} end {within}: it or its disks hang"
        case _:
            fact = f"the worker process did not begin {within}: this host is overloaded"
    return NfsUnavailable(_sentence(place, fact))


def _explained(source: NfsSource, facts: Facts) -> DriverError:
    explain = _EXPLANATIONS.get(facts["failed"], _other)
    error = explain(source, facts)
    return type(error)(_sentence(source.options.place, str(error)))


def _sentence(place: Place, fact: str) -> str:
    return f"cannot mount {shown(place.text)}: {fact}"


def _server(place: Place, facts: Facts) -> str:
    """The server, with its address unless that is what it is called."""
    address = facts.get("address")
    return place.server if address in {None, place.server} else f"{place.server} ({address})"


def _resolve(source: NfsSource, facts: Facts) -> DriverError:
    name = source.options.place.server
    return NfsUnavailable(f"the name {name} is not known here ({facts['reason']}): check it, and this host's DNS")


def _refuse(source: NfsSource, facts: Facts) -> DriverError:
    addresses, networks = ", ".join(facts["addresses"]), ", ".join(facts["networks"])
    return NfsServerRefused(
        f"{source.options.place.server} is at {addresses}, and ALLOWED_NFS_SERVERS of this host allows this path"
        f" in {networks} only"
    )


def _connect(source: NfsSource, facts: Facts) -> DriverError:
    server, port = _server(source.options.place, facts), facts["port"]
    if facts["errno"] in _NOWHERE:
        return NfsUnavailable(f"there is no way to {server} ({facts['reason']}): check this host's network")
    if facts["errno"] == errno.ECONNREFUSED:
        what = "rpcbind, which NFSv3 needs, does not run" if port == PORTMAPPER_PORT else "no NFS server runs"
        return NfsUnavailable(f"{server} refuses connections to port {port}: {what} there, or a firewall refuses")
    return NfsUnavailable(f"{server} cannot be reached on port {port}: {facts['reason']}")


def _ask(source: NfsSource, facts: Facts) -> DriverError:
    server = _server(source.options.place, facts)
    return NfsUnavailable(f"what answers on port {facts['port']} of {server} is no NFS service: {facts['reason']}")


def _version(source: NfsSource, facts: Facts) -> DriverError:
    asked, served = " or ".join(facts["asked"]), facts.get("served")
    known = f", but {served[0]} to {served[1]}" if served and served[1] else ""
    asked += " over UDP" if facts.get("is_udp") else ""
    return MountFailed(
        f"{_server(source.options.place, facts)} does not serve NFS version {asked}{known}:"
        " give another vers in mount_options, or have the server serve it"
    )


def _path(source: NfsSource, facts: Facts) -> DriverError:
    place = source.options.place
    if facts["parent"] in {"", "/"}:
        return InvalidVolume(f"{place.server} has no {shown(place.path)} for this host{_exports(place, facts)}")
    return InvalidVolume(
        f"on {place.server} there is no {shown(facts['missing'])} in {shown(facts['parent'])}:"
        " make it (create=true does)"
    )


def _create(_: NfsSource, facts: Facts) -> DriverError:
    fact = f"the directory {shown(facts['directory'])} cannot be made: {facts['reason']}"
    if facts["errno"] in _DENIED:
        fact += (
            "; where the server maps root to nobody (root_squash), give uid and gid of a user who may write there,"
            " or make it on the server"
        )
    if facts["errno"] == errno.EROFS:
        fact += "; the export is read-only, or the directory above it is no export"
    return MountFailed(fact)


def _option(_: NfsSource, facts: Facts) -> DriverError:
    return MountFailed(f"this host's kernel refuses the mount option {facts['option']} ({_said(facts)})")


def _statd(_: NfsSource, __: Facts) -> DriverError:
    return MountFailed(
        "NFSv3 locks need rpc.statd on this host, which does not run: start it (Debian: nfs-common and rpcbind),"
        " use NFSv4, or give nolock in mount_options if no other host locks files there"
    )


def _kernel(_: NfsSource, facts: Facts) -> DriverError:
    return MountFailed(f"this host's kernel has no NFS client ({facts['reason']}): load its module (modprobe nfs)")


def _mount(source: NfsSource, facts: Facts) -> DriverError:
    place = source.options.place
    server, code = _server(place, facts), facts["errno"]
    security = source.options.mount_options.value("sec") or ""
    if security.startswith("krb5") and code in _UNSECURED:
        return MountFailed(
            f"{server} and this host did not agree on sec={security} ({_said(facts)}): the export must offer it,"
            " and rpc.gssd run here with a key for this host (/etc/krb5.keytab)"
        )
    if code in _DENIED:
        return MountFailed(f"{server} denies {shown(place.path)} to this host{_exports(place, facts)}")
    return _other(source, facts)


def _other(_: NfsSource, facts: Facts) -> DriverError:
    return MountFailed(_said(facts))


def _said(facts: Facts) -> str:
    """What the kernel said, in its own words where it has any."""
    said = "; ".join(facts.get("said") or ())
    reason = facts.get("reason") or facts["failed"]
    return f"{reason}: {shown(said)}" if said else str(reason)


def _exports(place: Place, facts: Facts) -> str:
    """What the server says that it exports, as far as it explains why this host does not get the path."""
    exports, local = facts.get("exports"), facts.get("local")
    if exports is None:
        return ": it does not exist there, or is not exported to this host"
    if any(place.path == export or place.path.startswith(f"{export.rstrip('/')}/") for export in exports):
        address = f" ({local})" if local else ""
        return f": it is exported, but not to this host's address{address}, or not with this security"
    if not exports:
        return ": the server says that it exports nothing"
    more = f" and {len(exports) - _MOST_SHOWN} more" if len(exports) > _MOST_SHOWN else ""
    return f": the server says that it exports {', '.join(map(shown, exports[:_MOST_SHOWN]))}{more}"


_EXPLANATIONS: dict[str, Callable[[NfsSource, Facts], DriverError]] = {
    "resolve": _resolve,
    "refuse": _refuse,
    "connect": _connect,
    "ask": _ask,
    "version": _version,
    "path": _path,
    "create": _create,
    "option": _option,
    "statd": _statd,
    "kernel": _kernel,
    "mount": _mount,
}

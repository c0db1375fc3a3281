"""NFS mounts from the driver's side: what a worker is asked to do, and the sentence for what it could not."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from volumedriver import mountcalls, network
from volumedriver.errors import DriverError, InvalidVolume, MountFailed, NfsServerRefused, NfsUnavailable, shown
from volumedriver.nfs_options import Place
from volumedriver.nfs_servers import Refused, Servers
from volumedriver.options import NfsOptions
from volumedriver.rpc import MOUNT, PORTMAPPER_PORT
from volumedriver.workers import NoAnswer, NoWorker, Workers

log = structlog.get_logger()

TIMEOUT_S = 20
PROBE_TIMEOUT_S = 5.0

_PATIENCE_S = 0.5  # with what is done already and only not yet acknowledged
_SHORTEST_S = 1.0
_MOST_SHOWN = 5
_NOWHERE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL))
_SILENT = _NOWHERE | {errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN}
_STEPS_OF_SERVER = frozenset(("resolve", "connect", "ask", "mount"))
_STEPS_BEYOND = frozenset(("walk", "link", "referral", "unproven"))  # of what the server has shown already
_STEPS_OF_KERNEL = frozenset(("mount", "walk"))
_DENIED = frozenset((errno.EACCES, errno.EPERM))
_UNSECURED = _DENIED | {errno.EINVAL}

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NfsSource:
    """An export to mount. `networks` are those that the server's address must lie in, `prefix` is the directory of
    the server beneath which it must turn out to be; None for any.
    """

    options: NfsOptions
    networks: list[str] | None
    deadline: float | None = None  # of time.monotonic(), by which the call that wants it must have its answer
    prefix: str | None = None


class NfsMounts:
    """Mounts, detaches and probes in workers, and tells what it meets to `servers`, which remember it.

    Args:
        timeout_s: the longest that one mount may take.
    """

    def __init__(self, workers: Workers, timeout_s: float = TIMEOUT_S, servers: Servers | None = None) -> None:
        self._workers = workers
        self._timeout_s = timeout_s
        self._servers = servers or Servers()

    def mount(self, source: NfsSource, target_fd: int, *, read_only: bool) -> None:
        """Mount on the directory behind `target_fd`.

        Raises:
            DriverError: with the step that failed. Where the time was over, the mount may be there nonetheless.
        """
        now = time.monotonic()
        deadline = now + self._timeout_s
        if source.deadline is not None:
            deadline = max(min(deadline, source.deadline), now + _SHORTEST_S)
        while True:
            with self._turn(source, deadline):
                try:
                    self._mount(source, target_fd, deadline, read_only=read_only)
                    return
                except NfsUnavailable:
                    if not self._servers.is_awaited(source, deadline):
                        raise

    def probe(self, source: NfsSource) -> None:
        """Ask the server of `source` for nothing, only to see whether it answers."""
        began = time.monotonic()
        request = {"do": "probe", "probe": _request(source, read_only=True)}
        try:
            facts = self._workers.run(request, PROBE_TIMEOUT_S)
        except NoAnswer as silence:
            if silence.step.get("step") in _STEPS_OF_SERVER:
                self._servers.missed(source, _too_late(source.options.place, silence.step, PROBE_TIMEOUT_S), began)
        except NoWorker as error:
            log.warning("a server could not be probed", reason=error.strerror or str(error))
        else:
            self._learn(source, facts, began)
            if "took_s" in facts:
                self._measure(source, facts)

    def find_way(self, source: NfsSource) -> list[network.Path | None]:
        """The ways to where the server was found before, as far as that is known. If there is none, it is dead."""
        addresses = self._servers.addresses(source)
        ways = _ways(addresses)
        if obstacle := _obstacle(_server(source.options.place, addresses), ways):
            self._servers.failed(source, obstacle, time.monotonic())
        return ways

    def detach(self, mountpoint: str) -> None:
        """Take the top mount off `mountpoint`. What its server does not acknowledge is left to the worker."""
        self._left({"do": "detach", "mountpoint": mountpoint})

    def remove(self, mountpoint: str) -> None:
        """Remove an empty mountpoint, on which something may be mounted in other mount namespaces.

        Raises:
            OSError: it is still there.
        """
        self._left({"do": "remove", "mountpoint": mountpoint})
        self._servers.wake.set()  # perhaps nobody has its server mounted any more

    def _left(self, request: Facts) -> None:
        facts = self._workers.run_and_leave(request, _PATIENCE_S, self._timeout_s)
        if facts is None:
            log.warning("the server of a detached mount does not answer", mountpoint=request["mountpoint"])
        elif "failed" in facts:
            raise OSError(facts["errno"], facts["reason"])

    @contextlib.contextmanager
    def _turn(self, source: NfsSource, deadline: float) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._servers.turn(source, deadline))
            except Refused as refused:
                raise NfsUnavailable(_sentence(source.options.place, str(refused))) from refused
            yield

    def _mount(self, source: NfsSource, target_fd: int, deadline: float, *, read_only: bool) -> None:
        self._look_ahead(source)
        began, place = time.monotonic(), source.options.place
        timeout_s = max(deadline - began, _SHORTEST_S)
        request = {"do": "mount", "mount": _request(source, read_only=read_only)}
        try:
            facts = self._workers.run(request, timeout_s, [target_fd])
        except NoAnswer as silence:
            reason, step = _too_late(place, silence.step, timeout_s), silence.step.get("step")
            if step in _STEPS_OF_SERVER:
                self._servers.failed(source, reason, began, _addresses(silence.step))
            if step in _STEPS_OF_KERNEL:  # perhaps not the server's fault, but its disk's, or another server's
                self._servers.hurry(source)
            raise NfsUnavailable(_sentence(place, reason)) from silence
        except NoWorker as error:
            raise MountFailed(f"cannot mount {shown(place.text)}: {error.strerror or error}") from error
        failure = self._learn(source, facts, began)
        if failure is not None:
            log.info("nfs mount failed", nfs_path=place.text, **facts)
            raise type(failure)(_sentence(place, str(failure)))
        log.info("nfs mounted", nfs_path=place.text, version=facts["version"], address=facts["address"])

    def _look_ahead(self, source: NfsSource) -> None:
        """That there is no way to a server the kernel tells at once, and who connects learns it late."""
        if self._servers.has_answered(source) or not network.is_ready():
            return
        addresses = self._servers.addresses(source)
        if obstacle := _obstacle(_server(source.options.place, addresses), _ways(addresses)):
            self._servers.failed(source, obstacle, time.monotonic())
            raise NfsUnavailable(_sentence(source.options.place, obstacle))

    def _learn(self, source: NfsSource, facts: Facts, began: float) -> DriverError | None:
        """Remember what a mount or probe has met; returns the failure, in a clause."""
        if "failed" not in facts:
            self._servers.answered(source, _addresses(facts))
            return None
        failure = _EXPLANATIONS.get(facts["failed"], _other)(source, facts)
        if _tells_of_death(facts):
            self._servers.failed(source, str(failure), began, _addresses(facts))
        elif _tells_of_life(facts):
            self._servers.answered(source, _addresses(facts))
        return failure

    def _measure(self, source: NfsSource, facts: Facts) -> None:
        round_trip_ms = retransmits = None
        with contextlib.suppress(OSError):  # a kernel without INET_DIAG
            if connections := network.connections(_addresses(facts), facts["port"]):
                round_trip_ms, retransmits = connections
        self._servers.measured(source, facts["took_s"] * 1000, round_trip_ms, retransmits)


def _tells_of_death(facts: Facts) -> bool:
    """Whether a failure says that the server is dead or silent. What is wrong with a path or option does not."""
    if facts["failed"] == "mount":
        return facts["errno"] in _SILENT
    return facts["failed"] in _STEPS_OF_SERVER and not facts.get("is_given")


def _tells_of_life(facts: Facts) -> bool:
    return facts["failed"] in {"path", "create", "mount", *_STEPS_BEYOND} or "served" in facts


def _addresses(facts: Facts) -> tuple[str, ...]:
    return tuple((facts.get("address") or "").split(", ")) if facts.get("address") else ()


def _ways(addresses: Sequence[str]) -> list[network.Path | None]:
    """The ways that this host has to them, None for no way; empty where nothing can be said."""
    try:
        return [network.path(address) for address in addresses]
    except OSError as error:
        log.info("the way to a server is not known", reason=error.strerror)
        return []


def _obstacle(server: str, ways: Sequence[network.Path | None]) -> str | None:
    """Why no way leads to the server, in a clause; None if one does, for all that is known here."""
    if any(way is not None and way.is_up for way in ways):
        return None
    for way in filter(None, ways):
        return f"the link {way.link} towards {server} is down: check its cable or switch, and this host's network"
    return f"there is no route to {server}: check this host's network" if ways else None


def _over(ways: Sequence[network.Path | None]) -> str:
    """By which link, and from which address of ours, the server was looked for; nothing if that is this host."""
    for way in ways:
        if way is not None and way.is_up and way.link != "lo":
            return f" over {way.link}" + (f" from {way.source}" if way.source else "")
    return ""


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
        "prefix": source.prefix,
        "creation": None if creation is None else (creation.mode, creation.uid, creation.gid),
    }


def _too_late(place: Place, step: Facts, timeout_s: float) -> str:
    """The deadline is over: what did not end is the step that was announced last. In a clause."""
    server, within = _server(place, _addresses(step)), f"within {timeout_s:.0f} s"
    match step.get("step"):
        case "resolve":
            return f"this host's name servers do not say {within} what {place.server} is"
        case "connect":
            ways = _ways(_addresses(step))
            return _obstacle(server, ways) or (
                f"{server} does not answer on port {step['port']} {within}{_over(ways)}: it is down, or a firewall"
                " is between"
            )
        case "ask":
            does = f"does not answer {step['call']}" if "call" in step else "answers no request"
            return (
                f"{server} accepts connections on port {step['port']} but {does} {within}: its {_service(step)}"
                " hangs, or something else listens there"
            )
        case "mount":
            return f"{server} did not let the mount with NFS {step['version']} end {within}: it or its disks hang"
        case "walk":
            return (
                f"{server} answers, but the way to {shown(step['path'])} on it did not end {within}: its disks"
                " hang, or it refers to another server (refer=) that does not answer"
            )
        case other:
            who = (
                "rpcbind of this host does not answer" if other == "statd" else "the worker process did not begin"
            )
            return f"{who} {within}: this host is overloaded"


def _sentence(place: Place, fact: str) -> str:
    return f"cannot mount {shown(place.text)}: {fact}"


def _server(place: Place, addresses: Sequence[str]) -> str:
    """The server, with its address unless that is what it is called."""
    address = ", ".join(addresses)
    return place.server if address in {"", place.server} else f"{place.server} ({address})"


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
    server, port = _server(source.options.place, _addresses(facts)), facts["port"]
    if facts["errno"] in _NOWHERE:
        ways = _ways(_addresses(facts))
        return NfsUnavailable(
            _obstacle(server, ways)
            or f"{server} cannot be reached{_over(ways)} ({facts['reason']}): it is down, or the network there"
        )
    if facts["errno"] == errno.ECONNREFUSED:
        if facts.get("is_given"):
            return MountFailed(
                f"{server} refuses connections to port {port}: mountport={port} in mount_options is not where its"
                " mount service is; leave it out, and the server is asked"
            )
        what = f"no {_service(facts, 'NFS server')} runs"
        if port == PORTMAPPER_PORT:
            what = "rpcbind, which NFSv3 needs, does not run"
        return NfsUnavailable(f"{server} refuses connections to port {port}: {what} there, or a firewall refuses")
    return NfsUnavailable(f"{server} cannot be reached on port {port}: {facts['reason']}")


def _service(facts: Facts, usual: str = "NFS service") -> str:
    """What was asked on a port."""
    if facts.get("port") == PORTMAPPER_PORT:
        return "rpcbind"
    return "mount service (rpc.mountd)" if facts.get("program") == MOUNT else usual


def _ask(source: NfsSource, facts: Facts) -> DriverError:
    server = _server(source.options.place, _addresses(facts))
    return NfsUnavailable(
        f"what answers on port {facts['port']} of {server} is no {_service(facts)}: {facts['reason']}"
    )


def _family(source: NfsSource, facts: Facts) -> DriverError:
    return MountFailed(
        f"{source.options.place.server} has no IPv6 address, which proto={facts['proto']} in mount_options asks"
        " for: leave proto out, or name an address that it has"
    )


def _version(source: NfsSource, facts: Facts) -> DriverError:
    asked, served = " or ".join(facts["asked"]), facts.get("served")
    known = f", but {served[0]} to {served[1]}" if served and served[1] else ""
    asked += " over UDP" if facts.get("is_udp") else ""
    return MountFailed(
        f"{_server(source.options.place, _addresses(facts))} does not serve NFS version {asked}{known}:"
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


def _statd(_: NfsSource, facts: Facts) -> DriverError:
    return MountFailed(
        f"NFSv3 locks need rpc.statd on this host ({facts['reason']}): start it (Debian: nfs-common and rpcbind),"
        " use NFSv4, or give nolock in mount_options if no other host locks files there"
    )


def _kernel(_: NfsSource, facts: Facts) -> DriverError:
    return MountFailed(f"this host's kernel has no NFS client ({facts['reason']}): load its module (modprobe nfs)")


def _mount(source: NfsSource, facts: Facts) -> DriverError:
    place = source.options.place
    server, code = _server(place, _addresses(facts)), facts["errno"]
    security = _security(source)
    if security.startswith("krb5") and code in _UNSECURED:
        return MountFailed(
            f"{server} and this host did not agree on sec={security} ({_said(facts)}): the export must offer it,"
            " and rpc.gssd run here with a key for this host (/etc/krb5.keytab)"
        )
    if code in _DENIED:
        return MountFailed(f"{server} denies {shown(place.path)} to this host{_exports(place, facts)}")
    return _other(source, facts)


def _walk(source: NfsSource, facts: Facts) -> DriverError:
    """Something is in the way from the server's root, or from an export, to the directory."""
    server, parent = _server(source.options.place, _addresses(facts)), shown(facts["parent"])
    if facts["errno"] in _SILENT:
        return NfsUnavailable(
            f"{server} refers {shown(facts['at'])} to another server (refer=), which cannot be reached"
            f" ({facts['reason']}): name that server itself in nfs_path"
        )
    if facts["errno"] in _DENIED and (parent == "/" or _security(source).startswith("krb5")):
        return _mount(source, facts)
    if facts["errno"] not in _DENIED:
        return MountFailed(f"{shown(facts['at'])} on {server} cannot be entered: {facts['reason']}")
    fact = f"{server} lets root of this host go no further than {parent}"
    cure = "let others pass there (chmod o+x), since it maps root to nobody (root_squash)"
    if facts["prefix"] is None:
        return MountFailed(
            f"{fact}: {cure}, or export {shown(facts['at'])} to this host if it is an export itself"
        )
    return NfsServerRefused(
        f"{fact}, so that NFSv3 does not show whether this path stays in {shown(facts['prefix'])}, which"
        f" ALLOWED_NFS_SERVERS of this host allows: {cure}, or have this directory itself allowed"
    )


def _unproven(source: NfsSource, facts: Facts) -> DriverError:
    server, prefix = _server(source.options.place, _addresses(facts)), shown(facts["prefix"])
    return NfsServerRefused(
        f"{server} neither gives this host {prefix} nor says what it exports, so that NFSv3 does not show whether"
        f" this path stays in {prefix}, which ALLOWED_NFS_SERVERS of this host allows: use NFSv4, or have the"
        " exported directory itself allowed"
    )


def _link(source: NfsSource, facts: Facts) -> DriverError:
    target = f" -> {shown(facts['target'])}" if facts["target"] is not None else ""
    return NfsServerRefused(
        f"it passes through the symbolic link {shown(facts['at'])}{target} on"
        f" {_server(source.options.place, _addresses(facts))}; give the real path"
    )


def _referral(source: NfsSource, facts: Facts) -> DriverError:
    return NfsServerRefused(
        f"{_server(source.options.place, _addresses(facts))} refers it to another server (refer=), {facts['to']}:"
        f" give {shown(facts['source'])} as nfs_path, which this host must allow, too"
    )


def _namespace(_: NfsSource, facts: Facts) -> DriverError:
    return MountFailed(
        f"this host lets the driver have no mount namespace of its own ({facts['reason']}), in which to look at"
        " the mount first: it needs CAP_SYS_ADMIN, CAP_SYS_CHROOT, and unfiltered unshare(2), setns(2) and"
        " pivot_root(2)"
    )


def _security(source: NfsSource) -> str:
    return source.options.mount_options.value("sec") or ""


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
    count = facts.get("exports_count", len(exports))
    more = f" and {count - _MOST_SHOWN} more" if count > _MOST_SHOWN else ""
    return f": the server says that it exports {', '.join(map(shown, exports[:_MOST_SHOWN]))}{more}"


_EXPLANATIONS: dict[str, Callable[[NfsSource, Facts], DriverError]] = {
    "resolve": _resolve,
    "family": _family,
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
    "walk": _walk,
    "unproven": _unproven,
    "link": _link,
    "referral": _referral,
    "namespace": _namespace,
}

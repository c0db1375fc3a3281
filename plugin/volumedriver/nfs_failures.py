"""What a failed mount has met, in sentences with what helps; and what that tells of the server."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from volumedriver import network
from volumedriver.errors import DriverError, InvalidVolume, MountFailed, NfsServerRefused, NfsUnavailable, shown
from volumedriver.nfs_options import Place
from volumedriver.options import NfsOptions
from volumedriver.rpc import MOUNT, PORTMAPPER_PORT

log = structlog.get_logger()

STEPS_OF_SERVER = frozenset(("resolve", "connect", "ask", "mount"))

_MOST_SHOWN = 5
_NOWHERE = frozenset((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL))
_SILENT = _NOWHERE | {errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN}
_STEPS_BEYOND = frozenset(("walk", "link", "referral", "unproven"))  # of what the server has shown already
_DENIED = frozenset((errno.EACCES, errno.EPERM))
_UNSECURED = _DENIED | {errno.EINVAL}

Facts = Mapping[str, Any]


def explained(options: NfsOptions, facts: Facts) -> DriverError:
    """What a step that failed means, in a clause, as the error that it is for the caller."""
    return _EXPLANATIONS.get(facts["failed"], _other)(options, facts)


def tells_of_death(facts: Facts) -> bool:
    """Whether a failure says that the server is dead or silent. What is wrong with a path or option does not."""
    if facts["failed"] == "mount":
        return facts["errno"] in _SILENT
    return facts["failed"] in STEPS_OF_SERVER and not facts.get("is_given")


def tells_of_life(facts: Facts) -> bool:
    """Whether a failure says that the server is well."""
    return facts["failed"] in {"path", "create", "mount", *_STEPS_BEYOND} or "served" in facts


def addresses_in(facts: Facts) -> tuple[str, ...]:
    """Where the server was looked for; empty if it was not yet."""
    return tuple((facts.get("address") or "").split(", ")) if facts.get("address") else ()


def ways_to(addresses: Sequence[str]) -> list[network.Path | None]:
    """The ways that this host has to them, None for no way; empty where nothing can be said."""
    try:
        return [network.path(address) for address in addresses]
    except OSError as error:
        log.info("the way to a server is not known", reason=error.strerror)
        return []


def no_way(server: str, ways: Sequence[network.Path | None]) -> str | None:
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


def too_late(place: Place, step: Facts, timeout_s: float) -> str:
    """The deadline is over: what did not end is the step that was announced last. In a clause."""
    server, within = server_text(place, addresses_in(step)), f"within {timeout_s:.0f} s"
    match step.get("step"):
        case "resolve":
            return f"this host's name servers do not say {within} what {place.server} is"
        case "connect":
            ways = ways_to(addresses_in(step))
            return no_way(server, ways) or (
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


def sentence(place: Place, fact: str) -> str:
    """What the caller is told, of a clause."""
    return f"cannot mount {shown(place.text)}: {fact}"


def server_text(place: Place, addresses: Sequence[str]) -> str:
    """The server as it is called, with its address unless that is what it is called."""
    address = ", ".join(addresses)
    return place.server if address in {"", place.server} else f"{place.server} ({address})"


def _resolve(options: NfsOptions, facts: Facts) -> DriverError:
    name = options.place.server
    return NfsUnavailable(f"the name {name} is not known here ({facts['reason']}): check it, and this host's DNS")


def _refuse(options: NfsOptions, facts: Facts) -> DriverError:
    addresses, networks = ", ".join(facts["addresses"]), ", ".join(facts["networks"])
    return NfsServerRefused(
        f"{options.place.server} is at {addresses}, and ALLOWED_NFS_SERVERS of this host allows this path"
        f" in {networks} only"
    )


def _connect(options: NfsOptions, facts: Facts) -> DriverError:
    server, port = server_text(options.place, addresses_in(facts)), facts["port"]
    if facts["errno"] in _NOWHERE:
        ways = ways_to(addresses_in(facts))
        return NfsUnavailable(
            no_way(server, ways)
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


def _ask(options: NfsOptions, facts: Facts) -> DriverError:
    server = server_text(options.place, addresses_in(facts))
    return NfsUnavailable(
        f"what answers on port {facts['port']} of {server} is no {_service(facts)}: {facts['reason']}"
    )


def _family(options: NfsOptions, facts: Facts) -> DriverError:
    return MountFailed(
        f"{options.place.server} has no IPv6 address, which proto={facts['proto']} in mount_options asks"
        " for: leave proto out, or name an address that it has"
    )


def _version(options: NfsOptions, facts: Facts) -> DriverError:
    asked, served = " or ".join(facts["asked"]), facts.get("served")
    known = f", but {served[0]} to {served[1]}" if served and served[1] else ""
    asked += " over UDP" if facts.get("is_udp") else ""
    return MountFailed(
        f"{server_text(options.place, addresses_in(facts))} does not serve NFS version {asked}{known}:"
        " give another vers in mount_options, or have the server serve it"
    )


def _path(options: NfsOptions, facts: Facts) -> DriverError:
    place = options.place
    if facts["parent"] in {"", "/"}:
        return InvalidVolume(f"{place.server} has no {shown(place.path)} for this host{_exports(place, facts)}")
    return InvalidVolume(
        f"on {place.server} there is no {shown(facts['missing'])} in {shown(facts['parent'])}:"
        " make it (create=true does)"
    )


def _create(_: NfsOptions, facts: Facts) -> DriverError:
    fact = f"the directory {shown(facts['directory'])} cannot be made: {facts['reason']}"
    if facts["errno"] in _DENIED:
        fact += (
            "; where the server maps root to nobody (root_squash), give uid and gid of a user who may write there,"
            " or make it on the server"
        )
    if facts["errno"] == errno.EROFS:
        fact += "; the export is read-only, or the directory above it is no export"
    return MountFailed(fact)


def _option(_: NfsOptions, facts: Facts) -> DriverError:
    return MountFailed(f"this host's kernel refuses the mount option {facts['option']} ({_said(facts)})")


def _statd(_: NfsOptions, facts: Facts) -> DriverError:
    return MountFailed(
        f"NFSv3 locks need rpc.statd on this host ({facts['reason']}): start it (Debian: nfs-common and rpcbind),"
        " use NFSv4, or give nolock in mount_options if no other host locks files there"
    )


def _kernel(_: NfsOptions, facts: Facts) -> DriverError:
    return MountFailed(f"this host's kernel has no NFS client ({facts['reason']}): load its module (modprobe nfs)")


def _mount(options: NfsOptions, facts: Facts) -> DriverError:
    place = options.place
    server, code = server_text(place, addresses_in(facts)), facts["errno"]
    security = _security(options)
    if security.startswith("krb5") and code in _UNSECURED:
        return MountFailed(
            f"{server} and this host did not agree on sec={security} ({_said(facts)}): the export must offer it,"
            " and rpc.gssd run here with a key for this host (/etc/krb5.keytab)"
        )
    if code in _DENIED:
        return MountFailed(f"{server} denies {shown(place.path)} to this host{_exports(place, facts)}")
    return _other(options, facts)


def _walk(options: NfsOptions, facts: Facts) -> DriverError:
    """Something is in the way from the server's root, or from an export, to the directory."""
    server, parent = server_text(options.place, addresses_in(facts)), shown(facts["parent"])
    if facts["errno"] in _SILENT:
        return NfsUnavailable(
            f"{server} refers {shown(facts['at'])} to another server (refer=), which cannot be reached"
            f" ({facts['reason']}): name that server itself in nfs_path"
        )
    if facts["errno"] in _DENIED and (parent == "/" or _security(options).startswith("krb5")):
        return _mount(options, facts)
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


def _unproven(options: NfsOptions, facts: Facts) -> DriverError:
    server, prefix = server_text(options.place, addresses_in(facts)), shown(facts["prefix"])
    return NfsServerRefused(
        f"{server} neither gives this host {prefix} nor says what it exports, so that NFSv3 does not show whether"
        f" this path stays in {prefix}, which ALLOWED_NFS_SERVERS of this host allows: use NFSv4, or have the"
        " exported directory itself allowed"
    )


def _link(options: NfsOptions, facts: Facts) -> DriverError:
    target = f" -> {shown(facts['target'])}" if facts["target"] is not None else ""
    return NfsServerRefused(
        f"it passes through the symbolic link {shown(facts['at'])}{target} on"
        f" {server_text(options.place, addresses_in(facts))}; give the real path"
    )


def _referral(options: NfsOptions, facts: Facts) -> DriverError:
    return NfsServerRefused(
        f"{server_text(options.place, addresses_in(facts))} refers it to another server (refer=), {facts['to']}:"
        f" give {shown(facts['source'])} as nfs_path, which this host must allow, too"
    )


def _namespace(_: NfsOptions, facts: Facts) -> DriverError:
    return MountFailed(
        f"this host lets the driver have no mount namespace of its own ({facts['reason']}), in which to look at"
        " the mount first: it needs CAP_SYS_ADMIN, CAP_SYS_CHROOT, and unfiltered unshare(2), setns(2) and"
        " pivot_root(2)"
    )


def _security(options: NfsOptions) -> str:
    return options.mount_options.value("sec") or ""


def _other(_: NfsOptions, facts: Facts) -> DriverError:
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


_EXPLANATIONS: dict[str, Callable[[NfsOptions, Facts], DriverError]] = {
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

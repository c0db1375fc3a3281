"""Checks of the NFS servers that volumes are of: asked as the driver asks, in processes that can be killed."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence

from brokervol.doctor.findings import Finding, fault, ok, skipped, warning
from brokervol.doctor.site import Site
from volumedriver import network, rpc
from volumedriver.errors import NfsServerRefused
from volumedriver.health import State
from volumedriver.nfs import NfsMounts, NfsSource
from volumedriver.nfs_policy import NfsServerPolicy, parse_allowed
from volumedriver.nfs_servers import Servers, Service
from volumedriver.options import NfsOptions, restore
from volumedriver.workers import Workers

_TIMEOUT_S = 3
_MOST_SHOWN = 5


def services(site: Site) -> list[tuple[NfsOptions, ...]]:
    """The volumes of each server that is asked by itself."""
    found: dict[Service, dict[str, NfsOptions]] = {}
    for definition in () if isinstance(site.definitions, Exception) else site.definitions:
        options = restore(definition.options)
        if isinstance(options, NfsOptions):
            found.setdefault(Service.of(options), {})[options.place.path] = options
    return [tuple(paths.values()) for _, paths in sorted(found.items(), key=str)]


class _Heard(Servers):
    """What is met at the one question that is asked. That it is not answered in time is no chance then."""

    def missed(self, source: NfsSource, reason: str, began: float) -> None:
        self.failed(source, reason, began)


def check_server(site: Site, volumes: tuple[NfsOptions, ...]) -> Iterator[Finding]:
    """Name, route, link, port and the answer of one server."""
    options = volumes[0]
    name = Service.of(options).text
    try:
        source = _source(site, volumes)
    except ValueError:
        yield skipped("ALLOWED_NFS_SERVERS is not accepted: another finding tells", name)
        return
    except NfsServerRefused as error:
        yield fault(
            str(error),
            f"allow it (`docker plugin set {site.name} ALLOWED_NFS_SERVERS=...`), or remove the volume",
            name,
        )
        return
    servers, workers = _Heard(boot_s=0), Workers(warm=0)
    try:
        mounts = NfsMounts(workers, servers=servers)
        mounts.probe(source)
        health = servers.health(options)
        ways = mounts.find_way(source)
    finally:
        workers.close()
    if health is None or health.state is State.UNKNOWN:
        yield _not_asked(source, name)
    elif health.state is State.UNREACHABLE:
        yield fault(
            health.reason.partition(": ")[0], _cure(health.reason, options, servers.addresses(source), ways), name
        )
    elif health.state is State.SLOW:
        yield warning(f"{name} answers, but {health.reason}", f"`ping {options.place.server}`, `nfsiostat`", name)
    else:
        yield ok(f"{name} answers{_over(ways)} in {health.round_trip_ms or 0:.0f} ms", name)


def _not_asked(source: NfsSource, name: str) -> Finding:
    server = source.options.place.server
    if source.networks is None:
        return warning(f"{name} was not asked, as no process could be started for it", "`free`, `ulimit -u`", name)
    return fault(
        f"{server} is at an address that ALLOWED_NFS_SERVERS does not have: no volume of it is mounted",
        f"`getent hosts {server}`; then correct that, or ALLOWED_NFS_SERVERS",
        name,
    )


def _source(site: Site, volumes: Sequence[NfsOptions]) -> NfsSource:
    """Raises ValueError for a list of servers that is none, NfsServerRefused for a server that is not in it."""
    policy = NfsServerPolicy(parse_allowed(site.settings.get("ALLOWED_NFS_SERVERS", "")))
    networks = [policy.networks(options.place) for options in volumes]
    return NfsSource(volumes[0], networks[0])


def _over(ways: Sequence[network.Path | None]) -> str:
    for way in ways:
        if way is not None:
            return f" over {way.link}" + (f" from {way.source}" if way.source else "")
    return ""


def _cure(reason: str, options: NfsOptions, addresses: Sequence[str], ways: Sequence[network.Path | None]) -> str:
    """What the sentence says that can be done, and a command that shows more of it."""
    server = options.place.server
    said = reason.partition(": ")[2]
    if not addresses:
        command = f"`getent hosts {server}`"
    elif ways and not any(ways):
        command = f"`ip route get {addresses[0].partition('%')[0]}`, `ip addr`"
    elif downs := [way.link for way in ways if way is not None and not way.is_up]:
        command = f"`ip link set {downs[0]} up`"
    else:
        command = f"`rpcinfo -t {server} nfs` here; `systemctl status nfs-server` there"
    return f"{said}; {command}" if said else command


def check_exports(site: Site, volumes: tuple[NfsOptions, ...]) -> Iterator[Finding]:
    """Whether what volumes are of is listed, if the server lists what it exports. Nothing is mounted."""
    del site
    server = volumes[0].place.server
    try:
        exports = _exports(server)
    except OSError as error:
        yield skipped(f"{server} is not to be asked what it exports: {error.strerror or error}", server)
        return
    except (rpc.NotServed, rpc.NoRpc):
        yield skipped(f"{server} does not say what it exports, as one with NFSv4 alone need not", server)
        return
    paths = [options.place.path for options in volumes]
    if unlisted := [path for path in paths if not any(_is_beneath(path, export) for export in exports)]:
        told = ", ".join(exports[:_MOST_SHOWN]) or "nothing"
        yield warning(
            f"{server} says that it exports {told}, and not {', '.join(unlisted[:_MOST_SHOWN])}; with NFSv4 it may"
            " be another's name for the same",
            f"`showmount -e {server}`; on it, correct /etc/exports and `exportfs -ra`",
            server,
        )
    else:
        yield ok(f"{server} says that it exports {', '.join(paths[:_MOST_SHOWN])}", server)


def _is_beneath(path: str, export: str) -> bool:
    return export in {"/", path} or path.startswith(f"{export.rstrip('/')}/")


def _exports(server: str) -> list[str]:
    """Raises OSError, rpc.NotServed, rpc.NoRpc."""
    with contextlib.closing(_connected(server, rpc.PORTMAPPER_PORT)) as portmapper:
        port = rpc.port_of(portmapper, rpc.MOUNT, 3, rpc.TCP)
    with contextlib.closing(_connected(server, port)) as mountd:
        return rpc.exports(mountd)


def _connected(server: str, port: int) -> socket.socket:
    return socket.create_connection((server, port), _TIMEOUT_S)


def check_none(site: Site) -> Finding | None:
    """What to say where there is no server to ask; None where there is one."""
    if isinstance(site.definitions, Exception):
        return site.without_definitions()
    return None if services(site) else skipped("no volume of type nfs is defined")

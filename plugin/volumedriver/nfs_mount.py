"""Mounting an NFS export, step by step, in a worker that is killed if one of the steps takes too long.

The kernel tells most failures by the same few errnos, and tells a silent server by waiting for minutes. So the
steps that it would take are taken before it, one by one, each announced by `report`: what did not end is then the
step announced last. A failure is a `Failure`, whose facts `nfs` turns into a sentence.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import time
from collections.abc import Iterator, Sequence

from volumedriver import mountcalls, nfs4, nfs_tree, rpc
from volumedriver.nfs_request import Facts, Failure, Report, Request, Server
from volumedriver.rpc import Address

# The next version is tried after these only: the server, or this kernel, does not have the one asked for.
_NO_SUCH_VERSION = frozenset((errno.EPROTONOSUPPORT, errno.EPFNOSUPPORT))
_STEPS_OF_VERSION = frozenset(("mount", "option"))
_DATAGRAMS = frozenset(("udp", "udp6"))
_OWN_RPCBIND_S = 2.0


def mount(request: Request, target_fd: int, report: Report) -> Facts:
    """Mount on the directory behind `target_fd`; returns the version and the address."""
    addresses = known = _resolved(request, report)
    versions, server = list(request.versions), Server(addresses[0], None)
    if versions[0] != "3":
        versions, server = _asked_for_v4(request, addresses, report)
        addresses = [server.address]
    for version in versions:
        if version == "3":
            server = _prepared_for_v3(request, addresses, report)
        try:
            tree_fd = nfs_tree.mounted(request, server, known, version, report)
        except Failure as failure:
            is_of_server = failure.facts["failed"] in _STEPS_OF_VERSION
            if not is_of_server or failure.facts["errno"] not in _NO_SUCH_VERSION:
                raise
            continue
        with mountcalls.closing(tree_fd):
            mountcalls.set_attributes(tree_fd, 0, mountcalls.PRIVATE)
            mountcalls.attach(tree_fd, target_fd)
        return {"version": version, "address": server.address.text}
    raise Failure("version", asked=list(request.versions), address=server.address.text)


def probe(request: Request, report: Report, *, is_whole: bool) -> Facts:
    """Ask the server for what `mount` would; returns where, and how long it took to answer the first call.

    Args:
        is_whole: also for what the kernel need not ask any more, as it knows the server.
    """
    addresses = _resolved(request, report)
    versions = list(request.versions)
    if versions[0] != "3":
        versions, server = _asked_for_v4(request, addresses, report, is_whole=is_whole)
        addresses = [server.address]
        port = request.port or rpc.NFS_PORT
    if versions[0] == "3":
        try:
            server, port = _found_v3(request, addresses, report)
        except Failure as failure:
            if failure.facts["failed"] != "version":
                raise
            # Whatever else it serves: what is mounted, or shall be, is of this version.
            facts: Facts = {"address": addresses[0].text, "port": rpc.PORTMAPPER_PORT}
            raise Failure("ask", reason="NFSv3 is not registered with it", **facts) from failure
    return {"address": server.address.text, "port": port, "took_s": server.took_s}


def _asked_for_v4(
    request: Request, addresses: Sequence[Address], report: Report, *, is_whole: bool = False
) -> tuple[list[str], Server]:
    """The versions that are worth a try, and the server at the address that answers.

    Args:
        is_whole: whether to ask for all that the kernel would, also if it knows the server already.
    """
    port = request.port or rpc.NFS_PORT
    connection, address = _connected(addresses, port, report)
    with connection:
        server = Server(address, str(connection.getsockname()[0]))
        is_whole = is_whole or not nfs4.is_known_to_kernel(address, port)
        try:
            took_s = _greeted(connection, address, port, request.versions[0], report, is_whole=is_whole)
        except rpc.NotServed as served:
            if "3" in request.versions:
                return ["3"], server
            spoken = [served.low, served.high]
            raise Failure("version", asked=list(request.versions), served=spoken, address=address.text) from served
    return list(request.versions), server._replace(took_s=took_s)


def _resolved(request: Request, report: Report) -> list[Address]:
    report({"step": "resolve"})
    try:
        # As bytes: for text Python would load its table of international names, in every worker.
        found = socket.getaddrinfo(request.server.encode("ascii"), None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise Failure("resolve", reason=error.strerror) from error
    addresses = []
    for family, _, _, _, place in found:
        if family in {socket.AF_INET, socket.AF_INET6}:
            scope_id = place[3] if family == socket.AF_INET6 and len(place) > 3 else 0
            addresses.append(Address(family, str(place[0]).partition("%")[0], int(scope_id)))
    if request.proto in {"tcp6", "udp6"}:
        addresses = [address for address in addresses if address.is_ipv6]
        if not addresses:
            raise Failure("family", proto=request.proto)
    allowed = [address for address in addresses if _is_within(address.host, request.networks)]
    if not allowed:
        raise Failure("refuse", addresses=[address.host for address in addresses], networks=request.networks)
    return allowed


def _is_within(host: str, networks: Sequence[str] | None) -> bool:
    if networks is None:
        return True
    address = ipaddress.ip_address(host)
    plain = getattr(address, "ipv4_mapped", None) or address
    return any(plain in ipaddress.ip_network(network) for network in networks)


def _connected(
    addresses: Sequence[Address], port: int, report: Report, **more: object
) -> tuple[socket.socket, Address]:
    facts: Facts = {"address": ", ".join(address.text for address in addresses), "port": port, **more}
    report({"step": "connect", **facts})
    try:
        return rpc.connected(addresses, port)
    except OSError as error:
        raise Failure("connect", error, **facts) from error


def _greeted(
    connection: socket.socket, address: Address, port: int, version: str, report: Report, *, is_whole: bool
) -> float:
    """Say what the kernel says first: is there a server, does it know the version, does it hang?

    Returns how long it took to answer the first call, in seconds.
    """
    facts: Facts = {"address": address.text, "port": port}
    minor = int(version.partition(".")[2] or 0)
    report({"step": "ask", **facts})
    times = [time.monotonic()]

    def tell(call: str) -> None:
        times.append(time.monotonic())
        report({"step": "ask", "call": call, **facts})

    with _asking(facts):
        nfs4.greet(connection, minor, is_whole=is_whole, tell=tell)
    return [*times, time.monotonic()][1] - times[0]


@contextlib.contextmanager
def _asking(facts: Facts) -> Iterator[None]:
    try:
        yield
    except (rpc.NoRpc, OSError) as error:
        reason = str(error) if isinstance(error, rpc.NoRpc) else error.strerror
        raise Failure("ask", reason=reason, **facts) from error


def _prepared_for_v3(request: Request, addresses: Sequence[Address], report: Report) -> Server:
    """The server, once it has said that it serves NFSv3; and that locks, if they are to be remote, will work."""
    _require_lock_daemon(request, report)
    return _found_v3(request, addresses, report)[0]


def _found_v3(request: Request, addresses: Sequence[Address], report: Report) -> tuple[Server, int]:
    """The server and its port, once NFSv3 and its mount service have answered, where they are asked over TCP."""
    port, mountport, address = request.port, request.mountport, addresses[0]
    if port is None or mountport is None:
        connection, address = _connected(addresses, rpc.PORTMAPPER_PORT, report)
        with connection:
            port, mountport = _registered(request, connection, address, report)
    server = Server(address, None, mountport)
    if request.proto not in _DATAGRAMS:
        server = _pinged(server, port, rpc.NFS, report)
    if mountport is not None and (request.mountproto or request.proto) not in _DATAGRAMS:
        _pinged(server, mountport, rpc.MOUNT, report, is_given=request.mountport is not None)
    return server, port


def _pinged(server: Server, port: int, program: int, report: Report, **more: object) -> Server:
    """The server with what is known of it when this service of NFSv3 has answered."""
    facts: Facts = {"address": server.address.text, "port": port, "program": program, **more}
    connection, _ = _connected([server.address], port, report, program=program, **more)
    with connection:
        report({"step": "ask", **facts})
        began = time.monotonic()
        try:
            with _asking(facts):
                rpc.ping(connection, program, 3)
        except rpc.NotServed as served:
            spoken = [served.low, served.high]
            raise Failure(
                "version", asked=["3"], served=spoken, address=server.address.text, program=program
            ) from served
        return server._replace(local=str(connection.getsockname()[0]), took_s=time.monotonic() - began)


def _registered(
    request: Request, connection: socket.socket, address: Address, report: Report
) -> tuple[int, int | None]:
    """The ports of NFSv3 and of the mount service by the server's portmapper, which must know both.

    The second is None for IPv6, where it may be another: this asks for those of IPv4.
    """
    facts: Facts = {"address": address.text, "port": rpc.PORTMAPPER_PORT}
    report({"step": "ask", **facts})
    protocol = rpc.UDP if request.proto in _DATAGRAMS else rpc.TCP
    try:
        port = request.port or rpc.port_of(connection, rpc.NFS, 3, protocol)
        mountport = request.mountport
        if mountport is None:
            is_udp_mounted = "udp" in (request.mountproto or request.proto or "")
            mountport = rpc.port_of(connection, rpc.MOUNT, 3, rpc.UDP if is_udp_mounted else rpc.TCP)
    except rpc.NotServed as served:
        is_udp = protocol == rpc.UDP
        raise Failure("version", asked=["3"], address=address.text, is_udp=is_udp) from served
    except (rpc.NoRpc, OSError) as error:
        raise Failure("ask", reason=str(error), **facts) from error
    return port, request.mountport if address.is_ipv6 else mountport


def _require_lock_daemon(request: Request, report: Report) -> None:
    """NFSv3 locks need rpc.statd on this host; without it each lock would fail, and mount(8) refuses as well."""
    given = dict(request.options)
    if "nolock" in given or given.get("local_lock") == "all":
        return
    report({"step": "statd"})
    reason = "it is not registered with this host's rpcbind"
    try:
        with socket.create_connection(("127.0.0.1", rpc.PORTMAPPER_PORT), _OWN_RPCBIND_S) as connection:
            rpc.port_of(connection, rpc.STATUS, 1, rpc.UDP)
            return
    except TimeoutError:
        reason = f"this host's rpcbind, who would know, does not answer within {_OWN_RPCBIND_S:g} s"
    except (OSError, rpc.NoRpc) as error:
        reason = f"this host's rpcbind, who would know, is not there: {getattr(error, 'strerror', None) or error}"
    except rpc.NotServed:
        pass
    raise Failure("statd", reason=reason)


def facts_of(error: OSError) -> Facts:
    """A failure without a step of its own."""
    return {"failed": "attach", "errno": error.errno, "reason": error.strerror or os.strerror(error.errno or 0)}

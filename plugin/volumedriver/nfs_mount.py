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
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from volumedriver import mountcalls, nfs_directories, rpc
from volumedriver.rpc import Address

Facts = dict[str, Any]
Report = Callable[[Facts], None]

_EXPORTS_TIMEOUT_S = 2
# The next version is tried after these only: the server, or this kernel, does not have the one asked for.
_NO_SUCH_VERSION = frozenset((errno.EPROTONOSUPPORT, errno.EPFNOSUPPORT))


class Failure(Exception):
    """A step that failed: its name under "failed", and what is known of it."""

    def __init__(self, step: str, error: OSError | None = None, **facts: Any) -> None:
        super().__init__(step)
        self.facts: Facts = {"failed": step, **facts}
        if error is not None:
            self.facts |= {"errno": error.errno, "reason": error.strerror}


class Request(NamedTuple):
    """What to mount.

    Attributes:
        options: parameters of the kernel's client, those of transport and version left out.
        versions: to try, in this order.
        proto: tcp, tcp6, udp or udp6; None: any. `mountproto` likewise, of NFSv3's mount protocol.
        port: of the NFS service, `mountport` of the mount service; None: as the protocol says.
        attributes: of the mount.
        networks: in which the server's address must lie; None: anywhere.
        creation: mode, uid, gid of a directory that is made where it is missing; None: none is made.
    """

    server: str
    path: str
    options: Sequence[tuple[str, str | None]]
    versions: Sequence[str]
    proto: str | None
    port: int | None
    mountproto: str | None
    mountport: int | None
    attributes: int
    networks: Sequence[str] | None
    creation: Sequence[int] | None


class _Server(NamedTuple):
    address: Address
    local: str | None  # our address on the way there
    mountport: int | None = None  # of its mount service, if that was asked for


def mount(request: Request, target_fd: int, report: Report) -> Facts:
    """Mount on the directory behind `target_fd`; returns the version and the address."""
    addresses = _resolved(request, report)
    versions, server = list(request.versions), _Server(addresses[0], None)
    if versions[0] != "3":
        versions, server = _asked_for_v4(request, addresses, report)
        addresses = [server.address]
    for version in versions:
        if version == "3":
            server = _prepared_for_v3(request, addresses, report)
        try:
            tree_fd = _tree(request, server, version, report)
        except Failure as failure:
            if failure.facts.get("errno") not in _NO_SUCH_VERSION:
                raise
            continue
        with mountcalls.closing(tree_fd):
            mountcalls.set_attributes(tree_fd, 0, mountcalls.PRIVATE)
            mountcalls.attach(tree_fd, target_fd)
        return {"version": version, "address": server.address.text}
    raise Failure("version", asked=list(request.versions), address=server.address.text)


def probe(request: Request, report: Report) -> Facts:
    """Ask the server whether it is there, as `mount` would; returns where, and how long it took to answer."""
    addresses = _resolved(request, report)
    if request.versions[0] != "3":
        port = request.port or rpc.NFS_PORT
    else:
        port = request.port or _port_for_v3(request, addresses, report)
        if request.proto in {"udp", "udp6"}:
            return {"address": addresses[0].text, "port": port, "took_s": 0}
    connection, address = _connected(addresses, port, report)
    with connection:
        began = time.monotonic()
        with contextlib.suppress(rpc.NotServed):  # which is an answer, too
            _asked(connection, address, port, request.versions[0], report)
        return {"address": address.text, "port": port, "took_s": time.monotonic() - began}


def _port_for_v3(request: Request, addresses: Sequence[Address], report: Report) -> int:
    connection, address = _connected(addresses, rpc.PORTMAPPER_PORT, report)
    with connection:
        try:
            return _registered(request, connection, address, report)[0]
        except Failure as failure:
            if failure.facts["failed"] != "version":
                raise
            # Whatever else it serves: what is mounted, or shall be, is of this version.
            facts: Facts = {"address": address.text, "port": rpc.PORTMAPPER_PORT}
            raise Failure("ask", reason="NFSv3 is not registered with it", **facts) from failure


def _asked_for_v4(request: Request, addresses: Sequence[Address], report: Report) -> tuple[list[str], _Server]:
    """The versions that are worth a try, and the server at the address that answers."""
    port = request.port or rpc.NFS_PORT
    connection, address = _connected(addresses, port, report)
    with connection:
        server = _Server(address, str(connection.getsockname()[0]))
        try:
            _asked(connection, address, port, request.versions[0], report)
        except rpc.NotServed as served:
            if "3" in request.versions:
                return ["3"], server
            spoken = [served.low, served.high]
            raise Failure("version", asked=list(request.versions), served=spoken, address=address.text) from served
    return list(request.versions), server


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
            raise Failure("resolve", reason=f"it has no IPv6 address, and proto={request.proto} asks for one")
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


def _connected(addresses: Sequence[Address], port: int, report: Report) -> tuple[socket.socket, Address]:
    facts: Facts = {"address": ", ".join(address.text for address in addresses), "port": port}
    report({"step": "connect", **facts})
    try:
        return rpc.connected(addresses, port)
    except OSError as error:
        raise Failure("connect", error, **facts) from error


def _asked(connection: socket.socket, address: Address, port: int, version: str, report: Report) -> None:
    """One call as the kernel begins with: is there a server, does it know the version, does it hang?

    The kernel itself could not be stopped: while one server keeps it waiting for the answer, no other server of
    version 4 gets its first mount (nfs_clid_init_mutex, Linux 6.1).
    """
    facts: Facts = {"address": address.text, "port": port}
    report({"step": "ask", **facts})
    try:
        major, _, minor = version.partition(".")
        rpc.greet(connection, int(major), int(minor or 0))
    except rpc.NoRpc as error:
        raise Failure("ask", reason=str(error), **facts) from error
    except OSError as error:
        raise Failure("ask", error, **facts) from error


def _prepared_for_v3(request: Request, addresses: Sequence[Address], report: Report) -> _Server:
    """The server, once it has said that it serves NFSv3; and that locks, if they are to be remote, will work."""
    _require_lock_daemon(request)
    port, mountport, address = request.port, request.mountport, addresses[0]
    if port is None or mountport is None:
        connection, address = _connected(addresses, rpc.PORTMAPPER_PORT, report)
        with connection:
            port, mountport = _registered(request, connection, address, report)
    if request.proto in {"udp", "udp6"}:
        return _Server(address, None, mountport)
    connection, address = _connected([address], port, report)
    with connection:
        try:
            _asked(connection, address, port, "3", report)
        except rpc.NotServed as served:
            raise Failure(
                "version", asked=["3"], served=[served.low, served.high], address=address.text
            ) from served
        return _Server(address, str(connection.getsockname()[0]), mountport)


def _registered(
    request: Request, connection: socket.socket, address: Address, report: Report
) -> tuple[int, int | None]:
    """The ports of NFSv3 and of the mount service by the server's portmapper, which must know both.

    The second is None for IPv6, where it may be another: this asks for those of IPv4.
    """
    facts: Facts = {"address": address.text, "port": rpc.PORTMAPPER_PORT}
    report({"step": "ask", **facts})
    protocol = rpc.UDP if request.proto in {"udp", "udp6"} else rpc.TCP
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


def _require_lock_daemon(request: Request) -> None:
    """NFSv3 locks need rpc.statd on this host; without it each lock would fail, and mount(8) refuses as well."""
    given = dict(request.options)
    if "nolock" in given or given.get("local_lock") == "all":
        return
    with contextlib.suppress(OSError, rpc.NotServed, rpc.NoRpc):
        connection, _ = rpc.connected([Address(socket.AF_INET, "127.0.0.1")], rpc.PORTMAPPER_PORT)
        with connection:
            rpc.port_of(connection, rpc.STATUS, 1, rpc.UDP)
            return
    raise Failure("statd")


def _tree(request: Request, server: _Server, version: str, report: Report) -> int:
    """A detached mount of the path, which is made if that was asked for."""
    report({"step": "mount", "address": server.address.text, "version": version})
    try:
        return _mounted(request, server, version, request.path)
    except Failure as failure:
        facts = failure.facts
        if facts.get("errno") in {errno.EACCES, errno.EPERM}:
            facts |= {"local": server.local, "exports": _exports(server)}
        if facts.get("errno") != errno.ENOENT:
            raise
    parent, names = _make_missing(request, server, version)
    if request.creation is None or not parent:
        raise Failure("path", parent=parent, missing="/".join(names), local=server.local, exports=_exports(server))
    return _mounted(request, server, version, request.path)


def _make_missing(request: Request, server: _Server, version: str) -> tuple[str, list[str]]:
    """Find the deepest directory on the way that exists, and make what is missing if that was asked for.

    Returns:
        The directory that exists, "" if even that is none of ours to see, and the names that were missing in it.
    """
    names = [name for name in request.path.split("/") if name]
    for count in range(len(names) - 1, -1, -1):
        parent = "/" + "/".join(names[:count])
        try:
            tree_fd = _mounted(request, server, version, parent)
        except Failure as failure:
            if failure.facts.get("errno") in {errno.ENOENT, errno.EACCES}:
                continue
            raise
        with mountcalls.closing(tree_fd):
            if request.creation is not None:
                try:
                    nfs_directories.make(tree_fd, names[count:], nfs_directories.Ownership(*request.creation))
                except OSError as error:
                    where = f"{parent.rstrip('/')}/{error.filename}"
                    raise Failure("create", error, directory=where) from error
        return parent, names[count:]
    return "", names


def _mounted(request: Request, server: _Server, version: str, path: str) -> int:
    """A detached mount of the path `path` of the server; Failure if the kernel does not make it."""
    try:
        file_system = mountcalls.NewFileSystem("nfs")
    except OSError as error:
        raise Failure("kernel", error) from error
    name = f"[{request.server}]" if ":" in request.server else request.server
    with file_system:
        for key, value in [("source", f"{name}:{path}"), *_parameters(request, server, version)]:
            try:
                file_system.set(key, value)
            except OSError as error:
                if key == "vers":  # a kernel that was built without it
                    error.errno = errno.EPROTONOSUPPORT
                shown = key if value is None else f"{key}={value}"
                raise Failure("option", error, option=shown, said=file_system.messages()) from error
        try:
            return file_system.mounted(request.attributes)
        except OSError as error:
            raise Failure(
                "mount",
                error,
                address=server.address.text,
                version=version,
                path=path,
                said=file_system.messages(),
            ) from error


def _parameters(request: Request, server: _Server, version: str) -> Iterator[tuple[str, str | None]]:
    """What mount.nfs would tell the kernel."""
    yield "vers", version
    yield "addr", server.address.text
    yield "proto", _netid(request.proto, server.address)
    if request.port is not None:
        yield "port", str(request.port)
    if version == "3":
        yield "mountproto", _netid(request.mountproto or request.proto, server.address)
        if server.mountport is not None:  # or the kernel would ask the portmapper again
            yield "mountport", str(server.mountport)
    elif server.local is not None:
        yield "clientaddr", server.local
    yield from request.options


def _netid(proto: str | None, address: Address) -> str:
    """The transport as the kernel calls it for this family of addresses."""
    return (proto or "tcp").rstrip("6") + ("6" if address.is_ipv6 else "")


def _exports(server: _Server) -> list[str] | None:
    """What the server says that it exports; None if it does not say, since NFSv4 needs nothing of this."""
    with contextlib.suppress(OSError, rpc.NotServed, rpc.NoRpc):
        with _within_seconds(server.address, rpc.PORTMAPPER_PORT) as portmapper:
            port = rpc.port_of(portmapper, rpc.MOUNT, 3, rpc.TCP)
        with _within_seconds(server.address, port) as mountd:
            return rpc.exports(mountd)
    return None


def _within_seconds(address: Address, port: int) -> socket.socket:
    connection = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        connection.settimeout(_EXPORTS_TIMEOUT_S)
        connection.connect(address.at(port))
    except OSError:
        connection.close()
        raise
    return connection


def facts_of(error: OSError) -> Facts:
    """A failure without a step of its own."""
    return {"failed": "attach", "errno": error.errno, "reason": error.strerror or os.strerror(error.errno or 0)}

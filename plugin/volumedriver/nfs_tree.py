"""The mount itself, once the server has answered: of the very directory that was asked for.

Asked for a whole path, the kernel follows the symbolic links in it (NFSv4), or the server's mount service does
(NFSv3): who may write in an export would choose what is mounted. So of NFSv4 the server's root is mounted, and the
way from there is gone here, link by link refused, where nobody else can see it. Of NFSv3 an export is the deepest
that can be had without a way; it is gone from there where ALLOWED_NFS_SERVERS names a directory, or one is made.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator, Sequence

from volumedriver import mountcalls, nfs_directories, private_mounts, rpc
from volumedriver.nfs_directories import NotReached, Ownership
from volumedriver.nfs_request import Facts, Failure, Report, Request, Server
from volumedriver.rpc import Address

_EXPORTS_TIMEOUT_S = 2
_MOST_TOLD = 20
_DENIED = frozenset((errno.EACCES, errno.EPERM))


def mounted(request: Request, server: Server, known: Sequence[Address], version: str, report: Report) -> int:
    """A detached mount of the directory, which is made if that was asked for.

    Args:
        known: all addresses of the server.

    Raises:
        Failure: "mount" or "option" tells of the server and this version, the others of the directory.
    """
    facts: Facts = {"address": server.address.text, "version": version}
    report({"step": "mount", **facts})
    if request.path == "/" or (version == "3" and request.prefix in {None, request.path}):
        try:
            return _mounted(request, server, version, request.path)
        except Failure as failure:
            if failure.facts.get("errno") != errno.ENOENT or request.path == "/":
                raise _explained(request, failure, server) from failure
    start, tree_fd = _start(request, server, version)
    names = [name for name in request.path[len(start) :].split("/") if name]
    if not names:
        return tree_fd
    report({"step": "walk", **facts, "path": request.path})
    with mountcalls.closing(tree_fd):
        try:
            return _beneath(request, server, known, tree_fd, names)
        except NotReached as obstacle:
            raise _obstructed(request, server, version, names, obstacle) from obstacle


def _start(request: Request, server: Server, version: str) -> tuple[str, int]:
    """A directory on the way that can be mounted without going one, and its detached mount."""
    exports = None
    starts = ["/"]
    if version == "3":
        exports = _exports(server)
        starts = _starts_of_v3(request, exports)
    for start in starts:
        try:
            return start, _mounted(request, server, version, start)
        except Failure as failure:
            code = failure.facts.get("errno")
            if code != errno.ENOENT and (version != "3" or code not in _DENIED):
                raise _explained(request, failure, server) from failure
    if exports is None and version == "3" and request.prefix is not None:
        raise Failure("unproven", path=request.path, prefix=request.prefix, address=server.address.text)
    if version != "3":
        exports = _exports(server)
    raise Failure("path", parent="", missing=request.path[1:], local=server.local, **_told(request.path, exports))


def _starts_of_v3(request: Request, exports: Sequence[str] | None) -> list[str]:
    """The exports that the path may lie in, the deepest first, and the directory that is allowed.

    An export is believed to be where its name says, since who has made it said so.
    """
    if exports is None and request.prefix is None:
        names = request.path.split("/")
        return ["/".join(names[:count]) or "/" for count in range(1, len(names))]
    starts = {export for export in exports or () if export[:1] == "/" and _is_beneath(request.path, export)}
    if request.prefix is not None:
        starts.add(request.prefix)
    return sorted(starts, key=len, reverse=True)


def _is_beneath(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")


def _beneath(
    request: Request, server: Server, known: Sequence[Address], tree_fd: int, names: Sequence[str]
) -> int:
    """A detached mount of the directory `names` below that of `tree_fd`."""
    with contextlib.ExitStack() as stack:
        try:
            mounts = stack.enter_context(private_mounts.attached(tree_fd))
        except OSError as error:
            raise Failure("namespace", error) from error

        def check(fd: int) -> None:
            root, place = mounts.origins(tree_fd, fd)
            if place.address != root.address and not _is_one_of(place.address, known):
                raise Failure("referral", address=server.address.text, to=place.address, source=place.source)

        with mountcalls.closing(_opened(request, tree_fd, names, check)) as fd:
            return mountcalls.cloned(fd)


def _opened(request: Request, tree_fd: int, names: Sequence[str], check: Callable[[int], None]) -> int:
    """A descriptor of the directory, which is made if that was asked for, but nothing is where `check` refuses."""
    with contextlib.ExitStack() as failed:
        try:
            fd = nfs_directories.opened(tree_fd, names)
        except NotReached as obstacle:
            if obstacle.error.errno != errno.ENOENT or request.creation is None:
                raise
            there, missing = names[: obstacle.count], names[obstacle.count :]
        else:
            failed.callback(os.close, fd)
            check(fd)
            failed.pop_all()
            return fd
    with mountcalls.closing(nfs_directories.opened(tree_fd, there)) as parent_fd:
        check(parent_fd)
        try:
            return nfs_directories.made(parent_fd, missing, Ownership(*request.creation))
        except OSError as error:
            above = request.path[: -len("/".join(missing))]
            raise Failure("create", error, directory=f"{above}{error.filename}") from error


def _obstructed(
    request: Request, server: Server, version: str, names: Sequence[str], obstacle: NotReached
) -> Failure:
    """The failure for what was in the way."""
    missing = "/".join(names[obstacle.count :])
    parent = request.path[: -len(missing)].rstrip("/") or "/"
    code = obstacle.error.errno
    if code == errno.ENOENT:
        return Failure("path", parent=parent, missing=missing, **_known(request, server))
    at = f"{parent.rstrip('/')}/{names[obstacle.count]}"
    facts: Facts = {"address": server.address.text, "version": version, "parent": parent, "at": at}
    if code == errno.ELOOP:
        return Failure("link", target=obstacle.target, **facts)
    if code in _DENIED:
        facts["prefix"] = request.prefix if version == "3" else None
        facts |= _known(request, server) if parent == "/" else {}
    return Failure("walk", obstacle.error, path=request.path, **facts)


def _is_one_of(address: str, known: Sequence[Address]) -> bool:
    return _plain(address) in {_plain(other.host) for other in known}


def _plain(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return address


def _explained(request: Request, failure: Failure, server: Server) -> Failure:
    """The failure, and if the server has denied it why that may be."""
    if failure.facts.get("errno") in _DENIED:
        failure.facts |= _known(request, server)
    return failure


def _known(request: Request, server: Server) -> Facts:
    """What helps to explain why this host does not get a path."""
    return {"local": server.local, **_told(request.path, _exports(server))}


def _told(path: str, exports: Sequence[str] | None) -> Facts:
    """Some of the exports, those first that the path lies in: all of them may be more than a message takes."""
    if exports is None:
        return {"exports": None}
    some = sorted(exports, key=lambda export: not _is_beneath(path, export))[:_MOST_TOLD]
    return {"exports": some, "exports_count": len(exports)}


def _mounted(request: Request, server: Server, version: str, path: str) -> int:
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
            tree_fd = file_system.mounted(request.attributes)
        except OSError as error:
            raise Failure(
                "mount",
                error,
                address=server.address.text,
                version=version,
                path=path,
                said=file_system.messages(),
            ) from error
    return tree_fd


def _parameters(request: Request, server: Server, version: str) -> Iterator[tuple[str, str | None]]:
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


def _exports(server: Server) -> list[str] | None:
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

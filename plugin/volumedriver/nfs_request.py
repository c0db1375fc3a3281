"""What a worker is asked to mount, and how it tells what it met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from volumedriver.rpc import Address

Facts = dict[str, Any]
Report = Callable[[Facts], None]


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
        prefix: beneath which directory of the server it must turn out to be; None: anywhere.
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
    prefix: str | None
    creation: Sequence[int] | None


class Server(NamedTuple):
    """Where the server of a request was found.

    Attributes:
        local: our address on the way there, as far as it is known.
        mountport: of its mount service, if that was asked for.
        took_s: how long it took to answer the first call; 0 if there was none.
    """

    address: Address
    local: str | None
    mountport: int | None = None
    took_s: float = 0

"""What is known of an NFS server: said in `docker volume inspect`, in `brokervol status`, in metrics."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    HEALTHY = "healthy"
    SLOW = "slow"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"


class ServerHealth(NamedTuple):
    """One server as it was last seen.

    Attributes:
        server: as written in `nfs_path`, with the port where that is not 2049.
        since: when it came to be in this state; UTC.
        reason: a clause, "connections to port 2049 are refused"; empty while it is healthy or unknown.
        round_trip_ms: of the kernel's connection with it, or else of the last probe; None if there is none.
        retransmits: segments that the kernel sent it again, in all; None without a connection.
        is_open: whether mounts are refused at once.
    """

    server: str
    state: State
    since: datetime
    reason: str
    round_trip_ms: float | None
    retransmits: int | None
    is_open: bool

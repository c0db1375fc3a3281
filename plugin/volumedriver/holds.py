"""What workers are asked about mounts that processes hold: are they stale; and to mount one here again."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from volumedriver import mountcalls
from volumedriver.holders import Hold
from volumedriver.workers import NoAnswer, NoWorker, Workers

_LOOK_S = 1.0  # a server that takes longer is slow or silent, which is another matter
_ADOPT_S = 5.0
_AT_ONCE, _LONGEST_PATH = 40, 500  # so that a request fits into a message, whatever containers call their paths


class Holds:
    """Asks workers: a path in a container, or a file system, may hang; only a process without threads may enter
    another mount namespace.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def stale(self, holds: Sequence[Hold]) -> list[Hold] | None:
        """Those, all of one server, that it does not know any more; None if it says nothing."""
        found: list[Hold] = []
        holds = [hold for hold in holds if len(hold.mountpoint) <= _LONGEST_PATH]
        for start in range(0, len(holds), _AT_ONCE):
            some = holds[start : start + _AT_ONCE]
            request = {"do": "stale", "holds": [(hold.pid, hold.mountpoint) for hold in some]}
            try:
                facts = self._workers.run(request, _LOOK_S)
            except (NoAnswer, NoWorker):
                return None
            found += [some[number] for number in facts.get("stale", ())]
        return found

    def adopt(self, hold: Hold, target_fd: int, *, read_only: bool) -> None:
        """Mount what is held on the directory behind `target_fd` too.

        Raises:
            OSError: it is not done.
        """
        attributes = (mountcalls.RDONLY, 0) if read_only else (0, mountcalls.RDONLY)
        what = hold.pid, hold.mountpoint, hold.mount_id
        request = {"do": "adopt", "hold": what, "attributes": attributes}
        try:
            facts = self._workers.run(request, _ADOPT_S, [target_fd])
        except NoAnswer as silence:
            raise OSError(errno.ETIMEDOUT, f"the mount of process {hold.pid} cannot be reached") from silence
        if "failed" in facts:
            raise OSError(facts["errno"], facts["reason"])

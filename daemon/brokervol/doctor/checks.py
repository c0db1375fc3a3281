"""The table of all checks, and how they are run: at once, each for so long at most."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from brokervol.doctor import engine, host, nfs, s3, service, state
from brokervol.doctor.findings import Finding, warning
from brokervol.doctor.site import Site

_AT_ONCE = 64
_DEADLINE_S = 12.0


class Check(NamedTuple):
    """One entry of the table.

    Attributes:
        name: as users know it.
        look: called with the site and, if there are subjects, with one of them; tells what it found.
        subjects: what to look at, each by itself and all at once; None where there is but one thing.
        none: of a check with subjects: what to tell where there are none.
    """

    name: str
    look: Callable[..., Iterable[Finding]]
    subjects: Callable[[Site], Sequence[Any]] | None = None
    none: Callable[[Site], Finding | None] = lambda _: None


CHECKS = (
    Check("kernel", host.check_calls),
    Check("copying", host.check_copying),
    Check("file-systems", host.check_file_systems),
    Check("privileges", host.check_privileges),
    Check("engine", engine.check_engine),
    Check("live-restore", engine.check_live_restore),
    Check("plugin", engine.check_plugin),
    Check("settings", engine.check_settings),
    Check("driver", service.check_driver),
    Check("driver-privileges", host.check_driver_privileges),
    Check("sidecar", service.check_sidecar),
    Check("volumes", service.check_volumes),
    Check("mounts", service.check_mounts),
    Check("disk", host.check_disk),
    Check("definitions", state.check_definitions),
    Check("references", state.check_references),
    Check("kept-aside", state.check_kept_aside),
    Check("nfs-client", host.check_nfs_client),
    Check("nfs-server", nfs.check_server, nfs.services, nfs.check_none),
    Check("nfs-exports", nfs.check_exports, nfs.services, nfs.check_none),
    Check("s3-credentials", s3.check_credentials, s3.profiles, s3.check_none),
    Check("s3-bucket", s3.check_bucket, s3.buckets, s3.check_none),
    Check("s3-clock", s3.check_clock, s3.services, s3.check_none),
)


class Told(NamedTuple):
    """A finding, and the name of the check that has it."""

    check: str
    finding: Finding


def run(site: Site, names: Sequence[str] = (), deadline_s: float = _DEADLINE_S) -> Iterator[Told]:
    """Run the checks of these names, or all: in the order of the table, each told as soon as those before are.

    A check that does not end is told as such, and left to itself.
    """
    wanted = [check for check in CHECKS if not names or check.name in names]
    looks = [look for check in wanted for look in _looks(check, site, deadline_s)]
    begun = 0
    for number, look in enumerate(looks):
        while begun < min(number + _AT_ONCE, len(looks)):
            looks[begun].start()
            begun += 1
        yield from look.told()


class _Look:
    """A check of one subject, in a thread of its own."""

    def __init__(self, name: str, look: Callable[[], Iterable[Finding]], deadline_s: float) -> None:
        self._name, self._look, self._deadline_s = name, look, deadline_s
        self._found: list[Finding] = []
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._until = 0.0

    def start(self) -> None:
        self._until = time.monotonic() + self._deadline_s
        self._thread.start()

    def told(self) -> list[Told]:
        self._thread.join(max(self._until - time.monotonic(), 0))
        found = [*self._found]
        if self._thread.is_alive():
            sentence = f"the check did not end within {self._deadline_s:g} s"
            found.append(warning(sentence, f"try it alone: `brokervol doctor --only {self._name}`"))
        return [Told(self._name, finding) for finding in found]

    def _run(self) -> None:
        try:
            self._found.extend(self._look())
        except Exception as error:  # what one check does not understand keeps nobody from the others
            at = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{at.filename.rpartition('/')[2]}:{at.lineno}"
            sentence = f"the check itself failed at {where}: {type(error).__name__}: {error}"
            self._found.append(warning(sentence, "report it, with the output of `brokervol doctor --json`"))


def _looks(check: Check, site: Site, deadline_s: float) -> list[_Look]:
    subjects = check.subjects
    if subjects is None:
        return [_Look(check.name, lambda: check.look(site), deadline_s)]
    if (finding := check.none(site)) is not None:
        return [_Look(check.name, lambda: [finding], deadline_s)]
    return [
        _Look(check.name, lambda subject=subject: check.look(site, subject), deadline_s)  # type: ignore[misc]
        for subject in subjects(site)
    ]

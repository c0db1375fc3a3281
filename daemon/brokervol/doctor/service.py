"""Checks of the running driver and sidecar, and of what the driver has mounted."""

from __future__ import annotations

import http.client
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from brokervol import status
from brokervol.doctor.findings import Finding, fault, ok, skipped, unseen, warning
from brokervol.doctor.site import Site
from brokervol.settings import Settings
from brokervol.status import Several, SocketConnection, Unreachable
from storage.mountinfo import read_mounts

_LOOKS = 4
_PAUSE_S = 0.25


def check_driver(site: Site) -> Iterator[Finding]:
    """Whether it answers on its socket."""
    if not isinstance(site.driver, Unreachable):
        yield ok(f"driver {site.driver['version']} answers at {site.driver['socket']}")
    elif isinstance(site.driver, Several):
        yield fault(str(site.driver), "`brokervol doctor --socket PATH` looks at one; two are one too many")
    elif os.geteuid():
        yield unseen("the driver's socket is closed to this user")
    elif site.plugin is not None and not site.plugin.is_enabled:
        yield skipped("the plugin is disabled")
    else:
        fact, _, cure = str(site.driver).partition(": ")
        if site.plugin is not None:
            cure = f"start it anew: {site.restart}"
        yield fault(fact, f"{cure}; its log tells why: `brokervol logs`")


def check_sidecar(site: Site) -> Iterator[Finding]:
    """Whether it answers on its socket."""
    if isinstance(site.driver, Unreachable):
        yield skipped("no driver answers")
        return
    path = site.settings.get(Settings.listen.variable) or (site.root and f"{site.root}/sidecar/broker.sock")
    if not path:
        yield unseen("its socket is not to be seen from here")
        return
    try:
        answer = _asked(path)
    except PermissionError:
        yield unseen(f"{path} is closed to this user")
    except FileNotFoundError:
        yield fault(f"the sidecar has no socket {path}", _sidecar_cure(site))
    except (OSError, http.client.HTTPException) as error:
        fact = getattr(error, "strerror", None) or str(error) or type(error).__name__
        yield fault(f"no sidecar answers at {path} ({fact.lower()})", _sidecar_cure(site))
    else:
        if answer == http.client.OK:
            yield ok(f"the sidecar answers at {path}")
        else:
            yield fault(f"the sidecar answers {answer} at {path}", _sidecar_cure(site))


def _sidecar_cure(site: Site) -> str:
    return f"`brokervol logs --level warning` tells why it died; start it anew: {site.restart}"


def _asked(path: str) -> int:
    """The status of the answer to a question that costs it nothing."""
    connection = SocketConnection(path)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def check_volumes(site: Site) -> Iterator[Finding]:
    """Those of which the driver knows that containers cannot work with them."""
    if isinstance(site.driver, Unreachable):
        yield skipped("no driver answers")
        return
    bad = [problem for problem in site.driver["problems"] if problem["health"] in _CURES]
    for problem in bad:
        name = problem["subject"].removeprefix("volume ")
        cure = _CURES[problem["health"]].format(name=name)
        yield fault(f"{problem['subject']} is {problem['health']}: {problem['reason']}", cure, name)
    if not bad:
        mounted = sum(volume["is_mounted"] for volume in site.driver["volumes"])
        yield ok(f"{len(site.driver['volumes'])} volumes, {mounted} of them mounted: none stale or unusable")


_CURES = {
    "stale": "start anew the containers that hold it: `brokervol status` names them, `docker restart CONTAINER`",
    "unusable": "install the version of brokervol again that made it, or make it anew:"
    " `docker volume rm {name}`, `docker volume create ...`; no file of it is touched",
}


def check_mounts(site: Site) -> Iterator[Finding]:
    """Whether what is mounted is what the driver knows to be mounted. They come and go, so it is looked again."""
    if isinstance(site.driver, Unreachable):
        yield skipped("no driver answers")
        return
    document, leaked, missing = site.driver, [""], [""]
    try:
        for _ in range(_LOOKS):
            leaked, missing = _compared(document)
            if not leaked and not missing:
                break
            time.sleep(_PAUSE_S)
            document = status.find_driver(document["socket"])
    except (OSError, Unreachable) as error:
        yield unseen(f"the driver's mounts cannot be seen: {getattr(error, 'strerror', None) or error}")
        return
    for path in leaked:
        yield warning(
            f"{path} is mounted, and no volume there is in use",
            "the driver takes it away at its next look (BROKERVOL_RECONCILE_S); or at a start: " + site.restart,
            path,
        )
    for name in missing:
        yield fault(
            f"volume {name} is in use, and nothing is mounted for it",
            f"start anew the containers that hold it (`brokervol status`); or the driver: {site.restart}",
            name,
        )
    if not leaked and not missing:
        yield ok("what is mounted is what containers hold, no more and no less")


def _compared(document: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The mountpoints at which nothing should be mounted, and the volumes that should be."""
    mounts = read_mounts(f"/proc/{document['pid']}/mountinfo")
    held = {volume["mountpoint"]: volume["name"] for volume in document["volumes"] if volume["is_mounted"]}
    below = f"{document['root']}/volumes/"
    mounted = {mount.mountpoint for mount in mounts if mount.mountpoint.startswith(below)}
    return sorted(mounted - held.keys()), sorted(name for path, name in held.items() if path not in mounted)

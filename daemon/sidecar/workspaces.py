"""Which workspaces a caller holds, and where.

A caller holds what is mounted in it: a mount of its own mount namespace that shows the same directory of the
same file system as the volume's mountpoint here. That mount also says whether it may write. There is no other
policy, and a workspace that is not held looks exactly like one that does not exist.

A caller in which only a directory of the volume is mounted holds that part of it, see `sidecar.holdings`.

A workspace without a volume, such as a bucket, has a *token* mounted in its place (`volumedriver.mounter`): an
empty directory of a file system of its own, which nobody can make again.
"""

from __future__ import annotations

import functools
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brokervol.server import Connection
from sidecar.caller import CallerView, caller_of, identify
from sidecar.holdings import Claim, Holding, Known, Volumes, known_workspace
from sidecar.mounts import MountTable, OwnTable
from storage.configuration.exceptions import InvalidWorkspaceConfiguration
from storage.configuration.workspace_configuration import WorkspaceConfiguration
from storage.definitions import DefinitionStore
from storage.files import FileView, SelfView

_CALLERS = 128


@dataclass(frozen=True, slots=True)
class Session:
    """What one request may do: the caller's holdings by name, and the view to work through. Close at its end.

    Attributes:
        user: the caller's user, as this process's namespaces show it; empty where all are alike.
    """

    holdings: Mapping[str, Holding]
    view: FileView
    user: str = ""

    def close(self) -> None:
        if isinstance(self.view, CallerView):
            self.view.close()


class Workspaces(ABC):
    """Finds out what a caller holds."""

    @abstractmethod
    def accepted(self, connection: Connection) -> None:
        """Look at a new connection, before anything is read from it."""

    @abstractmethod
    def session(self, connection: Connection) -> Session:
        """The session of a request on `connection`.

        Raises:
            PermissionDenied: the caller cannot be identified, or has exited.
        """


class CallerWorkspaces(Workspaces):
    """The volumes of a driver, held by whoever has them mounted."""

    def __init__(self, root: str, definitions: DefinitionStore) -> None:
        self._root = root
        self._definitions = definitions
        self._lock = threading.Lock()
        self._version = -1
        self._known = _Definitions([])
        self._mounts = OwnTable()
        # What these make is of their arguments alone, which are the very same objects while nothing changes.
        self._volumes = functools.lru_cache(maxsize=1)(_volumes)
        self._claims = functools.lru_cache(maxsize=_CALLERS)(_claims)

    def accepted(self, connection: Connection) -> None:
        identify(connection)

    def session(self, connection: Connection) -> Session:
        caller = caller_of(connection)
        view = CallerView(caller)
        try:
            return Session(self._held(view), view, f"uid {caller.uid}")
        except BaseException:
            view.close()
            raise

    def _held(self, view: CallerView) -> dict[str, Holding]:
        volumes = self._volumes(self._current(), self._mounts.now())
        holdings = {}
        for name, alike in self._claims(volumes, view.table):
            best = next((one for one in alike if _counts(one, view)), None)
            if best is not None:
                view.held[best.mount.mountpoint] = best.mount
                holdings[name] = best.holding()
        return holdings

    def _current(self) -> _Definitions:
        """The definitions that are workspaces; the very same object while they are."""
        with self._lock:
            version = self._definitions.version()
            if version != self._version:
                known = [known_workspace(self._root, definition) for definition in self._definitions.load()]
                self._known = _Definitions([found for found in known if found is not None])
                self._version = version
            return self._known


@dataclass(frozen=True, eq=False, slots=True)
class _Definitions:
    """Those that are workspaces."""

    known: Sequence[Known]


def _volumes(definitions: _Definitions, ours: MountTable) -> Volumes:
    published = {mount.mountpoint: mount for mount in ours.mounts}
    return Volumes((one, published[one.mountpoint]) for one in definitions.known if one.mountpoint in published)


def _claims(volumes: Volumes, table: MountTable) -> list[tuple[str, list[Claim]]]:
    """By what mounts a caller with these holds workspaces, the best first, by name."""
    claims: dict[str, list[Claim]] = {}
    visible = {mount.mountpoint: mount for mount in table.mounts}  # a later mount covers an earlier one
    for mount in visible.values():
        for claim in volumes.shown_by(mount):
            claims.setdefault(claim.known.name, []).append(claim)
    return [(name, sorted(alike, key=Claim.rank)) for name, alike in claims.items()]


def _counts(claim: Claim, view: CallerView) -> bool:
    """Whether a claim of a part is of a directory: mountinfo does not tell, and a file can be mounted, too."""
    return not claim.part or view.has_directory(claim.mount)


class SelfWorkspaces(Workspaces):
    """Workspaces of a file, held by everybody who can reach the socket."""

    def __init__(self, holdings: Mapping[str, Holding]) -> None:
        self._holdings = holdings
        self._view = SelfView()

    def accepted(self, connection: Connection) -> None:
        pass

    def session(self, connection: Connection) -> Session:
        del connection
        return Session(self._holdings, self._view)


def read_workspaces(path: str) -> SelfWorkspaces:
    """Read a workspaces file: a JSON object of name to workspace configuration.

    Beside `version` and `broker` an entry may have `volume_path`, where its volume is mounted (for one of the host
    its `host_path` if left out; of no meaning for a broker without a volume), and `read_only`.

    Raises:
        InvalidWorkspaceConfiguration: naming the file, the workspace and what is wrong.
        OSError: the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InvalidWorkspaceConfiguration("workspaces", f"{path} is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise InvalidWorkspaceConfiguration("workspaces", f"{path} must hold an object of name to configuration")
    return SelfWorkspaces({name: _self_holding(path, name, entry) for name, entry in entries.items()})


def _self_holding(path: str, name: str, entry: object) -> Holding:
    try:
        if not isinstance(entry, dict):
            raise InvalidWorkspaceConfiguration("workspaces", "must be an object with at least 'broker'")
        configuration = WorkspaceConfiguration(entry)
        volume = configuration.get_broker().volume
        volume_path = None
        if volume is not None:
            volume_path = entry.get("volume_path", volume.remote_path if volume.host else None)
            if not isinstance(volume_path, str):
                raise InvalidWorkspaceConfiguration("volume_path", "must say where the volume is mounted")
        is_read_only = entry.get("read_only", False) is True
        return Holding(name, configuration.broker, volume_path, is_read_only, is_by_mount=False)
    except InvalidWorkspaceConfiguration as error:
        raise InvalidWorkspaceConfiguration(
            error.name, f"{path}, workspace {name!r}: {error.description}"
        ) from error

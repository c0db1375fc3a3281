"""Which workspaces a caller holds, and where.

A caller holds what is mounted in it: a mount of its own mount namespace that shows the same directory of the
same file system as the volume's mountpoint here. That mount also says whether it may write. There is no other
policy, and a workspace that is not held looks exactly like one that does not exist.
"""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from brokervol.server import Connection
from sidecar.caller import CallerView, caller_of, identify
from storage.brokers.broker import Broker
from storage.brokers.factory import get_broker_types
from storage.configuration.exceptions import InvalidWorkspaceConfiguration
from storage.configuration.workspace_configuration import WorkspaceConfiguration, load_broker
from storage.definitions import Definition, DefinitionStore, mountpoint
from storage.files import FileView, SelfView
from storage.mountinfo import Mount, read_mounts

# Options of a volume that say how it is made and mounted; all others configure its broker.
_VOLUME_OPTIONS = frozenset(("create", "mode", "uid", "gid", "read_only", "mount_options"))


@dataclass(frozen=True, slots=True)
class Holding:
    """A workspace that a caller holds.

    Attributes:
        volume_path: where its volume is mounted in the caller; None for a broker without a volume.
        is_read_only: whether the caller's mount of it is.
    """

    name: str
    configuration: Mapping[str, Any]
    volume_path: str | None
    is_read_only: bool

    def broker(self, view: FileView) -> Broker:
        """The workspace's broker, working through `view`."""
        broker = load_broker(self.configuration)
        broker.view = view
        return broker


@dataclass(frozen=True, slots=True)
class Session:
    """What one request may do: the caller's holdings by name, and the view to work through. Close at its end."""

    holdings: Mapping[str, Holding]
    view: FileView

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
        self._known: list[Definition] = []

    def accepted(self, connection: Connection) -> None:
        identify(connection)

    def session(self, connection: Connection) -> Session:
        view = CallerView(caller_of(connection))
        try:
            return Session(self._held(view), view)
        except BaseException:
            view.close()
            raise

    def _held(self, view: CallerView) -> dict[str, Holding]:
        published = {mount.mountpoint: mount for mount in read_mounts()}
        visible = {mount.mountpoint: mount for mount in view.mounts}  # a later mount covers an earlier one
        shown: dict[tuple[str, str], list[Mount]] = {}
        for mount in visible.values():
            shown.setdefault(mount.identity, []).append(mount)
        holdings = {}
        for definition in self._current():
            token = published.get(mountpoint(self._root, definition.name))
            found = shown.get(token.identity, []) if token else []
            if found:
                mount = min(found, key=lambda mount: mount.is_read_only)  # one that can be written, if there is
                view.held[mount.mountpoint] = mount
                holdings[definition.name] = _holding(definition, mount)
        return holdings

    def _current(self) -> list[Definition]:
        """The definitions that are workspaces: not the sidecar's own volume, nor what a newer version knows."""
        with self._lock:
            version = self._definitions.version()
            if version != self._version:
                types = get_broker_types()
                self._known = [found for found in self._definitions.load() if found.options.get("type") in types]
                self._version = version
            return self._known


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

    Beside `version` and `broker` an entry may have `volume_path`, where its volume is mounted (for a host broker
    its `host_path` if left out), and `read_only`.

    Raises:
        InvalidWorkspaceConfiguration: naming the file, the workspace and what is wrong.
        OSError: the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)
    except ValueError as error:
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
        volume_path = entry.get("volume_path", volume.remote_path if volume and volume.host else None)
        if volume and not isinstance(volume_path, str):
            raise InvalidWorkspaceConfiguration("volume_path", "must say where the volume is mounted")
        return Holding(name, configuration.broker, volume_path, entry.get("read_only", False) is True)
    except InvalidWorkspaceConfiguration as error:
        raise InvalidWorkspaceConfiguration(
            error.name, f"{path}, workspace {name!r}: {error.description}"
        ) from error


def _holding(definition: Definition, mount: Mount) -> Holding:
    configuration = {key: value for key, value in definition.options.items() if key not in _VOLUME_OPTIONS}
    return Holding(definition.name, configuration, mount.mountpoint, mount.is_read_only)

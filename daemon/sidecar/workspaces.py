"""Which workspaces a caller holds, and where.

A caller holds what is mounted in it: a mount of its own mount namespace that shows the same directory of the
same file system as the volume's mountpoint here. That mount also says whether it may write. There is no other
policy, and a workspace that is not held looks exactly like one that does not exist.

A workspace without a volume, such as a bucket, has a *token* mounted in its place (`volumedriver.mounter`): an
empty directory of a file system of its own, which nobody can make again.
"""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from brokervol.server import Connection
from sidecar.caller import CallerView, caller_of, identify
from storage.brokers.broker import Broker
from storage.brokers.factory import get_broker_types
from storage.configuration.exceptions import InvalidWorkspaceConfiguration
from storage.configuration.workspace_configuration import WorkspaceConfiguration, load_broker
from storage.definitions import Definition, DefinitionStore, mountpoint
from storage.files import FileView, SelfView
from storage.mountinfo import Mount, read_mounts

log = structlog.get_logger()

# Options of a volume that say how it is made and mounted; all others configure its broker. What other packages'
# brokers call their keys is for them to say, but for one that the driver itself reads.
_VOLUME_OPTIONS = frozenset(("create", "mode", "uid", "gid", "read_only", "mount_options"))
_OURS = frozenset(("host", "nfs", "s3"))


@dataclass(frozen=True, slots=True)
class Holding:
    """A workspace that a caller holds.

    Attributes:
        volume_path: where its volume, or its token, is mounted in the caller; None in the view of the process
            itself for a broker without a volume.
        is_read_only: whether the caller's mount of it is.
        is_by_mount: whether that mount is what the caller holds it by.
    """

    name: str
    configuration: Mapping[str, Any]
    volume_path: str | None
    is_read_only: bool
    is_by_mount: bool

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
        self._known: list[_Known] = []

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
        for known in self._current():
            token = published.get(known.mountpoint)
            alike = shown.get(token.identity, []) if token else []
            found = [mount for mount in alike if token and known.is_same(mount, token)]
            if found:
                mount = min(found, key=known.is_read_only)  # one that can be written, if there is
                view.held[mount.mountpoint] = mount
                holdings[known.name] = known.held_by(mount)
        return holdings

    def _current(self) -> list[_Known]:
        """The definitions that are workspaces."""
        with self._lock:
            version = self._definitions.version()
            if version != self._version:
                known = [_known(self._root, definition) for definition in self._definitions.load()]
                self._known = [found for found in known if found is not None]
                self._version = version
            return self._known


@dataclass(frozen=True, slots=True)
class _Known:
    """A definition as far as it says what a caller holds.

    Attributes:
        is_token: what is mounted shows no files, since the broker needs no volume.
        is_frozen: nobody may write, however it is mounted.
    """

    name: str
    mountpoint: str
    configuration: Mapping[str, Any]
    is_token: bool
    is_frozen: bool

    def is_same(self, mount: Mount, token: Mount) -> bool:
        """Whether two mounts of the same device and root are of this volume.

        A token's device number may have been another's until a moment ago; its source is the volume's own.
        """
        return not self.is_token or mount.source == token.source

    def is_read_only(self, mount: Mount) -> bool:
        """Whether a caller with this mount may only read. A token's file system is read-only for everybody."""
        return self.is_frozen or (mount.is_mounted_read_only if self.is_token else mount.is_read_only)

    def held_by(self, mount: Mount) -> Holding:
        return Holding(self.name, self.configuration, mount.mountpoint, self.is_read_only(mount), is_by_mount=True)


def _known(root: str, definition: Definition) -> _Known | None:
    """None for what is no workspace here: the sidecar's own volume, and what this version cannot use."""
    options = definition.options
    broker_type = options.get("type")
    if broker_type not in get_broker_types():
        return None
    beside = _VOLUME_OPTIONS if broker_type in _OURS else {"read_only"}
    configuration = {key: value for key, value in options.items() if key not in beside}
    try:
        volume = load_broker(configuration).volume
    except Exception as error:  # another package's broker may raise anything, and must hide no other workspace
        reason = f"{type(error).__name__}: {error}"
        log.warning("workspace is not usable", workspace=definition.name, reason=reason)
        return None
    is_frozen = options.get("read_only") == "true"
    return _Known(definition.name, mountpoint(root, definition.name), configuration, volume is None, is_frozen)


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

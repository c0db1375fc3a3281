"""What this host's Docker engine says of itself, and of the brokervol plugins on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_TIMEOUT_S = 5
_SOCKET = "brokervol.sock"


class NoEngine(Exception):
    """None answers. The message says why, in a clause."""


class EngineForbidden(NoEngine):
    """There is one, but not for this user."""


class NoSdk(NoEngine):
    """The Docker SDK is not installed."""


class Plugin(NamedTuple):
    """A managed plugin of ours. `environment` are its settings, as `docker plugin set` left them."""

    id: str
    name: str
    is_enabled: bool
    environment: Mapping[str, str]


class Engine(NamedTuple):
    """One engine.

    Attributes:
        root: its data directory, on its host.
        plugins: ours, enabled or not.
    """

    version: str
    api_version: str
    root: str
    has_live_restore: bool
    plugins: tuple[Plugin, ...]

    def plugin_directory(self, plugin: Plugin) -> str:
        """Where the host sees what the plugin knows as its root directory of volumes and state."""
        return f"{self.root}/plugins/{plugin.id}/propagated-mount"


def look() -> Engine:
    """Ask the engine that `DOCKER_HOST` names, or else this host's; for some seconds at most.

    Raises:
        NoSdk, EngineForbidden, NoEngine: see there.
    """
    try:
        import docker  # noqa: PLC0415  # of the extra `host`
        from docker.errors import DockerException  # noqa: PLC0415
    except ImportError as error:
        raise NoSdk("the Docker SDK for Python is not installed") from error
    try:
        client = docker.from_env(timeout=_TIMEOUT_S)
        try:
            return _told(client.version(), client.info(), client.api.plugins())  # type: ignore[no-untyped-call]
        finally:
            client.close()
    except (DockerException, OSError) as error:
        cause = _cause(error)
        if isinstance(cause, PermissionError):
            raise EngineForbidden("this user may not use the engine's socket") from error
        if isinstance(cause, TimeoutError):
            raise NoEngine(f"it accepts connections, and does not answer within {_TIMEOUT_S} s") from error
        raise NoEngine(str(getattr(cause, "strerror", None) or cause).lower()) from error


def _told(version: Mapping[str, Any], info: Mapping[str, Any], plugins: list[Mapping[str, Any]]) -> Engine:
    ours = [plugin for plugin in plugins if plugin["Config"]["Interface"].get("Socket") == _SOCKET]
    return Engine(
        version["Version"],
        version["ApiVersion"],
        info["DockerRootDir"],
        bool(info.get("LiveRestoreEnabled")),
        tuple(
            Plugin(plugin["Id"], plugin["Name"], plugin["Enabled"], _environment(plugin["Settings"]["Env"]))
            for plugin in ours
        ),
    )


def _environment(words: list[str] | None) -> dict[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words or ())}


def _cause(error: BaseException) -> BaseException:
    """The error of the operating system that the SDK and its libraries have wrapped, if there is one."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, TimeoutError) or (isinstance(found, OSError) and found.errno is not None):
            return found
        found = found.__cause__ or found.__context__
    return error

"""What is found out about this host before the checks: its engine, its driver, their settings and their state."""

from __future__ import annotations

import contextlib
import glob
import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brokervol import engine, status
from brokervol.doctor import looks
from brokervol.doctor.findings import Finding, skipped, unseen
from brokervol.doctor.looks import Uncopied
from brokervol.engine import Engine, NoEngine, Plugin
from brokervol.settings import Settings
from brokervol.status import Several, Unreachable
from storage.definitions import Definition, definitions_path, read_backup

_ENGINE_ROOT = "/var/lib/docker"
_ANSWER_S = 10.0  # of the engine, or of the driver, whose requests have shorter limits
_DISK_S = 2.0  # a disk that does not answer within them hangs


@dataclass(frozen=True, slots=True)
class Site:
    """What the checks look at.

    Attributes:
        engine: what the engine says, or why nothing.
        driver: the driver's status document (docs/operations.md), with its `socket`; or why there is none.
        plugin: of several that one which runs, if one does.
        root: the directory of mountpoints and state as this process sees it; None where there is none to be seen.
        settings: the texts of all settings, by variable, with the host's own paths.
        settings_of: whose they are, in words.
        definitions: the volumes, or why they cannot be known.
    """

    engine: Engine | NoEngine
    driver: Mapping[str, Any] | Unreachable
    plugin: Plugin | None
    root: str | None
    settings: Mapping[str, str]
    settings_of: str
    definitions: Sequence[Definition] | Exception

    @property
    def state(self) -> str | None:
        """The directory of the state."""
        return None if self.root is None else os.path.dirname(definitions_path(self.root))

    @property
    def name(self) -> str:
        """What to call the plugin in a command."""
        return self.plugin.name.removesuffix(":latest") if self.plugin else "brokervol"

    @property
    def restart(self) -> str:
        """The commands that start the driver and the sidecar anew."""
        if self.plugin is None:
            return "`systemctl restart brokervol`"
        return f"`docker plugin disable -f {self.name} && docker plugin enable {self.name}`"

    def without_definitions(self) -> Finding:
        """What checks of volumes tell where nobody knows which there are."""
        if os.geteuid():
            return unseen("the volumes of this host are closed to this user")
        return skipped("no volumes of this host are known (see the check definitions)")

    def of_plugin(self) -> list[Plugin]:
        return [*self.engine.plugins] if isinstance(self.engine, Engine) else []


def find(socket: str | None, root: str | None, environment: Mapping[str, str]) -> Site:
    """Look for all of it. What is given is not looked for."""
    found, driver, plugin = _looked(socket)
    place = root or _root(found, plugin, driver, environment)
    settings, settings_of = _settings(plugin, driver, environment)
    return Site(found, driver, plugin, place, settings, settings_of, _definitions(place))


def find_root(environment: Mapping[str, str]) -> str | None:
    """The directory of mountpoints and state, alone."""
    found, driver, plugin = _looked(None)
    return _root(found, plugin, driver, environment)


def without_root(otherwise: str) -> str:
    """What commands tell where there is none to be seen, and what to do; `otherwise` for who is root."""
    return f"no driver's directory is to be seen: {'run this as root' if os.geteuid() else otherwise}"


def _looked(socket: str | None) -> tuple[Engine | NoEngine, Mapping[str, Any] | Unreachable, Plugin | None]:
    """Ask the engine and the driver, at once."""
    late = f"it does not end its answer within {_ANSWER_S:g} s"
    no_engine: Engine | NoEngine = NoEngine(late)
    no_driver: Mapping[str, Any] | Unreachable = Unreachable(f"the driver hangs ({late}): end it")
    asked = looks.started(lambda: looks.within(_ANSWER_S, _engine, no_engine))
    driver = looks.within(_ANSWER_S, lambda: _driver(socket), no_driver)
    found = asked.result()
    return found, driver, _plugin(found, driver)


def _engine() -> Engine | NoEngine:
    try:
        return engine.look()
    except NoEngine as error:
        return error
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        return NoEngine(f"what answers is no engine: {type(error).__name__}")


def _driver(socket: str | None) -> Mapping[str, Any] | Unreachable:
    try:
        return status.find_driver(socket)
    except Unreachable as error:
        return error


def _plugin(found: Engine | NoEngine, driver: Mapping[str, Any] | Unreachable) -> Plugin | None:
    """The plugin that the driver is of; or else the one that is enabled, or that there is."""
    plugins = found.plugins if isinstance(found, Engine) else ()
    if not isinstance(driver, Unreachable):
        named = [plugin for plugin in plugins if plugin.id in driver["socket"]]
        if named or not _is_of_plugin(driver):
            return named[0] if named else None
    return next(iter(sorted(plugins, key=lambda plugin: not plugin.is_enabled)), None)


def _is_of_plugin(driver: Mapping[str, Any]) -> bool:
    return bool(driver["root"] == Settings.root.in_plugin)


def _root(
    found: Engine | NoEngine,
    plugin: Plugin | None,
    driver: Mapping[str, Any] | Unreachable,
    environment: Mapping[str, str],
) -> str | None:
    """The first of the places where it may be that this process can see."""
    places = []
    if plugin is not None and isinstance(found, Engine):
        places.append(found.plugin_directory(plugin))
    if not isinstance(driver, Unreachable):
        if not _is_of_plugin(driver):
            places.append(driver["root"])
        places.append(f"/proc/{driver['pid']}/root{driver['root']}")
    elif plugin is None and not isinstance(driver, Several):
        pattern = f"{_ENGINE_ROOT}/plugins/*/propagated-mount"
        places += looks.within(_DISK_S, lambda: sorted(glob.glob(pattern)), [])
        places.append(Settings.root.value(environment.get(Settings.root.variable, "")))
    return next((place for place in places if is_directory(f"{place}/.state")), None)


def is_directory(path: str) -> bool:
    """Whether it is, or perhaps is on a disk that does not answer."""
    return looks.within(_DISK_S, lambda: os.path.isdir(path), True)


def _settings(
    plugin: Plugin | None, driver: Mapping[str, Any] | Unreachable, environment: Mapping[str, str]
) -> tuple[dict[str, str], str]:
    if plugin is not None:
        below = f"{plugin.environment.get(Settings.hostfs.variable) or Settings.hostfs.in_plugin}/"
        own = {
            name: f"/{text.removeprefix(below)}" if text.startswith(below) else text
            for name, text in plugin.environment.items()
        }
        return own, f"plugin {plugin.name}"
    if not isinstance(driver, Unreachable):
        with contextlib.suppress(OSError), open(f"/proc/{driver['pid']}/environ", "rb") as file:
            words = (os.fsdecode(word).partition("=") for word in file.read().split(b"\0"))
            return {name: text for name, _, text in words if name}, "driver"
    return {**environment}, "environment"


def _definitions(root: str | None) -> Sequence[Definition] | Exception:
    if root is None:
        return FileNotFoundError("no state is to be seen")
    try:
        return looks.started(lambda: _read(definitions_path(root))).result(_DISK_S)
    except (OSError, sqlite3.Error, Uncopied) as error:
        return error


def _read(path: str) -> Sequence[Definition]:
    """Of the backup where the file itself cannot be read."""
    try:
        return looks.definitions(path)
    except (OSError, sqlite3.Error, Uncopied):
        with contextlib.suppress(OSError, ValueError):
            return read_backup(path)
        raise

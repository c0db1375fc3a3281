"""Checks of the engine, of the plugin on it and of its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from brokervol import settings
from brokervol.doctor.findings import AS_ROOT, Finding, fault, ok, skipped, unseen, warning
from brokervol.doctor.site import Site
from brokervol.engine import EngineForbidden, NoEngine, NoSdk
from brokervol.settings import Setting, Settings
from brokervol.status import Unreachable
from volumedriver.nfs_policy import parse_allowed as parse_allowed_servers
from volumedriver.policy import parse_allowed

_OLDEST_API = (1, 41)  # of 20.10, the oldest engine that still has users

# What only the driver knows to be lists of what.
_LISTS: dict[str, Callable[[str], object]] = {
    Settings.allowed_host_paths.name: parse_allowed,
    Settings.allowed_nfs_servers.name: parse_allowed_servers,
}


def check_engine(site: Site) -> Iterator[Finding]:
    """Whether it answers, and is new enough."""
    match site.engine:
        case NoSdk():
            yield unseen(
                f"{site.engine}: the engine cannot be asked", "install brokervol's wheel with its extra `host`"
            )
        case EngineForbidden():
            yield unseen(f"{site.engine}", f"{AS_ROOT}, or as a member of the group docker")
        case NoEngine():
            yield fault(
                f"no Docker engine answers ({site.engine})",
                "`systemctl start docker` (`journalctl -u docker` tells why it ended), or name it: `DOCKER_HOST`",
            )
        case engine if tuple(int(part) for part in engine.api_version.split(".")) < _OLDEST_API:
            yield warning(
                f"Docker engine {engine.version} is older than what brokervol is tested with",
                "upgrade it to 20.10 or newer",
            )
        case engine:
            yield ok(f"Docker engine {engine.version} answers, API {engine.api_version}")


def check_live_restore(site: Site) -> Iterator[Finding]:
    """What becomes of containers, and so of mounts, when the engine is restarted."""
    if isinstance(site.engine, NoEngine):
        yield skipped("no engine was asked")
    elif site.engine.has_live_restore:
        yield ok("live-restore is on: containers and their volumes go on while the engine is away")
    else:
        yield ok("live-restore is off: containers end with the engine (docs/recovery.md tells what that means)")


def check_plugin(site: Site) -> Iterator[Finding]:
    """Whether there is one, enabled, and only one."""
    if isinstance(site.engine, NoEngine):
        yield skipped("no engine was asked")
        return
    plugins = site.of_plugin()
    enabled = [plugin.name for plugin in plugins if plugin.is_enabled]
    is_driver_there = not isinstance(site.driver, Unreachable)
    if len(enabled) > 1:
        yield warning(
            f"{len(enabled)} brokervol plugins are enabled, each with volumes of its own: {', '.join(enabled)}",
            "keep the one whose volumes you use (`docker volume ls`): `docker plugin disable -f NAME`",
        )
    elif enabled:
        yield ok(f"plugin {enabled[0]} is enabled")
    elif plugins:
        yield fault(
            f"plugin {plugins[0].name} is disabled: no volume of it can be used",
            f"`docker plugin enable {site.name}`; if that fails, its settings and its log tell why",
        )
    elif is_driver_there:
        yield ok("no plugin is installed: the driver runs as a process of this host")
    else:
        yield fault(
            "no brokervol plugin is installed on this engine, and no driver runs",
            "`make install` in a checkout, or `docker plugin install` (README.md)",
        )


def check_settings(site: Site) -> Iterator[Finding]:
    """Whether the driver and the sidecar would start with what is set."""
    refused = [(setting, problem) for setting in settings.ALL if (problem := _problem(setting, site))]
    for setting, problem in refused:
        yield fault(f"in the settings of the {site.settings_of}, {problem}", _set(site, setting), setting.variable)
    if not refused:
        yield ok(f"the settings of the {site.settings_of} are accepted")


def _problem(setting: Setting[object], site: Site) -> str:
    text = site.settings.get(setting.variable, "")
    try:
        setting.value(text)
    except ValueError as error:
        return str(error)
    if setting.name in _LISTS:
        try:
            _LISTS[setting.name](text)
        except ValueError as error:
            return setting.refusal(text, str(error))
    return ""


def _set(site: Site, setting: Setting[object]) -> str:
    if site.plugin is None:
        return f"set {setting.variable} to {setting.kind.accepted}, and start the daemon again"
    name, value = site.name, setting.default
    return (
        f"`docker plugin disable -f {name}`, `docker plugin set {name} {setting.variable}={value}`,"
        f" `docker plugin enable {name}`; accepted is {setting.kind.accepted}"
    )

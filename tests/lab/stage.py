"""A private engine with everything on it: what system tests and the demo play on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import build
from lab import images
from lab.engine import Engine

PLUGIN = "brokervol"


def build_plugin() -> None:
    """See to it that `built_plugin` is of this tree, with an engine that is there for nothing else."""
    if built_plugin() != build.BUILD / f"plugin-{build.build_key('')}.tar":
        with Engine() as engine:
            images.load_task(engine)
            build.build(engine.client)


def built_plugin() -> Path | None:
    """The plugin's archive that was built last, if any was."""
    archives = sorted(build.BUILD.glob("plugin-*.tar"), key=lambda archive: archive.stat().st_mtime)
    return archives[-1] if archives else None


@contextlib.contextmanager
def stage(*, live_restore: bool = False, settings: Mapping[str, str] | None = None) -> Iterator[Engine]:
    """An engine with the images of `lab.images` and the plugin of this tree, built if need be, enabled."""
    with Engine(live_restore=live_restore) as engine:
        images.load_task(engine)
        images.load_tiny(engine)
        archive = build.build(engine.client)
        build.enable(build.create(engine.client, PLUGIN, archive), dict(settings or {}))
        yield engine

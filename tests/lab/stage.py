"""A private engine with everything on it: what system tests and the demo play on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import build
from lab import images
from lab.engine import Engine

PLUGIN = "brokervol"


@contextlib.contextmanager
def stage(*, live_restore: bool = False, settings: Mapping[str, str] | None = None) -> Iterator[Engine]:
    """An engine with the images of `lab.images` and the plugin of this tree, built if need be, enabled."""
    with Engine(live_restore=live_restore) as engine:
        images.load_task(engine)
        images.load_tiny(engine)
        archive = build.build(engine.client)
        build.enable(build.create(engine.client, PLUGIN, archive), dict(settings or {}))
        yield engine

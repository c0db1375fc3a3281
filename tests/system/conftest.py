"""What the system tests share: one private engine with the plugin on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from docker.models.plugins import Plugin

from lab.engine import Engine
from lab.stage import PLUGIN, stage

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session")
def shared_engine() -> Iterator[Engine]:
    """The engine of all tests; ask for `engine`, which sees to it that it runs."""
    with stage() as engine:
        yield engine


@pytest.fixture
def engine(shared_engine: Engine) -> Iterator[Engine]:
    """A running engine with the images of `lab.images` and the plugin enabled. Containers and volumes go."""
    assert shared_engine.is_running(), "an earlier test left the engine dead"
    yield shared_engine
    if not shared_engine.is_running():
        shared_engine.start()
    for container in shared_engine.client.containers.list(all=True):
        container.remove(force=True)
    for volume in shared_engine.client.volumes.list(filters={"driver": f"{PLUGIN}:latest"}):
        volume.remove()


@pytest.fixture
def plugin(engine: Engine) -> Plugin:
    """The plugin of that engine, enabled."""
    found: Plugin = engine.client.plugins.get(PLUGIN)  # type: ignore[no-untyped-call]
    assert found.enabled
    return found

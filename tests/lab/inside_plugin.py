"""The plugin of `lab.inside`, as `-p lab.inside_plugin` finds it."""

from __future__ import annotations

import pytest

from lab import inside


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(inside.plugin(), "inside")

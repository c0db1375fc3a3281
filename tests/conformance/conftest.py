"""Fixtures of the conformance suites."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.directories import temporary_directory


@pytest.fixture
def short_dir() -> Iterator[Path]:
    with temporary_directory() as directory:
        yield directory

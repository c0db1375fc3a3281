"""Fixtures of the fault tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.directories import remove_tree
from lab.file_changes import Lab
from storage.brokers import _group
from storage.models import use_catalog


@pytest.fixture(params=["nameless files", "nfs"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A laboratory in memory: thousands of worlds are made in it."""
    directory = Path(tempfile.mkdtemp(prefix="bv-faults-", dir="/dev/shm"))
    opened = Lab(directory, is_nfs=request.param == "nfs")
    yield opened
    use_catalog(None)
    opened.catalog.close()
    remove_tree(directory)


@pytest.fixture
def group_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many items are done together, given as the parameter."""
    monkeypatch.setattr(_group, "GROUP_FILES", request.param)

"""Catalogs as fixtures: on SQLite, and on a PostgreSQL server shared by the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.postgres import Server, any_server
from storage import catalog
from storage.catalog import Catalog
from storage.models import use_catalog


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    with any_server() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A new, empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/catalog.sqlite"
        return
    server: Server = request.getfixturevalue("postgresql")
    with server.database() as url:
        yield url


@pytest.fixture
def records(catalog_url: str) -> Iterator[Catalog]:
    """The catalog in use, on each kind of database."""
    opened = catalog.configure(catalog_url)
    yield opened
    use_catalog(None)
    opened.close()

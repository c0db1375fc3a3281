"""What every ability of the suite stands on."""

from __future__ import annotations

import functools
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec

import pytest

from storage.catalog import Catalog, configure
from storage.exceptions import StorageError
from storage.models import use_catalog
from storage.testing.backend import Backend

P = ParamSpec("P")


class Suite:
    """Tests of one ability, of the backend that the fixture `backend` gives. The catalog is the suite's own."""

    @pytest.fixture(autouse=True)
    def records(self, tmp_path: Path) -> Iterator[Catalog]:
        path = tmp_path / "catalog.sqlite"
        path.write_bytes(_empty_catalog())
        opened = configure(f"sqlite:///{path}")
        yield opened
        use_catalog(None)
        opened.close()


@functools.cache
def _empty_catalog() -> bytes:
    """A new database. To copy it takes a tenth of the time that its making takes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "catalog.sqlite")
        configure(f"sqlite:///{path}").close()
        return path.read_bytes()


def refusal(action: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> type[StorageError] | None:
    """The kind of the error that an action raises; None where it raises none."""
    try:
        action(*args, **kwargs)
    except StorageError as error:
        return type(error)
    return None


def workspace_directory(backend: Backend) -> Path:
    """The workspace's directory, of a type that has directories."""
    assert backend.workspace is not None, "a backend with directories or links says where its workspace is"
    return backend.workspace


def make_special(directory: Path) -> list[str]:
    """New entries of a directory that are no files: a directory, a FIFO and a socket; their paths."""
    made = [f"{directory}/{name}" for name in ("dir", "fifo", "socket")]
    os.mkdir(made[0])
    os.mkfifo(made[1])
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{opened}/socket")  # a socket's path is short
    finally:
        os.close(opened)
    return made


def path_of(length: int, directory: str = "d") -> str:
    """A path of `length` bytes, through as many directories of this name as that has room for."""
    above = f"{directory}/" * ((length - 1) // (len(directory) + 1))
    return above + "f" * (length - len(above))

"""References on disk, and the lock of the state."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from volumedriver.errors import StateDamaged, StateUnavailable
from volumedriver.store import ReferenceStore, sole_user


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "mounts.sqlite")


def reopened(store: ReferenceStore, path: str) -> ReferenceStore:
    store.close()
    return ReferenceStore(path)


def test_references_are_there_for_the_next_process(path: str) -> None:
    store = ReferenceStore(path)
    store.set("a", "x", 1)
    store.set("a", "x", 2)
    store.set("a", "y", 1)
    store.set("b", "x", 1)
    store.set("b", "x", 0)
    store.set("c", "x", 1)
    store.drop("c")
    store = reopened(store, path)
    assert store.load() == {"a": {"x": 2, "y": 1}}
    store.close()


def test_new_boot_forgets_references_and_keeps_its_id(path: str) -> None:
    store = ReferenceStore(path)
    assert store.boot_id() is None
    store.set("a", "x", 1)
    store.begin_boot("one")
    store.set("a", "y", 1)
    store = reopened(store, path)
    assert (store.boot_id(), store.load()) == ("one", {"a": {"y": 1}})
    store.begin_boot("two")
    assert (store.boot_id(), store.load()) == ("two", {})
    store.close()


def test_state_of_a_newer_version_is_refused_unaltered(path: str) -> None:
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
        newer.execute("PRAGMA application_id = 99")
    newer.close()
    with pytest.raises(StateUnavailable, match="has version 99; this brokervol knows versions up to 3"):
        ReferenceStore(path)


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_damaged_state_is_told_in_a_sentence(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)
    with pytest.raises(StateDamaged, match="is damaged"):
        ReferenceStore(path)


def test_state_without_a_directory_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StateUnavailable, match="is not usable"):
        ReferenceStore(str(tmp_path / "none/mounts.sqlite"))
    with pytest.raises(StateUnavailable, match="is not usable"), sole_user(str(tmp_path / "none")):
        pass


def test_closed_store_is_told_in_a_sentence(path: str) -> None:
    store = ReferenceStore(path)
    store.close()
    with pytest.raises(StateUnavailable):
        store.set("a", "x", 1)


def test_state_has_one_user(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with sole_user(str(tmp_path)):
        refused = sole_user(str(tmp_path), wait_s=0.1)
        with pytest.raises(StateUnavailable, match="another brokervol driver works with"), refused:
            pass
    with sole_user(str(tmp_path), wait_s=0):
        pass
    assert len(os.listdir("/proc/self/fd")) == before

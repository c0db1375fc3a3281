"""Ctrl-C while a lock is held."""

from __future__ import annotations

import signal
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from storage.catalog import configure
from storage.interrupts import held_back
from storage.models import ScaleFile, use_catalog


def test_an_interrupt_comes_at_the_end() -> None:
    def work() -> None:
        with held_back():
            with held_back():
                signal.raise_signal(signal.SIGINT)
                steps.append("inner")
            steps.append("outer")

    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_fails_meanwhile_is_told_with_it() -> None:
    def work() -> None:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            raise OSError("it failed")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert str(caught.value.__context__) == "it failed"


def test_a_handler_of_ones_own_is_left_alone() -> None:
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        with held_back():
            signal.raise_signal(signal.SIGINT)
            assert pressed == [True]
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_change_nothing() -> None:
    def work() -> None:
        with held_back():
            found.append(signal.getsignal(signal.SIGINT))

    found: list[object] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


@pytest.mark.parametrize("after", ["BEGIN", "INSERT", "COMMIT"])
def test_an_interrupted_save_leaves_the_catalog_to_others(tmp_path: Path, after: str) -> None:
    """Also as long as somebody shows the traceback, which keeps all that was in use."""
    catalog = configure(f"sqlite:///{tmp_path}/catalog.sqlite")
    interrupted = []

    def interrupt(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(after):
            interrupted.append(statement)
            signal.raise_signal(signal.SIGINT)

    def commit(_: object) -> None:
        interrupt(None, None, "COMMIT")

    event.listen(Engine, "after_cursor_execute", interrupt)
    event.listen(Engine, "commit", commit)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            ScaleFile(file_path="a", workspace="w").save()
    finally:
        event.remove(Engine, "after_cursor_execute", interrupt)
        event.remove(Engine, "commit", commit)
    assert interrupted
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite", timeout=0, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert other.execute("SELECT file_path FROM scale_file").fetchall() == [("a",)]
        other.execute("ROLLBACK")
    assert caught.traceback
    use_catalog(None)
    catalog.close()

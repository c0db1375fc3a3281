"""When a workspace is recovered by the sidecar, and who waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.processes import wait_until
from sidecar import recovery
from sidecar.holdings import Holding
from storage import catalog, journal
from storage.catalog import Catalog
from storage.exceptions import BackendUnavailable
from storage.journal import intent_of
from storage.models import ScaleFile, use_catalog


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalog]:
    monkeypatch.setattr(journal, "_process", journal._Process())  # other tests abandon intents in their "w"
    opened = catalog.configure(f"sqlite:///{tmp_path}/c.sqlite")
    yield opened
    use_catalog(None)
    opened.close()


def holding(directory: Path, name: str = "w") -> Holding:
    configuration = {"type": "host", "host_path": str(directory)}
    return Holding(name, configuration, str(directory), is_read_only=False, is_by_mount=False)


class Looks:
    """Counts the recoveries by workspace, and does them as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        self.left = 0
        self.goes_on = threading.Event()
        self.goes_on.set()
        monkeypatch.setattr(journal, "recover", self._recover)

    def _recover(self, _catalog: object, _broker: object, _place: object, workspace: str, **_: object) -> int:
        self.seen.append(workspace)
        assert self.goes_on.wait(30)
        return self.left


def test_a_workspace_is_recovered_once(records: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    for name in ("a", "b", "a", "b"):
        recovery.settle(records, holding(tmp_path, name))
    assert looks.seen == ["a", "b"]


def test_after_a_failure_it_is_left_alone_for_a_while_and_used(
    records: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("sidecar.recovery.time.monotonic", lambda: now[0])
    looks = Looks(monkeypatch)
    looks.left = 1
    for later, count in ((0, 1), (4, 1), (1.5, 2), (9, 2), (1.5, 3)):  # 5 s, then 10 s
        now[0] += later
        recovery.settle(records, holding(tmp_path))
        assert len(looks.seen) == count
    now[0] += 100
    looks.left = 0
    for _ in range(2):
        recovery.settle(records, holding(tmp_path))
    assert len(looks.seen) == 4


def test_who_comes_while_it_is_recovered_waits_and_is_told(
    records: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_WAIT_S", 0.05)
    looks = Looks(monkeypatch)
    looks.goes_on.clear()
    first = threading.Thread(target=recovery.settle, args=[records, holding(tmp_path)])
    first.start()
    wait_until(lambda: bool(looks.seen), "the first to begin")
    with pytest.raises(BackendUnavailable, match="'w' is being recovered"):
        recovery.settle(records, holding(tmp_path))
    looks.goes_on.set()
    first.join(30)
    recovery.settle(records, holding(tmp_path, "other"))
    assert looks.seen == ["w", "other"]


def test_what_this_process_could_not_record_is_recovered_and_nobody_waits(
    records: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(monkeypatch)
    recovery.settle(records, holding(tmp_path))
    journal.abandon([intent_of("delete", ScaleFile(file_path="f", workspace="w"))])
    looks.goes_on.clear()
    first = threading.Thread(target=recovery.settle, args=[records, holding(tmp_path)])
    first.start()
    wait_until(lambda: len(looks.seen) == 2, "the second recovery to begin")
    recovery.settle(records, holding(tmp_path))
    looks.goes_on.set()
    first.join(30)
    assert looks.seen == ["w", "w"]
    monkeypatch.undo()
    recovery.settle(records, holding(tmp_path))
    assert not journal.has_abandoned("w")

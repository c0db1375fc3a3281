"""The journal on each kind of database: intents, keys, and recovery while others are at work."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lab.processes import wait_until
from storage import journal
from storage.brokers.broker import Broker, FileMove, FileUpload
from storage.brokers.factory import get_broker
from storage.catalog import Catalog
from storage.exceptions import BackendUnavailable, PermissionDenied, StorageError
from storage.files import TEMPORARY_PREFIX, Actor
from storage.journal import Intent, KeyedItem, Verdict, intent_of
from storage.models import ScaleFile, use_catalog

LONG_AGO = datetime.now(UTC) - timedelta(days=2)


@pytest.fixture(autouse=True)
def owner() -> Iterator[None]:
    """This process is one of several that follow one another."""
    before = journal.process()[0]
    journal.use_owner("tests")
    yield
    journal.use_owner(before)


def new(path: str, **fields: Any) -> ScaleFile:
    return ScaleFile(file_path=path, workspace="w", **fields)


def dead(intent: Intent) -> Intent:
    """The same, of a process that was killed."""
    intent.run = "dead"
    return intent


def open_intents(records: Catalog) -> list[Intent]:
    return records.journal.open_in("w", "tests", datetime.now(UTC))


class Told(Broker):
    """A broker that is told what it finds."""

    def __init__(self, *verdicts: Verdict | StorageError, meanwhile: Callable[[], object] = bool) -> None:
        super().__init__("told")
        self._verdicts, self._meanwhile = list(verdicts), meanwhile

    def look_back(self, _: str | None, intents: Sequence[Intent]) -> list[Verdict | StorageError]:
        self._meanwhile()
        return [self._verdicts.pop(0) for _ in intents]

    def _unused(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("only looks back")

    load_configuration = validate_configuration = list_files = download_files = _unused
    upload_files = move_files = delete_files = _unused


# Intents


def test_an_intent_is_read_as_it_was_written(records: Catalog) -> None:
    file = new("d/é", media_type="a/b", tags={"k": "v"}, checksum="sha256:0")
    written = intent_of("move", file, "d/new", item=KeyedItem(7, 3, "digest"))
    written.before, written.size, written.overwrite = journal.Identity(2**60, 5, 6, 0o100644), 2**40, False
    written.actor = Actor(2**32 - 2, 5, (7, 8))
    journal.begin([written])
    (found,) = open_intents(records)
    assert vars(found) == vars(written)


def test_an_intent_is_closed_with_the_record(records: Catalog) -> None:
    files = [new(f"f{number}") for number in range(3)]
    intents = [intent_of("upload", file) for file in files]
    journal.begin(intents)
    journal.finish(files[:1], intents[:1], intents[1:2])
    assert [intent.token for intent in open_intents(records)] == [intents[2].token]
    assert [file.file_path for file in records.page("w")] == ["f0"]
    journal.finish(files[1:], intents[:2], intents[2:])  # closed again by somebody else
    assert open_intents(records) == []
    assert len(records.page("w")) == 3


def test_an_intent_is_told_when_its_size_is_known(records: Catalog) -> None:
    intent = intent_of("upload", new("f"))
    journal.begin([intent])
    intent.size = 5
    journal.tell_size(intent)
    assert [found.size for found in open_intents(records)] == [5]


def test_a_record_that_cannot_be_saved_leaves_its_intent(records: Catalog) -> None:
    intent = intent_of("upload", file := new("f"))
    journal.begin([intent])
    file.tags = {"x": "\0"}
    with pytest.raises(ValueError, match="tags"):
        journal.finish([file], [intent], [])
    assert [found.token for found in open_intents(records)] == [intent.token]
    assert journal.has_abandoned("w")
    assert journal.recover(records, Told(journal.UNDONE), None, "w") == 0
    assert not journal.has_abandoned("w")


def test_intents_of_dead_processes_are_recovered_and_of_no_others(records: Catalog) -> None:
    mine, killed, foreign, old = (intent_of("delete", new(name)) for name in ("mine", "killed", "foreign", "old"))
    dead(killed)
    foreign.owner, foreign.run = old.owner, old.run = "another host", "its run"
    old.started = LONG_AGO
    elsewhere = dead(intent_of("delete", ScaleFile(file_path="f", workspace="other")))
    journal.begin([mine, killed, foreign, old, elsewhere])
    assert journal.recover(records, Told(journal.UNDONE, journal.UNDONE), None, "w") == 0
    assert {intent.file_path for intent in records.journal.open_in("w", "tests", datetime.now(UTC))} == {
        "mine",
        "foreign",
    }
    journal.abandon([mine])
    assert journal.recover(records, Told(journal.UNDONE), None, "w") == 0


def test_what_a_backend_cannot_tell_stays_open(records: Catalog) -> None:
    journal.begin([dead(intent_of("delete", new("a"))), dead(intent_of("delete", new("b")))])
    broker = Told(BackendUnavailable("it is away"), journal.UNDONE)
    broker._verdicts += [BackendUnavailable("it is away")] * 2
    assert journal.recover(records, broker, None, "w") == 1
    assert [intent.file_path for intent in open_intents(records)] == ["a"]


def test_what_somebody_began_is_looked_at_as_they_and_by_ourselves_where_that_is_denied(records: Catalog) -> None:
    intents = [dead(intent_of("delete", new(name))) for name in "abc"]
    for intent, actor in zip(intents[1:], (Actor(5, 6, (7,)), Actor(8, 9, ())), strict=True):
        intent.actor = actor
    journal.begin(intents)
    asked = []

    def broker_as(actor: Actor) -> Broker:
        asked.append(actor)
        return Told(journal.UNDONE if actor.user == 5 else PermissionDenied("not you"))

    ours = Told(journal.UNDONE, journal.UNDONE)
    assert journal.recover(records, ours, None, "w", broker_as=broker_as) == 0
    assert {*asked} == {intents[1].actor, intents[2].actor}
    assert ours._verdicts == []


# What recovery records


def recorded(records: Catalog) -> list[tuple[str, int | None, str, bool]]:
    return sorted((file.file_path, file.file_size, file.media_type, file.is_deleted) for file in records.page("w"))


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (journal.UNDONE, [("f", 1, "old/old", False)]),
        (Verdict(True, 5), [("f", 5, "new/new", False)]),
        (Verdict(True, 7, is_its=False), [("f", 7, "old/old", False)]),
        (Verdict(False, warning="uncertain"), [("f", 1, "old/old", False)]),
    ],
)
def test_recovered_upload(records: Catalog, verdict: Verdict, expected: list[Any]) -> None:
    records.save(old := new("f", file_size=1, media_type="old/old"))
    journal.begin([dead(intent_of("upload", new("f", media_type="new/new")))])
    assert journal.recover(records, Told(verdict), None, "w") == 0
    assert recorded(records) == expected
    assert [file.uuid for file in records.page("w")] == [old.uuid]


def test_recovered_upload_of_a_record_that_has_moved_meanwhile_has_a_record_of_its_own(records: Catalog) -> None:
    records.save(file := new("f", file_size=1))
    journal.begin([dead(intent_of("upload", file))])
    file.file_path = "elsewhere"
    records.save(file)
    assert journal.recover(records, Told(Verdict(True, 5)), None, "w") == 0
    assert recorded(records) == [("elsewhere", 1, "", False), ("f", 5, "", False)]


def test_recovered_upload_that_somebody_has_followed_changes_nothing(records: Catalog) -> None:
    journal.begin([dead(intent_of("upload", new("f", media_type="mine/mine")))])
    records.save(new("f", file_size=5, media_type="theirs/theirs"))
    assert journal.recover(records, Told(Verdict(True, 5)), None, "w") == 0
    assert recorded(records) == [("f", 5, "theirs/theirs", False)]


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (journal.UNDONE, [("f", 1, "", False), ("g", 2, "", False)]),
        (Verdict(True, 1), [("g", 1, "", False), ("g", 2, "", True)]),
        (Verdict(True, None, is_its=False), [("f", 1, "", True), ("g", 2, "", False)]),
    ],
)
def test_recovered_move(records: Catalog, verdict: Verdict, expected: list[Any]) -> None:
    records.save_all([file := new("f", file_size=1), new("g", file_size=2)])
    journal.begin([dead(intent_of("move", file, "g"))])
    assert journal.recover(records, Told(verdict), None, "w") == 0
    assert recorded(records) == expected


def test_recovered_move_of_what_was_never_recorded(records: Catalog) -> None:
    journal.begin([dead(intent_of("move", new("f", media_type="a/b"), "d/g"))])
    assert journal.recover(records, Told(Verdict(True, 1)), None, "w") == 0
    (found,) = records.page("w")
    assert (found.file_path, found.file_name, found.file_size, found.media_type) == ("d/g", "g", 1, "a/b")


@pytest.mark.parametrize(
    ("verdict", "is_deleted"),
    [(journal.UNDONE, False), (Verdict(True), True), (Verdict(True, 5, is_its=False), True)],
)
def test_recovered_deletion(records: Catalog, verdict: Verdict, is_deleted: bool) -> None:
    records.save(file := new("f"))
    journal.begin([dead(intent_of("delete", file))])
    assert journal.recover(records, Told(verdict), None, "w") == 0
    assert [found.is_deleted for found in records.page("w")] == [is_deleted]


def test_recovered_deletion_after_which_somebody_recorded_a_file_changes_nothing(records: Catalog) -> None:
    records.save(file := new("f"))
    journal.begin([dead(intent_of("delete", file))])
    records.save(new("f", file_size=5))
    assert journal.recover(records, Told(Verdict(True, 5, is_its=False)), None, "w") == 0
    assert recorded(records) == [("f", 5, "", False)]


def test_recovered_deletion_that_was_to_leave_the_record_leaves_it(records: Catalog) -> None:
    records.save(file := new("f"))
    intent = dead(intent_of("delete", file))
    intent.is_recorded = False
    journal.begin([intent])
    assert journal.recover(records, Told(Verdict(True)), None, "w") == 0
    assert [found.is_deleted for found in records.page("w")] == [False]


# Others at work


def test_a_record_that_changes_while_it_is_looked_is_looked_at_again(records: Catalog) -> None:
    journal.begin([dead(intent_of("upload", new("f")))])
    seen: list[int] = []

    def meanwhile() -> None:
        if not seen:
            records.save(new("f", file_size=3))
        seen.append(1)

    broker = Told(Verdict(True, 2), Verdict(True, 3), meanwhile=meanwhile)
    assert journal.recover(records, broker, None, "w") == 0
    assert len(seen) == 2
    assert recorded(records) == [("f", 3, "", False)]


def test_of_two_that_recover_at_once_one_does(records: Catalog, catalog_url: str) -> None:
    journal.begin([dead(intent_of("upload", new(f"f{number}"))) for number in range(20)])
    both = threading.Barrier(2, timeout=30)
    others = [Catalog(catalog_url), Catalog(catalog_url)]
    left = []

    def recover(opened: Catalog) -> None:
        broker = Told(*[Verdict(True, 5)] * 20, meanwhile=both.wait)
        left.append(journal.recover(opened, broker, None, "w"))

    threads = [threading.Thread(target=recover, args=[opened]) for opened in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for opened in others:
        opened.close()
    assert left == [0, 0]
    assert recorded(records) == sorted((f"f{number}", 5, "", False) for number in range(20))


@pytest.mark.parametrize("verdict", [journal.UNDONE, Verdict(True, 3)])
def test_an_operation_that_is_recovered_while_it_lives_ends_as_if_nothing_had_been(
    records: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: Verdict
) -> None:
    """Another host takes an upload for dead: it saves the record first, or drops the intent."""
    broker, volume_path = host(tmp_path)
    (tmp_path / "source").write_text("new")
    file = new("f")
    broker.keyed = {id(file): KeyedItem(1, 0, "d")}
    finish = records.finish

    def recovered_before(*arguments: Any) -> None:
        (intent,) = open_intents(records)
        seen = records.journal.seen(intent)
        files = journal.records_after(intent, verdict, seen)
        assert records.journal.settle(intent, seen, files, is_done=verdict.is_done)
        finish(*arguments)

    monkeypatch.setattr(records, "finish", recovered_before)
    broker.upload_files(volume_path, [FileUpload(file, str(tmp_path / "source"))])
    assert recorded(records) == [("f", 3, "", False)]
    assert file.id == records.page("w")[0].id
    assert records.journal.done_items(1, 0, 5)[0].file_id == file.id


# Files on a disk


def host(directory: Path) -> tuple[Broker, str]:
    volume = directory / "volume"
    volume.mkdir(exist_ok=True)
    return get_broker("host"), str(volume)


def test_a_catalog_that_fails_after_the_change_is_made_good(
    records: Catalog, catalog_url: str, tmp_path: Path
) -> None:
    broker, volume_path = host(tmp_path)
    (tmp_path / "source").write_text("content")
    uploads = [FileUpload(new(f"f{number}"), str(tmp_path / "source")) for number in range(3)]

    class Failing(Catalog):
        def finish(self, *_: object) -> None:
            raise BackendUnavailable("the database is gone")

    use_catalog(failing := Failing(catalog_url))
    with pytest.raises(BackendUnavailable, match="'f0' and 2 more: the file is changed, but not its record"):
        broker.upload_files(volume_path, uploads)
    failing.close()
    assert recorded(records) == []
    assert journal.has_abandoned("w")
    assert journal.recover(records, broker, volume_path, "w") == 0
    assert recorded(records) == [(f"f{number}", 7, "", False) for number in range(3)]
    assert not journal.has_abandoned("w")


def test_what_another_host_may_be_writing_is_left_alone(records: Catalog, tmp_path: Path) -> None:
    broker, volume_path = host(tmp_path)
    intent = intent_of("upload", new("f"))
    intent.owner, intent.run, intent.started = "another host", "its run", LONG_AGO
    journal.begin([intent])
    unfinished = Path(volume_path) / f"{TEMPORARY_PREFIX}{intent.token}.part"
    unfinished.write_text("half")
    assert journal.recover(records, broker, volume_path, "w") == 1
    assert unfinished.exists()
    os.utime(unfinished, (LONG_AGO.timestamp(), LONG_AGO.timestamp()))
    assert journal.recover(records, broker, volume_path, "w") == 0
    assert not unfinished.exists()


def test_a_file_that_somebody_put_there_since_is_neither_lost_nor_taken(records: Catalog, tmp_path: Path) -> None:
    """The upload without overwrite did not happen; the deletion and the move, perhaps, and are not repeated."""
    broker, volume_path = host(tmp_path)
    place = Path(volume_path) / "f"
    place.write_text("old")
    records.save(file := new("f", file_size=3))
    before = journal.identity_of(place.stat())
    upload, deletion = dead(intent_of("upload", new("f"))), dead(intent_of("delete", file))
    upload.size, upload.overwrite, deletion.before = 100, False, before
    upload.item, deletion.item = KeyedItem(1, 0, "d"), KeyedItem(1, 1, "d")
    (Path(volume_path) / "theirs").write_text("theirs")
    (Path(volume_path) / "theirs").rename(place)
    journal.begin([upload, deletion])
    assert journal.recover(records, broker, volume_path, "w") == 0
    assert place.read_text() == "theirs"
    assert records.page("w")[0].is_deleted, "as if the deletion had come first"
    assert list(records.journal.done_items(1, 0, 5)) == [1]


def test_intents_are_recovered_through_a_part_of_the_workspace(records: Catalog, tmp_path: Path) -> None:
    broker, volume_path = host(tmp_path)
    (Path(volume_path) / "new").write_text("12345")
    file = new("part/old")
    intent = dead(intent_of("move", file, "part/new", item=KeyedItem(1, 0, "d")))
    intent.before = journal.identity_of((Path(volume_path) / "new").stat())
    journal.begin([intent])
    assert journal.recover(records, broker, volume_path, "w", part="part", request_id=1) == 0
    assert recorded(records) == [("part/new", 5, "", False)]


@pytest.mark.parametrize("verb", ["upload", "move"])
def test_items_that_depend_on_each_other_are_under_way_apart(
    records: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """So that what became of each can be told. Paths that lead to one place by a link are one."""
    broker, volume_path = host(tmp_path)
    (Path(volume_path) / "d").mkdir()
    (Path(volume_path) / "alias").symlink_to("d")
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        (Path(volume_path) / name).write_text(name)
    begun: list[list[str]] = []
    original = records.begin

    def begin(intents: Sequence[Intent]) -> None:
        begun.append([intent.new_path or intent.file_path for intent in intents])
        original(intents)

    monkeypatch.setattr(records, "begin", begin)
    if verb == "upload":
        uploads = [
            FileUpload(new(path), f"{tmp_path}/{name}") for name, path in (("one", "d/f"), ("two", "alias/f"))
        ]
        broker.upload_files(volume_path, uploads)
    else:
        broker.move_files(volume_path, [FileMove(new("one"), "d/f"), FileMove(new("two"), "alias/f")])
    assert begun == [["d/f"], ["alias/f"]]
    assert (Path(volume_path) / "d/f").read_text() == "two"


# Keys


def claim(records: Catalog, key: str = "k", digest: str = "d", **others: Any) -> journal.Claim:
    process = others.pop("process", journal.process())
    return records.journal.claim("w", others.pop("caller", "uid 0"), key, digest, process)


def test_a_key_is_of_one_request_of_one_user(records: Catalog) -> None:
    first = claim(records)
    assert first.is_new
    again = claim(records)
    assert (again.request_id, again.is_new, again.is_same, again.is_busy) == (first.request_id, False, True, False)
    assert not claim(records, digest="other").is_same
    assert claim(records, caller="uid 1").is_new
    assert claim(records, key="another").is_new


def test_a_key_that_another_host_works_on_is_busy_until_it_lets_go(records: Catalog) -> None:
    theirs = claim(records, process=("another host", "its run"))
    assert claim(records).is_busy
    records.journal.release(theirs.request_id)
    mine = claim(records)
    assert (mine.is_busy, mine.is_new) == (False, False)
    assert claim(records, process=("another host", "its run")).is_busy


def test_a_key_that_another_host_has_held_for_long_is_free(
    records: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(records, process=("another host", "its run"))
    monkeypatch.setattr("storage._journaling.FOREIGN_AGE", timedelta(0))
    assert not claim(records).is_busy


def test_what_was_done_is_remembered_by_number(records: Catalog) -> None:
    request_id = claim(records).request_id
    files = [new("f0"), new("f1")]
    intents = [
        intent_of("upload", file, item=KeyedItem(request_id, 5 * number, f"d{number}"))
        for number, file in enumerate(files)
    ]
    journal.begin(intents)
    journal.finish(files, intents, [])
    records.journal.remember(KeyedItem(request_id, 2, "d"), None)
    assert records.journal.done_items(request_id, 0, 5) == {
        0: journal.DoneItem("d0", files[0].id),
        2: journal.DoneItem("d", None),
    }
    assert records.journal.done_items(request_id, 5, 5) == {5: journal.DoneItem("d1", files[1].id)}


def test_what_recovery_finishes_is_remembered(records: Catalog) -> None:
    request_id = claim(records).request_id
    done, undone = (
        dead(intent_of("upload", new(f"f{number}"), item=KeyedItem(request_id, number, "d"))) for number in (0, 1)
    )
    journal.begin([done, undone])
    assert journal.recover(records, Told(Verdict(True, 5), journal.UNDONE), None, "w", request_id=request_id) == 0
    (file,) = records.page("w")
    assert records.journal.done_items(request_id, 0, 5) == {0: journal.DoneItem("d", file.id)}


def test_keys_are_forgotten_after_a_while(records: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    request_id = claim(records).request_id
    records.journal.remember(KeyedItem(request_id, 0, "d"), None)
    assert not claim(records).is_new
    monkeypatch.setattr("storage._journaling.KEY_AGE", timedelta(0))
    assert claim(records, digest="other").is_new
    assert records.journal.done_items(request_id, 0, 5) == {}


def test_of_two_that_claim_a_key_at_once_one_is_the_first(records: Catalog, catalog_url: str) -> None:
    opened = [Catalog(catalog_url) for _ in range(4)]
    claims: list[journal.Claim] = []
    threads = [
        threading.Thread(
            target=lambda one=one, number=number: claims.append(claim(one, process=(f"host {number}", "r")))
        )
        for number, one in enumerate(opened)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(claims) == len(opened), "all to answer")
    for thread, one in zip(threads, opened, strict=True):
        thread.join()
        one.close()
    assert sorted(found.is_new for found in claims) == [False, False, False, True]
    assert all(found.is_busy for found in claims if not found.is_new)

"""Ten seconds of the soak, `make soak` goes on for longer; and what it stands on: sentinels and the cage."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuzz.site import Site
from lab.cage import caged
from lab.directories import temporary_directory
from lab.hostile import exchange
from lab.sentinels import Sentinels
from soak.run import soaked
from soak.site import self_soak_site, soak_site

# A race that nobody wins or loses proves nothing: so often each side must at least have been there.
_LEAST_ATTACKS = 100
_LEAST_OUTCOMES = 10
_NEVER_REFUSED = {"workspaces"}


@pytest.fixture
def sites() -> Iterator[list[Site]]:
    with temporary_directory() as directory, soak_site(directory) as site, self_soak_site(directory) as other:
        yield [site, other]


@pytest.mark.root
def test_nothing_outside_is_touched_while_all_is_swapped_covered_and_moved(
    sites: list[Site], tmp_path: Path
) -> None:
    found = soaked(sites, seconds=10, saved=tmp_path, seed=4)
    print(*found.lines(), sep="\n")
    assert found.report.faults == []
    assert min(found.attacks.values()) > _LEAST_ATTACKS, found.attacks
    for operation, outcomes in found.outcomes.items():
        assert outcomes.get("ok", 0) > _LEAST_OUTCOMES, (operation, outcomes)
        refused = sum(count for outcome, count in outcomes.items() if outcome != "ok")
        assert (refused > _LEAST_OUTCOMES) != (operation in _NEVER_REFUSED), (operation, outcomes)


def _replace(path: Path) -> None:
    (path / "new").write_text("kept")
    exchange(path / "new", path / "f")
    (path / "new").unlink()


@pytest.mark.parametrize(
    "touch",
    [
        lambda path: (path / "f").read_text(),
        lambda path: (path / "f").write_text("other"),
        lambda path: os.utime(path / "f"),
        lambda path: (path / "f").chmod(0o600),
        lambda path: os.link(path / "f", path.parent / "linked"),
        lambda path: (path / "new").mkdir(),
        lambda path: (path / "f").unlink(),
        os.listdir,
        _replace,
    ],
    ids=["read", "write", "time", "mode", "link", "make", "remove", "list", "replace"],
)
def test_a_sentinel_notices(tmp_path: Path, touch: Callable[[Path], object]) -> None:
    place = tmp_path / "watched"
    place.mkdir()
    (place / "f").write_text("kept")
    sentinels = Sentinels([place])
    assert sentinels.touched() == []
    assert sentinels.touched() == [], "to look is not to touch"
    touch(place)
    assert str(place) in "".join(sentinels.touched())


@pytest.mark.root
def test_a_cage_can_be_written_in_one_place_only() -> None:
    with temporary_directory() as inside, temporary_directory() as outside:
        (inside / "bound").mkdir()
        script = f"touch {inside}/a /mnt/b; touch {outside}/c /etc/brokervol-cage"
        command = [*caged(inside, f"{inside}/bound=/mnt"), "sh", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr.count("Read-only file system") == 2
        assert (inside / "a").exists()
        assert (inside / "bound" / "b").exists()
        assert os.listdir(outside) == []

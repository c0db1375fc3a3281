"""The benchmark's own arithmetic, turns, table and cleaning; not one time is asserted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import calls, frame
from bench.calls import Caller, take_turns
from bench.frame import Case, Contender, Figure, Outcome, Sample, as_json, noise, race, table
from bench.plot import Plot, drawn, plots
from bench.session import Sizes

TESTS = Path(__file__).parents[1]


def nothing(_: int) -> None:
    pass


def outcome_of(ours: list[float], theirs: list[float], share: float = 1.0) -> Outcome:
    case = Case(
        "upload 100 files",
        100,
        "files",
        Contender("ours", nothing, "durable"),
        [Contender("theirs", nothing, "not synced", share)],
    )
    samples = {
        name: [Sample(taken, taken / 2) for taken in seconds]
        for name, seconds in (("ours", ours), ("theirs", theirs))
    }
    return Outcome("files", case, samples)


def test_medians_spreads_and_ratios() -> None:
    outcome = outcome_of([1.0, 4.0, 2.0], [4.0, 4.0, 5.0])
    assert outcome.seconds("ours") == 2.0
    assert outcome.cpu_s("ours") == 1.0
    assert outcome.spread("ours") == 1.5
    assert outcome.spread("theirs") == 0.25
    assert outcome.ratio("theirs") == 0.5
    assert outcome.ratios("theirs") == [0.25, 1.0, 0.4]


def test_contenders_take_turns_each_after_a_settling() -> None:
    done: list[str] = []

    def contender(name: str) -> Contender:
        return Contender(
            name,
            lambda repetition: done.append(f"{name}{repetition}"),
            "",
            tidy=lambda repetition: done.append(f"tidy {name}{repetition}"),
        )

    case = Case("case", 1, "files", contender("a"), [contender("b")])
    outcome = race("section", case, 2, settle=lambda: done.append("settle"))
    in_turn = ["a0", "b0", "b1", "a1"]
    assert done == [step for name in in_turn for step in ("settle", name, f"tidy {name}")]
    assert {name: len(samples) for name, samples in outcome.samples.items()} == {"a": 2, "b": 2}


def test_who_does_a_share_is_charged_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=iter([0.0, 1.0, 10.0, 11.0]).__next__)
    monkeypatch.setattr(frame, "time", clock)
    case = Case("case", 100, "files", Contender("ours", nothing, ""), [Contender("theirs", nothing, "", 0.1)])
    outcome = race("section", case, 1, settle=lambda: None)
    assert outcome.seconds("ours") == 1.0
    assert outcome.seconds("theirs") == pytest.approx(10.0)
    assert outcome.ratio("theirs") == pytest.approx(0.1)


def test_the_processor_time_of_a_child_is_its_contenders() -> None:
    code = "import time\nwhile time.process_time() < 0.2: pass"

    def burn(_: int) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    case = Case("case", 1, "files", Contender("ours", nothing, ""), [Contender("theirs", burn, "")])
    outcome = race("section", case, 1, settle=lambda: None)
    assert outcome.cpu_s("theirs") >= 0.2
    assert outcome.cpu_s("ours") < outcome.cpu_s("theirs")


def test_the_table_shows_each_figure_with_what_it_includes() -> None:
    figure = Figure("memory", "list 10 keys", 12.34, 20, "MB", "one listing")
    shown = table([outcome_of([1.0, 4.0, 2.0], [4.0, 4.0, 5.0], share=0.1)], [figure]).splitlines()
    assert "files: upload 100 files" in shown
    ours = next(line for line in shown if line.startswith("  ours"))
    assert ours.split() == ["ours", "2.000", "150%", "1.00", "50", "files", "durable"]
    theirs = next(line for line in shown if line.startswith("  theirs"))
    assert theirs.startswith("  theirs, times 10 ")
    assert "0.50 (0.25 to 1.00)" in theirs
    assert theirs.endswith("not synced")
    assert shown[-1].split(maxsplit=8)[-5:] == ["12.3", "<", "20", "MB", "one listing"]


def test_the_noise_is_told_with_the_case_that_had_the_most() -> None:
    told = noise([outcome_of([1.0, 4.0, 2.0], [4.0, 4.0, 5.0])])
    assert "88% of their median" in told
    assert "150% at most (ours in files: upload 100 files)" in told
    assert "unknown" in noise([outcome_of([1.0], [2.0])])
    assert "unknown" in noise([])


def test_the_json_holds_all_that_the_table_shows() -> None:
    figure = Figure("memory", "list 10 keys", 12.34, 20, "MB", "one listing")
    kept = json.loads(json.dumps(as_json([outcome_of([2.0, 2.0], [4.0, 4.0], share=0.5)], [figure])))
    (case,) = kept["cases"]
    assert (case["section"], case["name"], case["amount"], case["unit"]) == (
        *("files", "upload 100 files"),
        *(100, "files"),
    )
    ours, theirs = case["contenders"]
    assert ours["samples"] == [{"seconds": 2.0, "cpu_s": 1.0}] * 2
    assert ours["ours_to_theirs"] == 1.0
    assert (theirs["seconds"], theirs["share"], theirs["spread"], theirs["ours_to_theirs"]) == (4.0, 0.5, 0.0, 0.5)
    assert kept["figures"][0]["value"] == 12.34


def test_sizes_are_scaled_and_never_nothing() -> None:
    assert Sizes().scaled(1.0) == Sizes()
    assert Sizes().scaled(0.1) == Sizes(102 << 20, 500, 10_000, 1_000, 20)
    assert Sizes().scaled(1e-9) == Sizes(1 << 20, 1, 1, 1, 1)


@contextmanager
def started(directory: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A run of the section `files`, which has ended when the block does."""
    command = [sys.executable, "-m", "bench", "--directory", directory, "--json", directory / "bench.json"]
    with subprocess.Popen(
        [*map(str, command), "--section", "files", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_run_prints_its_table_writes_its_json_and_leaves_nothing_else(tmp_path: Path) -> None:
    with started(tmp_path, "--scale", "0.001", "--repeat", "1") as process:
        out, error = process.communicate(timeout=50)
    assert process.returncode == 0, error
    assert "files: upload 10 files of 4 KiB" in out
    assert "files: delete 10 files" in out
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert kept["is_complete"]
    assert len(kept["cases"]) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_an_interrupted_run_says_so_and_leaves_nothing_else(tmp_path: Path) -> None:
    with started(tmp_path, "--scale", "0.001", "--repeat", "10000") as process:
        assert process.stderr is not None
        while "upload" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=50)
    assert process.returncode == 130, error
    assert not json.loads((tmp_path / "bench.json").read_text())["is_complete"]
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_callers_take_turns_and_each_call_is_told_apart() -> None:
    made: list[str] = []

    def caller(name: str, seconds: dict[str, list[float]]) -> Caller:
        def make(count: int) -> dict[str, list[float]]:
            made.append(f"{name} {count}")
            return seconds

        return Caller(name, make, 2, f"what {name} does")

    callers = [
        caller("ours", {"Mount": [0.003, 0.001, 0.002], "Create": [0.5]}),
        caller("theirs", {"Mount": [0.001, 0.001, 0.001]}),
    ]
    mount, create = take_turns("section", callers, 2, settle=lambda: None)
    assert made == ["ours 2", "theirs 2", "theirs 2", "ours 2"]
    assert (create.name, [*create.samples]) == ("Create", ["ours"])
    assert mount.median_ms("ours") == 2.0
    assert mount.p99_ms("ours") == 3.0
    assert mount.less_ms("theirs") == 1.0
    assert mount.ratio("theirs") == 2.0
    assert mount.spread("ours") == 0.0
    shown = [*calls.table([mount, create])]
    assert "section: Mount" in shown
    assert next(line for line in shown if "theirs" in line and "+1.000 ms" in line).endswith("what theirs does")
    assert json.loads(json.dumps(calls.as_json(mount)))["p50_ms"] == {"ours": 2.0, "theirs": 1.0}
    assert "0% at most" in noise([], [mount])


def test_growth_is_drawn_with_what_was_measured_and_nothing_else() -> None:
    case = {"section": "growth", "contenders": [{"name": "ours", "seconds": 0.02}]}
    cases = [
        {**case, "name": "list 1,000 files", "amount": 1000},
        {**case, "name": "list 10,000 files", "amount": 10_000, "contenders": [{"name": "ours", "seconds": 0.2}]},
        {"section": "files", "name": "upload 10 files", "amount": 10, "contenders": []},
    ]
    call = {"section": "driver, 1,000 volumes known", "name": "Get", "p50_ms": {"ours": 0.14}}
    found = plots({"cases": cases, "calls": [call, {"section": "driver, bind", "name": "Mount", "p50_ms": {}}]})
    assert found["growth-files.svg"].series == {"list": {1000: 0.02, 10_000: 0.2}}
    assert found["growth-volumes.svg"].series == {"Get": {1000: pytest.approx(0.00014)}}
    assert plots({"cases": [], "calls": []}) == {}
    svg = drawn(found["growth-files.svg"])
    texts = re.findall("<text[^>]*>([^<]*)</text>", svg)
    assert [*texts[:3], texts[-1]] == ["Files: time of all, by the sidecar", "1,000", "10,000", "list"]
    assert {"10 ms", "100 ms", "1 s", "files"} < set(texts)
    assert "prefers-color-scheme: dark" in svg


def test_a_linear_cost_goes_up_as_the_line_beside_it() -> None:
    svg = drawn(Plot("title", "files", {"list": {10: 0.01, 1000: 1.0}}))
    (curve,) = re.findall(r'class="s0" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', svg)
    left, low, right, high = map(float, curve)
    assert right - left == low - high > 0

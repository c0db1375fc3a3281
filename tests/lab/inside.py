"""Tests that run in a machine of their own (`lab.uml`), and are reported here like any others.

A test module says so by `RUNS_INSIDE = "..."`, a shell script that prepares the machine. Its tests are ordinary
pytest tests: outside, the first of them that is due boots the machine, in which pytest runs all of them, and each
is reported with what it did there. What fixtures need that can only be made outside is made before, as the module
says by `OUTSIDE = {"fixture": make}`. This module is the plugin for both sides.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lab import prerequisites, uml

_ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 280  # of the machine; pytest's own for a test, which the first of them is that outside, is 300
_TEST_TIMEOUT_S = 60
_REPORTS = "reports"
_IS_INSIDE = "BROKERVOL_INSIDE"
_SHOWN_LINES = 60


class Inside:
    """The machine's side: writes each report down."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        with open(f"{uml.OUT}/{_REPORTS}", "a", encoding="utf-8") as file:
            file.write(json.dumps(report._to_json(), default=str) + "\n")


class Outside:
    """This side: runs a module's tests once, all that are selected, in one machine."""

    def __init__(self) -> None:
        self._reports: dict[Path, dict[str, list[pytest.TestReport]]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if reason := prerequisites.absence_of_machine():
            for item in filter(_runs_inside, items):
                item.add_marker(pytest.mark.skip(reason=reason))

    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if not _runs_inside(item) or prerequisites.absence_of_machine():
            return None
        if item.path not in self._reports:
            self._reports[item.path] = _run(
                item.path, [each for each in item.session.items if each.path == item.path]
            )
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports[item.path][item.nodeid]:
            item.ihook.pytest_runtest_logreport(report=report)
        _tear_down(item, nextitem)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True


def plugin() -> Inside | Outside:
    """The one for this side."""
    return Inside() if os.environ.get(_IS_INSIDE) else Outside()


def _tear_down(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What tests before this one have set up out here, and the next one does not need.

    They left it for this one, as of the same directory or session, which has no use for it.
    """
    state = item.session._setupstate  # that of pytest's own protocol, which is not run
    call = pytest.CallInfo.from_call(lambda: state.teardown_exact(nextitem), "teardown")
    if call.excinfo:
        report = item.ihook.pytest_runtest_makereport(item=item, call=call)
        item.ihook.pytest_runtest_logreport(report=report)


def _runs_inside(item: pytest.Item) -> bool:
    return hasattr(getattr(item, "module", None), "RUNS_INSIDE")


def _run(path: Path, items: Sequence[pytest.Item]) -> dict[str, list[pytest.TestReport]]:
    module: Any = getattr(items[0], "module")  # noqa: B009 (not every item has one)
    if failure := _make_outside(module, items):
        return {item.nodeid: [_lost(item, failure)] for item in items}
    machine = uml.Machine(f"{module.RUNS_INSIDE}\n{_pytest(path, [item.nodeid for item in items])}\n")
    found: dict[str, list[pytest.TestReport]] = {}
    with machine.ran(_TIMEOUT_S) as out:
        reports = out / _REPORTS
        for line in reports.read_text(encoding="utf-8").splitlines() if reports.exists() else ():
            report = pytest.TestReport._from_json(json.loads(line))
            found.setdefault(report.nodeid, []).append(report)
    console = "\n".join(machine.console.splitlines()[-_SHOWN_LINES:])
    return {item.nodeid: found.get(item.nodeid) or [_lost(item, console)] for item in items}


def _make_outside(module: Any, items: Sequence[pytest.Item]) -> str:
    """Make what the fixtures of these tests need; why that failed, or nothing."""
    for fixture, make in getattr(module, "OUTSIDE", {}).items():
        if any(fixture in getattr(item, "fixturenames", ()) for item in items):
            try:
                make()
            except Exception as error:  # not of the test run, but of these tests
                return f"what {fixture} needs cannot be made: {error}"
    return ""


def _pytest(path: Path, nodeids: Sequence[str]) -> str:
    """Only these tests, with nothing of the other tests' set-up: that takes longer than they do."""
    plugins = ["-p", "lab.inside_plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "--noconftest", *plugins, f"--timeout={_TEST_TIMEOUT_S}", "-q"]
    chosen = [f"{path}::{nodeid.partition('::')[2]}" for nodeid in nodeids]
    variables = {
        _IS_INSIDE: "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(str(_ROOT / source) for source in ("daemon", "plugin", "tests")),
    }
    environment = shlex.join(["env", *(f"{key}={value}" for key, value in variables.items())])
    return f"cd {shlex.quote(str(_ROOT))}; {environment} {shlex.join([*command, *chosen])}"


def _lost(item: pytest.Item, console: str) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="failed",
        longrepr=f"the machine did not report this test; its last words:\n{console}",
        when="call",
    )

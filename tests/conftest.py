"""Rules for every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from lab import postgres, prerequisites

# Whoever runs the tests in the background of a shell has SIGINT ignored, and so would all processes of the tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["lab.s3_fixtures", "lab.catalog_fixtures", "lab.inside_plugin"]

# A busy machine is no fault of the code.
settings.register_profile("brokervol", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("brokervol")

_TOLD = "told"

# Set in CI: what cannot run here is then a failure, so that a green run means that everything ran.
_IS_REQUIRED = os.environ.get("BROKERVOL_REQUIRE_SYSTEM") == "1"


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a text, such as a table of outcomes, to what the run prints at its end."""
    return lambda text: request.node.user_properties.append((_TOLD, text))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for group in ("passed", "failed") for report in terminalreporter.getreports(group)]
    for text in (text for report in reports for key, text in report.user_properties if key == _TOLD):
        terminalreporter.write_line(text)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") is not None and os.geteuid() != 0:
        pytest.skip(f"{item.name} needs root")
    if item.get_closest_marker("system") is not None and (absence := prerequisites.absence()):
        pytest.skip(f"{item.name} {absence}")
    if item.get_closest_marker("postgresql") is not None and (absence := postgres.absence()):
        pytest.skip(f"{item.name} {absence}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report: pytest.TestReport = yield
    is_marked = any(item.get_closest_marker(name) for name in ("system", "root", "postgresql"))
    if _IS_REQUIRED and is_marked and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and BROKERVOL_REQUIRE_SYSTEM=1 says that it must run: {report.longrepr}"
    return report

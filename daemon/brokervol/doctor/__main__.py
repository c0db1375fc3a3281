"""`brokervol doctor` as a command: its options, what it prints where, its exit codes."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import structlog

from brokervol import __version__, tables
from brokervol.console import complain
from brokervol.doctor import checks, s3, site
from brokervol.doctor.checks import CHECKS, Told
from brokervol.doctor.findings import Result
from brokervol.tool import guarded

_EXIT_BLIND, _EXIT_USAGE, _EXIT_FAULT = 1, 2, 3
_WIDTHS = (7, max(len(check.name) for check in CHECKS))

_EPILOG = """\
exit codes: 0 all is well, warnings apart; 1 something could not be looked at; 2 wrong usage; 3 a fault was found

examples:
  sudo brokervol doctor
  sudo brokervol doctor --only nfs-server --only nfs-exports
  sudo brokervol doctor --json | jq -r '.findings[] | select(.result == "fault") | .finding, .cure'
"""


def exit_code(found: Iterable[Told]) -> int:
    """3 for any fault, else 1 where something could not be seen, else 0."""
    findings = [told.finding for told in found]
    if any(finding.result is Result.FAULT for finding in findings):
        return _EXIT_FAULT
    return _EXIT_BLIND if any(finding.is_blind for finding in findings) else 0


def _show(told: Told) -> None:
    result, text, cure, _ = told.finding
    tables.show_row((result.value, told.check, text), _WIDTHS)
    if cure:
        tables.show_row(("", "", f"cure: {cure}"), _WIDTHS)


def _document(found: Sequence[Told]) -> str:
    findings = [
        {
            "check": told.check,
            "subject": told.finding.subject,
            "result": told.finding.result.value,
            "finding": told.finding.text,
            "cure": told.finding.cure,
        }
        for told in found
    ]
    return json.dumps({"version": __version__, "findings": findings}, separators=(",", ":"))


def _summary(found: Sequence[Told]) -> str:
    counts = Counter(told.finding.result for told in found)
    return ", ".join(
        f"{counts[result]} {word if counts[result] == 1 else words}"
        for result, word, words in (
            (Result.FAULT, "fault", "faults"),
            (Result.WARNING, "warning", "warnings"),
            (Result.OK, "ok", "ok"),
            (Result.SKIPPED, "skipped", "skipped"),
        )
    )


def _run(options: argparse.Namespace) -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    found_site = site.find(options.socket, options.root, os.environ)
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        del os.environ[name]  # the sidecar's count, not this shell's
    os.environ.update(s3.environment(found_site.settings))
    found = []
    for told in checks.run(found_site, options.only):
        found.append(told)
        if not options.json:
            _show(told)
    print(_document(found)) if options.json else tables.show(["", _summary(found)])
    return exit_code(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brokervol doctor",
        description="Look for what keeps the volumes of this host from working, and say what to do about it."
        " Nothing is changed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, in one line, at the end")
    parser.add_argument("--socket", metavar="PATH", help="the driver's socket (else the only one that answers)")
    parser.add_argument("--root", metavar="DIR", help="the driver's directory of state (else that of the plugin)")
    parser.add_argument(
        "--only",
        metavar="CHECK",
        action="append",
        default=[],
        choices=[check.name for check in CHECKS],
        help="only this check, or several: " + ", ".join(check.name for check in CHECKS),
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if something could not be looked at, 2 for wrong usage, 3 for a fault."""
    return guarded("doctor", lambda: _main(_parser().parse_args(argv)))


def _main(options: argparse.Namespace) -> int:
    if options.root is not None and not site.is_directory(options.root):
        complain("doctor", options.root, "there is no such directory, or it is closed to this user")
        return _EXIT_USAGE
    return _run(options)


if __name__ == "__main__":
    sys.exit(main())

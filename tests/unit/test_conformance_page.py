"""The page that tells what is asserted of each broker type, and the package that prints it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from storage.testing import TRAITS, BrokerSuite, claims
from storage.testing.report import report

PAGE = Path(__file__).parents[2] / "docs/conformance.md"


def test_the_page_is_what_the_command_prints() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "storage.testing"], check=True, capture_output=True, text=True
    ).stdout
    assert printed == report(TRAITS)
    assert PAGE.read_text() == printed, "write it anew: python -m storage.testing > docs/conformance.md"


def test_every_test_says_in_one_sentence_what_it_asserts() -> None:
    found = list(claims(BrokerSuite))
    assert len({claim.name for claim in found}) == len(found) > 60
    for claim in found:
        for sentence in (claim.sentence, *filter(None, map(claim.difference, TRAITS.values()))):
            assert re.fullmatch(r"[^a-z|\n][^|\n]*\.", sentence), sentence


def test_the_library_does_not_need_pytest() -> None:
    code = "import sys, storage.brokers.factory, storage.catalog; print('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"False\n"

"""`python -m storage.testing`: print what the suite asserts of each built-in type."""

from __future__ import annotations

from storage.testing.report import report
from storage.testing.traits import TRAITS

if __name__ == "__main__":
    print(report(TRAITS), end="")

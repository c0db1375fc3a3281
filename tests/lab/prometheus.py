"""Reading metrics."""

from __future__ import annotations


def values(text: str) -> dict[str, float]:
    """Every series by its name and labels, as the text has it."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}

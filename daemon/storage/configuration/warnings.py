"""What validation finds doubtful; here by itself, so that brokers and configurations can both import it."""

from __future__ import annotations

from typing import NamedTuple


class ValidationWarning(NamedTuple):
    """Something that works as configured but probably not as meant: a stable `name` and a sentence."""

    name: str
    description: str

"""The tables of hostile paths, which ship with the conformance suite of brokers."""

from __future__ import annotations

from storage.testing.hostile import ESCAPING_LINKS, REFUSED_PATHS, WEIRD_NAMES, exchange

__all__ = ["ESCAPING_LINKS", "REFUSED_PATHS", "WEIRD_NAMES", "exchange"]

"""What the suite asserts of each type, as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from storage.testing import BrokerSuite, Traits, claims

_HEAD = """# What is asserted of every broker type

Printed by `python -m storage.testing`. Each line is a test of the conformance suite and says what that
proves; where a type differs by design, what is proved of it instead.
"""


def report(traits: Mapping[str, Traits], suite: type = BrokerSuite) -> str:
    """The page for these types: a table an ability, a line a test."""
    lines = [_HEAD]
    ability = ""
    for claim in claims(suite):
        if claim.ability != ability:
            ability = claim.ability
            lines += ["", f"## {ability}", "", f"| Asserted | {' | '.join(traits)} |"]
            lines.append("|---" * (len(traits) + 1) + "|")
        held = [claim.difference(of) for of in traits.values()]
        lines.append(f"| {' | '.join([claim.sentence, *('yes' if it is None else it for it in held)])} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"

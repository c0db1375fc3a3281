"""The conformance suite of the broker contract, for every broker type: ours, and those of others.

A type takes part through a `Backend`, which shows the suite where the files really are:

    from storage.testing import BrokerSuite, DirectoryBackend, Traits

    class TestMyBroker(BrokerSuite):
        @pytest.fixture
        def backend(self, tmp_path):
            return MyBackend(tmp_path, {"type": "mine", "path": "{workspace}"}, Traits())

Needs pytest. `python -m storage.testing` prints what is asserted of each built-in type.
"""

from __future__ import annotations

import pytest

# Before they are imported: a failed assert in them then shows its values.
_WITH_TESTS = (
    *("backend", "batches", "configurations", "containment", "contents", "deletes", "downloads", "listings"),
    *("mistakes", "moves", "names", "suite", "uploads"),
)
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _WITH_TESTS))

from storage.testing.backend import WORKSPACE, Backend, DirectoryBackend  # noqa: E402
from storage.testing.batches import Batches  # noqa: E402
from storage.testing.claims import Claim, claims, differs  # noqa: E402
from storage.testing.configurations import Configurations  # noqa: E402
from storage.testing.containment import Containment  # noqa: E402
from storage.testing.contents import Contents  # noqa: E402
from storage.testing.deletes import Deletes  # noqa: E402
from storage.testing.downloads import Downloads  # noqa: E402
from storage.testing.listings import Listings  # noqa: E402
from storage.testing.mistakes import Mistakes  # noqa: E402
from storage.testing.moves import Moves  # noqa: E402
from storage.testing.names import Names  # noqa: E402
from storage.testing.suite import Suite  # noqa: E402
from storage.testing.traits import TRAITS, Traits  # noqa: E402
from storage.testing.uploads import Uploads  # noqa: E402


class BrokerSuite(
    Uploads,
    Downloads,
    Contents,
    Moves,
    Deletes,
    Listings,
    Names,
    Containment,
    Configurations,
    Batches,
    Mistakes,
):
    """Every ability. Derive from it, and give it a fixture `backend`."""


__all__ = [
    "TRAITS",
    "WORKSPACE",
    "Backend",
    "Batches",
    "BrokerSuite",
    "Claim",
    "Configurations",
    "Containment",
    "Contents",
    "Deletes",
    "DirectoryBackend",
    "Downloads",
    "Listings",
    "Mistakes",
    "Moves",
    "Names",
    "Suite",
    "Traits",
    "Uploads",
    "claims",
    "differs",
]

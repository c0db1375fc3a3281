"""Volumes of types that other packages bring, as the driver sees them: what their brokers say, and do wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lab.memory_driver import Machine
from storage.brokers import factory
from storage.brokers.broker import BrokerVolume
from storage.brokers.exceptions import InvalidBrokerConfiguration
from storage.brokers.host_broker import HostBroker
from storage.configuration.warnings import ValidationWarning
from volumedriver.errors import HostPathRefused, InvalidVolume
from volumedriver.options import BrokerOptions, UnusableOptions, parse, restore


class OddBroker(HostBroker):
    """Has the volume that its configuration asks for, and behaves as it asks for."""

    def __init__(self) -> None:
        super().__init__()
        self._broker_type = "odd"

    def load_configuration(self, config: Mapping[str, Any]) -> None:
        if "fails" in config:
            raise ZeroDivisionError(config["fails"])
        self._volume = None
        if "path" in config:
            self._volume = BrokerVolume(config.get("driver"), config["path"])

    def validate_configuration(self, config: Mapping[str, Any]) -> list[ValidationWarning]:
        if "refuses" in config:
            raise InvalidBrokerConfiguration("refuses", config["refuses"])
        found = [ValidationWarning("slow_disk", "it is slow")] if "doubtful" in config else []
        if "typo" in config:
            found.append(ValidationWarning("unknown_key", "'typo' is not a key of an odd broker and is ignored"))
        return found


@pytest.fixture(autouse=True)
def odd() -> Iterator[None]:
    factory.add_broker_type(OddBroker)
    yield
    del factory._BROKERS["odd"]


def test_every_option_but_one_is_the_brokers() -> None:
    given = {
        "type": "odd",
        "create": "x",
        "mode": "",
        "host_path": "relative",
        "doubtful": "",
        "read_only": "true",
    }
    expected = BrokerOptions({key: given[key] for key in given if key != "read_only"}, None, read_only=True)
    assert parse(given) == expected
    assert parse(expected.effective) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"refuses": "no\x1b" + "x" * 5000}, "the odd broker refuses the options: no\\x1bxxx"),
        ({"fails": "here"}, "the odd broker failed: ZeroDivisionError: here"),
        ({"typo": "1"}, "an option is not accepted: 'typo' is not a key of an odd broker"),
        ({"path": "nas:/x", "driver": "nfs"}, "volumes of type odd need one of driver 'nfs', which this version"),
        ({"path": "relative"}, "the broker's directory 'relative' is not accepted: it is an absolute path"),
        ({"path": "/srv/../etc"}, "without empty parts"),
        (
            {"read_only": "?", "typo": ""},
            "option read_only='?' is not accepted: it is true or false; an",
        ),
    ],
)
def test_what_a_broker_refuses_is_a_sentence(options: dict[str, str], said: str) -> None:
    given = {"type": "odd", **options}
    with pytest.raises(InvalidVolume) as refused:
        parse(given)
    assert said in str(refused.value)
    assert str(refused.value).isprintable()
    assert "ignored" not in str(refused.value)
    assert len(str(refused.value)) < 600
    assert isinstance(restore(given), UnusableOptions)


def test_directory_of_a_broker_is_mounted_like_one_of_ours(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.driver.create("data", {"type": "odd", "path": "/srv/data"})
    mountpoint = machine.driver.mount("data", "x")
    inode = (machine.hostfs / "srv/data").stat().st_ino
    assert machine.mounter.entries == {mountpoint: (inode, False)}
    with pytest.raises(HostPathRefused, match="/etc belongs to the host's system"):
        machine.driver.create("etc", {"type": "odd", "path": "/etc"})
    machine.driver.create("token", {"type": "odd"})
    assert machine.mounter.entries[machine.driver.mount("token", "y")] == (None, False)
    machine.containers.holding = [1]
    driver = machine.start()
    with pytest.raises(Exception, match="in use"):
        driver.remove("data")
    assert machine.containers.asked[-1].host_path == "/srv/data"
    machine.stop()


def test_types_are_told_where_the_type_is_wrong() -> None:
    with pytest.raises(InvalidVolume, match="this version serves host, nfs, s3, sidecar and odd"):
        parse({"type": "add"})

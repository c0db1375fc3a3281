"""Defines the factory for creating brokers"""

from __future__ import annotations

from storage.brokers.broker import Broker
from storage.brokers.exceptions import InvalidBrokerConfiguration
from storage.brokers.host_broker import HostBroker
from storage.brokers.nfs_broker import NfsBroker

_BROKERS: dict[str, type[Broker]] = {}


def add_broker_type(broker_class: type[Broker]) -> None:
    """Register a broker class under the `broker_type` of its instances; an earlier one of that type is replaced.

    Args:
        broker_class: a subclass of `Broker` that can be made without arguments.
    """
    _BROKERS[broker_class().broker_type] = broker_class  # type: ignore[call-arg]  # subclasses know their type


def get_broker(broker_type: object) -> Broker:
    """A new broker of the given type, not yet configured.

    Raises:
        InvalidBrokerConfiguration: no broker of this type is registered.
    """
    found = _BROKERS.get(broker_type) if isinstance(broker_type, str) else None
    if found is None:
        known = ", ".join(get_broker_types())
        raise InvalidBrokerConfiguration("type", f"type is {broker_type!r}; accepted are: {known}")
    return found()  # type: ignore[call-arg]


def get_broker_types() -> list[str]:
    """The types of all registered brokers, sorted."""
    return sorted(_BROKERS)


add_broker_type(HostBroker)
add_broker_type(NfsBroker)

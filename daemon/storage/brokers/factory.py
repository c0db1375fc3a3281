"""Defines the factory for creating brokers"""

from __future__ import annotations

import logging
import threading
from importlib import metadata

from storage.brokers.broker import Broker
from storage.brokers.exceptions import InvalidBrokerConfiguration
from storage.brokers.host_broker import HostBroker
from storage.brokers.nfs_broker import NfsBroker
from storage.brokers.s3_broker import S3Broker

log = logging.getLogger(__name__)

# The group of entry points by which installed packages offer brokers: the name is the type, the value the class.
ENTRY_POINTS = "storage.brokers"

_BROKERS: dict[str, type[Broker]] = {}


def add_broker_type(broker_class: type[Broker]) -> None:
    """Register a broker class under the `broker_type` of its instances; an earlier one of that type is replaced.

    Args:
        broker_class: a subclass of `Broker` that can be made without arguments.

    Raises:
        TypeError: it is not.
    """
    _BROKERS[_type_of(broker_class)] = broker_class


def get_broker(broker_type: object) -> Broker:
    """A new broker of the given type, not yet configured. Of a type not registered, packages are asked.

    Raises:
        InvalidBrokerConfiguration: no broker of this type is registered, and no package offers one.
    """
    if not isinstance(broker_type, str) or (broker_type not in _BROKERS and broker_type not in get_broker_types()):
        known = ", ".join(get_broker_types())
        raise InvalidBrokerConfiguration("type", f"type is {broker_type!r}; accepted are: {known}")
    return _BROKERS[broker_type]()  # type: ignore[call-arg]  # subclasses know their type


def get_broker_types() -> list[str]:
    """The types of all brokers, registered or offered by a package, sorted."""
    _packages.load()
    return sorted(_BROKERS)


class _Packages:
    """The installed packages with the entry point, imported when a type is asked for that is none of ours."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a package may ask for a type while it is imported
        self._is_loaded = False

    def load(self) -> None:
        with self._lock:
            if not self._is_loaded:
                self._is_loaded = True
                for offered in metadata.entry_points(group=ENTRY_POINTS):
                    _add_offered(offered)


_packages = _Packages()


def _add_offered(offered: metadata.EntryPoint) -> None:
    """Register what a package offers. One that cannot be used is told of in the log and hinders no other."""
    package = f"{offered.value} of {offered.dist.name if offered.dist else 'an unnamed package'}"
    if offered.name in _BROKERS:
        log.warning("broker type %r is registered already; %s is ignored", offered.name, package)
        return
    try:
        broker_class = offered.load()
        found = _type_of(broker_class)
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises
        log.warning("broker type %r is left out: %s: %s", offered.name, package, _told(error))
        return
    if found != offered.name:
        log.warning("broker type %r is left out: %s calls itself %r", offered.name, package, found)
        return
    _BROKERS[found] = broker_class


def _type_of(broker_class: type[Broker]) -> str:
    """The type of a class's brokers; raises TypeError where it is no class for brokers."""
    if not isinstance(broker_class, type) or not issubclass(broker_class, Broker):
        raise TypeError(f"a broker type is a subclass of storage.brokers.broker.Broker; {broker_class!r} is not")
    try:
        broker_type = broker_class().broker_type  # type: ignore[call-arg]
    except Exception as error:
        raise TypeError(f"{broker_class.__name__} cannot be made without arguments: {_told(error)}") from error
    if not isinstance(broker_type, str) or not broker_type:
        raise TypeError(f"the broker_type of {broker_class.__name__} is {broker_type!r}; it must be a name")
    return broker_type


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


add_broker_type(HostBroker)
add_broker_type(NfsBroker)
add_broker_type(S3Broker)

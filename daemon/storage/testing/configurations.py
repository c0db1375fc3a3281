"""Configurations: what is accepted, refused by name, or doubted."""

from __future__ import annotations

import pytest

from storage.brokers.broker import Broker
from storage.brokers.exceptions import InvalidBrokerConfiguration
from storage.brokers.factory import get_broker, get_broker_types
from storage.configuration.exceptions import InvalidWorkspaceConfiguration
from storage.configuration.workspace_configuration import ValidationWarning
from storage.testing.backend import Backend
from storage.testing.claims import differs
from storage.testing.suite import Suite


class Configurations(Suite):
    def test_type_is_registered(self, backend: Backend) -> None:
        """The type is registered: the factory makes a new broker of it each time."""
        broker_type = backend.broker.broker_type
        assert broker_type == backend.configuration["type"]
        assert broker_type in get_broker_types()
        one, other = get_broker(broker_type), get_broker(broker_type)
        assert type(one) is type(other) is type(backend.broker)
        assert one is not other
        assert isinstance(one, Broker)
        assert one.volume is None

    def test_unknown_type_says_which_are_known(self, backend: Backend) -> None:
        """The factory refuses an unknown type with InvalidBrokerConfiguration, which names the known."""
        for unknown in ("floppy", None, 1, [backend.broker.broker_type]):
            with pytest.raises(InvalidBrokerConfiguration, match=backend.broker.broker_type) as caught:
                get_broker(unknown)
            assert caught.value.name == "type"

    def test_volume_is_what_must_be_mounted(self, backend: Backend) -> None:
        """`volume` is driver and remote path of what must be mounted, with `host` where that is a directory."""
        volume = backend.broker.volume
        if backend.volume is None:
            assert volume is None
            return
        assert volume is not None
        assert (volume.driver, volume.remote_path) == backend.volume
        assert volume.host is (volume.driver is None)

    def test_right_configuration_has_no_warnings(self, backend: Backend) -> None:
        """The right configuration is accepted without warnings, with or without its `type`."""
        untyped = {key: value for key, value in backend.configuration.items() if key != "type"}
        for configuration in (backend.configuration, untyped):
            assert backend.broker.validate_configuration(configuration) == []
            get_broker(backend.broker.broker_type).load_configuration(configuration)

    def test_wrong_values_are_refused_by_name(self, backend: Backend) -> None:
        """A wrong or missing value is InvalidBrokerConfiguration with the key as its name and in its sentence."""
        assert backend.wrong_values
        for key, values in backend.wrong_values.items():
            for value in values:
                wrong = {**backend.configuration, key: value}
                if value is None:
                    del wrong[key]
                broker = get_broker(backend.broker.broker_type)
                for check in (
                    broker.validate_configuration,
                    broker.check_configuration,
                    broker.load_configuration,
                ):
                    with pytest.raises(InvalidBrokerConfiguration) as caught:
                        check(wrong)
                    assert caught.value.name == key, value
                    assert key in caught.value.description
                    assert isinstance(caught.value, InvalidWorkspaceConfiguration)

    def test_configuration_of_another_type_is_refused(self, backend: Backend) -> None:
        """A configuration whose `type` is another's is InvalidBrokerConfiguration, of the name `type`."""
        for other in ("other", None, 1):
            with pytest.raises(InvalidBrokerConfiguration, match="type") as caught:
                get_broker(backend.broker.broker_type).load_configuration({**backend.configuration, "type": other})
            assert caught.value.name == "type"

    def test_unknown_keys_are_doubted(self, backend: Backend) -> None:
        """A key that the type does not know is a warning of the name `unknown_key`, and is ignored."""
        broker = get_broker(backend.broker.broker_type)
        doubtful = {**backend.configuration, "typo": 1}
        (warning,) = broker.validate_configuration(doubtful)
        assert isinstance(warning, ValidationWarning)
        assert warning.name == "unknown_key"
        assert "typo" in warning.description
        broker.load_configuration(doubtful)

    def test_validation_takes_nothing_into_use(self, backend: Backend) -> None:
        """A validated configuration is not taken into use."""
        backend.put("a")
        backend.broker.validate_configuration({**backend.configuration, **backend.unreachable})
        assert backend.listed() == {"a": 7}
        assert get_broker(backend.broker.broker_type).volume is None

    def _reports_access(self, backend: Backend) -> None:
        """Validation asks the storage: where it cannot be reached that is a warning `bucket_access`, no error."""
        configuration = {**backend.configuration, **backend.unreachable}
        broker = get_broker(backend.broker.broker_type)
        (warning,) = broker.validate_configuration(configuration)
        assert warning.name == "bucket_access"
        assert broker.check_configuration(configuration) == []
        broker.load_configuration(configuration)

    @differs(_reports_access, reports_access=True)
    def test_storage_is_not_asked(self, backend: Backend) -> None:
        """Neither validating nor loading a configuration asks the storage: that it is not there is no matter."""
        configuration = {**backend.configuration, **backend.unreachable}
        broker = get_broker(backend.broker.broker_type)
        assert broker.validate_configuration(configuration) == []
        assert broker.check_configuration(configuration) == []
        broker.load_configuration(configuration)

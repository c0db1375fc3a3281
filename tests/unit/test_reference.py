"""The names and signatures of the reference of the broker library (storage.brokers)."""

from __future__ import annotations

import importlib
import inspect

import pytest

OPERATIONS = {
    "delete_files": ["volume_path", "files", "update_model"],
    "download_files": ["volume_path", "file_downloads"],
    "get_file_system_paths": ["volume_path", "files"],
    "list_files": ["volume_path", "recursive"],
    "load_configuration": ["config"],
    "move_files": ["volume_path", "file_moves"],
    "upload_files": ["volume_path", "file_uploads"],
    "validate_configuration": ["config"],
}

BROKERS = [
    ("storage.brokers.broker", "Broker", ["broker_type"]),
    ("storage.brokers.host_broker", "HostBroker", []),
    ("storage.brokers.nfs_broker", "NfsBroker", []),
]

TUPLES = {
    "FileDetails": ("file", "size"),
    "FileDownload": ("file", "local_path", "partial"),
    "FileMove": ("file", "new_path"),
    "FileUpload": ("file", "local_path"),
}

FUNCTIONS = {"add_broker_type": ["broker_class"], "get_broker": ["broker_type"], "get_broker_types": []}


def parameters(function: object) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]  # type: ignore[arg-type]


@pytest.mark.parametrize(("module", "name", "arguments"), BROKERS)
def test_brokers_have_the_signatures_of_the_reference(module: str, name: str, arguments: list[str]) -> None:
    broker = getattr(importlib.import_module(module), name)
    assert parameters(broker.__init__) == arguments
    for operation, expected in OPERATIONS.items():
        assert parameters(getattr(broker, operation)) == expected, operation
    assert inspect.signature(broker.delete_files).parameters["update_model"].default is True
    assert isinstance(broker.broker_type, property)
    assert isinstance(broker.volume, property)


def test_named_tuples_have_the_fields_of_the_reference() -> None:
    module = importlib.import_module("storage.brokers.broker")
    for name, fields in TUPLES.items():
        found = getattr(module, name)
        assert issubclass(found, tuple)
        assert found._fields == fields
    assert parameters(module.BrokerVolume.__init__) == ["driver", "remote_path"]


def test_the_factory_has_the_functions_of_the_reference() -> None:
    module = importlib.import_module("storage.brokers.factory")
    for name, expected in FUNCTIONS.items():
        assert parameters(getattr(module, name)) == expected


def test_exceptions_are_where_the_reference_has_them() -> None:
    from storage.brokers.exceptions import InvalidBrokerConfiguration
    from storage.configuration.exceptions import InvalidWorkspaceConfiguration
    from storage.configuration.workspace_configuration import ValidationWarning
    from storage.exceptions import MissingFile
    from storage.models import ScaleFile

    assert issubclass(InvalidBrokerConfiguration, InvalidWorkspaceConfiguration)
    error = InvalidBrokerConfiguration("name", "what is wrong")
    assert (error.name, error.description, str(error)) == ("name", "what is wrong", "what is wrong")
    assert ValidationWarning("name", "what is doubtful")._fields == ("name", "description")
    assert issubclass(MissingFile, Exception)
    assert callable(ScaleFile.set_deleted)
    assert callable(ScaleFile.save)

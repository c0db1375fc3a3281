"""The names of the broker library's reference (storage-brokers-reference.txt, REFERENCE.md): as data."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import fields
from typing import Any

import pytest

# Class -> its base, and the parameters of its making. Of the reference's five modules, and of what they refer to.
CLASSES = {
    "storage.brokers.broker.Broker": ("builtins.object", ["broker_type"]),
    "storage.brokers.broker.BrokerVolume": ("builtins.object", ["driver", "remote_path"]),
    "storage.brokers.broker.FileDetails": ("builtins.tuple", ["file", "size"]),
    "storage.brokers.broker.FileDownload": ("builtins.tuple", ["file", "local_path", "partial"]),
    "storage.brokers.broker.FileMove": ("builtins.tuple", ["file", "new_path"]),
    "storage.brokers.broker.FileUpload": ("builtins.tuple", ["file", "local_path"]),
    "storage.brokers.exceptions.InvalidBrokerConfiguration": (
        "storage.configuration.exceptions.InvalidWorkspaceConfiguration",
        ["name", "description"],
    ),
    "storage.brokers.host_broker.HostBroker": ("storage.brokers.broker.Broker", []),
    "storage.brokers.nfs_broker.NfsBroker": ("storage.brokers.broker.Broker", []),
    "storage.brokers.s3_broker.S3Broker": ("storage.brokers.broker.Broker", []),
    "storage.configuration.exceptions.InvalidWorkspaceConfiguration": (
        "builtins.Exception",
        ["name", "description"],
    ),
    "storage.configuration.workspace_configuration.ValidationWarning": (
        "builtins.tuple",
        ["name", "description"],
    ),
    "storage.exceptions.MissingFile": ("builtins.Exception", None),
    "storage.models.ScaleFile": ("builtins.object", None),
}

TUPLES = [name for name, (base, _) in CLASSES.items() if base == "builtins.tuple"]
BROKERS = [name for name, (base, _) in CLASSES.items() if name.endswith("Broker")]

# Method -> its parameters, as the reference writes them.
METHODS = {
    "delete_files": "(volume_path, files, update_model=True)",
    "download_files": "(volume_path, file_downloads)",
    "get_file_system_paths": "(volume_path, files)",
    "list_files": "(volume_path, recursive)",
    "load_configuration": "(config)",
    "move_files": "(volume_path, file_moves)",
    "upload_files": "(volume_path, file_uploads)",
    "validate_configuration": "(config)",
}
PROPERTIES = ["broker_type", "volume"]

# Those that the reference lists of each class; NfsBroker's list_files was missing there, and is a mistake of its.
OWN_METHODS = {
    "storage.brokers.broker.Broker": set(METHODS),
    "storage.brokers.host_broker.HostBroker": set(METHODS),
    "storage.brokers.nfs_broker.NfsBroker": set(METHODS),
    "storage.brokers.s3_broker.S3Broker": set(METHODS) - {"get_file_system_paths"},
}

FUNCTIONS = {
    "storage.brokers.factory.add_broker_type": "(broker_class)",
    "storage.brokers.factory.get_broker": "(broker_type)",
    "storage.brokers.factory.get_broker_types": "()",
}

SCALE_FILE_FIELDS = {
    *("id", "uuid", "file_name", "file_path", "file_size", "media_type", "workspace"),
    *("is_deleted", "deleted", "created", "last_modified"),
}


def found(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def written(function: Any) -> str:
    """A signature as the reference writes it: names and defaults."""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("self", "_cls")
    ]
    return str(inspect.Signature(parameters))


@pytest.mark.parametrize("name", CLASSES)
def test_class_is_where_the_reference_has_it(name: str) -> None:
    base, parameters = CLASSES[name]
    cls = found(name)
    assert inspect.isclass(cls)
    assert issubclass(cls, found(base))
    if parameters is not None:
        assert list(inspect.signature(cls).parameters) == parameters


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("broker", BROKERS)
def test_broker_has_the_method_of_the_reference(broker: str, method: str) -> None:
    assert written(getattr(found(broker), method)) == METHODS[method]


@pytest.mark.parametrize("broker", BROKERS)
def test_broker_has_the_properties_of_the_reference(broker: str) -> None:
    for name in PROPERTIES:
        assert isinstance(getattr(found(broker), name), property)


def test_only_the_paths_of_a_broker_are_not_its_own_to_define() -> None:
    base = found("storage.brokers.broker.Broker")
    assert set(METHODS) - base.__abstractmethods__ == {"get_file_system_paths"}
    for name, methods in OWN_METHODS.items():
        for method in methods:
            is_inherited = getattr(found(name), method) is getattr(base, method)
            assert is_inherited == (found(name) is base), f"{name}.{method}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_factory_has_the_function_of_the_reference(name: str) -> None:
    assert written(found(name)) == FUNCTIONS[name]


@pytest.mark.parametrize("name", TUPLES)
def test_named_tuple_has_the_fields_of_the_reference_in_order(name: str) -> None:
    _, expected = CLASSES[name]
    cls = found(name)
    assert expected is not None
    assert list(cls._fields) == expected
    made = cls(*range(len(expected)))
    assert [getattr(made, field) for field in expected] == list(made) == list(range(len(expected)))


def test_configuration_error_has_name_and_description() -> None:
    error = found("storage.brokers.exceptions.InvalidBrokerConfiguration")("key", "what is wrong")
    assert (error.name, error.description, str(error)) == ("key", "what is wrong", "what is wrong")


@pytest.mark.parametrize(
    ("driver", "remote_path", "is_host"), [(None, "/srv/data", True), ("nfs", "server:/export", False)]
)
def test_volume_of_a_host_directory_has_no_driver(driver: str | None, remote_path: str, is_host: bool) -> None:
    volume = found("storage.brokers.broker.BrokerVolume")(driver, remote_path)
    assert (volume.driver, volume.remote_path, volume.host) == (driver, remote_path, is_host)


def test_scale_file_has_the_fields_and_methods_of_the_reference() -> None:
    scale_file = found("storage.models.ScaleFile")
    assert {field.name for field in fields(scale_file)} >= SCALE_FILE_FIELDS
    assert written(scale_file.set_deleted) == written(scale_file.save) == "()"


def test_workspace_configuration_is_a_version_and_a_broker() -> None:
    workspace = found("storage.configuration.workspace_configuration.WorkspaceConfiguration")
    broker = workspace({"version": "1.0", "broker": {"type": "host", "host_path": "/srv/data"}}).get_broker()
    assert (broker.broker_type, broker.volume.host) == ("host", True)


def test_types_of_the_reference_are_registered() -> None:
    assert {"host", "nfs", "s3"} <= set(found("storage.brokers.factory.get_broker_types")())

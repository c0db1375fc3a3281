"""The architecture and the house rules, as far as a machine can keep them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("daemon/**/*.py"), *ROOT.glob("plugin/**/*.py")])
TESTS = sorted(ROOT.glob("tests/**/*.py"))

# What both processes share, and which of our packages each may import.
_SHARED = {
    *("brokervol.server", "brokervol.settings", "brokervol.kinds", "brokervol.premises"),
    "brokervol.__version__",
}
ALLOWED = {
    "storage": {"storage"},
    "sidecar": {"sidecar", "storage", "brokervol.bundle", *_SHARED},
    "volumedriver": {"volumedriver", "storage", *_SHARED},
}
OURS = {"storage", "sidecar", "volumedriver", "brokervol"}

# Each SDK has its home: the modules that may import it.
HOMES = {
    "sqlalchemy": {
        "storage.models",
        "storage.catalog",
        "storage._saving",
        "storage._journaling",
        "storage.migrations",
        "sidecar.__main__",
    },
    "alembic": {"storage.catalog", "storage.migrations"},
    "flask": {
        "sidecar.api",
        "sidecar.content",
        "sidecar.routes",
        "sidecar.views",
        "sidecar.wire",
        "volumedriver.api",
    },
    "werkzeug": {"sidecar.api", "sidecar.content", "sidecar.routes", "volumedriver.api"},
    "boto3": {"storage.brokers._s3_boto"},
    "botocore": {"storage.brokers._s3_boto"},
    "s3transfer": {"storage.brokers._s3_boto"},
    "obstore": {"storage.brokers._s3_obstore"},
    "cheroot": {"brokervol.server"},
    "pytest": {"storage.testing"},
    "msgspec": {"sidecar.openapi", "sidecar.requests", "storage._saving", "volumedriver.api"},
    "docker": {"build", "brokervol.containers", "brokervol.engine"},
    "rich": {"brokervol.tables"},
    "prometheus_client": {"volumedriver.metrics", "sidecar.exposition"},
    "pyroute2": {"volumedriver.network"},
}

LONGEST_FUNCTION = 60


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    name = module_name(path)
    allowed = ALLOWED.get(name.partition(".")[0])
    if allowed is None:
        return  # the command line wires everything
    for imported in imports(path):
        if imported.partition(".")[0] in OURS:
            assert any(f"{imported}.".startswith(f"{prefix}.") for prefix in allowed), f"{name} imports {imported}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_each_sdk_has_one_home(path: Path) -> None:
    name = module_name(path)
    for imported in imports(path):
        homes = HOMES.get(imported.partition(".")[0])
        if homes is not None:
            assert any(f"{name}.".startswith(f"{home}.") for home in homes), f"{name} imports {imported}"


def test_the_process_environment_is_read_at_the_composition_roots_only() -> None:
    readers = {
        module_name(path)
        for path in SOURCES
        if any(isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") for node in nodes(path))
        and "request.environ" not in path.read_text()
    }
    assert readers <= {
        "storage.brokers.s3_broker",  # which SDK carries the bulk: for a library used alone, too
        "sidecar.__main__",
        "volumedriver.__main__",
        "brokervol.supervisor",
        "brokervol.task",
        "brokervol.volumes",
        "brokervol.doctor.__main__",
        "brokervol.logs",
        "brokervol.__main__",
        "brokervol.places",
        "build",
    }, readers


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_is_long(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{path.name}: {node.name} has {length} lines"


@pytest.mark.parametrize("module", ["volumedriver.__main__", "brokervol.supervisor", "brokervol.__main__"])
def test_what_must_start_fast_imports_little(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    heavy = {"sqlalchemy", "alembic", "boto3", "obstore", "docker", "pyroute2"}
    if module.startswith("brokervol."):
        heavy |= {"flask", "cheroot", "structlog", "rich", "prometheus_client", "volumedriver.api", "sidecar.api"}
    assert heavy.isdisjoint(loaded)

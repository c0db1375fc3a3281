"""Installed packages of other people, made by hand: a module, and the metadata by which it is found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "docs/examples/sqlite_broker.py"


def install(site: Path, module: str, source: str, brokers: Mapping[str, str]) -> None:
    """Have a package of one module in the directory `site`, which offers `brokers`: type -> name in the module."""
    metadata = site / f"{module}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / f"{module}.py").write_text(source)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = [f"{broker_type} = {module}:{name}\n" for broker_type, name in brokers.items()]
    (metadata / "entry_points.txt").write_text(f"[storage.brokers]\n{''.join(lines)}")


def install_example(site: Path) -> None:
    """Have the broker of docs/examples installed in the directory `site`."""
    install(site, EXAMPLE.stem, EXAMPLE.read_text(), {"sqlite": "SqliteBroker"})

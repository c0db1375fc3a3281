"""The lock names what the packages need, in versions that they accept."""

from __future__ import annotations

import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import build


def test_lock_has_all_that_the_plugin_needs_in_versions_that_do() -> None:
    locked = {}
    for line in build.LOCK.read_text().splitlines():
        if line[:1].isalnum():
            name, version = line.removesuffix(" \\").split("==")
            locked[canonicalize_name(name)] = version
    project = tomllib.loads((build.ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        Requirement(each) for each in project["dependencies"] + project["optional-dependencies"]["postgresql"]
    ]
    for requirement in wanted:
        version = locked[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"`make lock`: {requirement} is wanted, {version} is locked"
        assert not requirement.extras or f"{requirement.name}-{'-'.join(requirement.extras)}" in locked

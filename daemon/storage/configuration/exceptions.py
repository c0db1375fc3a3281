"""Errors of workspace configurations."""

from __future__ import annotations


class InvalidWorkspaceConfiguration(Exception):
    """A workspace configuration cannot be used.

    Args:
        name: a short, stable identifier of what is wrong, for programs.
        description: one sentence for the user, naming the key and what is accepted.
    """

    def __init__(self, name: str, description: str) -> None:
        super().__init__(description)
        self.name = name
        self.description = description

    def __reduce__(self) -> tuple[type[InvalidWorkspaceConfiguration], tuple[str, str]]:
        return type(self), (self.name, self.description)  # for pools of processes

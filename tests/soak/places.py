"""The names that requests and attackers of the soak meet at: the same for both, in every task.

Below the workspace (`/data` in a task) and below `LOCAL`, each name is attacked in its own way:
`still` not at all; `race` is a directory that is swapped for a symbolic link, `deep/a` another; `kind` is a file
that becomes a link, a FIFO, a device; `tree` leaves the workspace and comes back; on `cover` things are mounted.
"""

from __future__ import annotations

LOCAL = "/mnt"
WORKSPACE = "/data"
MARK = "SENTINEL: nobody may read this"

STILL = [f"still/f{number}" for number in range(6)]
RACED = [
    *("race/f", "race/g", "deep/a/b/f", "kind", "tree/x/y/f", "tree/x/f", "cover/f", "cover/g"),
    *("race.link/f", "deep/a.link/b/f", "kind.other", "to-outside/f", "to-own/f"),
]
SOURCES = ["still/in", "race/in", "kind", "cover/in", "race.link/in", "cover/self/environ", "kind.other"]
# None of these is a source: a download leaves a link to the workspace, which in the self view an upload follows.
TARGETS = ["still/out", "race/out", "cover/out", "race.link/out", "kind-out", "cover/self/cwd/out"]

# All files that stand on a raced name somewhere, relative to the directory that holds them.
FILES = [
    "f",
    "g",
    "in",
    "out",
    "kind",
    "b/f",
    "a/b/f",
    "x/y/f",
    "x/f",
    "race/f",
    "still/in",
    "race/in",
    "race/out",
]


def link_targets(outside: str) -> list[str]:
    """Where the links of attackers point: all of it is elsewhere, though some is in the task's own root."""
    return [
        outside,
        f"../../../../../../../..{outside}",
        f"/proc/self/root{outside}",
        f"{LOCAL}/cover/self/root{outside}",
        f"{LOCAL}/cover/1/root{outside}",
        "../outside",
        "..",
        "/",
        LOCAL,
        WORKSPACE,
    ]

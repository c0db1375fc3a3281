"""The verbs of a task: what their command lines look like, and what runs them. Python 3.8, standard library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from brokervol.completion import run_completion
from brokervol.looking import run_cat, run_find, run_ls, run_stat, run_ws
from brokervol.verbs import Task, run_cp, run_mv, run_rm

if TYPE_CHECKING:
    from collections.abc import Callable

MANY = float("inf")
FLAG: dict[str, Any] = {"action": "store_true"}


class Verb(NamedTuple):
    """A verb: its one line of help, the shape of its arguments, its options, and what runs it."""

    summary: str
    usage: str
    options: tuple[str, ...]
    least: int
    most: float
    run: Callable[[Task], None]
    epilog: str


VERBS = {
    "ws": Verb(
        "show the workspaces that this task may use",
        "brokervol ws [--json]",
        ("json",),
        0,
        0,
        run_ws,
        """\
ACCESS is ro or rw, as the volume was mounted. PATH is where the files appear in this container.

example:
  brokervol ws
""",
    ),
    "ls": Verb(
        "list files",
        "brokervol ls [-l] [-r] [--json] NAME:[PATH] ...",
        ("long", "recursive", "json"),
        1,
        MANY,
        run_ls,
        """\
PATH is a directory, a file, a pattern in quotes, or the beginning of a path. Files only are listed, by their
path in the workspace.

examples:
  brokervol ls imagery:                  files at the top of the workspace
  brokervol ls -l imagery:2026/          with their sizes
  brokervol ls -r imagery:               all files
  brokervol ls -r 'imagery:2026/*/*.tif'
  brokervol ls -r --json imagery: | jq -r .file
""",
    ),
    "find": Verb(
        "find files by name, size and time",
        "brokervol find [TEST ...] [--print0] [--json] NAME:[PATH] ...",
        ("name", "path", "larger", "smaller", "newer", "older", "print0", "json"),
        1,
        MANY,
        run_find,
        """\
All files below PATH that pass every test, as NAME:path. In patterns `*` stands for anything, also for a leading
dot, and in --path for a `/`. Time is asked for by a call for each file that passes the other tests.

examples:
  brokervol find imagery: --name '*.tif' --larger 100M
  brokervol find imagery: --newer 7d             modified in the last seven days
  brokervol find imagery:2026/ --older 2026-07-01 --json
  brokervol find products: --name '*.tmp' --print0 | xargs -0 -r brokervol rm
""",
    ),
    "cat": Verb(
        "write files to standard output",
        "brokervol cat [--range FIRST-LAST] [-q] NAME:PATH ...",
        ("range", "quiet"),
        1,
        MANY,
        run_cat,
        """\
The bytes come through the sidecar, so that they can be had of every workspace, by whoever may read the file.

examples:
  brokervol cat products:2026/report.json
  brokervol cat --range 0-1023 imagery:a.tif     the first 1,024 bytes
  brokervol cat --range -100 imagery:log         the last 100
  brokervol cat 'products:2026/*.csv' | sort
""",
    ),
    "cp": Verb(
        "copy files into, out of and between workspaces",
        "brokervol cp [-r] [-n] [-q] [--json] SOURCE... TARGET",
        ("recursive", "no_clobber", "quiet", "json"),
        2,
        MANY,
        run_cp,
        """\
A side is NAME:path in a workspace, or a local path (write ./a:b for a local name with a colon). Several sources,
and patterns, need a directory as their target: NAME:, NAME:dir/ or an existing local directory. In a workspace
missing directories are made; local ones must exist, except below what -r copies.

A file that comes out of a workspace with a mounted volume (types host and nfs) is not copied: a symbolic link to
it is put at the local path. Use `cp -L` on the link for a copy of your own, or brokervol cat.

A source - is standard input, stored under the name that the target is.

examples:
  brokervol cp out/*.tif products:2026/       local files into a workspace
  brokervol cp -r out products:run-17/        a directory, as run-17/out/...
  brokervol cp 'imagery:2026/*.tif' .         patterns in quotes, for the shell
  brokervol cp imagery:a.tif archive:old/     from one workspace to another
  brokervol cp -n -r imagery:2026 in          leave what is already there
  tar c out | brokervol cp - products:out.tar
""",
    ),
    "mv": Verb(
        "rename files within a workspace",
        "brokervol mv [-n] [-q] [--json] NAME:SOURCE... NAME:TARGET",
        ("no_clobber", "quiet", "json"),
        2,
        MANY,
        run_mv,
        """\
A target with a closing slash is a directory, made where it is missing: the file keeps its name. Several sources,
and patterns, need one.

examples:
  brokervol mv products:a.tif products:b.tif
  brokervol mv products:a.tif products:done/
  brokervol mv 'products:*.tif' products:done/
""",
    ),
    "rm": Verb(
        "delete files",
        "brokervol rm [-r] [-q] [--json] NAME:PATH ...",
        ("recursive", "quiet", "json"),
        1,
        MANY,
        run_rm,
        """\
A file that is gone already is not an error; a pattern that matches nothing is. Directories stay.

examples:
  brokervol rm products:a.tif
  brokervol rm 'products:tmp-*'
  brokervol rm -r products:2025/         all files below 2025/
""",
    ),
    "stat": Verb(
        "show what the storage and the catalog know of files",
        "brokervol stat [--json] NAME:PATH ...",
        ("json",),
        1,
        MANY,
        run_stat,
        """\
Size, time, type and entity tag are what the storage tells now; `path` is where the file appears in this container;
the record is what the catalog knows of a file that came through brokervol.

examples:
  brokervol stat products:2026/a.tif
  brokervol stat --json products:2026/a.tif | jq -r .record.uuid
""",
    ),
    "completion": Verb(
        "print a script that completes commands in a shell",
        "brokervol completion bash|zsh|fish",
        (),
        1,
        1,
        run_completion,
        """\
Commands, options, workspaces and paths are completed; paths by asking the sidecar, as far as it answers at once.

examples:
  brokervol completion bash                               print it
  eval "$(/run/brokervol/brokervol completion bash)"      have it in this shell
  eval "$(/run/brokervol/brokervol completion zsh)"       after compinit
  /run/brokervol/brokervol completion fish | source
""",
    ),
}

SIZE = "a number of bytes, or with k, M, G, T of 1024"
TIME = "an age as 90m, 12h, 7d, 2w, or a date"

# The options of verbs: their names, what argparse is told of them, and their help.
OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "long": (("-l", "--long"), FLAG, "show the size in bytes and in short"),
    "recursive": (("-r", "--recursive"), FLAG, "everything below, not one level"),
    "no_clobber": (("-n", "--no-clobber"), FLAG, "leave a file that exists at the target as it is"),
    "quiet": (("-q", "--quiet"), FLAG, "show no progress"),
    "json": (("--json",), FLAG, "print one JSON object a line"),
    "range": (
        ("--range",),
        {"metavar": "FIRST-LAST"},
        "only these bytes, counted from 0; -COUNT for the last ones",
    ),
    "name": (("--name", "-name"), {"metavar": "PATTERN"}, "the last part of the path matches"),
    "path": (("--path", "-path"), {"metavar": "PATTERN"}, "the whole path in the workspace matches"),
    "larger": (("--larger",), {"metavar": "SIZE"}, f"has more bytes: {SIZE}"),
    "smaller": (("--smaller",), {"metavar": "SIZE"}, "has fewer bytes"),
    "newer": (("--newer",), {"metavar": "TIME"}, f"was modified after that: {TIME}"),
    "older": (("--older",), {"metavar": "TIME"}, "was modified before that"),
    "print0": (("-0", "--print0", "-print0"), FLAG, "end each path with NUL, for xargs -0"),
}

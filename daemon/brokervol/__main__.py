"""The command line on the host: the processes of brokervol, and the verbs of a task."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from brokervol import task

# Each is imported only when it is run: `brokervol ls` must not pay for Flask.
PROCESSES = {
    "daemon": ("brokervol.supervisor", "run the driver and the sidecar, and start again what dies"),
    "driver": ("volumedriver.__main__", "run only the volume driver that the Docker engine calls"),
    "sidecar": ("sidecar.__main__", "run only the sidecar that serves files to tasks"),
}

_HELP = "\non the host:\n" + "".join(f"  {name:<10}{text}\n" for name, (_, text) in PROCESSES.items())


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in PROCESSES:
        module, _ = PROCESSES[arguments[0]]
        return int(importlib.import_module(module).main(arguments[1:]))
    return task.main(arguments, more_help=_HELP)


if __name__ == "__main__":
    sys.exit(main())

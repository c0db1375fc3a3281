"""The command line on the host: the processes of brokervol, tools for their state, and the verbs of a task."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from brokervol import task
from brokervol.console import EXIT_INTERRUPTED

# Each is imported only when it is run: `brokervol ls` must not pay for Flask.
PROCESSES = {
    "daemon": ("brokervol.supervisor", "run the driver and the sidecar, and start again what dies"),
    "driver": ("volumedriver.__main__", "run only the volume driver that the Docker engine calls"),
    "sidecar": ("sidecar.__main__", "run only the sidecar that serves files to tasks"),
}

TOOLS = {
    "doctor": ("brokervol.doctor.__main__", "look for what keeps volumes from working, and say what to do"),
    "logs": ("brokervol.logs", "show what the driver and the sidecar have said"),
    "status": ("brokervol.status", "show volumes, who holds them, and the health of NFS servers"),
    "volumes": ("brokervol.volumes", "export or import the definitions of this host's volumes"),
}
_ON_HOST = PROCESSES | TOOLS

_HELP = "\non the host:\n" + "".join(f"  {name:<12}{text}\n" for name, (_, text) in _ON_HOST.items())


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in _ON_HOST:
        module, _ = _ON_HOST[arguments[0]]
        try:
            return int(importlib.import_module(module).main(arguments[1:]))
        except KeyboardInterrupt:  # before that could begin
            return EXIT_INTERRUPTED
    return task.main(arguments, more_help=_HELP, more_commands=tuple(_ON_HOST))


if __name__ == "__main__":
    sys.exit(main())

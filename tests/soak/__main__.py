"""`python -m soak`: requests while their files are swapped, replaced, covered and moved away under them."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from lab.directories import temporary_directory
from soak.run import soaked
from soak.site import self_soak_site, soak_site


def main(arguments: Sequence[str]) -> int:
    """0 where nothing outside was touched and no other fault was found, else 1."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=90, help="for how long (%(default)s)")
    parser.add_argument("--seed", type=int, help="of requests and attackers (random)")
    parser.add_argument("--saved", type=Path, default=Path("/tmp/brokervol-soak"), help="for faults (%(default)s)")
    options = parser.parse_args(arguments)
    options.saved.mkdir(parents=True, exist_ok=True)
    with temporary_directory() as directory, soak_site(directory) as site, self_soak_site(directory) as other:
        found = soaked([site, other], options.seconds, options.saved, options.seed)
    print("\n".join(found.lines()))
    return 1 if found.report.faults else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended also then
    sys.exit(main(sys.argv[1:]))

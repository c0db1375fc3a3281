"""`python -m life`: lives of a driver, any order of calls, crashes and losses, for as many steps as wanted."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence

import structlog

from life.machine import DriverLife, InKernel
from life.play import play


def main(arguments: Sequence[str]) -> int:
    """0 where nothing was found; a life that breaks something ends it with that."""
    parser = argparse.ArgumentParser(prog="python -m life", description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000, help="how many (%(default)s)")
    parser.add_argument(
        "--kernel", action="store_true", help="with real mounts; for a mount namespace of its own: unshare -m"
    )
    options = parser.parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if options.kernel:
        DriverLife.world = InKernel
    began = time.monotonic()

    def progress() -> None:
        print(f"{DriverLife.steps:,} steps in {time.monotonic() - began:.0f} s", flush=True)

    play(DriverLife, options.steps, progress)
    print("nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m fuzz`: hostile requests against the real sidecar, and what must hold of its answers and of itself."""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fuzz import play
from fuzz.answers import Wrong
from fuzz.run import Plan, run
from fuzz.site import Site, caller_site, self_site
from lab.directories import temporary_directory
from lab.s3 import new_place, seaweed_server

_EPILOG = """\
examples:
  make fuzz                                             200,000 requests, both views, a new seed
  make fuzz ARGS='--requests 20000 --seed 7 --view self'
  make fuzz ARGS='--s3'                                 with a bucket among the workspaces of the self view
  make fuzz ARGS='--replay /tmp/brokervol-fuzz/fault-7-123.json'
"""


def main(arguments: Sequence[str]) -> int:
    """0 where no fault was found, else 1."""
    options = _parse(arguments)
    options.saved.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        sites = list(_sites(stack, options))
        if options.replay:
            return _replay(sites, options.replay)
        print(f"seed {options.seed}", file=sys.stderr)
        report = run(sites, Plan(options.requests, options.seed, options.seconds, options.saved))
    print("\n".join(report.lines()))
    return 1 if report.faults else 0


def _sites(stack: contextlib.ExitStack, options: argparse.Namespace) -> Iterator[Site]:
    if options.view in ("self", "both"):
        bucket = None
        if options.s3:
            server = stack.enter_context(seaweed_server())
            bucket = server, stack.enter_context(new_place(server)).bucket
        yield stack.enter_context(self_site(stack.enter_context(temporary_directory()), bucket))
    if options.view in ("caller", "both"):
        yield stack.enter_context(caller_site(stack.enter_context(temporary_directory())))


def _replay(sites: Sequence[Site], path: Path) -> int:
    """Play what was saved on each site, from here; tell what came back."""
    for line in path.read_text().splitlines():
        found = play.Play.from_json(json.loads(line))
        for site in sites:
            print(f"{site.view} view, number {found.number}, ending {found.ending}")
            print(*(f"  sent {piece!r}" for piece in found.pieces), sep="\n")
            try:
                print(f"  received {play.perform(site.sidecar.socket_path, found, ()).received!r}")
            except Wrong as error:
                print(f"  WRONG {error}")
            print(*(f"  logged {line}" for line in site.faults_in_log()), sep="\n")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make fuzz", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200_000, help="how many to judge (%(default)s)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="what is played (random)")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--view", choices=("self", "caller", "both"), default="both", help="(%(default)s)")
    parser.add_argument("--s3", action="store_true", help="a bucket, too, of a real server")
    parser.add_argument("--saved", type=Path, default=Path("/tmp/brokervol-fuzz"), help="for faults (%(default)s)")
    parser.add_argument("--replay", type=Path, help="play what was saved in this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended also then
    sys.exit(main(sys.argv[1:]))

"""The sidecar without one of the capabilities that it keeps: `python -m lab.lesser_sidecar NUMBER OPTIONS`."""

from __future__ import annotations

import sys

from sidecar import __main__ as program

if __name__ == "__main__":
    missing = 1 << int(sys.argv[1])
    for view, kept in program.CAPABILITIES.items():
        program.CAPABILITIES[view] = kept & ~missing
    sys.exit(program.main(sys.argv[2:]))

"""`python -m bench`: ours beside its rivals, in one run, on the same data and the same server."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from bench import calls, driver, files, growth, memory, nfs, plugin, s3, sidecar_calls
from bench.frame import as_json, noise, table
from bench.session import Session, Sizes, progress
from lab.directories import temporary_directory

SECTIONS: dict[str, Callable[[Session], None]] = {
    "driver": driver.measure,
    "nfs": nfs.measure,
    "plugin": plugin.measure,
    "sidecar": sidecar_calls.measure,
    "s3": s3.measure,
    "files": files.measure,
    "memory": memory.measure,
    "growth": growth.measure,
}
_REPEAT, _SCALE = 3, 1.0
_QUICK_REPEAT, _QUICK_SCALE = 2, 0.1

_EPILOG = """\
The contenders of a case take turns, in every second repetition in the reverse order; what one left unwritten is
synced before the next begins. The table shows medians, how far the repetitions lay apart, CPU time of the client
(its child processes included, the server's not), and ours divided by theirs: below 1, ours took less time.
Nothing is judged: the targets stand beside the figures, and docs/performance.md says how to read them.

examples:
  make bench                                          all of it, on a quiet machine
  make bench-quick                                    a tenth of the sizes, twice
  make bench ARGS='--section driver --section nfs'    as root: what needs an engine or a machine of its own
  make bench ARGS='--section s3 --scale 0.5 --repeat 5'
  make bench ARGS='--section memory --large'          also a move beyond 5 GiB, which S3 copies in parts
  make bench ARGS='--section growth --large'          also a listing of a million files
"""


def main(arguments: Sequence[str]) -> int:
    """Run the sections asked for; what was measured is also told after a failure or a Ctrl-C."""
    options = _parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    tempfile.tempdir = os.environ["TMPDIR"] = str(options.directory)  # the server's data lie beside ours
    sizes = Sizes().scaled(options.scale)
    with temporary_directory() as directory:
        session = Session(sizes, options.repeat, options.large, directory)
        with session.opened():
            is_complete = _measure(session, options)
            progress("cleaning up")
    return 0 if is_complete else 130


def _measure(session: Session, options: argparse.Namespace) -> bool:
    run = {"began": _now(), "machine": _machine(options.directory), "load_before": os.getloadavg()[0]}
    is_complete = False
    try:
        for section in options.section or SECTIONS:
            SECTIONS[section](session)
        is_complete = True
    except KeyboardInterrupt:
        progress("interrupted")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C must not end the cleaning
        run |= {"ended": _now(), "load_after": os.getloadavg()[0], "is_complete": is_complete}
        _tell(session, run, options.json)
    return is_complete


def _tell(session: Session, run: dict[str, Any], path: Path) -> None:
    print("\n".join((*calls.table(session.calls), "", table(session.outcomes, session.figures))))
    print(f"\n{noise(session.outcomes, session.calls)}")
    for section, reason in session.left_out.items():
        print(f"left out: {section}: {reason}")
    print(
        "machine: {cpu}, {cores} cores, {memory_gb:.0f} GB, Linux {kernel}, Python {python}, {disk}".format(
            **run["machine"]
        )
    )
    print("load average before and after: {load_before:.1f}, {load_after:.1f}".format(**run))
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = vars(session.sizes) | {"repeat": session.repeat}
    measured = as_json(session.outcomes, session.figures)
    measured |= {"calls": [*map(calls.as_json, session.calls)], "left_out": session.left_out}
    path.write_text(json.dumps(run | {"sizes": sizes} | measured, indent=1))
    print(f"written: {path}")


def _machine(directory: Path) -> dict[str, Any]:
    models = [
        line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "disk": subprocess.check_output(["stat", "--file-system", "--format=%T", directory], text=True).strip(),
    }


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "make bench ARGS=...",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--section", action="append", choices=SECTIONS, help="one of them; may be given again; all if left out"
    )
    parser.add_argument("--repeat", type=_count, help=f"repetitions of each case ({_REPEAT})")
    parser.add_argument("--scale", type=_factor, help=f"times the sizes of all cases ({_SCALE})")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"--scale {_QUICK_SCALE} --repeat {_QUICK_REPEAT}, unless said otherwise",
    )
    parser.add_argument(
        "--large",
        action="store_true",
        help="memory: also a move beyond 5 GiB (10 GiB more of disk); listings of a million files",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path("/var/tmp"),
        help="where the data lie meanwhile, on a disk and not in memory: 15 GiB at scale 1 (/var/tmp)",
    )
    parser.add_argument(
        "--json", type=Path, default=Path("build/bench.json"), help="for the results (build/bench.json)"
    )
    options = parser.parse_args(arguments)
    options.repeat = options.repeat or (_QUICK_REPEAT if options.quick else _REPEAT)
    options.scale = options.scale or (_QUICK_SCALE if options.quick else _SCALE)
    return options


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of repetitions, at least 1")
    return number


def _factor(text: str) -> float:
    if not 0 < (number := float(text)) <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not a factor above 0 and at most 100")
    return number


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The edge of the tools on the host: however one of them ends, its user sees a sentence and an exit code."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

from brokervol.console import EXIT_INTERRUPTED, EXIT_OUTPUT_CLOSED
from brokervol.task import abandon_output, open_closed_streams, told_of


def guarded(name: str, run: Callable[[], int]) -> int:
    """Run the tool of this name, to the last byte that it prints.

    Returns:
        Its exit code; or 130 for Ctrl-C, 141 where nobody reads what it prints, 1 with a sentence where that
        cannot be written or a file cannot be read.
    """
    open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # what the terminal's encoding does not have is spelled out
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return run()
        finally:  # also of what ends by itself, as --help does
            sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        abandon_output()
        return EXIT_OUTPUT_CLOSED
    except OSError as error:
        abandon_output()
        return told_of(name, error)

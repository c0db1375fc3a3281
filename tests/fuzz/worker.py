"""The process that plays: many connections at once, each play made from seed and number.

Told by one JSON argument, it writes a JSON line to standard output twice a second, and one for each fault. It may
become a task first, so that the sidecar has a caller with a root and an identity of its own.
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

from fuzz import play
from fuzz.answers import Wrong
from lab.task import become

_REPORT_S = 0.5
_MOST_FAULTS = 25


@dataclass
class _State:
    """What the threads of this process share."""

    numbers: Iterator[int]
    lock: threading.Lock = field(default_factory=threading.Lock)
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    judged: int = 0
    faults: int = 0
    is_stopping: bool = False

    def take(self) -> int:
        with self.lock:
            return next(self.numbers)

    def saw(self, made: play.Play, seen: play.Seen) -> None:
        with self.lock:
            self.judged += len(seen.answers) + seen.is_refused
            if made.labels:
                self.statuses.update(
                    f"{label}: {answer.outcome}" for label, answer in zip(made.labels, seen.answers, strict=False)
                )
            else:
                self.statuses.update(str(answer.status) for answer in seen.answers)
            self.statuses["closed"] += seen.is_refused


def main(config: dict[str, Any]) -> None:
    """Play until as many requests as asked were judged, or told to stop by the end of standard input."""
    make = importlib.import_module(config["generator"]).make
    if config["task"]:
        become(config["task"])
    _tell({"ready": True})
    state = _State(chain(config["before"], count(config["first"], config["step"])))
    threads = [threading.Thread(target=_work, args=(config, state, make)) for _ in range(config["threads"])]
    threading.Thread(target=_stop_with_input, args=(state,), daemon=True).start()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        threads[0].join(_REPORT_S)
        time.sleep(0 if threads[0].is_alive() else 0.05)
        _tell({"judged": state.judged, "statuses": dict(state.statuses)})
    _tell({"judged": state.judged, "statuses": dict(state.statuses)})
    os._exit(0)  # the thread that reads standard input does so for ever


def _stop_with_input(state: _State) -> None:
    sys.stdin.buffer.read()
    state.is_stopping = True


def _work(config: dict[str, Any], state: _State, make: Callable[[int, int], play.Play]) -> None:
    forbidden = [text.encode() for text in config["forbidden"]]
    while not state.is_stopping and state.judged < config["requests"]:
        made = make(config["seed"], state.take())
        try:
            state.saw(made, play.perform(config["socket"], made, forbidden))
        except (Wrong, OSError) as error:
            with state.lock:
                state.faults += 1
                state.is_stopping |= state.faults >= _MOST_FAULTS
            _tell({"fault": f"{type(error).__name__}: {error}", "play": made.to_json()})


_telling = threading.Lock()


def _tell(document: object) -> None:
    with _telling:
        print(json.dumps(document), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""Ctrl-C, held back where it would leave something locked."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_back() -> Iterator[None]:
    """Raise the KeyboardInterrupt of a Ctrl-C at the end of the block, which should be short.

    It may come between any two steps, and so between taking a lock and being ready to give it back. Who shows a
    traceback keeps what is in it, and with it the lock.

    Of a program with a handler of its own, and outside the main thread, where none runs, nothing is changed.
    """
    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    pressed = []
    signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if pressed:
            raise KeyboardInterrupt

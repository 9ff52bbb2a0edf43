"""Ctrl-C and SIGTERM: one of them ends a run, and a save that has begun is completed first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what schedulers send


@contextmanager
def handled(handler: Any) -> Iterator[None]:
    """The stop signals call the handler within the block. In a thread, which gets no signals, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        # A signal that whoever started this process had ignored stays so.
        signal.signal(number, signal.SIG_IGN if before[number] is signal.SIG_IGN else handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def ignore_all() -> None:
    """From here on no stop signal disturbs what ends the run."""
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def deferred() -> Iterator[None]:
    """Stop signals wait for the end of the block."""
    waiting: list[int] = []
    with handled(lambda number, _: waiting.append(number)):
        yield
    for number in waiting[:1]:
        signal.raise_signal(number)

"""Ctrl-C and SIGTERM: either ends a run, after a save in progress is completed.

This file imports nothing slow, so that a program can handle signals before its slow imports.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what schedulers send


def prepare_program() -> None:
    """Ctrl-C ends this program without a traceback, even during imports; `?` replaces what a terminal cannot show."""

    def show(kind: type[BaseException], *error: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("train.py: stopped before it began", file=sys.stderr)
        else:
            sys.__excepthook__(kind, *error)

    sys.excepthook = show
    sys.stdout.reconfigure(errors="replace")


@contextmanager
def handled(handler: Any) -> Iterator[None]:
    """The stop signals call the handler within the block."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    # A signal that the parent process had set to be ignored stays ignored.
    _set_handlers({n: signal.SIG_IGN if earlier is signal.SIG_IGN else handler for n, earlier in before.items()})
    try:
        yield
    finally:
        _set_handlers(before)


def ignore_all() -> None:
    """From here on, no stop signal interrupts the end of the run."""
    _set_handlers(dict.fromkeys(STOP_SIGNALS, signal.SIG_IGN))


def _set_handlers(handlers: dict[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():  # others get no signals
        for number, handler in handlers.items():
            if handler is not None:  # None: a handler that is not Python's
                signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Stop signals wait for the end of the block."""
    waiting: list[int] = []
    with handled(lambda number, _: waiting.append(number)):
        yield
    for number in waiting[:1]:
        signal.raise_signal(number)

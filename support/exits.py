"""How the command ends: an exit code, and, unless that is 0, one sentence on stderr with what happened and what to do.

0     done
1     it had to end early
2     its input is wrong, or there is no room for its output
130   it was interrupted
"""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from support import processes
from support.errors import InputError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what schedulers send


def run(command: Callable[[], None]) -> int:
    """Run the command, and return its exit code. The first Ctrl-C or SIGTERM ends it; more of them do not disturb that."""
    with handled(_interrupt):
        try:
            code, sentence = _attempt(command)
            ignore_all()
        except KeyboardInterrupt:
            code, sentence = 130, f"stopped; {_how_to_resume()}"
        if code:
            line = "".join(letter if letter.isprintable() else "?" for letter in sentence)  # names come from files
            print(f"train.py: {line if len(line) < 2000 else line[:2000] + ' ...'}", file=sys.stderr, flush=True)
        if processes.launched():
            # The ordinary way out waits for processes that may be gone, and a thread of torch's that wants Python's lock
            # while Python ends aborts the process, although its work is done.
            sys.stdout.flush()
            os._exit(code)
    return code


def _attempt(command: Callable[[], None]) -> tuple[int, str]:
    try:
        command()
        processes.leave()
    except InputError as error:
        return 2, str(error)
    except FloatingPointError as error:
        return 1, f"{error}; {_how_to_resume()}"
    except RuntimeError as error:
        if not processes.is_connection_error(error):
            raise
        return 1, f"another process of this run has ended or cannot be reached; {_how_to_resume()}"
    return 0, ""


def _how_to_resume() -> str:
    """The command that resumes this run."""
    program = "torchrun ..." if processes.launched() else "python"
    command = shlex.join(sys.argv if "--resume" in sys.argv else [*sys.argv, "--resume"])
    return f"to continue after the last complete iteration: {program} {command}"


def _interrupt(*_: object) -> None:
    ignore_all()
    raise KeyboardInterrupt


# --- Ctrl-C and SIGTERM: one of them ends a run, and a save that has begun is completed first ------------------------


@contextmanager
def handled(handler: Any) -> Iterator[None]:
    """The stop signals call the handler within the block."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    # A signal that whoever started this process had ignored stays so.
    _set_handlers({n: signal.SIG_IGN if earlier is signal.SIG_IGN else handler for n, earlier in before.items()})
    try:
        yield
    finally:
        _set_handlers(before)


def ignore_all() -> None:
    """From here on no stop signal disturbs what ends the run."""
    _set_handlers(dict.fromkeys(STOP_SIGNALS, signal.SIG_IGN))


def _set_handlers(handlers: dict[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():  # others get no signals
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Stop signals wait for the end of the block."""
    waiting: list[int] = []
    with handled(lambda number, _: waiting.append(number)):
        yield
    for number in waiting[:1]:
        signal.raise_signal(number)

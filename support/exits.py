"""How the command ends: an exit code, and, unless that is 0, one sentence on stderr with what happened and what to do.

0     done
1     it had to end early
2     its input is wrong, or there is no room for its output
130   it was told to stop
"""

import os
import shlex
import signal
import sys
from collections.abc import Callable

from support import processes
from support.errors import InputError
from support.run_directory import STOP_SIGNALS


def end_well(command: Callable[[], None]) -> int:
    """Run the command, and return its exit code. The first Ctrl-C or SIGTERM ends it; more of them do not disturb that."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in handlers.items():
        signal.signal(number, signal.SIG_IGN if handler is signal.SIG_IGN else _interrupt)
    try:
        code, sentence = _attempt(command)
        _ignore_interrupts()
    except KeyboardInterrupt:
        code, sentence = 130, f"stopped; {_how_to_go_on()}"
    if code:
        line = "".join(character if character.isprintable() else "?" for character in sentence)  # names come from files
        print(f"train.py: {line if len(line) < 2000 else line[:2000] + ' ...'}", file=sys.stderr, flush=True)
    if processes.launched():
        # The ordinary way out waits for processes that may be gone, and a thread of torch's that wants Python's lock
        # while Python ends aborts the process, although its work is done.
        sys.stdout.flush()
        os._exit(code)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return code


def _attempt(command: Callable[[], None]) -> tuple[int, str]:
    try:
        command()
        processes.stop()
    except InputError as error:
        return 2, str(error)
    except FloatingPointError as error:
        return 1, f"{error}; {_how_to_go_on()}"
    except RuntimeError as error:
        if not processes.lost(error):
            raise
        return 1, f"another process of this run has ended or cannot be reached; {_how_to_go_on()}"
    return 0, ""


def _how_to_go_on() -> str:
    """The command that resumes this run."""
    program = "torchrun ..." if processes.launched() else "python"
    command = shlex.join(sys.argv if "--resume" in sys.argv else [*sys.argv, "--resume"])
    return f"to go on after the last whole iteration: {program} {command}"


def _interrupt(*_: object) -> None:
    _ignore_interrupts()
    raise KeyboardInterrupt


def _ignore_interrupts() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)

"""How the command ends: an exit code and, unless that is 0, one sentence on stderr that says what happened and what to do.

0     done
1     it had to end early
2     its input is wrong, or there is no room for its output
130   it was interrupted
141   the reader of its output has ended (`| head`); without a sentence
"""

import os
import shlex
import sys
from collections.abc import Callable, Sequence

from support import processes
from support.errors import InputError
from support.signals import handled, ignore_all


def run(command: Callable[[], None], arguments: Sequence[str]) -> int:
    """Run the command, and return its exit code. The first Ctrl-C or SIGTERM ends it; further ones are ignored.

    arguments: those of train.py, from which the command was made.
    """
    with handled(_interrupt):
        try:
            code, sentence = _attempt(command, arguments)
            ignore_all()
        except KeyboardInterrupt:
            code, sentence = 130, f"stopped; {_how_to_resume(arguments)}"
        if sentence:
            line = "".join(letter if letter.isprintable() else "?" for letter in sentence)  # names come from files
            print(f"train.py: {line if len(line) < 2000 else line[:2000] + ' ...'}", file=sys.stderr, flush=True)
        if processes.launched():
            # The ordinary exit waits for processes that may be gone, and a torch thread that wants Python's lock while
            # Python shuts down aborts the process, although its work is done.
            sys.stdout.flush()
            os._exit(code)
    return code


def _attempt(command: Callable[[], None], arguments: Sequence[str]) -> tuple[int, str]:
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
        processes.leave()
    except InputError as error:
        return 2, str(error)
    except FloatingPointError as error:
        return 1, f"{error}; {_how_to_resume(arguments)}"
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at exit
        return 141, ""
    except RuntimeError as error:
        if not processes.is_connection_error(error):
            raise
        return 1, f"another process of this run has ended or cannot be reached; {_how_to_resume(arguments)}"
    return 0, ""


def _how_to_resume(arguments: Sequence[str]) -> str:
    """The command that resumes this run."""
    program = "torchrun ..." if processes.launched() else "python"
    script = sys.argv[0] if list(arguments) == sys.argv[1:] else "train.py"  # a notebook may have called train.main
    command = [script, *arguments, *(["--resume"] if "--resume" not in arguments else [])]
    return f"to continue after the last complete iteration: {program} {shlex.join(command)}"


def _interrupt(*_: object) -> None:
    ignore_all()
    raise KeyboardInterrupt

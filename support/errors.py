"""The exception for bad input."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input: the message is one sentence that names the file or setting, what is wrong with it, and the remedy."""


@contextmanager
def input_errors(problem: str, remedy: str, *kinds: type[Exception]) -> Iterator[None]:
    """Exceptions of these kinds within the block become an InputError: `problem (reason); remedy`."""
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        # A download says why it failed in `reason`, a file that cannot be opened in `strerror`.
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error).strip()
        raise InputError(f"{problem} ({str(reason).partition(chr(10))[0]}); {remedy}") from error


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`: did you mean --task?` for a misspelt one of some names; empty if none of them is close."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f": did you mean {close[0]}?" if close else ""

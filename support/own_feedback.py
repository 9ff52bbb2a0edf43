"""User-defined feedback, for --feedback FILE.py:FUNCTION. docs/feedback.md says how to write it."""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from support.errors import InputError, did_you_mean

Judge = Callable[[str, Any], str]  # from an output and its Example to a verdict
VERDICTS = ("right", "wrong", "malformed")
EXPECTED = 'it takes an output and its example, and must return True, False, "right", "wrong" or "malformed"'
_IN_FORCE: ContextVar[Judge | None] = ContextVar("_IN_FORCE", default=None)


def in_force() -> Judge | None:
    """The function that judges outputs in place of the scorers of feedback.py; None: the scorers do."""
    return _IN_FORCE.get()


@contextmanager
def judged_by(own: Judge | None) -> Iterator[None]:
    """Within the block, `own` judges complete outputs; None: the scorers judge."""
    token = _IN_FORCE.set(own)
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


def with_feedback(command: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a command on all settings judge outputs by the function that --feedback names, if any."""

    @wraps(command)
    def call(s: Any) -> Any:
        with judged_by(load(s.run.feedback) if s.run.feedback else None):
            return command(s)

    return call


def load(where: str) -> Judge:
    """The function FILE.py:FUNCTION, with each result checked. Inside it, feedback.judge is the built-in feedback."""
    code, function = _find(where)

    def judge(output: str, example: Any) -> str:
        try:
            with judged_by(None):
                verdict = function(output, example)
        except Exception as error:
            lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == code.__file__]
            place = f" in line {lines[-1]}" if lines else ""
            problem = f"raised {_describe(error)}{place} for the output {_shown(output)}"
            raise InputError(f"--feedback {where} {problem}; {EXPECTED}") from error
        if isinstance(verdict, bool | np.bool_):
            return "right" if verdict else "wrong"
        if isinstance(verdict, str) and verdict in VERDICTS:
            return verdict
        raise InputError(f"--feedback {where} returned {_shown(verdict)} for the output {_shown(output)}; {EXPECTED}")

    return judge


def _find(where: str) -> tuple[ModuleType, Callable]:
    """The file as a module, and the function in it."""
    file, _, name = where.rpartition(":")
    if not file or not name.isidentifier():
        raise InputError(f"--feedback {where}: write a file and the name of a function in it, as in mine.py:judge")
    spec = importlib.util.spec_from_file_location("own_feedback", file)
    if not Path(file).is_file() or spec is None:
        raise InputError(f"--feedback {where}: there is no file {file} that ends in .py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"--feedback {where}: {file} cannot be imported ({_describe(error)}); correct it") from error
    function = getattr(module, name, None)
    if not callable(function):
        there = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise InputError(f"--feedback {where}: {file} has no function {name}{did_you_mean(name, there)}")
    return module, function


def sums(where: str) -> dict[str, str]:
    """The SHA-256 of the file that --feedback names, if it names one."""
    return {"--feedback": hashlib.sha256(Path(where.rpartition(":")[0]).read_bytes()).hexdigest()} if where else {}


def try_out(tests: dict[str, list]) -> None:
    """Judge two outputs for a question of each task, so that a function that does not work is noticed before the run."""
    if own := in_force():
        for example in (examples[0] for examples in tests.values() if examples):
            for output in ("", example.targets[0]):
                own(output, example)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

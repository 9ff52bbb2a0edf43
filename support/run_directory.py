"""The directory of a run: what is written there, and how a run finds its way back.

config.json     every setting, the versions of the packages, the commit
metrics.jsonl   a line per iteration
samples.jsonl   the first relabeled pairs of each iteration, to be read
model/          the model in the hub's format
state.pt        what it takes to go on: weights, optimizer, schedule, metrics
.lock           number of the process that writes, locked by it; the lock ends with the process, however that ends
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch

from model_t5 import T5, Tokenizer, save_checkpoint
from support import finite, processes
from support.batches import Pair
from support.checkpoint_files import load_pickle
from support.errors import InputError
from support.files import read_json, replacing, write_file, write_json
from support.locks import lock as take_lock

# In the middle of a run: where and how long it runs, and how its work is done.
MAY_CHANGE = {"out", "resume", "device", "iterations", "micro_batch_size", "sampling_batch_size", "shard_model"}
MAY_CHANGE |= {"compile", "gradient_checkpointing"}
SAMPLES_TO_READ = 20  # per iteration
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what schedulers send


def check_run(out: Path, run: dict, settings: dict, resume: bool) -> bool:
    """Does the directory hold a run to go on with? Refuses one of other settings, and to begin where one is."""
    path = out / "config.json"
    if not os.path.exists(path) and not os.path.exists(out / "state.pt"):
        return False
    if not resume:
        raise InputError(f"{out} already holds a run; add --resume to go on with it, or choose another --out.")
    try:
        config = read_json(path)
        before = dict(config["run"]) | dict(config["settings"])
    except (ValueError, KeyError, TypeError) as error:  # an InputError is a ValueError
        raise InputError(
            f"{out} cannot be resumed: its config.json is missing or damaged; use another --out."
        ) from error
    changes = [
        f"--{name.replace('_', '-')} {before.get(name)}, not {value}"
        for name, value in (run | settings).items()
        if name not in MAY_CHANGE and before.get(name) != value
    ]
    if changes:
        raise InputError(f"{out} was begun with {'; '.join(changes)}; choose another --out.")
    return True


def open_run(out: Path, run: dict, settings: dict, resume: bool) -> TextIO | None:
    """Take the directory of a run for this job, and make it if there is none; `--resume` begins a run that never was.

    Returns the lock, which holds as long as the file is open, and no longer than the process lives. Process 0 has it.
    """
    lock = None

    def take() -> None:
        nonlocal lock
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock = (out / ".lock").open("a+")
            lock_or_refuse(lock, out)
            if not check_run(out, run, settings, resume):
                write_json(out / "config.json", describe(run, settings))
        except OSError as error:
            raise InputError(f"{out} cannot be written ({error.strerror}); choose another --out.") from error

    processes.from_first(take)
    return lock


def lock_or_refuse(lock: TextIO, out: Path) -> None:
    """Lock the file for this process and write its number there."""
    lock.seek(0)
    if take_lock(lock) is False:
        owner = lock.read(20).strip()
        raise InputError(f"{out} is in use by process {owner}; let it end, or choose another --out.")
    lock.truncate()
    print(os.getpid(), file=lock, flush=True)


def restore(out: Path, parts: dict[str, Any]) -> list[dict]:
    """Put the parts of a run back into the state of its last whole iteration; returns its metrics, [] if there is none."""
    path = out / "state.pt"
    if not processes.from_first(path.exists):
        return []
    try:
        state = load_pickle(path, check_sums=processes.rank() == 0)
        for name, part in parts.items():
            processes.load_state(part, state[name])
        finite.check_weights(parts["optimizer"])
        return list(state["lines"])
    except Exception as error:  # a damaged file can raise anything
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be resumed from ({reason}); it is damaged or of another version.") from error


def describe(run: dict, settings: dict) -> dict:
    """config.json: every setting, and what the numbers were measured on."""
    here = Path(__file__).resolve().parents[1]
    commit = ""
    with suppress(OSError):  # there is no git
        git = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(git, cwd=here, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "run": run,
        "settings": settings,
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in ("torch", "sentencepiece", "numpy", "tqdm")},
        "commit": commit,
    }


def save_iteration(
    out: Path, model: T5, tokenizer: Tokenizer, parts: dict[str, Any], lines: list[dict], pairs: list[Pair]
) -> None:
    """Save all that an iteration leaves behind, each file in one rename. state.pt comes last: with it, the iteration counts.

    parts: whatever has a state_dict that the run needs to go on, by name. Process 0 writes, and all must take part. A signal
    to stop waits until all is written.
    """
    iteration = lines[-1]["iteration"]
    states = {name: processes.whole_state(part.state_dict()) for name, part in parts.items()}
    if processes.rank() > 0:
        return
    try:
        with unbroken():
            write_samples(out / "samples.jsonl", pairs, tokenizer, iteration)
            write_lines(out / "metrics.jsonl", lines)
            save_checkpoint(out / "model", model, tokenizer, states["model"])
            with replacing(out / "state.pt") as file:
                torch.save({"lines": lines} | states, file)
    except (OSError, RuntimeError, ValueError) as error:
        # torch.save hides the reason behind an error of its own
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise InputError(
            f"{out}: iteration {iteration} could not be saved ({getattr(cause, 'strerror', None) or cause}), and what was "
            f"saved before is as it was; once that is fixed, --resume goes on from there."
        ) from error


@contextmanager
def unbroken() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait for the end of the block."""
    waiting = []
    handlers = {n: signal.signal(n, lambda number, _: waiting.append(number)) for n in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in waiting[:1]:
        signal.raise_signal(number)


def write_samples(path: Path, pairs: list[Pair], tokenizer: Tokenizer, iteration: int) -> None:
    """Add some relabeled pairs of an iteration to samples.jsonl, in place of what a killed run has left of it."""
    earlier = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    earlier = [sample for sample in earlier if sample["iteration"] < iteration]
    write_lines(path, earlier + [readable(pair, tokenizer, iteration) for pair in pairs[:SAMPLES_TO_READ]])


def write_lines(path: Path, values: list[dict]) -> None:
    """Write a JSON object per line."""
    write_file(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode())


def readable(pair: Pair, tokenizer: Tokenizer, iteration: int) -> dict:
    """A relabeled pair in words: under this instruction, and after what is given, the model learns this output."""
    return {
        "iteration": iteration,
        "instruction": pair.instruction,
        "question": pair.question,
        "given": tokenizer.decode(pair.tokens[: pair.start]),
        "output": tokenizer.decode(pair.tokens[pair.start :]),
    }

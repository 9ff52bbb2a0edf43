"""The directory of a run: what is written there, and how a run is resumed.

config.json     every setting, the versions of the packages, the commit
metrics.jsonl   a line per iteration
answers.jsonl   the answers to the test questions in the last evaluation, with their verdicts; --method none ends here
samples.jsonl   the first training examples of each iteration, to be read
model/          the model in the hub's format
state.pt        what is needed to resume: weights, optimizer, schedule, replay set, metrics
.lock           the writing process's number, locked by it; the lock is released when the process ends, in any way
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import torch

from support import REPOSITORY, processes
from support.batches import TrainingExample
from support.checkpoint_files import load_pickle
from support.errors import InputError, input_errors
from support.files import lock, read_json, read_lines, replacing, write_json, write_lines
from support.machine import FIXED, MachineSettings
from support.settings import FlagParser, as_flags, flag
from support.signals import deferred
from support.tables import say

# What may change on --resume: where and how long a run runs, and how its work is done.
MAY_CHANGE = {"out", "resume", "iterations"} | {f.name for f in fields(MachineSettings)} - FIXED
SAMPLES_TO_READ = 20  # per iteration


def directory_of(run: Any) -> Path:
    """Where a run writes: the same for the same command, so that --resume finds it."""
    if run.out:
        return Path(run.out)
    tasks = run.task.replace(",", "+")
    return REPOSITORY / "runs" / f"{tasks}-{run.method}-{_label(run.checkpoint)}-{_label(run.data)}-seed{run.seed}"


def _label(name: str) -> str:
    """A checkpoint or data set in a directory's name: X for runs/X/model; with a hash if outside this repository."""
    path = next((path.resolve() for path in (Path(name), REPOSITORY / name) if path.exists()), None)
    if path is None or name in ("generated", "official"):  # or a name on the hub
        return name.replace("/", "-")
    if not path.is_relative_to(REPOSITORY):
        return f"{path.name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    parts = path.relative_to(REPOSITORY).parts
    return "-".join(parts[parts[0] in ("checkpoints", "runs") :]).removesuffix("-model")


def given_settings(parser: FlagParser, argv: Sequence[str]) -> dict[str, Any]:
    """The settings given in the arguments and, with --resume, those with which the run in --out was started."""
    given = vars(parser.parse_args(argv))
    if not (given.get("resume") and given.get("out")):
        return given
    if not holds_run(Path(given["out"])):
        say(f"{given['out']} holds no run: this starts one.")
        return given
    before, _unknown = parser.parse_known_args(as_flags(read_config(Path(given["out"]))[0]))
    return vars(before) | given


def read_config(out: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """All settings of the run in a directory, by name, and the checksums of the files that it read."""
    try:
        there = read_json(out / "config.json")
        return dict(there["run"]) | dict(there["settings"]), dict(there.get("files", {}))
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{out} cannot be resumed: its config.json is missing or damaged"
        raise InputError(f"{problem}; use another --out.") from error


def holds_run(out: Path) -> bool:
    """Is there a run in this directory?"""
    return any(os.path.exists(out / name) for name in ("config.json", "state.pt"))


def check_run(out: Path, config: dict[str, dict], resume: bool) -> bool:
    """Does the directory hold a run to resume? Refuses if its settings differ, or if --resume is not given.

    config: "run" and "settings", each a dictionary of values, and the SHA-256 of the "files" that are read, by task or flag.
    """
    if not holds_run(out):
        return False
    if not resume:
        raise InputError(f"{out} already holds a run; add --resume to continue it, or choose another --out.")
    before, sums = read_config(out)
    # Task files may have been moved; their checksums say whether they are the same.
    may_change = MAY_CHANGE | ({"data"} if sums and config.get("files") else set())
    wanted = {name: value for name, value in (config["run"] | config["settings"]).items() if name not in may_change}
    if changes := [name for name, value in wanted.items() if before.get(name) != value]:
        changed = "; ".join(f"{flag(name)} {before.get(name)}, not {wanted[name]}" for name in changes)
        raise InputError(f"{out} was started with {changed}; choose another --out.")
    if edited := [name for name, digest in config.get("files", {}).items() if sums.get(name, digest) != digest]:
        problem = f"{', '.join(edited)}: the file has changed since {out} was started"
        raise InputError(f"{problem}; delete it, or choose another --out.")
    return True


def open_run(out: Path, config: dict[str, dict], resume: bool) -> TextIO | None:
    """Take the directory of a run for this process; if there is none, make it and start a run, even with `--resume`.

    Returns the lock, which is held until the file is closed or the process ends. Process 0 has it.
    """
    file = None

    def take() -> None:
        nonlocal file
        with input_errors(f"{out} cannot be written", "choose another --out.", OSError):
            out.mkdir(parents=True, exist_ok=True)
            file = (out / ".lock").open("a+")
            file.seek(0)
            if lock(file) is False:
                number = file.read(20).strip()
                raise InputError(f"{out} is in use by process {number}; let it end, or choose another --out.")
            file.truncate()
            print(os.getpid(), file=file, flush=True)
            if not check_run(out, config, resume):
                write_json(out / "config.json", config | environment())

    processes.from_first(take)
    return file


def restore(out: Path, parts: dict[str, Any]) -> list[dict]:
    """Restore the parts of a run to its last complete iteration; returns its metrics, or [] if there is none."""
    path = out / "state.pt"
    if not processes.from_first(path.exists):
        return []
    remedy = "it is damaged or of another version."
    with input_errors(f"{path} cannot be resumed from", remedy, Exception):  # as a damaged file can raise anything
        state = load_pickle(path, check_sums=processes.rank() == 0)
        for name, part in parts.items():
            if not all(tensor.isfinite().all() for tensor in _tensors(state[name])):
                raise ValueError(f"{name} holds numbers that are not finite")
            processes.load_state(part, state[name])
        return list(state["lines"])


def _tensors(state: Any) -> list[torch.Tensor]:
    """All tensors in nested dictionaries."""
    if isinstance(state, dict):
        return [tensor for value in state.values() for tensor in _tensors(value)]
    return [state] if torch.is_tensor(state) else []


def environment() -> dict[str, Any]:
    """What the numbers of a run were measured on."""
    commit = ""
    with suppress(OSError):  # there is no git
        git = ["git", "rev-parse", "HEAD"]
        commit = subprocess.run(git, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.strip()
    packages = {name: version(name) for name in ("torch", "sentencepiece", "numpy", "tqdm")}
    return {"python": sys.version.split()[0], "packages": packages, "commit": commit}


def save_iteration(
    out: Path, parts: dict, save_model: Callable[[dict], None], lines: list[dict], samples: list[dict], answers: list[dict]
) -> None:  # fmt: skip
    """Save an iteration, each file atomically. state.pt is written last and completes the iteration.

    parts: by name, everything with a state_dict that resuming needs; empty for a run that does not train. save_model: is
    called with the model's state_dict. All processes must call this; process 0 writes. Stop signals wait until it is done.
    """
    iteration = lines[-1]["iteration"]
    states = {name: processes.gathered_state(part.state_dict()) for name, part in parts.items()}
    if processes.rank() > 0:
        return
    try:
        with deferred():
            write_lines(out / "answers.jsonl", answers)
            write_lines(out / "metrics.jsonl", lines)
            if not parts:
                return
            # replaces what a killed run may have left of this iteration
            earlier = [sample for sample in read_lines(out / "samples.jsonl") if sample["iteration"] < iteration]
            write_lines(out / "samples.jsonl", earlier + samples)
            save_model(states["model"])
            with replacing(out / "state.pt") as file:
                torch.save({"lines": lines} | states, file)
    except (OSError, RuntimeError, ValueError) as error:
        # torch.save hides the reason behind an error of its own
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or cause
        remedy = "what was saved before is unchanged, and once the cause is fixed, --resume continues from there."
        raise InputError(f"{out}: iteration {iteration} could not be saved ({reason}); {remedy}") from error


def readable(examples: list[TrainingExample], iteration: int, decode: Callable[[tuple[int, ...]], str]) -> list[dict]:
    """The first training examples as text: instruction, question, given part and learned part of the output."""
    return [
        {"iteration": iteration, "instruction": e.instruction, "question": e.question,
         "given": decode(e.encoder_prefix + e.output[: e.start]), "output": decode(e.output[e.start :])}
        for e in examples[:SAMPLES_TO_READ]
    ]  # fmt: skip

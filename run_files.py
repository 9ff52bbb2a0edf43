"""The directory of a run: what is written there, and how a run finds its way back.

config.json     every setting, the versions of the packages, the commit
metrics.jsonl   a line per iteration
samples.jsonl   the first relabeled pairs of each iteration, to be read
model/          the model in the hub's format
state.pt        what it takes to go on: weights, optimizer, schedule, metrics
"""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import distributed
from batching import Pair
from checkpoints_io import replacing, write_file, write_json
from model_t5 import T5, Tokenizer, save_checkpoint

MAY_CHANGE = {"out", "resume", "device", "iterations", "compile", "gradient_checkpointing"}  # in the middle of a run
SAMPLES_TO_READ = 20  # per iteration


class RunError(ValueError):
    """A run that cannot be begun or resumed; the message is one sentence that says why and what to do."""


def open_run(out: Path, run: dict, settings: dict, resume: bool) -> dict | None:
    """Make the directory of a run, or return the state to resume from; None if no iteration was finished yet."""
    path = out / "config.json"
    begun = any(distributed.gather([path.exists()]))  # all processes look before the first one writes
    if not resume:
        if begun:
            raise RunError(f"{out} already holds a run; add --resume to go on with it, or choose another --out.")
        if distributed.rank() == 0:
            out.mkdir(parents=True, exist_ok=True)
            write_json(path, describe(run, settings))
        return None
    if not begun:
        raise RunError(f"{out} holds no run to resume: config.json is missing there; leave --resume out to begin one.")
    config = json.loads(path.read_text(encoding="utf-8"))
    before = config["run"] | config["settings"]
    for name, value in (run | settings).items():
        if name not in MAY_CHANGE and before.get(name) != value:
            flag = "--" + name.replace("_", "-")
            raise RunError(f"{out} was begun with {flag} {before.get(name)}, not {value}; choose another --out.")
    state = out / "state.pt"
    return torch.load(state, map_location="cpu", weights_only=True) if state.exists() else None


def describe(run: dict, settings: dict) -> dict:
    """config.json: every setting, and what the numbers were measured on."""
    here = Path(__file__).resolve().parent
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return {
        "run": run,
        "settings": settings,
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in ("torch", "sentencepiece", "numpy", "tqdm")},
        "commit": commit.stdout.strip(),
    }


def save_iteration(
    out: Path, model: T5, tokenizer: Tokenizer, parts: dict[str, Any], lines: list[dict], pairs: list[Pair]
) -> None:
    """Save all that an iteration leaves behind, each file in one rename. state.pt comes last: with it, the iteration counts.

    parts: whatever has a state_dict that the run needs to go on, by name.
    """
    iteration = lines[-1]["iteration"]
    samples = out / "samples.jsonl"
    earlier = (
        [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()] if samples.exists() else []
    )
    earlier = [sample for sample in earlier if sample["iteration"] < iteration]  # not what a killed run left half done
    write_lines(samples, earlier + [readable(pair, tokenizer, iteration) for pair in pairs[:SAMPLES_TO_READ]])
    write_lines(out / "metrics.jsonl", lines)
    save_checkpoint(out / "model", model, tokenizer)
    with replacing(out / "state.pt") as file:
        torch.save({"lines": lines} | {name: part.state_dict() for name, part in parts.items()}, file)


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

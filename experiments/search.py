"""The hyperparameter search:  python -m experiments.search

Every method gets the same number of trials, drawn at random from its own grid (Bergstra and Bengio, 2012): learning rate,
epochs, and one more setting of its own; HIR's grid also has what its paper leaves open. A trial trains on two tasks, one
run each, and is measured after every iteration on questions of the training part, never on a test question. Each run
becomes a line of results/search.jsonl. If interrupted, the same command makes the missing runs; at the end it prints the
best trial of every method.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from support import REPOSITORY
from support.files import read_lines, write_lines

TASKS = ("logical_deduction_three_objects", "geometric_shapes")
RESULTS = REPOSITORY / "results" / "search.jsonl"
TRIALS = 12  # of each method
BUDGET = "--iterations 8 --questions 25 --online-samples 4 --warmup-steps 2 --test-size 200 --interim-test-size 100"
ASKED = "--validation --seed 1"
MALFORMED = 0.1  # a setting with more malformed answers than this under the wrong instruction is ruled out
RATES, EPOCHS = "1e-4 2e-4 3e-4 5e-4 1e-3", "1 2 4 8"  # the same for all
GRIDS = {
    "sft": {"--learning-rate": RATES, "--train-epochs": EPOCHS, "--answers": "text steps"},
    "farl": {"--learning-rate": RATES, "--train-epochs": EPOCHS, "--replay": "all last"},
    "ppo": {"--ppo-learning-rate": RATES, "--ppo-epochs": EPOCHS, "--ppo-kl-coef": "0 0.01 0.05"},
    "grpo": {"--grpo-learning-rate": RATES, "--grpo-epochs": EPOCHS, "--grpo-normalize": "grpo dr-grpo"},
    "hir": {
        "--learning-rate": RATES, "--train-epochs": EPOCHS, "--alpha": "0.25 0.5 1",  # and what the paper leaves open
        "--sub-output": "answer encoder none", "--replay": "all last", "--malformed": "wrong drop",
    },
}  # fmt: skip


def trials(method: str) -> list[str]:
    """The flags of a method's trials: the same ones in every call."""
    flags = GRIDS[method]
    chosen = itertools.product(*map(str.split, flags.values()))
    grid = [" ".join(itertools.chain(*zip(flags, values, strict=True))) for values in chosen]
    return random.Random(method).sample(grid, TRIALS)


def run_training(arguments: list[str], out: Path, jobs: int) -> bool:
    """Make a run silently, or resume it. Returns whether it succeeded. jobs: how many run at a time."""
    beside = {"OMP_NUM_THREADS": "1"} if jobs > 1 else {}  # runs side by side take a core each
    command = [sys.executable, str(REPOSITORY / "train.py"), *arguments, "--out", str(out), "--resume"]
    return not subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=os.environ | beside).returncode


def make_run(runs: Path, jobs: int, run: tuple[str, str, str]) -> dict | None:
    """The line about a run that is made, or resumed; None if it failed."""
    method, flags, task = run
    out = runs / "-".join([method, *flags.replace("--", "").split(), task])
    if not run_training(f"--method {method} --task {task} {BUDGET} {ASKED} {flags}".split(), out, jobs):
        return None
    lines = read_lines(out / "metrics.jsonl")
    total = {"method": method, "flags": flags, "task": task}
    total |= {key: lines[-1]["tasks"][task][key] for key in ("correct", "wrong", "obeyed", "malformed")}
    total |= {"steps": sum(line.get("steps", 0) for line in lines), "sampled": lines[-1]["sampled"]}
    total["curve"] = round(statistics.mean(line["tasks"][task]["correct"] for line in lines[1:]), 4)
    total["seconds"] = round(sum(line["seconds"].get(part, 0) for line in lines for part in ("sampling", "training")))
    return total


def ranking(results: Path, method: str) -> list[tuple[float, float, float, str]]:
    """The finished trials of a method, best first: right, mean and final; malformed under the wrong instruction; flags."""
    rows, lines = [], read_lines(results)
    for flags in trials(method):
        runs = [line for line in lines if (line["method"], line["flags"]) == (method, flags)]
        if len(runs) == len(TASKS):
            curve, end = (statistics.mean(run[key] for run in runs) for key in ("curve", "correct"))
            rows.append((curve, end, max(run["malformed"] for run in runs), flags))
    return sorted(rows, reverse=True)


def best_flags(results: Path | None = None) -> dict[str, str]:
    """The flags of each method's best trial; for HIR, too many malformed answers rule a trial out."""
    best = {}
    for method in GRIDS:
        counts = [row[-1] for row in ranking(results or RESULTS, method) if method != "hir" or row[2] <= MALFORMED]
        best |= {method: counts[0]} if counts else {}
    return best


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs" / "search")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args(argv)
    lines = read_lines(args.results)
    done = {(line["method"], line["flags"], line["task"]) for line in lines}
    wanted = [(method, flags, task) for method in GRIDS for flags in trials(method) for task in TASKS]
    missing = [run for run in wanted if run not in done]
    each = statistics.mean([line["seconds"] for line in lines] or [60]) + 15  # for start-up and nine evaluations
    print(f"{len(missing)} runs to make, about {len(missing) * each / 60 / args.jobs:.0f} min", flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        for line in pool.map(partial(make_run, args.runs, args.jobs), missing):
            lines += [line] if line else []
            write_lines(args.results, lines)
            print(json.dumps(line) if line else "failed; its trial does not count", flush=True)
    for method, flags in best_flags(args.results).items():
        curve = next(row[0] for row in ranking(args.results, method) if row[-1] == flags)
        print(f"{method:5} {100 * curve:5.1f} %  {flags}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

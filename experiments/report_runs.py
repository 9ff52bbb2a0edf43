"""The experiments behind the paper's tables: which runs there are, how they are made, and what each has measured."""

import concurrent.futures
import itertools
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import train
from bigbench_tasks import TASKS
from support.errors import InputError
from support.run_directory import write_lines

HERE = Path(__file__).resolve().parents[1]

# --- The experiments --------------------------------------------------------------------------------------------------

METHODS = {"sft": "fine-tuning", "ppo": "PPO", "farl": "FARL", "hir": "HIR"}
SEEDS = (0, 1, 2)
# Every method draws the same number of outputs for the same number of questions.
BUDGET = "--iterations 5 --questions 100 --online-samples 4 --test-size 200".split()
WITH_SEEDS = (  # the tasks of which all seeds are run; of the others the first
    "logical_deduction_three_objects",
    "tracking_shuffled_objects_three_objects",
    "object_counting",
    "reasoning_about_colored_objects",
)
FAMILIES = ("logical_deduction", "tracking_shuffled_objects", "object_counting")  # run with the defaults of train.py
ABLATED = WITH_SEEDS[:2]  # those of the paper's Table 4, also asked about size
SIZES = ("t5-nano", "t5-mini")
ABLATIONS = {
    "full method": "",
    "without sub-output sampling": "--no-sub-output",
    "the same, as many gradient steps as the full method": "--no-sub-output --train-epochs 3",
    "without entropy": "--beta 0",
    "with the paper's label smoothing": "--label-smoothing 0.2",
    "without the contrastive term": "--alpha 0",
}
# HIR makes several lines to train on of each output, FARL at most one, fine-tuning one of each question.
AS_MANY_STEPS = {"sft": "--train-epochs 8", "farl": "--train-epochs 8"}
# Letters can only be learned from the file, as the embedded models answer in words; so this is fine-tuning.
LEAK = "--task date_understanding --method sft --answers letters --questions 0 --iterations 3".split()
LEAK += "--learning-rate 1e-3 --decay-steps 0".split()
ORDERS = ("official", "shuffled")
# PPO's grid is searched on easier relatives of a task, by the share of right samples: these answer training questions,
# so no test question has a say in it.
SEARCH = "--task tracking_shuffled_objects_three_objects --method ppo --easier 1 --test-size 1".split()
GRID = {
    "--ppo-learning-rate": ("1e-4", "3e-4", "1e-3"),
    "--ppo-epochs": ("2", "4"),
    "--ppo-kl-coef": ("0.01", "0.1"),
}


def seeds_of(task: str) -> tuple[int, ...]:
    """The seeds with which a task is run."""
    return SEEDS if task in WITH_SEEDS else SEEDS[:1]


def name_of(task: str, method: str, seed: int = 0, size: str = "t5-mini", variant: str = "") -> str:
    """The name of an experiment: its file in results/runs/ and its directory in runs/report/."""
    words = [word.strip("-") for word in variant.split()]
    return "-".join([task, method, *words, size, f"seed{seed}"])


def default_name(family: str, seed: int) -> str:
    """The name of a run of train.py with its defaults."""
    return f"{family}-default-seed{seed}"


def leak_name(order: str, seed: int) -> str:
    """The name of a run on the official questions of Date Understanding with their options in this order."""
    return f"leak-{order}-seed{seed}"


def experiments(runs: Path) -> dict[str, list[str]]:
    """Name -> arguments of train.py, of everything that the tables and pictures show, and of the search."""
    found = {}

    def add(task: str, method: str, seed: int, size: str = "t5-mini", variant: str = "") -> None:
        arguments = ["--task", task, "--method", method, "--seed", str(seed), "--checkpoint", f"checkpoints/{size}"]
        # The embedded models think aloud before they write an option out; an official answer is its letter.
        arguments += ["--answers", "steps"] if method == "sft" else []
        found[name_of(task, method, seed, size, variant)] = [*arguments, *BUDGET, *variant.split()]

    for seed, family in itertools.product(SEEDS, FAMILIES):
        found[default_name(family, seed)] = ["--task", family, "--seed", str(seed)]
    for seed, task, method in itertools.product(SEEDS, TASKS, METHODS):
        if seed in seeds_of(task):
            add(task, method, seed)
    official = "--method none --data official --test-size 200".split()
    for task in TASKS:
        trained = runs / name_of(task, "hir") / "model"
        found[f"{task}-official-before"] = ["--task", task, *official]
        found[f"{task}-official-after"] = ["--task", task, *official, "--checkpoint", str(trained)]
    for seed, task, flags in itertools.product(SEEDS, ABLATED, ABLATIONS.values()):
        add(task, "hir", seed, variant=flags)
    for seed, task, (method, flags) in itertools.product(SEEDS, ABLATED, AS_MANY_STEPS.items()):
        add(task, method, seed, variant=flags)
    for seed, order in itertools.product(SEEDS, ORDERS):
        arguments = [*LEAK, "--seed", str(seed), "--data", "official", "--option-order", order]
        found[leak_name(order, seed)] = arguments
        trained = runs / leak_name(order, seed) / "model"
        other = ORDERS[ORDERS.index(order) - 1]
        arguments = [*LEAK[:2], *official, "--seed", str(seed), "--option-order", other, "--checkpoint", str(trained)]
        found[f"{leak_name(order, seed)}-other-order"] = arguments
    for seed, task, size, method in itertools.product(SEEDS, ABLATED, SIZES, METHODS):
        add(task, method, seed, size)
    for values in itertools.product(*GRID.values()):
        flags = [word for pair in zip(GRID, values, strict=True) for word in pair]
        found["-".join(("search", *values))] = [*SEARCH, *BUDGET[:-2], *flags]
    return found


# --- Running ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """A finished run: config.json, and the lines of metrics.jsonl."""

    config: dict
    lines: list[dict]

    def share(self, key: str = "correct", line: int = -1, task: str = "") -> float:
        """A test accuracy on a task, which may be left out where there is one."""
        return self.tests(line, task)[key]

    def tests(self, line: int = -1, task: str = "") -> dict:
        """What was measured on the test questions of a task, which may be left out where there is one."""
        tasks = self.lines[line]["tasks"]
        return tasks[task] if task else next(iter(tasks.values()))

    def seconds(self) -> float:
        """How long the run took, but for its start."""
        return sum(sum(line["seconds"].values()) for line in self.lines)


def load_results(directory: Path, wanted: dict[str, list[str]]) -> dict[str, Result]:
    """The finished experiments of results/runs/; InputError if one was made with other settings than are wanted now."""
    results = {}
    for name, arguments in wanted.items():
        path = directory / f"{name}.jsonl"
        if path.exists():
            config, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            difference = _difference(config, arguments)
            if difference:
                raise InputError(f"{path} was made with {difference}; remove it and its directory in runs/report.")
            results[name] = Result(config, lines)
    return results


def _difference(config: dict, arguments: list[str]) -> str:
    """What sets the settings of a run apart from these arguments; where it ran does not count, nor where data lay."""
    run, settings, own = train.parse_arguments(arguments)
    wanted = asdict(run) | asdict(settings) | (asdict(own) if run.method == "ppo" else {})
    made = config["run"] | config["settings"]
    for name in wanted.keys() - {"out", "resume", "device", "dtype", "data", "checkpoint"}:
        if made.get(name) != wanted[name]:
            return f"--{name.replace('_', '-')} {made.get(name)}, not {wanted[name]}"
    return ""


def run_missing(missing: dict[str, list[str]], runs: Path, results: Path, jobs: int) -> list[str]:
    """Make these runs, or go on with them, `jobs` at a time. Returns the names of those that failed."""
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    numbered = enumerate(missing.items(), start=1)
    futures = {
        name: pool.submit(run_one, f"[{i}/{len(missing)}] {name}", arguments, runs / name, results, jobs)
        for i, (name, arguments) in numbered
    }
    try:
        return [name for name, future in futures.items() if not future.result()]
    finally:  # also when told to stop
        pool.shutdown(cancel_futures=True)


def run_one(title: str, arguments: list[str], out: Path, results: Path, jobs: int) -> bool:
    """Make one run and copy what it measured to `results`. Returns whether it came to its end."""
    print(title, flush=True)
    resume = ["--resume"] if (out / "config.json").exists() else []
    command = [sys.executable, str(HERE / "train.py"), *arguments, "--out", str(out), *resume]
    # Runs side by side share the cores; what one alone says is for its reader.
    beside = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL} if jobs > 1 else {}
    if subprocess.run(command, check=False, **beside).returncode:
        return False
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    results.mkdir(parents=True, exist_ok=True)
    write_lines(results / f"{out.name}.jsonl", [config, *map(json.loads, lines)])
    return True


def plan(missing: dict[str, list[str]], results: dict[str, Result]) -> str:
    """How many runs there are to make, and how long they may take, judged by those of the same method."""
    seconds: dict[str, list[float]] = {}
    for result in results.values():
        seconds.setdefault(result.config["run"]["method"], []).append(result.seconds())
    everything = [value for values in seconds.values() for value in values] or [120.0]
    expected = 0.0
    for arguments in missing.values():
        method = train.parse_arguments(arguments)[0].method
        expected += statistics.mean(seconds.get(method, everything)) + 4  # to start
    basis = f"judged by {len(results)} finished ones" if results else "at a guess of two minutes each"
    return f"{len(missing)} runs to make, about {expected / 60:.0f} min, {basis}"

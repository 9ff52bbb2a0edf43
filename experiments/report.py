"""The paper's tables and pictures from finished runs:  python report.py [--run] [--only PATTERN]

Without --run it draws results/tables.md and results/*.png from results/runs/ alone, which holds each run in one small
file: its configuration, then its metrics. With --run it first makes the runs that are missing there, --jobs at a time,
in runs/report/; stopped at any moment, the same command goes on. --only names runs by a pattern such as '*-ppo-*'.
`python report.py --run --only 'search-*'` searches PPO's hyperparameters, which is no part of the default.
"""

import argparse
import fnmatch
import itertools
import math
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import train
from bigbench_tasks import TASKS
from experiments import report_figures
from experiments.report_runs import (
    ABLATED,
    ABLATIONS,
    AS_MANY_STEPS,
    BUDGET,
    FAMILIES,
    GRID,
    HERE,
    LEAK,
    METHODS,
    ORDERS,
    SEARCH,
    SEEDS,
    SIZES,
    WITH_SEEDS,
    Result,
    default_name,
    experiments,
    leak_name,
    load_results,
    name_of,
    plan,
    run_missing,
    seeds_of,
)
from support.errors import InputError
from support.files import write_file

# --- Numbers ----------------------------------------------------------------------------------------------------------


# 97.5 % points of Student's t for 1, 2, ... degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    mean: float
    low: float
    high: float
    note: str = ""

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]{self.note}"


def over_seeds(shares: list[float], n: int) -> Estimate:
    """The mean of some runs' accuracies on the same n questions.

    Two things are left to chance: which questions are asked (Wilson's interval for n of them; all runs are asked the
    same, so more runs do not narrow it) and what a run draws (Student's interval over the runs, if there is more than
    one). The two parts of the interval add up like independent errors.
    """
    mean = statistics.mean(shares)
    low, high = train.wilson(mean, n)
    drawn = 0.0
    if len(shares) > 1:
        drawn = STUDENT[len(shares) - 2] * statistics.stdev(shares) / math.sqrt(len(shares))
    return Estimate(
        mean, max(0.0, mean - math.hypot(mean - low, drawn)), min(1.0, mean + math.hypot(high - mean, drawn))
    )


def average(estimates: list[Estimate]) -> Estimate:
    """The mean over tasks, whose errors are independent."""
    mean = statistics.mean(e.mean for e in estimates)
    low, high = (math.hypot(*(getattr(e, end) - e.mean for e in estimates)) / len(estimates) for end in ("low", "high"))
    return Estimate(mean, mean - low, mean + high)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b, as if independent; they share their test questions, so the interval is rather too wide."""
    mean = a.mean - b.mean
    return Estimate(
        mean, mean - math.hypot(a.mean - a.low, b.high - b.mean), mean + math.hypot(a.high - a.mean, b.mean - b.low)
    )


def measured(
    results: dict[str, Result], names: list[str], key: str = "correct", line: int = -1, task: str = ""
) -> Estimate | None:
    """The estimate from those of the named runs that are finished, and if not all are, how many; None if none is."""
    found = [results[name] for name in names if name in results]
    if not found:
        return None
    note = f" ({len(found)} of {len(names)} runs)" if len(found) < len(names) else ""
    return replace(over_seeds([r.share(key, line, task) for r in found], found[0].tests(line, task)["n"]), note=note)


def of_method(
    results: dict[str, Result], task: str, method: str, key: str = "correct", size: str = "t5-mini"
) -> Estimate | None:
    """A cell of Table 2 or 3. "none" is the model before training: iteration 0 of any run, and the same in all."""
    if method != "none":
        return measured(results, [name_of(task, method, seed, size) for seed in seeds_of(task)], key)
    names = [name_of(task, other, seed, size) for seed in seeds_of(task) for other in METHODS]
    found = [name for name in names if name in results]
    before = [results[name].share(key, line=0) for name in found]
    if before and max(before) - min(before) > 0.02:
        raise InputError(f"the runs of {task} on {size} began from different models; remove the older ones.")
    return measured(results, found[:1], key, line=0)


# --- Tables -----------------------------------------------------------------------------------------------------------


def markdown(title: str, text: str, header: list[str], rows: list[list[object]]) -> str:
    """A section with a table; what was not measured is a dash."""
    cells = [header, ["---"] * len(header), *([("–" if c is None else str(c)) for c in row] for row in rows)]
    return f"## {title}\n\n{text}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


def chance(task: str) -> str | None:
    """The accuracy in % of who picks an option blindly; None where there are no options."""
    [examples] = train.test_questions(train.Run(), [task]).values()
    shares = [len(e.targets) / len(e.options) for e in examples if e.options]
    return f"{100 * statistics.mean(shares):.1f}" if shares else None


WHEN = ("before", "after")
COLUMNS = {"none": "before", **METHODS}


def default_table(results: dict[str, Result]) -> str:
    """What `python train.py --task FAMILY` does with its defaults."""
    rows = []
    for family in FAMILIES:
        names = [default_name(family, seed) for seed in SEEDS]
        for task in train.expand(family):
            correct = [measured(results, names[:1], "correct", 0, task), measured(results, names, "correct", -1, task)]
            wrong = [measured(results, names[:1], "wrong", 0, task), measured(results, names, "wrong", -1, task)]
            rows.append([task, *correct, *wrong])
    text = f"`python train.py --task FAMILY --seed SEED`, {len(SEEDS)} seeds: test accuracy in %, 95 % interval."
    header = ["task", "before", "after", "wrong instruction, before", "wrong instruction, after"]
    return markdown("The default runs", text, header, rows)


def official_table(results: dict[str, Result]) -> str:
    """What training on generated questions does to official ones."""
    rows = [
        [task, *(measured(results, [f"{task}-official-{when}"], key) for key in ("correct", "wrong") for when in WHEN)]
        for task in TASKS
    ]
    text = (
        "Official BIG-bench questions (at most 200 of the authors' test split, options shuffled), which no embedded model "
        "was trained on, before and after HIR on generated ones (the runs of Table 2, seed 0)."
    )
    header = ["task", "before", "after", "wrong instruction, before", "wrong instruction, after"]
    return markdown("Official questions", text, header, rows)


def table_2(results: dict[str, Result]) -> str:
    """All tasks, all methods, and the averages."""
    cells = {(task, method): of_method(results, task, method) for task in TASKS for method in COLUMNS}
    rows = [[task, chance(task), *(cells[task, method] for method in COLUMNS)] for task in TASKS]
    means = {}
    for method in COLUMNS:
        column = [cells[task, method] for task in TASKS]
        means[method] = average(column) if all(column) else None
    rows.append(["average", None, *means.values()])
    text = (
        f"Test accuracy in %, 95 % interval. {', '.join(WITH_SEEDS)}: {len(SEEDS)} seeds, the others one. "
        f"Every method but fine-tuning draws the same number of outputs (`{' '.join(BUDGET)}`). "
        "Chance is an option picked blindly."
    )
    said = [
        ["HIR over PPO, average (Sec. 1)", "11.2", _over(means["hir"], [means["ppo"]])],
        ["HIR over FARL, average (Sec. 1)", "32.6", _over(means["hir"], [means["farl"]])],
    ]
    for size, paper in (("five", "41.2"), ("seven", "29.2")):
        task = f"tracking_shuffled_objects_{size}_objects"
        others = [cells[task, "ppo"], cells[task, "farl"]]
        said.append(
            [f"HIR over the better of PPO and FARL, {task} (Sec. 6.1)", paper, _over(cells[task, "hir"], others)]
        )
    return (
        markdown("Table 2: all tasks", text, ["task", "chance", *COLUMNS.values()], rows)
        + "\n"
        + markdown(
            "What the paper says of Table 2", "In points; its models are FLAN-T5's.", ["", "paper", "here"], said
        )
    )


def _over(ours: Estimate | None, others: list[Estimate | None]) -> Estimate | None:
    """How far ours is ahead of the best of the others."""
    return difference(ours, max(others, key=lambda e: e.mean)) if ours and all(others) else None


def table_3(results: dict[str, Result]) -> str:
    """Two sizes of the model."""
    rows = [
        [task, size, *(of_method(results, task, method, size=size) for method in COLUMNS)]
        for task in ABLATED
        for size in SIZES
    ]
    text = f"Test accuracy in %, 95 % interval, {len(SEEDS)} seeds."
    return markdown("Table 3: two sizes", text, ["task", "model", *COLUMNS.values()], rows)


def table_4(results: dict[str, Result]) -> str:
    """What each part of the method contributes, beside the figures of the paper."""
    paper = {"full method": ("91.7", "100.0"), "without sub-output sampling": ("75.0", "100.0")}
    rows = []
    for ablation, flags in ABLATIONS.items():
        row: list[object] = [ablation]
        for column, task in enumerate(ABLATED):
            names = [name_of(task, "hir", seed, variant=flags) for seed in SEEDS]
            row += [measured(results, names), measured(results, names, "wrong")]
            row.append(paper[ablation][column] if ablation in paper else None)
        rows.append(row)
    header = ["", *(f"{task}{what}" for task in ABLATED for what in ("", ", wrong instruction", ", paper"))]
    text = (
        f"Test accuracy in %, 95 % interval, {len(SEEDS)} seeds. The embedded models train without label smoothing, so "
        "that ablation is turned round. The last row is not in the paper."
    )
    return markdown("Table 4: ablations", text, header, rows)


def steps_table(results: dict[str, Result]) -> str:
    """Is HIR ahead because it takes more gradient steps?"""
    rows = []
    for task, method in itertools.product(ABLATED, ("sft", "farl", "hir")):
        rows.append([task, METHODS[method]])
        for flags in ("", AS_MANY_STEPS.get(method)):
            there = [name_of(task, method, seed, variant=flags) for seed in SEEDS] if flags is not None else []
            rows[-1] += [measured(results, there), measured(results, there, "wrong")] if there else [None, None]
    text = (
        "HIR trains on several parts of every output, so that an epoch is 20 gradient steps for it, 2 for fine-tuning and "
        f"3 to 6 for FARL. These two with `{AS_MANY_STEPS['farl']}`: test accuracy in %, {len(SEEDS)} seeds."
    )
    header = ["task", "method", "one epoch", "wrong instruction", "eight epochs", "wrong instruction"]
    return markdown("As many gradient steps", text, header, rows)


def wrong_table(results: dict[str, Result]) -> str:
    """Accuracy when a wrong answer is asked for."""
    rows = [[task, *(of_method(results, task, method, "wrong") for method in COLUMNS)] for task in TASKS]
    text = "Test accuracy in % when asked for a wrong answer: a model that follows instructions is low here."
    return markdown("Under the wrong instruction", text, ["task", *COLUMNS.values()], rows)


def leak_table(results: dict[str, Result]) -> str:
    """Date Understanding with the official order of options and with shuffled ones."""
    names = {order: [leak_name(order, seed) for seed in SEEDS] for order in ORDERS}
    other = {order: [f"{name}-other-order" for name in names[order]] for order in ORDERS}
    rows = [
        ["nothing", *(measured(results, names[order][:1], line=0) for order in ORDERS)],
        ["official order", measured(results, names["official"]), measured(results, other["official"])],
        ["shuffled options", measured(results, other["shuffled"]), measured(results, names["shuffled"])],
    ]
    text = (
        "Fine-tuning on the letters of Date Understanding, whose file lists the right option first in 364 of 369 "
        f"examples (`{' '.join(LEAK)} --data official`): test accuracy in %, {len(SEEDS)} seeds."
    )
    header = ["trained on", "tested in the official order", "tested on shuffled options"]
    return markdown("The leak in Date Understanding", text, header, rows)


def search_table(results: dict[str, Result]) -> str:
    """The grid over PPO's hyperparameters, best first."""
    rows = []
    for name in fnmatch.filter(results, "search-*"):
        settings, lines = results[name].config["settings"], results[name].lines
        right = statistics.mean(line["right_share"] for line in lines[-3:])
        rows.append([*(settings[flag.strip("-").replace("-", "_")] for flag in GRID), f"{100 * right:.1f}"])
    rows.sort(key=lambda row: -float(row[-1]))
    text = f"Right samples in %, mean of the last three iterations: `{' '.join(SEARCH + BUDGET[:-2])}`."
    return markdown("The search for PPO's hyperparameters", text, [*(f"`{flag}`" for flag in GRID), "right"], rows)


# --- The command ------------------------------------------------------------------------------------------------------


def render(results: dict[str, Result], directory: Path) -> None:
    """Write tables.md and the pictures."""
    parts = [default_table, table_2, wrong_table, steps_table, official_table, table_3, table_4, leak_table]
    parts += [search_table] if any(name.startswith("search-") for name in results) else []
    head = "# Results\n\nMade by `python report.py` from `runs/`, which `python report.py --run` makes.\n"
    write_file(directory / "tables.md", "\n".join([head, *(part(results) for part in parts)]).encode())
    curves, ends, pairs = {}, {}, {}
    for task in WITH_SEEDS:
        runs = {m: [results[n] for seed in SEEDS if (n := name_of(task, m, seed)) in results] for m in METHODS}
        curves[task] = {METHODS[m]: [curve(r) for r in found] for m, found in runs.items() if m != "sft" and found}
        if runs["sft"]:
            ends[task] = statistics.mean(r.share() for r in runs["sft"])
        both = {m: (of_method(results, task, m), of_method(results, task, m, "wrong")) for m in COLUMNS}
        pairs[task] = {COLUMNS[m]: (right.mean, wrong.mean) for m, (right, wrong) in both.items() if right and wrong}
    if any(curves.values()):
        report_figures.learning_curves(directory / "methods.png", curves, ends)
        report_figures.instruction_pairs(directory / "wrong_instruction.png", pairs)
    default = results.get(default_name(FAMILIES[0], SEEDS[0]))
    if default:
        tasks = {task: (curve(default, task), curve(default, task, "wrong")) for task in default.lines[0]["tasks"]}
        report_figures.one_run(directory / "curve.png", f"python train.py --task {FAMILIES[0]}", tasks)


def curve(result: Result, task: str = "", key: str = "correct") -> report_figures.Curve:
    """Outputs sampled and accuracies of all iterations; `task` may be left out where there is one."""
    shares = [result.share(key, line, task) for line in range(len(result.lines))]
    return [line["sampled"] for line in result.lines], shares


def main(argv: list[str] | None = None) -> int:
    """The command. What is wrong is one sentence on stderr and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", action="store_true", help="make the missing runs first")
    parser.add_argument(
        "--only", default="", help="the experiments to run, as a pattern of file names; default: all but search-*"
    )
    parser.add_argument("--jobs", type=int, default=1, help="how many runs go on at once, each on one core if several")
    parser.add_argument("--runs", type=Path, default=HERE / "runs" / "report", help="where runs are made")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="what is read and written")
    given = parser.parse_args(argv)
    wanted = experiments(given.runs)
    try:
        results = load_results(given.results / "runs", wanted)
        chosen = fnmatch.filter(wanted, given.only) or [
            n for n in wanted if not given.only and not n.startswith("search-")
        ]
        missing = {name: wanted[name] for name in chosen if name not in results}
        print(plan(missing, results))
        if given.run:
            failed = run_missing(missing, given.runs, given.results / "runs", max(1, given.jobs))
            results = load_results(given.results / "runs", wanted)
        render(results, given.results)
        if given.run and failed:
            raise InputError(f"{len(failed)} runs failed, as each said above; the tables lack {', '.join(failed)}.")
    except InputError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

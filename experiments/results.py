"""The results of runs: reading and making them, estimates with intervals, tables and plots that compare them.

The result of a run is one small file in results/runs/: its config.json, the lines of its metrics.jsonl, and last the
verdicts on its test answers, one letter per question.
"""

import json
import math
import statistics
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, zip_longest
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import hir
import train
from experiments.search import run_training
from support.errors import input_errors
from support.files import read_lines, write_lines
from support.settings import as_values, flag
from support.tables import FINAL_COLUMNS, aligned, percent, wilson

# --- Reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """The files of a run that tables and plots show: config.json, the lines of metrics.jsonl, test verdicts."""

    config: dict
    lines: list[dict]
    verdicts: dict[str, dict[str, str]] = field(default_factory=dict)  # by task and instruction, a letter per question
    difference: str = ""  # from the wanted settings, if there is one

    def value(self, key: str = "correct", line: int = -1, task: str = "") -> float | None:
        """A share of a task's test questions, or of all; or a loss of an iteration. None if it was not recorded."""
        tasks = [values for name, values in self.lines[line]["tasks"].items() if task in ("", name)]
        if all(key in values for values in tasks):
            return sum(values[key] * values["n"] for values in tasks) / max(1, sum(values["n"] for values in tasks))
        return (self.lines[line] | self.lines[line]["losses"]).get(key)

    def n(self, task: str = "") -> int:
        """The number of its test questions on a task, or on all."""
        return sum(values["n"] for name, values in self.lines[0]["tasks"].items() if task in ("", name))

    def seconds(self) -> list[float]:
        """The seconds from the first evaluation to the end of each iteration."""
        return list(accumulate(sum(line["seconds"].values()) for line in self.lines))


Results = dict[str, Result]


def read_result(path: Path) -> Result:
    """The result of a run, from a directory written by train.py or from a file of results/runs/."""
    problem, remedy = f"{path} holds no run", "name a directory written by train.py."
    with input_errors(problem, remedy, OSError, ValueError, KeyError, TypeError):
        config, *lines = _lines_of_run(path) if path.is_dir() else read_lines(path)
        shown = [line for line in lines if "iteration" in line]
        if not shown or not isinstance(config["settings"] | config["run"], dict):
            raise ValueError("it has no finished iteration")
        return Result(config, shown, lines[-1].get("verdicts", {}))


def _lines_of_run(out: Path) -> list[dict]:
    """The lines of a file of results/runs/, from the directory of a run."""
    verdicts: dict[str, dict[str, str]] = {}
    for answer in read_lines(out / "answers.jsonl"):
        asked = "correct" if answer["instruction"] == hir.CORRECT else "wrong"
        of_task = verdicts.setdefault(answer["task"], {"correct": "", "wrong": ""})
        of_task[asked] += answer["verdict"][0]  # r, w or m
    config = json.loads((out / "config.json").read_text("utf-8"))
    return [config, *read_lines(out / "metrics.jsonl"), *([{"verdicts": verdicts}] if verdicts else [])]


def load_results(directory: Path, wanted: dict[str, list[str]]) -> Results:
    """The results in a directory by name, each compared with the settings wanted for it."""
    results = {path.stem: read_result(path) for path in sorted(directory.glob("*.jsonl"))}
    for name in results.keys() & wanted.keys():
        results[name] = replace(results[name], difference=difference(results[name].config, wanted[name]))
    return results


def difference(config: dict, arguments: list[str]) -> str:
    """The first setting, known to both, in which a run differs from these arguments; where it ran does not count."""
    wanted = _settings_that_matter(train.parse_arguments(arguments))
    made = config["run"] | config["settings"]
    differing = (name for name in wanted if name in made and made[name] != wanted[name])
    return next((f"{flag(name)} {made[name]}, not {wanted[name]}" for name in differing), "")


def remarks(results: Results) -> list[str]:
    """Which results were made with other settings than the same commands have today."""
    other = [f"{name} ({result.difference})" for name, result in results.items() if result.difference]
    remark = f"† made with other settings than those of today, --run makes them again: {'; '.join(other)}.\n"
    return [remark] if other else []


def _settings_that_matter(s: train.AllSettings) -> dict:
    """The settings that decide what a run measures, by name."""
    values = as_values(s.run, s.method, getattr(s, s.run.method, s.method))
    left_out = {"out", "resume", "explain", "data", "checkpoint"}  # where files are, or what is printed
    if s.run.method == "none":
        values = as_values(s.run) | {"max_new_tokens": s.method.max_new_tokens}
        left_out |= {"iterations", "questions", "interim_test_size"}
    if s.run.method != "hir":
        left_out |= {"alpha", "beta", "sub_output", "malformed", "contrastive"}
    return {name: value for name, value in values.items() if name not in left_out}


# --- Making -----------------------------------------------------------------------------------------------------------


def make_runs(missing: dict[str, list[str]], runs: Path, results: Path, jobs: int) -> list[str]:
    """Make these runs, or resume them, `jobs` at a time. Returns the names of those that failed."""
    titles = [f"[{i}/{len(missing)}] {name}" for i, name in enumerate(missing, start=1)]
    with ThreadPoolExecutor(jobs) as pool:  # after Ctrl-C, `map` starts no further run
        made = pool.map(partial(_make_run, runs, results, jobs), missing, missing.values(), titles)
        return [name for name, succeeded in zip(missing, made, strict=True) if not succeeded]


def _make_run(runs: Path, results: Path, jobs: int, name: str, arguments: list[str], title: str) -> bool:
    """Make one run and write its result. Returns whether it succeeded."""
    print(title, flush=True)
    if succeeded := run_training(arguments, runs / name, jobs):
        results.mkdir(parents=True, exist_ok=True)
        write_lines(results / f"{name}.jsonl", _lines_of_run(runs / name))
    return succeeded


# --- Estimates --------------------------------------------------------------------------------------------------------

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

    Two things are random: the choice of questions (Wilson's interval for n of them; all runs are asked the same, so more
    runs do not narrow it) and the sampling within a run (Student's interval over the runs, if there are several). The two
    parts of the interval add up like independent errors.
    """
    mean, drawn = statistics.mean(shares), 0.0
    low, high = wilson(mean, n)
    if len(shares) > 1:
        drawn = STUDENT[len(shares) - 2] * statistics.stdev(shares) / math.sqrt(len(shares))
    low, high = mean - math.hypot(mean - low, drawn), mean + math.hypot(high - mean, drawn)
    return Estimate(mean, max(0.0, low), min(1.0, high))


def estimate(results: Results, names: list[str], key="correct", line: int = -1, task: str = "") -> Estimate | None:
    """The estimate from the finished ones among the named runs, with a note if some are missing; None if all are."""
    found = [results[name] for name in names if name in results]
    shares = [result.value(key, line, task) for result in found]
    if not shares or None in shares:
        return None
    note = " †" if any(result.difference for result in found) else ""
    note += f" ({len(found)} of {len(names)} runs)" if len(found) < len(names) else ""
    return replace(over_seeds(shares, found[0].n(task)), note=note)


DRAWS = 2000  # of the bootstrap
VERDICTS = {  # a key of metrics.jsonl -> the instruction, and the verdict whose share it is
    "correct": ("correct", "r"), "wrong": ("wrong", "r"), "obeyed": ("wrong", "w"), "malformed": ("wrong", "m")
}  # fmt: skip


def bootstrap_means(names: list[list[str]], results: Results, key: str) -> np.ndarray | None:
    """A share of VERDICTS, averaged over tasks: as measured, then in DRAWS resamples; None if runs are missing.

    names: for each task, its runs' names, one per seed. Seeds and questions are resampled, in the same way for all methods
    with as many tasks and seeds, so that methods can be subtracted: they are paired over questions and seeds.
    """
    (asked, verdict), total = VERDICTS[key], np.zeros(DRAWS + 1)
    for number, of_task in enumerate(names):
        found = [letters[asked] for name in of_task if name in results for letters in results[name].verdicts.values()]
        if len(found) < len(of_task):
            return None
        hits = np.array([[letter == verdict for letter in letters] for letters in found])  # (seeds, questions)
        rng = np.random.default_rng(number)
        seeds, questions = (rng.multinomial(n, np.full(n, 1 / n), DRAWS) for n in hits.shape)
        drawn = ((seeds @ hits) * questions).sum(axis=1) / hits.size
        total += np.concatenate([[hits.mean()], drawn])
    return total / len(names)


def interval(means: np.ndarray) -> Estimate:
    """The measured value, with the middle 95 % of the resamples."""
    return Estimate(means[0], *np.percentile(means[1:], (2.5, 97.5)))


def bootstrap(
    names: dict[str, list[list[str]]], results: Results, key: str = "correct", minus: str = ""
) -> dict[str, Estimate]:
    """Each method's mean over tasks, or its lead over the method `minus`. Unfinished methods are left out."""
    means = {method: bootstrap_means(tasks, results, key) for method, tasks in names.items()}
    done = {method: values for method, values in means.items() if values is not None}
    if minus:
        return {method: interval(values - done[minus]) for method, values in done.items() if minus in done}
    return {method: interval(values) for method, values in done.items()}


def bootstrap_ranks(names: dict[str, list[list[str]]], results: Results) -> dict[str, str]:
    """Each method's rank by the mean of right answers, 1 being the best, and the ranks in 95 % of the resamples."""
    means = {method: bootstrap_means(tasks, results, "correct") for method, tasks in names.items()}
    done = {method: values for method, values in means.items() if values is not None}
    ranks = {m: 1 + sum(other > values for other in done.values()) for m, values in done.items()}
    return {m: "{} [{:.0f}, {:.0f}]".format(r[0], *np.percentile(r[1:], (2.5, 97.5))) for m, r in ranks.items()}


def steps(result: Result) -> int:
    """The gradient steps of a run, without those of a critic."""
    return sum(line.get("steps", 0) for line in result.lines)


def seconds_of_work(result: Result) -> float:
    """The seconds that a run spent on sampling and training."""
    return sum(line["seconds"].get(part, 0.0) for line in result.lines for part in ("sampling", "training"))


# --- Plots ------------------------------------------------------------------------------------------------------------

# One color per method in all plots, distinguishable with any color vision (Okabe and Ito, 2008).
COLORS = {
    "fine-tuning": "#000000", "PPO": "#0072B2", "FARL": "#009E73", "GRPO": "#CC79A7", "HIR": "#D55E00",
    "all tasks": "#777777",
}  # fmt: skip
CYCLE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
STYLE = {
    "figure.dpi": 150, "font.size": 8, "axes.titlesize": 8, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.formatter.useoffset": False, "grid.alpha": 0.25,
    "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip
SHARES = {  # keys of metrics.jsonl, by what they mean
    "correct": "asked for the correct answer: right",
    "malformed_correct": "asked for the correct answer: malformed",
    "right_share": "right samples",
    "wrong": "asked for a wrong answer: still right",
    "obeyed": "asked for a wrong answer: obeyed",
    "malformed": "asked for a wrong answer: malformed",
}
AXES = {"iteration": "iteration", "sampled": "sampled outputs", "seconds": "seconds"}
Curve = tuple[list[float], list[float]]


def curve(result: Result, key: str = "correct", task: str = "", over: str = "sampled") -> Curve:
    """What a run measured after each iteration, a share of SHARES in % or a loss, if it did; `over`: a key of AXES."""
    values = [result.value(key, i, task) for i in range(len(result.lines))]
    places = result.seconds() if over == "seconds" else [line[over] for line in result.lines]
    scale = 100 if key in SHARES else 1
    known = [(x, scale * y) for x, y in zip(places, values, strict=True) if y is not None]
    return [x for x, _ in known], [y for _, y in known]


def draw_curves(path: Path, panels: dict[str, dict[str, list[Curve]]], over: str, columns: int = 3) -> None:
    """Curves as small multiples: title -> label -> curves. One color per label; a thick mean over several thin curves.

    A method that samples nothing has no curve over sampled outputs: a dashed line shows its final value.
    """
    panels = {title: {label: [c for c in found if c[0]] for label, found in p.items()} for title, p in panels.items()}
    panels = {title: curves for title, curves in panels.items() if any(curves.values())}
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    colors = {label: COLORS.get(label, CYCLE[i % len(CYCLE)]) for i, label in enumerate(labels)}
    with small_multiples(path, list(panels), columns, 2.1) as axes:
        for axis, curves in zip(axes, panels.values(), strict=False):
            for label, found in curves.items():
                draw_one(axis, label, colors[label], found, over)
            axis.set_xlabel(AXES[over])
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if not axis.get_title("left").startswith("training: "):
                axis.set(ylim=(-2, 102), ylabel="%")


def draw_one(axis: Axes, label: str, color: str, found: list[Curve], over: str) -> None:
    """The curves of one label."""
    if found and over == "sampled" and not any(x[-1] for x, _ in found):
        end = statistics.mean(y[-1] for _, y in found)
        axis.axhline(end, color=color, linestyle="--", label=label, linewidth=1)
    elif found:
        for x, y in found if len(found) > 1 else ():
            axis.plot(x, y, color=color, alpha=0.35, linewidth=0.7)
        x, y = (list(map(statistics.mean, zip(*rows, strict=False))) for rows in zip(*found, strict=True))
        axis.plot(x, y, color=color, linewidth=1.6, label=label, marker="o", markersize=2.5)


def draw_shares(path: Path, panels: dict[str, dict[str, tuple]]) -> None:
    """Title -> label -> shares (correct, wrong, obeyed, malformed): the last three as a bar, the first as a point.

    Where obeyed and malformed are not recorded, what is not right is left blank.
    """
    parts = {"still right": "#0072B2", "obeyed": "#E69F00", "malformed": "#BBBBBB"}
    with small_multiples(path, list(panels), 3, 1.5) as axes:
        for axis, methods in zip(axes, panels.values(), strict=False):
            labels = list(methods)[::-1]
            columns = zip(*map(methods.get, labels), strict=True)
            correct, *rest = ([100 * (share or 0) for share in column] for column in columns)
            left = [0.0] * len(labels)
            for (part, color), widths in zip(parts.items(), rest, strict=True):
                label = f"asked for a wrong answer: {part}" if any(widths) else None
                axis.barh(labels, widths, left=left, color=color, label=label, height=0.6)
                left = list(map(sum, zip(left, widths, strict=True)))
            axis.plot(correct, labels, "D", color="#000000", markersize=4, label="asked for the correct answer: right")
            axis.set(xlim=(0, 103), xlabel="% of the test questions")
            axis.grid(axis="y", visible=False)


@contextmanager
def small_multiples(path: Path, titles: list[str], columns: int, height: float) -> Iterator[Iterable[Axes]]:
    """Axes to draw in, one for each title; afterwards, adds one legend for all above them and writes the file."""
    columns = min(columns, max(1, len(titles)))
    rows = max(1, -(-len(titles) // columns))
    with matplotlib.rc_context(STYLE):
        # Without pyplot, which would need a display or draw into a notebook.
        figure = Figure(figsize=(3.2 * columns, height * rows + 0.5), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis, title in zip_longest(axes.flat, titles, fillvalue=""):
            axis.set_title(title.replace("_", " "))
            axis.set_visible(title != "")
        yield axes.flat
        by_label = {handle.get_label(): handle for axis in axes.flat for handle in axis.get_legend_handles_labels()[0]}
        figure.legend(handles=list(by_label.values()), loc="outside upper center", ncols=4)
        figure.savefig(path, bbox_inches="tight")


# --- Your own runs ----------------------------------------------------------------------------------------------------


def panels_of(runs: Results, over: str, keys: list[str] | None = None) -> dict[str, dict[str, list[Curve]]]:
    """The panels for some runs: for a single run, one curve per task; otherwise one per run, over all its tasks."""
    losses = list(dict.fromkeys(name for run in runs.values() for line in run.lines for name in line["losses"]))
    single = next(iter(runs.values())) if len(runs) == 1 else None
    panels = {}
    for key in keys or [*SHARES, *losses]:
        if single and key in SHARES and key != "right_share":
            curves = {task: [curve(single, key, task, over)] for task in single.lines[0]["tasks"]}
        else:
            curves = {"all tasks" if single else name: [curve(run, key, "", over)] for name, run in runs.items()}
        panels[SHARES.get(key, f"training: {key}")] = curves
    return panels


def table_of(runs: Results) -> str:
    """For a terminal, a row per task and run: accuracy before and after, the shares under the wrong instruction."""
    tasks = list(dict.fromkeys(task for run in runs.values() for task in run.lines[0]["tasks"]))
    rows: list[tuple] = []
    for task in [*tasks, ""] if len(tasks) > 1 else tasks:
        rows += [(task or "all tasks",)] if len(runs) > 1 else []
        for name, run in runs.items():
            if task in ("", *run.lines[0]["tasks"]):
                keys = ("correct", "wrong", "obeyed", "malformed", "right_share")
                shares = map(percent, [run.value("correct", 0, task), *(run.value(key, -1, task) for key in keys)])
                label = f"  {name}" if len(runs) > 1 else task or "all tasks"
                rows.append((label, *shares, f"{run.lines[-1]['sampled']:,}", f"{run.seconds()[-1]:.0f}"))
    return aligned((*FINAL_COLUMNS, "samples", "sampled", "seconds"), rows)

"""What a run prints: a row per iteration and a final table, both within 80 columns; and confidence intervals."""

import math
import sys
import textwrap
from typing import Any

from tqdm import tqdm

from support import processes

# The cost of an output relative to a greedy answer: to sample it, and to learn from it once. Measured on t5-mini.
SAMPLING, TRAINING = 0.5, 1.5
FEW_QUESTIONS = 30  # questions; the interval of a share of one half then reaches 17 points to either side
FINAL_COLUMNS = ("before", "after", "right", "obeyed", "malformed")


def say(text: str) -> None:
    """Print from the first process, in lines of up to 80 characters, without tearing a progress bar."""
    if processes.rank() == 0:
        whole = {"break_long_words": False, "break_on_hyphens": False}  # paths are to be copied
        for line in text.split("\n"):
            tqdm.write(line if len(line) <= 80 else textwrap.fill(line, 80, subsequent_indent="    ", **whole))
        sys.stdout.flush()  # for readers of a pipe


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % confidence interval of a share measured on n questions (Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def opening(run: Any, settings: dict[str, Any], model: str, num_questions: int, tests: dict[str, list]) -> str:
    """What a run is about to do: method, tasks, model, numbers of questions, the method's settings."""
    questions = between = ""
    if run.method != "none":
        questions = f"{counted(num_questions, 'question')} in each of {counted(run.iterations, 'iteration')}, "
        if run.interim_test_size and run.iterations > 1:
            between = f", {run.interim_test_size} of each task in between"
    questions += counted(sum(map(len, tests.values())), "test question") + between
    values = ", ".join(f"{name} {value}" for name, value in settings.items())
    return f"{run.method} on {', '.join(tests)}\n{run.checkpoint}: {model}\n{questions}\n{values}"


def time_left(run: Any, settings: dict[str, Any], num_questions: int, line: dict) -> str:
    """An estimate of the time that all iterations will take, from that of the first evaluation (`line` of metrics.jsonl)."""
    num_tasks, num_tests = len(line["tasks"]), sum(task["n"] for task in line["tasks"].values())
    sampled = num_questions * settings["online_samples"] if run.method != "sft" else 0
    epochs = settings.get(f"{run.method}_epochs", settings["train_epochs"])
    outputs = run.iterations * (SAMPLING * sampled + TRAINING * epochs * (sampled or num_questions))
    between = min(num_tests, run.interim_test_size * num_tasks or num_tests)
    answers = outputs + 2 * ((run.iterations - 1) * between + num_tests)
    minutes = answers * line["seconds"]["evaluation"] / max(1, 2 * num_tests) / 60
    return f"     about {minutes:.0f} min to go" if minutes >= 1 else "     less than a minute to go"


def progress_header(anything_left: bool = True) -> str:
    """The titles of the columns of `progress_line`, unless the run is over."""
    if not anything_left:
        return "Nothing is left to do; a larger --iterations continues the run."
    return (
        "  asked for the  asked for a wrong answer         samples\n"
        " it     correct  still right  obeyed  malformed    right  losses              s"
    )


def progress_line(line: dict) -> str:
    """A row about an iteration, a line of metrics.jsonl: shares in %, averaged over the questions of all tasks."""
    n = sum(task["n"] for task in line["tasks"].values())

    def share(key: str) -> str:
        return percent(sum(task[key] * task["n"] for task in line["tasks"].values()) / max(1, n))

    samples = percent(line.get("right_share"))
    losses = " ".join(f"{value:.2f}" for value in list(line["losses"].values())[:3])
    seconds = sum(line["seconds"].values())
    row = f"{line['iteration']:3d}  {share('correct'):>10}  {share('wrong'):>11}  {share('obeyed'):>6}  "
    return f"{row}{share('malformed'):>9}  {samples:>7}  {losses:16} {seconds:4.0f}"


def before_and_after(first: dict, last: dict) -> str:
    """Accuracies per task in %: before, after, and, after training, the three shares when asked for a wrong answer.

    For a model that was not trained, the first line is also the last, and there is no "before".
    """
    rows, header = [], FINAL_COLUMNS if first is not last else (f"{'right':>11}", *FINAL_COLUMNS[2:])
    for task, after in last["tasks"].items():
        shares = [after[key] for key in ("correct", "wrong", "obeyed", "malformed")]
        before = [first["tasks"][task]["correct"]] if first is not last else []
        name = task if len(task) <= 40 else f"{task[:18]}...{task[-19:]}"  # leaves room for the columns in 80
        rows.append((name, *map(percent, before + shares)))
    n = min(after["n"] for after in last["tasks"].values())
    low, high = wilson(0.5, n)
    precision = f"95 % intervals reach {50 * (high - low):.0f} points to either side, less near 0 and 100"
    if n < FEW_QUESTIONS:
        precision = f"too few to tell; even 100.0 stands for {100 * wilson(1, n)[0]:.0f} to 100 % (95 % interval)"
    width = max(len(row[0]) for row in rows)
    asked = f"{'asked for':>{width}}  {'the correct':{12 if first is not last else 11}} a wrong answer"
    return f"{asked}\n{aligned(header, rows)}\n{counted(n, 'question')}: {precision}"


def counted(number: int, thing: str) -> str:
    """`1 question`, `2 questions`."""
    return f"{number} {thing}{'s' * (number != 1)}"


def aligned(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Rows, each beginning with a label, under a header for the other cells."""
    width = max(len(label) for label, *_ in rows)
    lines = [
        f"{label:{width}}  " + " ".join(f"{cell:>{len(name)}}" for cell, name in zip(cells, header, strict=False))
        for label, *cells in [("", *header), *rows]
    ]
    return "\n".join(map(str.rstrip, lines))


def percent(share: float | None) -> str:
    """`61.0`, or a dash where there is nothing."""
    return "-" if share is None else f"{100 * share:.1f}"

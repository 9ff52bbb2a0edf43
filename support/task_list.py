"""Checks and remarks on a run's task files before it starts, and `python train.py --list`.

Like support/explain.py, this file imports hir.py, whose prompts it shows.
"""

import textwrap
from collections.abc import Mapping
from typing import Any

import hir
from bigbench_tasks import expand, generate, load, split
from support import own_feedback, task_files
from support.errors import InputError
from support.tables import FEW_QUESTIONS, say

PROBLEMS = (  # of targets, as `task_files.doubts` counts them
    "are none of the options, so judged as free text",
    'name an option, though none was found; write "options": [...]',
)


def check_questions(run: Any, tests: Mapping[str, list], num_questions: int) -> None:
    """Refuse to train or test on nothing, try own feedback, and say what task files hold beside it, and which are small."""
    purposes = ["train on"] * (not num_questions and run.method != "none") + ["test on"] * (not any(tests.values()))
    if purposes:
        remedy = "add examples, of which a fifth is kept for the test"
        raise InputError(f"{', '.join(tests)}: no question is left to {purposes[0]}; {remedy}")
    own_feedback.try_out(tests)
    if run.data == "generated":
        return
    for line in () if run.data == "official" else remarks(list(tests), run.data):
        say(line)
    enough = min(FEW_QUESTIONS, run.test_size or FEW_QUESTIONS)
    few = [f"{task} has {len(tests[task])}" for task in tests if len(tests[task]) < enough]
    if few:
        say(f"Few test questions, so that accuracies say little: {', '.join(few)}.")


def remarks(tasks: list[str], data: str) -> list[str]:
    """What is ignored in the task files, and what is doubtful, one line each for all tasks."""
    found = {task: task_files.doubts(task_files.locate(task, data)) for task in tasks}
    fields = {name[:40] for names, *_ in found.values() for name in names}
    names = sorted(name if name.isidentifier() else repr(name) for name in fields)
    names[20:] = [f"and {len(names) - 20} more"] * (len(names) > 20)
    lines = [f"Ignored in the task files: {', '.join(names)}."] if names else []
    for i, problem in enumerate(PROBLEMS, start=1):
        if doubtful := [f"{found[task][i]} of {task}" for task in tasks if found[task][i]]:
            lines.append(f"Targets that {problem}: {', '.join(doubtful)}.")
    return lines


def main(settings: Any) -> None:
    """--list: every task in the data, with its numbers of questions and its first question as it is asked."""
    run = settings.run
    tasks = expand("all", run.data)
    for task in tasks:
        if run.data == "generated":
            counts, first = "questions are generated", generate(task, 1, seed=0)[0]
        else:
            examples = load(task, run.data, run.option_order)
            train, test = split(examples)
            counts, first = f"{len(train)} questions to train on, {len(test)} to test on", examples[0]
        print(f"{task}: {counts}\n{textwrap.indent(hir.prompt(hir.CORRECT, first.question), '  | ', lambda _: True)}\n")
    for line in remarks(tasks, run.data) if run.data not in ("generated", "official") else ():
        say(line)

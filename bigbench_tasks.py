"""The twelve BIG-bench tasks of the paper: from task files, or from grammars, to questions with their right answers.

    load("word_sorting", "official")          the official examples, downloaded once
    load("navigate", "BIG-Bench-Hard")        those of any task file, from a checkout or your own
    generate("word_sorting", 1000, seed=0)    questions of the same form, from support/grammars

Questions are worded as in the authors' code (commit b598587). One thing differs on purpose: options are shuffled unless
`option_order="official"`, because the file of date_understanding lists the right option first in 364 of 369 examples.
"""

import hashlib
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from support import task_files
from support.errors import InputError
from support.grammars import GENERATORS
from support.options import option_letter

SIZES = ("three", "five", "seven")
TASKS = (
    *(f"tracking_shuffled_objects_{size}_objects" for size in SIZES),
    *(f"logical_deduction_{size}_objects" for size in SIZES),
    "date_understanding", "object_counting", "geometric_shapes",
    "penguins_in_a_table", "reasoning_about_colored_objects", "word_sorting",
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """One question with its answers.

    question: the text that stands between "Q: " and "\\nA:", options included.
    targets: every answer that counts, the official one first; a letter such as "(B)" where there are options.
    options: the texts of the options in the order of their letters; empty where the answer is free text.
    steps: the reasoning that leads to the answer (an order, who held it before, a running sum); some generated
        questions have it.
    """

    question: str
    targets: tuple[str, ...]
    options: tuple[str, ...] = ()
    task: str = ""
    steps: str = ""


def expand(names: str, data: str | Path = "generated") -> list[str]:
    """The tasks of a name, a family ("logical_deduction" is its three sizes), a comma-separated list, or "all".

    Where `data` is a directory, the tasks are those whose files are in it; see support/task_files.py.
    """
    families, chosen = task_files.families(data), []
    for name in (part.strip().strip("/").replace("/", "_") for part in names.split(",")):
        found = [task for task, family in families.items() if name in ("all", task, family)]
        if not found:
            raise task_files.unknown(name, data)
        chosen += [task for task in found if task not in chosen]
    return chosen


# --- From the BIG-bench format to a question --------------------------------------------------------------------------


def _stem(entry: dict) -> str:
    """The question without its options; empty lines are treated as in the authors' code."""
    prefix = entry.get("task_prefix", "") + entry.get("example_input_prefix", "")
    if "target_scores" in entry:
        return prefix.replace("\n\n", "\n") + entry["input"].replace("\n\n", "")
    return (prefix + entry["input"]).replace("\n\n", "\n")


def _example(task: str, entry: dict, rng: random.Random | None) -> Example:
    """The question for one entry of a task file; `rng` shuffles the options, None leaves them as they are."""
    steps = entry.get("steps", "")
    if "target_scores" not in entry:
        # "3" before "three", as in the authors' code
        targets = sorted(entry["target"], key=lambda target: not target.isdigit())
        return Example(_stem(entry), tuple(targets), task=task, steps=steps)
    options = list(entry["target_scores"])
    if rng:
        rng.shuffle(options)
    letters = {option: option_letter(i) for i, option in enumerate(options)}
    lines = [_stem(entry), "Options:", *(f"{letter} {option}" for option, letter in letters.items())]
    targets = tuple(letters[option] for option, score in entry["target_scores"].items() if score == 1)
    return Example("\n".join(lines), targets, tuple(options), task, steps)


# --- Questions from task files ----------------------------------------------------------------------------------------


def load(task: str, data: str | Path, option_order: str = "shuffled", seed: int = 0) -> list[Example]:
    """The questions of a task file, in the order of the file.

    task: one of TASKS, or, where data is a directory, one of your own.
    data: "official", or a directory of task files, such as a checkout of BIG-bench or of BIG-Bench Hard.
    option_order: "shuffled" (the order depends on `seed` and the question, so it never changes) or "official".
    """
    if option_order not in ("shuffled", "official"):
        raise InputError(f'there is no option order "{option_order}": choose shuffled or official')
    entries = task_files.read(task_files.locate(task, data))
    if task not in TASKS:  # the authors' code removes an empty line with both its breaks, which joins two sentences
        entries = [entry | {"input": re.sub(r"\n\s*\n", "\n", entry["input"])} for entry in entries]
    if option_order == "official":
        return [_example(task, entry, None) for entry in entries]
    return [_example(task, entry, random.Random(f"{seed}/{_stem(entry)}")) for entry in entries]


def split(examples: list[Example], seed: int = 1) -> tuple[list[Example], list[Example]]:
    """The authors' split, 80 % for training and 20 % for testing, index for index as numpy.random.seed(1) draws it."""
    order = np.random.RandomState(seed).permutation(len(examples))  # the same stream, without touching the global one
    cut = int(0.8 * len(examples))
    return [examples[i] for i in order[:cut]], [examples[i] for i in order[cut:]]


# --- Generated questions ----------------------------------------------------------------------------------------------


def generate(task: str, n: int, seed: int, part: str = "train", level: float | None = None) -> list[Example]:
    """`n` different questions from the grammar of a task, the same for the same arguments on every machine.

    part: a question belongs to "test" if a hash of its text, without options, is divisible by 5, else to "train". So
        training and test questions never overlap, whatever the seeds.
    level: None for the official sizes, from 0 to 1 for easier questions of the same kind, as in a curriculum.
    """
    if task not in TASKS:
        raise task_files.unknown(task, "generated")
    if part not in ("train", "test"):
        raise InputError(f'there is no part "{part}": choose train or test')
    rng = random.Random(f"{task}/{seed}/{part}/{level}")
    examples, seen, misses = [], set(), 0
    while len(examples) < n:
        entry = GENERATORS[task](rng, level=level)
        stem = _stem(entry)
        residue = int.from_bytes(hashlib.blake2b(stem.encode(), digest_size=8).digest(), "big") % 5
        if (residue == 0) == (part == "test") and stem not in seen:
            seen.add(stem)
            examples.append(_example(task, entry, rng))
            misses = 0
        elif (misses := misses + 1) == 10_000:
            raise InputError(f"the grammar of {task} has only about {len(examples)} questions: ask for fewer than {n}")
    return examples


def answer_text(example: Example) -> str:
    """The official answer in words: the text of the right option where there are options, else the target."""
    right = (option for i, option in enumerate(example.options) if option_letter(i) in example.targets)
    return next(right, example.targets[0])

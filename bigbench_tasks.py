"""The twelve BIG-bench tasks of the paper: from task files, or from grammars, to questions with their right answers.

    load("word_sorting", "official")          the official examples, downloaded once
    load("word_sorting", "benchmark_tasks")   the same from a directory laid out like BIG-bench's benchmark_tasks
    generate("word_sorting", 1000, seed=0)    new ones in the same format (support/grammars)

Questions are worded as in the authors' code (commit b598587). One thing differs on purpose: options are shuffled unless
`option_order="official"`, because the file of date_understanding lists the right option first in 364 of 369 examples.
"""

import contextlib
import hashlib
import http.client
import json
import os
import random
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from support.grammars import GENERATORS

# Directory under benchmark_tasks -> SHA-256 of the official task.json in it.
_SHA256 = {
    "tracking_shuffled_objects/three_objects": "74b74d3c8827c0387a3f24ee9efa7edd90b2d53af3daacb9961341af66f750a0",
    "tracking_shuffled_objects/five_objects": "6f747716801cb688d6b9a509f309a15c934b7afe611535830a004ceeb0cd6285",
    "tracking_shuffled_objects/seven_objects": "29126218e7354afda8f50ab2a44daaefdd63cc2bc23123c6b260b27dea3590a2",
    "logical_deduction/three_objects": "5e3f4a7569cb70bb1469374d3d34fb7883445a9d5743e1a81fd8dcdaf6fcb40f",
    "logical_deduction/five_objects": "552dec4d5067bdbe033e78e80fdf1f5a8061d17b385379b8ec5104fa17d07918",
    "logical_deduction/seven_objects": "5e24146d600b1b2e2d8958e23851e7c958b1a7644a2540fa0de7fa3e51a68cf7",
    "date_understanding": "ff716f0e399109146db3a998281c39954907b78268a9b633a95582d63847822f",
    "object_counting": "ec6371b4d9078a871ef6962d4991d2318db0b399cca78a0c90678972bdb115d6",
    "geometric_shapes": "39d326b8b77194140b7dce26eda153e33724edec45bc01893046671d35aaf21e",
    "penguins_in_a_table": "f743ab0bd8d500798fc0ab83fdd3547b924e9c1acb15ca11b65ac228c0ab557a",
    "reasoning_about_colored_objects": "0e5dbba357356e5bf4d0a27dd80c8af76646979159f8f5b1918c6f1d03e54b5a",
    "word_sorting": "8633aac2c5e59b0580f17a702d78c3a8294092144c7bb1380192dd5bb4255f29",
}
_DIRECTORY = {directory.replace("/", "_"): directory for directory in _SHA256}
TASKS = tuple(_DIRECTORY)

BIGBENCH_URL = "https://raw.githubusercontent.com/google/BIG-bench/main/bigbench/benchmark_tasks"
MAX_BYTES = 100_000_000
MAX_OPTIONS = 1000
MAX_LENGTH = 20_000  # characters of a question with its options, or of an answer; official ones have up to 900


class TaskError(ValueError):
    """A task, a file or a setting that cannot be used; the message is one sentence that says what to do about it."""


@dataclass(frozen=True)
class Example:
    """One question with its answers.

    question: the text that stands between "Q: " and "\\nA:", options included.
    targets: every answer that counts, the official one first; a letter such as "(B)" where there are options.
    options: the texts of the options in the order of their letters; empty where the answer is free text.
    steps: what leads to the answer, written down: an order, who held it before, a growing sum; some generated
        questions have it.
    """

    question: str
    targets: tuple[str, ...]
    options: tuple[str, ...] = ()
    task: str = ""
    steps: str = ""


def expand(names: str, data: str | Path = "generated") -> list[str]:
    """The tasks meant by a name, a family ("logical_deduction" is its three sizes), a list with commas, or "all".

    Where `data` is a directory, the name of a directory in it with a task.json is a task, too.
    """
    families = {directory.split("/")[0] for directory in _SHA256} - set(TASKS)
    chosen = []
    for name in (part.strip() for part in names.split(",")):
        found = [task for task in TASKS if name in ("all", task, _DIRECTORY[task].split("/")[0])]
        found = found or [name] * (Path(name).name == name and _task_file(name, data).exists())
        if not found:
            raise TaskError(
                f'there is no task "{name}": choose from {", ".join((*TASKS, *sorted(families)))}, or all, '
                "or name a directory with a task.json in the directory that is the data"
            )
        chosen += [task for task in found if task not in chosen]
    return chosen


# ------------------------------------------------------------------ from the BIG-bench format to a question


def option_letter(index: int) -> str:
    """(A) to (Z), then (AA), (AB) and so on."""
    name = ""
    while index >= 0:
        index, rest = divmod(index, 26)
        name = chr(ord("A") + rest) + name
        index -= 1
    return f"({name})"


def _stem(entry: dict) -> str:
    """The question without its options; what happens to empty lines is what the authors' code does."""
    prefix = entry.get("task_prefix", "") + entry.get("example_input_prefix", "")
    if "target_scores" in entry:
        return prefix.replace("\n\n", "\n") + entry["input"].replace("\n\n", "")
    return (prefix + entry["input"]).replace("\n\n", "\n")


def _example(task: str, entry: dict, rng: random.Random | None) -> Example:
    """The question for one entry of a task file; `rng` shuffles the options, None leaves them as they are."""
    steps = entry.get("steps", "")
    if "target_scores" not in entry:
        targets = entry["target"] if isinstance(entry["target"], list) else [entry["target"]]
        targets = sorted(targets, key=lambda target: not target.isdigit())  # "3" before "three", as the authors have it
        return Example(_stem(entry), tuple(targets), task=task, steps=steps)
    options = list(entry["target_scores"])
    if rng:
        rng.shuffle(options)
    letters = {option: option_letter(i) for i, option in enumerate(options)}
    lines = [_stem(entry), "Options:", *(f"{letter} {option}" for option, letter in letters.items())]
    targets = tuple(letters[option] for option, score in entry["target_scores"].items() if score == 1)
    return Example("\n".join(lines), targets, tuple(options), task, steps)


# ------------------------------------------------------------------ official examples


def load(task: str, data: str | Path, option_order: str = "shuffled", seed: int = 0) -> list[Example]:
    """The examples of a task file, in the order of the file.

    task: one of TASKS, or, where data is a directory, one of your own: the name of a directory in it with a task.json.
    data: "official", or a directory laid out like BIG-bench's benchmark_tasks.
    option_order: "shuffled" (the order depends on `seed` and the question, so it never changes) or "official".
    """
    if task not in TASKS and data == "official":
        raise TaskError(f'there is no task "{task}": choose from {", ".join(TASKS)}')
    if option_order not in ("shuffled", "official"):
        raise TaskError(f'there is no option order "{option_order}": choose shuffled or official')
    entries = _read(official_file(task) if data == "official" else _task_file(task, data))
    if option_order == "official":
        return [_example(task, entry, None) for entry in entries]
    return [_example(task, entry, random.Random(f"{seed}/{_stem(entry)}")) for entry in entries]


def _task_file(task: str, data: str | Path) -> Path:
    return Path(data) / _DIRECTORY.get(task, task) / "task.json"


def split(examples: list[Example], seed: int = 1) -> tuple[list[Example], list[Example]]:
    """The authors' 80 % to train on and 20 % to test on, index for index as numpy.random.seed(1) draws them."""
    order = np.random.RandomState(seed).permutation(len(examples))  # the same stream, without touching the global one
    cut = int(0.8 * len(examples))
    return [examples[i] for i in order[:cut]], [examples[i] for i in order[cut:]]


def _read(path: Path) -> list[dict]:
    """The entries of a task file, checked, each together with the prefixes that the file states once."""
    try:
        size = path.stat().st_size
        content = json.loads(path.read_text("utf-8")) if size <= MAX_BYTES else None
    except OSError as error:
        raise TaskError(f'cannot read {path} ({error.strerror}): name another directory, or "official"') from error
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{path} is not JSON in UTF-8 ({type(error).__name__}): fetch the file again") from error
    if size > MAX_BYTES:
        raise TaskError(f"{path} is too large for a task file (over {MAX_BYTES // 10**6} MB): fetch the file again")
    if not isinstance(content, dict) or not isinstance(content.get("examples"), list) or not content["examples"]:
        raise TaskError(f'{path} has no list of "examples": put a BIG-bench task file there')
    prefixes = {field: content[field] for field in ("task_prefix", "example_input_prefix") if field in content}
    for field, prefix in prefixes.items():
        if not isinstance(prefix, str) or not _is_text(f".{prefix}"):
            raise TaskError(f'{path}: "{field}" is not a text of a sensible length: fix it or leave it out')
    for number, entry in enumerate(content["examples"], start=1):
        problem = _problem(entry)
        if problem:
            raise TaskError(f"{path}: example {number}: {problem}")
    fields = ("input", "target_scores", "target")
    return [prefixes | {field: entry[field] for field in fields if field in entry} for entry in content["examples"]]


def _is_text(value) -> bool:
    """Words of a sensible length. Lone surrogates are valid JSON, but no tokenizer takes them."""
    if not isinstance(value, str) or len(value) > MAX_LENGTH:
        return False
    return value.strip() != "" and value.encode("utf-8", "replace").decode() == value


def _problem(entry) -> str:
    """What is wrong with an entry of a task file, with its remedy; empty if nothing is."""
    if not isinstance(entry, dict):
        return "it is not an object: write {...} with input and target"
    if not _is_text(entry.get("input")):
        return f'"input" is not a text of up to {MAX_LENGTH} characters: write the question there'
    if "target_scores" not in entry:
        targets = entry["target"] if isinstance(entry.get("target"), list) else [entry.get("target")]
        good = targets and all(_is_text(target) for target in targets)
        return "" if good else '"target" is neither a short text nor a list of them: write the right answer there'
    scores = entry["target_scores"]
    if isinstance(scores, dict) and len(scores) > MAX_OPTIONS:
        return f'"target_scores" has {len(scores)} options: leave at most {MAX_OPTIONS}'
    if not isinstance(scores, dict) or not all(_is_text(option) for option in scores):
        return '"target_scores" is not an object of options with scores: write {"option": 1, "other option": 0}'
    if not all(isinstance(score, int | float) for score in scores.values()):
        return '"target_scores" has a score that is not a number: write 1 for right and 0 for wrong'
    if len(entry["input"]) + sum(map(len, scores)) > MAX_LENGTH:
        return f"question and options have more than {MAX_LENGTH} characters: shorten them"
    return "" if 1 in scores.values() else '"target_scores" has no right option: give it the score 1'


def official_file(task: str) -> Path:
    """The official task file out of the cache, downloaded when it is not there; its SHA-256 is checked every time.

    HIR_CACHE moves the cache away from ~/.cache/hir, HIR_BIGBENCH_URL the source away from BIG-bench's repository.
    """
    directory = _DIRECTORY[task]
    path = Path(os.environ.get("HIR_CACHE") or "~/.cache/hir").expanduser() / "bigbench" / directory / "task.json"
    with contextlib.suppress(OSError):
        if hashlib.sha256(path.read_bytes()).hexdigest() == _SHA256[directory]:
            return path
    url = f"{os.environ.get('HIR_BIGBENCH_URL') or BIGBENCH_URL}/{directory}/task.json"
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read(MAX_BYTES)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise TaskError(
            f"cannot download {url} ({error}): check the connection, or give a directory as data"
        ) from error
    if hashlib.sha256(content).hexdigest() != _SHA256[directory]:
        raise TaskError(f"{url} is not the official file (SHA-256): try again, or set HIR_BIGBENCH_URL to a mirror")
    beside = path.with_name(f"task.json.{os.getpid()}")  # renamed when complete, so that nobody reads half a file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        raise TaskError(f"cannot write {path} ({error.strerror}): set HIR_CACHE to another directory") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    return path


# ------------------------------------------------------------------ generated examples


def generate(task: str, n: int, seed: int, part: str = "train", level: float | None = None) -> list[Example]:
    """`n` different questions from the grammar of a task, the same for the same arguments on every machine.

    part: a question belongs to "test" if a hash of its text, options left out, is divisible by 5, else to "train". So
        what any seed generates for training shares no question with what any seed generates for testing.
    level: None for the official sizes, from 0 to 1 for easier relatives (support/grammars).
    """
    if task not in TASKS:
        raise TaskError(f'there is no task "{task}": choose from {", ".join(TASKS)}')
    if part not in ("train", "test"):
        raise TaskError(f'there is no part "{part}": choose train or test')
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
            raise TaskError(f"the grammar of {task} has only about {len(examples)} questions: ask for fewer than {n}")
    return examples


def answer_text(example: Example) -> str:
    """The official answer in words: the text of the right option where there are options, else the target."""
    right = (option for i, option in enumerate(example.options) if option_letter(i) in example.targets)
    return next(right, example.targets[0])


def slipped_answer(example: Example) -> str:
    """A wrong answer, as by a slip: the next option that is not right, one too many, the last two words exchanged."""
    if example.options:
        right = [option_letter(i) in example.targets for i in range(len(example.options))]
        below = (right.index(True) + i for i in range(1, len(right)))
        return next((example.options[i % len(right)] for i in below if not right[i % len(right)]), "none of these")
    target = example.targets[0]
    if target.isdigit():
        return str(int(target) + 1)
    words = target.split()
    return " ".join([*words[:-2], *words[:-3:-1]])

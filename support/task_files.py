"""Task files of BIG-bench, BIG-Bench Hard or your own: finding them, checking them, reading their questions."""

import hashlib
import json
import math
import os
import re
from contextlib import suppress
from pathlib import Path

from support import json_text
from support.downloads import download
from support.errors import InputError, did_you_mean, input_errors
from support.options import MAX_OPTIONS, meant, options_in, without_letters

# Directory under benchmark_tasks -> SHA-256 of the official task.json in it; there, `sha256sum -c` takes this file, too.
SUMS = Path(__file__).with_name("official.sha256").read_text("ascii").splitlines()
SHA256 = {path.removesuffix("/task.json"): digest for digest, path in map(str.split, SUMS)}
DIRECTORY = {directory.replace("/", "_"): directory for directory in SHA256}  # by the name of the task

# Where tasks are in a checkout of BIG-bench, in one of BIG-Bench Hard, and in any other directory.
PLACES = ("bigbench/benchmark_tasks", "benchmark_tasks", "bbh", ".")

BIGBENCH_URL = "https://raw.githubusercontent.com/google/BIG-bench/main/bigbench/benchmark_tasks"
MAX_BYTES = 100_000_000
MAX_LENGTH = 20_000  # characters of a question with its options, or of an answer; official ones have up to 900


# Fields of a task file that are read, or that do not concern the questions.
READ = {"examples", "task_prefix", "example_input_prefix", "canary", "name", "description", "keywords", "contributors"}


# --- Where they are ---------------------------------------------------------------------------------------------------


def path_of(task: str, data: str | Path) -> Path:
    """The file of a task in a directory laid out like BIG-bench's benchmark_tasks."""
    return Path(data) / DIRECTORY.get(task, task) / "task.json"


def official(task: str) -> Path:
    """The official task file from the cache, downloaded if it is not there; its SHA-256 is checked every time.

    HIR_CACHE replaces ~/.cache/hir as the cache, HIR_BIGBENCH_URL replaces BIG-bench's repository as the source.
    """
    path = path_of(task, Path(os.environ.get("HIR_CACHE") or "~/.cache/hir").expanduser() / "bigbench")
    sha256 = SHA256[DIRECTORY[task]]
    with suppress(OSError):
        if hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return path
    url = f"{os.environ.get('HIR_BIGBENCH_URL') or BIGBENCH_URL}/{DIRECTORY[task]}/task.json"
    if not download(url, path, sha256):
        raise InputError(f"{url} does not exist (404): set HIR_BIGBENCH_URL to a mirror, or give a directory as data")
    return path


def find(data: str | Path) -> dict[str, Path]:
    """The task files in a directory, by the names of their tasks; or the one that `data` itself is.

    NAME/task.json and NAME.json are the task NAME, FAMILY/NAME/task.json is FAMILY_NAME. The official ones come first.
    In BIG-bench, FAMILY/task.json only describes the family.
    """
    place, found = Path(data), {}
    with input_errors(f"{data} cannot be read", 'name another directory, or "official"', OSError):
        if place.is_file():
            return {_name(place, place.parent): place}
        if not place.is_dir():
            remedy = "as data, name one with tasks in it, generated, or official"
            raise InputError(f'there is no directory "{data}": {remedy}')
        for directory in (place / name for name in PLACES):
            for pattern in ("*/task.json", "*/*/task.json", "*.json"):
                for path in sorted(set(directory.glob(pattern)) - set(found.values())):
                    if path.name != "task.json" or not any(path.parent.glob("*/task.json")):
                        found.setdefault(_name(path, directory), path)
    if not found:
        raise InputError(f"{data} holds no task: put NAME/task.json or NAME.json there")
    known = list(DIRECTORY)
    return dict(sorted(found.items(), key=lambda item: (known.index(item[0]) if item[0] in known else 99, item[0])))


def _name(path: Path, directory: Path) -> str:
    """The name of the task in a file."""
    folder = Path(os.path.abspath(path.parent if path.name == "task.json" else path.with_suffix("")))
    official = f"{folder.parent.name}_{folder.name}"
    if official in DIRECTORY:
        return official
    return "_".join(folder.relative_to(os.path.abspath(directory)).parts) or folder.name


def families(data: str | Path) -> dict[str, str]:
    """The tasks in the data, each with its family, or with its own name if it has none."""
    files = {} if data in ("generated", "official") else find(data)
    parts = {task: path.parts for task, path in files.items() if path.name == "task.json" and len(path.parts) > 2}
    nested = {task: names[-3] for task, names in parts.items() if task == "_".join(names[-3:-1])}
    return {task: DIRECTORY.get(task, nested.get(task, task)).split("/")[0] for task in files or DIRECTORY}


def locate(task: str, data: str | Path) -> Path:
    """The file of a task."""
    there = dict.fromkeys(DIRECTORY) if data == "official" else find(data)
    if task not in there:
        raise unknown(task, data)
    return there[task] or official(task)


def unknown(name: str, data: str | Path) -> InputError:
    """The error for a task that is not in the data."""
    there = families(data)
    names = [*there, *sorted(set(there.values()) - set(there))]
    where = "" if data == "generated" else f" in {data}"
    hint = did_you_mean(name, names) or ":"
    names[50:] = [f"{len(names) - 50} others that --list shows"] * (len(names) > 50)
    own = "; a task of your own needs --data DIRECTORY" if data == "generated" else ""
    return InputError(f'there is no task "{name}"{where}{hint} choose from {", ".join(names)}, or all{own}')


def sums(tasks: list[str], data: str | Path) -> dict[str, str]:
    """The SHA-256 of each task's file in a directory; those of the official files are fixed above."""
    if data in ("generated", "official"):
        return {}
    with input_errors(f"{data} cannot be read", "name another directory", OSError):
        return {task: hashlib.sha256(locate(task, data).read_bytes()).hexdigest() for task in tasks}


# --- What is in them --------------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict]:
    """The entries of a task file, checked: `input`, `target_scores` or a list `target`, maybe `steps`, and the prefixes.

    Options in a separate field or in the text of the question become `target_scores`.
    """
    content = _content(path)
    # BIG-bench's default is "\nQ: ", which the prompt writes itself.
    task_prefix, prefix = content.get("task_prefix", ""), content.get("example_input_prefix", "Q:")
    prefix = "\n" if prefix.strip() == "Q:" else prefix
    prefixes = {"task_prefix": task_prefix, "example_input_prefix": prefix if task_prefix else prefix.lstrip()}
    return [prefixes | _normalized(entry) for entry in content["examples"]]


def doubts(path: Path) -> tuple[set[str], int, int]:
    """The fields of a task file that are ignored; how many targets are none of the options, or letters without options.

    A field that asks for what is done anyway is not listed: a true `append_choices_to_input`, an output prefix `A:`.
    """
    content, strangers, letters = _content(path), 0, 0
    default = ("", "A:", "[]", "{}", "None", "True")
    names = {name for name, value in content.items() if name not in READ and str(value).strip() not in default}
    for entry in content["examples"]:
        answer = {"target_scores"} if "target_scores" in entry else {"target", _list_of(entry)}
        names |= entry.keys() - {"input", "steps"} - answer
        if targets := _normalized(entry).get("target"):
            options = options_in(entry["input"])[1]
            strangers += options != []
            letters += options == [] and re.fullmatch(r"\([A-Z]\)", targets[0]) is not None
    return names, strangers, letters


def _content(path: Path) -> dict:
    """What is in a task file, checked."""
    with input_errors(f"cannot read {path}", 'name another directory, or "official"', OSError):
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is too large for a task file (over {MAX_BYTES // 10**6} MB): fetch it again")
        data = path.read_bytes()
    content = json_text.parse(data, path)
    if not isinstance(content, dict) or not isinstance(content.get("examples"), list):
        raise InputError(f'{path} has no list of "examples": write {json_text.SHAPE}')
    if not content["examples"]:
        raise InputError(f'{path}: the list of "examples" is empty: write {json_text.SHAPE}')
    for field in ("task_prefix", "example_input_prefix"):
        if not isinstance(content.get(field, ""), str) or not _is_text(f".{content.get(field, '')}"):
            raise InputError(f'{path}: "{field}" is not a text of a sensible length: fix it or leave it out')
    for number, entry in enumerate(content["examples"], start=1):
        if problem := _problem(entry):
            raise InputError(f"{path}: example {number}: {problem}")
    return content


def _normalized(entry: dict) -> dict:
    """An entry with `target_scores` if it has options in any form, otherwise with a list `target`."""
    question, inside = options_in(entry["input"])
    steps = {"steps": entry["steps"].strip().rstrip(".")} if "steps" in entry else {}
    if scores := entry.get("target_scores"):
        best = max(scores.values())
        choices, right = list(scores), {option for option, score in scores.items() if score == best}
    else:
        choices = _listed(entry) or inside
        right = {option for target in _targets(entry) for option in meant(target, choices)}
    if not right:
        return {"input": entry["input"], "target": _targets(entry)} | steps
    question = question if set(inside) == set(choices) else entry["input"]
    return {"input": question, "target_scores": {option: int(option in right) for option in choices}} | steps


def _targets(entry: dict) -> list:
    """The targets of an entry; numbers as texts."""
    target = entry.get("target")
    return list(map(_as_text, target if isinstance(target, list) else [target]))


def _list_of(entry: dict) -> str:
    """The name of the field with the options beside a target."""
    return "options" if "options" in entry else "choices"


def _listed(entry: dict) -> list:
    """The texts in that field, without any letters before them; [] if there is no such field."""
    listed = entry.get(_list_of(entry), [])
    listed = list(map(_as_text, listed)) if isinstance(listed, list) else [None]
    return listed if not all(map(_is_text, listed)) else without_letters(listed) or listed


def _as_text(value: object) -> object:
    """A number or a truth value as it is written in JSON, 4.0 as 4; anything else as it is."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value) if isinstance(value, int | float) else value


def _is_text(value: object) -> bool:
    """Words of a sensible length. Lone surrogates are valid JSON, but no tokenizer takes them."""
    if not isinstance(value, str) or len(value) > MAX_LENGTH:
        return False
    return value.strip() != "" and value.encode("utf-8", "replace").decode() == value


def _problem(entry: object) -> str:
    """What is wrong with an entry of a task file, and the remedy; empty if nothing is."""
    if not isinstance(entry, dict):
        return "it is not an object: write {...} with input and target"
    if not _is_text(entry.get("input")) and not ("target_scores" in entry and entry.get("input") == ""):
        return f'"input" is not a text of up to {MAX_LENGTH} characters: write the question there'
    if not _is_text(entry.get("steps", ".")):
        return '"steps" is not a short text: write what leads to the answer, or leave it out'
    if "target_scores" in entry:
        return _problem_of_scores(entry["target_scores"], len(entry["input"]))
    targets, listed = _targets(entry), _listed(entry)
    if not targets or not all(map(_is_text, targets)):
        return '"target" is neither a short text nor a list of them: write the right answer there'
    if _list_of(entry) not in entry:
        return ""
    if not listed or not all(map(_is_text, listed)):
        return f'"{_list_of(entry)}" is not a list of texts: write ["red", "blue"]'
    if problem := _problem_of_scores(dict.fromkeys(listed, 1), len(entry["input"])):
        return problem
    if all(meant(target, listed) for target in targets):
        return ""
    return f'"target" is none of the {_list_of(entry)}: write the text of one of them, or its letter'


def _problem_of_scores(scores: object, length: int) -> str:
    """What is wrong with options and their scores, beside a question of this length."""
    if not isinstance(scores, dict) or not (len(scores) > MAX_OPTIONS or all(map(_is_text, scores))):
        return '"target_scores" is not an object of options with scores: write {"option": 1, "other option": 0}'
    if len(scores) > MAX_OPTIONS or length + sum(map(len, scores)) > MAX_LENGTH:
        return f"it has more than {MAX_OPTIONS} options, or {MAX_LENGTH} characters: shorten it"
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores.values()):
        return '"target_scores" has a score that is not a number: write 1 for right and 0 for wrong'
    return "" if max(scores.values(), default=0) > 0 else '"target_scores" has no right option: give it the score 1'

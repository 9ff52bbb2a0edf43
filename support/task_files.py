"""BIG-bench's task files: where they are, whether they are what they should be, and the questions in them."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from support.downloads import download
from support.errors import InputError, input_errors

# Directory under benchmark_tasks -> SHA-256 of the official task.json in it.
SHA256 = {
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
DIRECTORY = {directory.replace("/", "_"): directory for directory in SHA256}  # by the name of the task

BIGBENCH_URL = "https://raw.githubusercontent.com/google/BIG-bench/main/bigbench/benchmark_tasks"
MAX_BYTES = 100_000_000
MAX_OPTIONS = 1000
MAX_LENGTH = 20_000  # characters of a question with its options, or of an answer; official ones have up to 900


def path_of(task: str, data: str | Path) -> Path:
    """The file of a task in a directory laid out like BIG-bench's benchmark_tasks."""
    return Path(data) / DIRECTORY.get(task, task) / "task.json"


def official(task: str) -> Path:
    """The official task file out of the cache, downloaded when it is not there; its SHA-256 is checked every time.

    HIR_CACHE moves the cache away from ~/.cache/hir, HIR_BIGBENCH_URL the source away from BIG-bench's repository.
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


def read(path: Path) -> list[dict]:
    """The entries of a task file, checked, each together with the prefixes that the file states once."""
    with input_errors(f"cannot read {path}", 'name another directory, or "official"', OSError):
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is too large for a task file (over {MAX_BYTES // 10**6} MB): fetch it again")
        data = path.read_bytes()
    with input_errors(f"{path}: not JSON in UTF-8", "fetch the file again", ValueError, RecursionError):
        content = json.loads(data.decode())
    if not isinstance(content, dict) or not isinstance(content.get("examples"), list) or not content["examples"]:
        raise InputError(f'{path} has no list of "examples": put a BIG-bench task file there')
    prefixes = {field: content[field] for field in ("task_prefix", "example_input_prefix") if field in content}
    for field, prefix in prefixes.items():
        if not isinstance(prefix, str) or not _is_text(f".{prefix}"):
            raise InputError(f'{path}: "{field}" is not a text of a sensible length: fix it or leave it out')
    for number, entry in enumerate(content["examples"], start=1):
        if problem := _problem(entry):
            raise InputError(f"{path}: example {number}: {problem}")
    fields = ("input", "target_scores", "target")
    return [prefixes | {field: entry[field] for field in fields if field in entry} for entry in content["examples"]]


def _is_text(value: object) -> bool:
    """Words of a sensible length. Lone surrogates are valid JSON, but no tokenizer takes them."""
    if not isinstance(value, str) or len(value) > MAX_LENGTH:
        return False
    return value.strip() != "" and value.encode("utf-8", "replace").decode() == value


def _problem(entry: object) -> str:
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
    if not isinstance(scores, dict) or not (len(scores) > MAX_OPTIONS or all(map(_is_text, scores))):
        return '"target_scores" is not an object of options with scores: write {"option": 1, "other option": 0}'
    if len(scores) > MAX_OPTIONS or len(entry["input"]) + sum(map(len, scores)) > MAX_LENGTH:
        return f"it has more than {MAX_OPTIONS} options, or {MAX_LENGTH} characters: shorten it"
    if not all(isinstance(score, int | float) for score in scores.values()):
        return '"target_scores" has a score that is not a number: write 1 for right and 0 for wrong'
    return "" if 1 in scores.values() else '"target_scores" has no right option: give it the score 1'

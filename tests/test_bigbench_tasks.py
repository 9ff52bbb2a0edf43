"""Tests of bigbench_tasks.py."""

import contextlib
import hashlib
import http.server
import json
import re
import threading

import numpy as np
import pytest

import bigbench_tasks as tasks
from bigbench_tasks import TASKS, expand, generate, load, split
from support import task_files
from support.errors import InputError
from tests.conftest import BIGBENCH, needs_official_files, write

COUNTS = dict(zip(TASKS, (750, 1250, 1750, 300, 500, 700, 369, 1000, 360, 149, 2000, 1900), strict=True))

# ------------------------------------------------------------------ official questions


@needs_official_files
def test_official_files():
    for task in TASKS:
        examples = load(task, BIGBENCH)
        assert len(examples) == COUNTS[task] and all(example.task == task for example in examples)
        np.random.seed(1)  # the authors' code, literally
        order = np.random.permutation(len(examples))
        cut = int(0.8 * len(examples))
        assert split(examples) == ([examples[i] for i in order[:cut]], [examples[i] for i in order[cut:]])
    assert sum(len(example.targets) == 2 for example in load("geometric_shapes", BIGBENCH)) == 72
    assert sum(len(example.targets) == 2 for example in load("reasoning_about_colored_objects", BIGBENCH)) == 816
    assert load("object_counting", BIGBENCH)[0].targets[0].isdigit()
    letters = [example.targets[0] for example in load("date_understanding", BIGBENCH, option_order="official")]
    assert letters.count("(A)") == 364
    letters = [example.targets[0] for example in load("date_understanding", BIGBENCH)]
    assert max(map(letters.count, letters)) < 100
    assert letters == [example.targets[0] for example in load("date_understanding", BIGBENCH)]
    widest = max(load("reasoning_about_colored_objects", BIGBENCH), key=lambda example: len(example.options))
    assert "\n(Z) " in widest.question and widest.question.split("\n")[-1].startswith("(AH) ")


@needs_official_files
def test_questions_are_worded_as_the_authors_do():
    question = load("word_sorting", BIGBENCH)[0].question
    assert question.startswith("Sort the following words alphabetically:\nList: ")
    question = load("logical_deduction_three_objects", BIGBENCH, option_order="official")[0].question
    assert re.fullmatch(r"The following .+ paragraph\.\n.+\.\nOptions:\n\(A\) .+\.\n\(B\) .+\.\n\(C\) .+\.", question)
    assert "ball. As the game" in load("tracking_shuffled_objects_three_objects", BIGBENCH)[0].question
    # The generators keep to that: the first words of every line are those of the official questions.
    for task in ("word_sorting", "logical_deduction_three_objects", "penguins_in_a_table", "geometric_shapes"):
        official, ours = load(task, BIGBENCH)[0].question, generate(task, 1, seed=0)[0].question
        assert official[:30] == ours[:30]


def test_expand():
    assert tuple(task_files.DIRECTORY) == TASKS
    assert expand("all") == list(TASKS) and expand("object_counting") == ["object_counting"]
    assert expand("logical_deduction, logical_deduction_five_objects,word_sorting") == [*TASKS[3:6], "word_sorting"]
    assert expand("logical_deduction/three_objects") == ["logical_deduction_three_objects"]
    for name in ("", "logical", "word_sorting,", "three_objects"):
        with pytest.raises(InputError, match=r"tracking_shuffled_objects_three_objects.*logical_deduction, "):
            expand(name)


GOOD = {"input": "Is it?", "target_scores": {"yes": 1, "no": 0}}
BAD_FILES = {"no examples": {}, "a text": {"examples": "none"}, "prefix": {"examples": [GOOD], "task_prefix": 3}}
BAD_EXAMPLES = [
    None, {}, {"input": 3, "target": "x"}, {"input": " ", "target": "x"}, {"input": "?"}, {"input": "?", "target": []},
    {"input": "?", "target": ["x", None]}, {"input": "?", "target": "\ud800"}, GOOD | {"target_scores": {}},
    GOOD | {"target_scores": {"yes": 0}}, GOOD | {"target_scores": {"yes": float("nan"), "no": 1}},
    GOOD | {"target_scores": {"yes": "1"}}, GOOD | {"target_scores": ["yes"]},
    {"input": "?", "target": "x", "steps": 3}, {"input": "?", "target": "x", "options": "x or y"},
    {"input": "?", "target": "x", "choices": []}, {"input": "?", "target": "x", "options": ["y", "z"]},
    GOOD | {"target_scores": {"": 1}}, GOOD | {"target_scores": {str(i): 1 for i in range(1001)}},
]  # fmt: skip
BAD_FILES |= {json.dumps(bad)[:60]: {"examples": [GOOD, bad]} for bad in BAD_EXAMPLES}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
    path = write(tmp_path / "word_sorting" / "task.json", BAD_FILES[name])
    with pytest.raises(InputError) as error:
        load("word_sorting", tmp_path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message and ": " in message
    assert "example 2" in message or name in ("no examples", "a text", "prefix")


@pytest.fixture
def own_file(tmp_path):
    """A task file under the name and in the place of word_sorting's."""
    examples = [{"input": "b a", "target": "a b"}] * 3
    return write(tmp_path / "data" / "word_sorting" / "task.json", {"examples": examples})


def test_bad_arguments(own_file, monkeypatch):
    data = own_file.parents[1]
    for call in (
        lambda: load("object_counting", data), lambda: load("sorting", "official"),
        lambda: load("word_sorting", data, option_order="random"),
        lambda: generate("sorting", 1, 0), lambda: generate("word_sorting", 1, 0, part="valid"),
    ):  # fmt: skip
        with pytest.raises(InputError, match="choose"):
            call()
    monkeypatch.setattr(task_files, "MAX_BYTES", 50)
    with pytest.raises(InputError, match="too large"):
        load("word_sorting", data)
    two = lambda rng, level: {"input": rng.choice("ab"), "target": "c"}  # noqa: E731
    monkeypatch.setitem(tasks.GENERATORS, "word_sorting", two)
    with pytest.raises(InputError, match="ask for fewer than 9"):
        generate("word_sorting", 9, seed=0)


def test_official_files_are_downloaded_once_and_checked(own_file, tmp_path, monkeypatch):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "served"))

        def log_message(self, *args):
            requests.append(args)

    requests, cache, served = [], tmp_path / "cache", tmp_path / "served" / "word_sorting" / "task.json"
    served.parent.mkdir(parents=True)
    official = own_file.read_bytes()
    monkeypatch.setitem(task_files.SHA256, "word_sorting", hashlib.sha256(official).hexdigest())
    monkeypatch.setenv("HIR_CACHE", str(cache))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HIR_BIGBENCH_URL", f"http://127.0.0.1:{server.server_port}")

    def files():
        return [path for path in cache.rglob("*") if path.is_file()]

    with contextlib.closing(server.socket):
        with pytest.raises(InputError, match="404"):
            load("word_sorting", "official")
        served.write_bytes(official[:-1])
        with pytest.raises(InputError, match="SHA-256"):
            load("word_sorting", "official")
        assert files() == []
        served.write_bytes(official)
        assert load("word_sorting", "official") == load("word_sorting", own_file.parents[1])
        (cached,) = files()
        asked = len(requests)
        load("word_sorting", "official")
        assert len(requests) == asked, "the cache was not used"
        cached.write_bytes(b"damaged later")
        assert len(load("word_sorting", "official")) == 3 and cached.read_bytes() == official
        server.shutdown()
    cached.unlink()
    with pytest.raises(InputError, match="could not be fetched"):
        load("word_sorting", "official")

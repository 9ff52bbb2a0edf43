"""Tests of bigbench_tasks.py and generators.py.

The solvers below read nothing but the text of a question, and find its answers in another way than the generators did.
"""

import collections
import contextlib
import functools
import hashlib
import http.server
import itertools
import json
import math
import os
import re
import subprocess
import sys
import threading
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import bigbench_tasks as tasks
from bigbench_tasks import TASKS, expand, generate, load, split
from support import task_files
from support.errors import InputError
from tests.conftest import BIGBENCH, needs_official_files

COUNTS = dict(zip(TASKS, (750, 1250, 1750, 300, 500, 700, 369, 1000, 360, 149, 2000, 1900), strict=True))
NUMBERS = re.findall(
    r"\S+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty twenty-one",
)
ORDINALS = ["zeroth", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"]

# ------------------------------------------------------------------ solvers: question text -> right answer


def things(text):
    """Split "a cat, two dogs, and an owl" into its three things."""
    return re.split(r",? and |, ", text)


def solve_logical_deduction(text, options):
    head, *statements = re.split(r"(?<=\.) ", text.split("\n")[1])
    names = [re.sub("^an? ", "", name) for name in things(head.rstrip(".").split(": ")[1])]

    def place(where):
        rank = next((k for k, word in enumerate(("second", "third", "fourth"), 2) if word in where), 1)
        return len(names) - rank if re.search("right|last|oldest|cheapest", where) else rank - 1

    def holds(statement):  # a test of an order, which is a tuple of places
        one, *others = sorted((n for n in names if re.search(rf"\b{n}\b", statement)), key=statement.index)
        i, where = names.index(one), place(statement.replace(one, ""))
        if not others:
            return lambda order: order[i] == where
        j = names.index(others[0])
        if re.search("left of|above|newer than|more expensive than", statement):
            return lambda order: order[i] < order[j]
        return lambda order: order[i] > order[j]

    orders = list(itertools.permutations(range(len(names))))
    for statement in statements:
        orders = list(filter(holds(statement), orders))
    assert len(orders) == 1, "the statements do not leave exactly one order"
    return {option for option in options if holds(option)(orders[0])}


def solve_tracking(text, options):
    start, rest = re.split(r"\. (?=As |Throughout )", text)
    has = {}
    for held in re.split(r", and |, ", start.rsplit(": ", 1)[1]):
        who, thing = re.fullmatch(r"(\w+) (?:has an?|is playing|gets|is dancing with) (.+)", held.strip()).groups()
        has[who] = thing
    for one, other in re.findall(r"(\w+) and (\w+) (?:swap|trade|switch)", rest):
        has[one], has[other] = has[other], has[one]
    return {has[re.search(r"At the end of the \w+, (\w+)", rest)[1]] + "."}


KINDS = {
    "animals": "cat dog cow pig goat bear duck fish frog snail snake mouse mice rabbit donkey chicken",
    "fruits": "apple banana orange grape peach plum nectarine strawberr raspberr blackberr",
    "vegetables": "carrot onion potato cabbage yam leek garlic cauliflower lettuce broccoli celery",
    "musical instruments": "piano violin flute clarinet trumpet trombone drum accordion harp guitar",
    "objects": "",
}


def solve_object_counting(text, options):
    listed, kind = re.fullmatch(r"I have (.+)\. How many (.+) do I have\?", text).groups()
    count = 0
    for number, noun in (thing.split(" ", 1) for thing in things(listed)):
        if any(re.search(rf"\b{word}", noun) for word in KINDS[kind].split() or [""]):
            count += 1 if number in ("a", "an") else NUMBERS.index(number)
    return {str(count), NUMBERS[count]}


def solve_word_sorting(text, options):
    return {" ".join(sorted(text.split("List: ")[1].split()))}


def us(text):
    return datetime.strptime(text, "%m/%d/%Y").date()


def mdy(text):
    return datetime.strptime(text, "%B %d, %Y" if len(text.split()[0]) > 3 else "%b %d, %Y").date()


def years(day, n):
    return date(day.year + n, day.month, day.day)


def last(month, year):
    return date(year + month // 12, month % 12 + 1, 1) - timedelta(1)


def month_number(name):
    return datetime.strptime(name[:3], "%b").month


DATE, MDY, DAY = r"(\d+/\d+/\d+)", r"(\w+ \d+, \d+)", timedelta(1)
TODAY = {
    rf"Today is {MDY}\..*": mdy,
    rf"It is {DATE} today.": us,
    rf"Today, {DATE}, is a day .*": us,
    rf"The current local time is .* of {DATE}.": us,
    rf"Yesterday was {MDY}.": lambda d: mdy(d) + DAY,
    rf"Yesterday, {MDY}, Jane ate .*": lambda d: mdy(d) + DAY,
    rf"Tomorrow is {DATE}.": lambda d: us(d) - DAY,
    rf"The day before yesterday was {DATE}.": lambda d: us(d) + 2 * DAY,
    rf"Jane booked a flight for tomorrow, {MDY}.": lambda d: mdy(d) - DAY,
    rf"Today's meeting is rescheduled to \d+ am tomorrow, {DATE}.": lambda d: us(d) - DAY,
    rf"The concert was set for {DATE}, but was delayed by one day to today.": lambda d: us(d) + DAY,
    rf"The deadline is {MDY}, which is (\d) days away from now.": lambda d, n: mdy(d) - int(n) * DAY,
    rf"It was {MDY} a week ago.": lambda d: mdy(d) + 7 * DAY,
    rf"Jane quit her job on {MDY}. (\d+) days have passed.": lambda d, n: mdy(d) + int(n) * DAY,
    rf"{MDY} is like yesterday to Jane, but is actually (\d) years ago.": lambda d, n: years(mdy(d), int(n)),
    rf"Jane and John married on {MDY}. Today is their (\d)-year anniversary.": lambda d, n: years(mdy(d), int(n)),
    rf"Jane and John married on {MDY}. Today is their golden wedding.": lambda d: years(mdy(d), 50),
    r"Today is the first day of (\d+).": lambda y: date(int(y), 1, 1),
    r"This is the last day of (\d+).": lambda y: date(int(y), 12, 31),
    r"Today is Christmas Eve of (\d+).": lambda y: date(int(y), 12, 24),
    r"Today is the last day of the first quarter of (\d+).": lambda y: date(int(y), 3, 31),
    r"(\d+) is coming in (\d) days.": lambda y, n: date(int(y), 1, 1) - int(n) * DAY,
    r"Today is (\d+)/(\d+). Jane is watching NFL (\d+).": lambda m, d, y: date(int(y), int(m), int(d)),
    r"Jane is celebrating the last day of (\w+) (\d+).": lambda m, y: last(month_number(m), int(y)),
    r"Today is the (\w+) day of the third month of (\d+).": lambda n, y: date(int(y), 3, ORDINALS.index(n)),
    r"Jane was born on the last day of (\w+) in (\d+). Today is her (\d+)-year-old birthday.": (
        lambda m, y, n: years(last(month_number(m), int(y)), int(n))
    ),
    r"Jane got her job in (\d+). Today is her (\d)-year .* on (\w+) (\d+), her second day .*": (
        lambda y, n, m, d: years(date(int(y), month_number(m), int(d)) - DAY, int(n))
    ),
    r"Jane visits .* on day (\d+) of each month starting from the (\w+) of (\d+). It is her (\w+) visit .* today.": (
        lambda d, m, y, n: months(date(int(y), month_number(m), int(d)), ORDINALS.index(n) - 1)
    ),
    r"In the UK, .* today is (\d+)/(\d+)/(\d+) to them.": lambda d, m, y: date(int(y), int(m), int(d)),
    rf"Jane thinks today is {DATE}, but John thinks today is {DATE}. (Jane|John) is correct.": (
        lambda a, b, who: us(a if who == "Jane" else b)
    ),
}


def months(day, n):
    for _ in range(abs(n)):
        first = day.replace(day=1) + (31 * DAY if n > 0 else -DAY)
        day = first.replace(day=day.day)
    return day


def solve_date_understanding(text, options):
    story, asked = re.fullmatch(r"(.+) What is the date (.+) in MM/DD/YYYY\?", text).groups()
    ((find, match),) = [(find, m) for pattern, find in TODAY.items() if (m := re.fullmatch(pattern, story))]
    today = find(*match.groups())
    answer = {
        "today": lambda: today,
        "tomorrow": lambda: today + DAY,
        "24 hours later": lambda: today + DAY,
        "yesterday": lambda: today - DAY,
        "10 days ago": lambda: today - 10 * DAY,
        "one week ago from today": lambda: today - 7 * DAY,
        "one week from today": lambda: today + 7 * DAY,
        "a month ago": lambda: months(today, -1),
        "one year ago from today": lambda: years(today, -1),
    }[asked]()
    return {answer.strftime("%m/%d/%Y")}


def solve_geometric_shapes(text, options):
    path = re.search(r'd="([^"]+)"', text)[1]
    assert all(0 <= float(number) <= 100 for number in re.findall(r"\d+\.\d\d(?=[, ])", path.split("A")[0]))
    if " A " in path:
        return {"sector"} if " L " in path else {"circle", "ellipse"}
    steps = [(kind, (float(x), float(y))) for kind, x, y in re.findall(r"([ML]) (\S+),(\S+)", path)]
    for (_, before), (kind, here) in itertools.pairwise(steps):
        assert (kind == "M") == (before == here), "the pen jumps"
    corners = [point for kind, point in steps if kind == "L"]
    if len(corners) == 1:
        return {"line"}
    assert corners[-1] == steps[0][1] and len(set(corners)) == len(corners), "not closed, or a corner twice"
    if len(corners) != 4:
        return {{3: "triangle", 5: "pentagon", 6: "hexagon", 7: "heptagon", 8: "octagon"}[len(corners)]}
    sides = [math.dist(corners[i - 1], corners[i]) for i in range(4)]
    diagonals = math.dist(corners[0], corners[2]), math.dist(corners[1], corners[3])
    near = functools.partial(math.isclose, abs_tol=0.05)
    if near(sides[0], sides[2]) and near(sides[1], sides[3]) and near(*diagonals):
        return {"rectangle", "trapezoid"}
    assert any(near(sides[i], sides[i - 1]) and near(sides[i - 2], sides[i - 3]) for i in (0, 1)), "neither kite"
    return {"kite"}


def solve_penguins_in_a_table(text, options):
    rows = {}
    for line in text.split("\n"):
        if match := re.fullmatch(r"(\w+), (\d+), (\d+), (\d+)", line):
            rows[match[1]] = dict(zip(("age", "height", "weight"), map(int, match.groups()[1:]), strict=True))
        elif match := re.fullmatch(r"We then delete the penguin named (\w+) from the table.", line):
            del rows[match[1]]
    question = text.split("\n")[-1]
    names = sorted(rows) if "alphabetic" in question else list(rows)
    if match := re.fullmatch(r"What is the name of the (first|second|next to last|last) penguin.*\?", question):
        return {names[{"first": 0, "second": 1, "next to last": -2, "last": -1}[match[1]]]}
    if match := re.fullmatch(r"What is the name of the penguin that is (\d+) years old\?", question):
        return {name for name in rows if rows[name]["age"] == int(match[1])}
    if match := re.fullmatch(r"How many penguins are (more|less) than (\d+) years old\?", question):
        ages = [row["age"] for row in rows.values()]
        return {str(sum(age > int(match[2]) if match[1] == "more" else age < int(match[2]) for age in ages))}
    if question == "How many penguins are there in the table?":
        return {str(len(rows))}
    if match := re.fullmatch(r"What is the cumulated (\w+) of the penguins\?", question):
        return {str(sum(row[match[1]] for row in rows.values()))}
    if match := re.fullmatch(r"What is the (\w+) of (\w+)\?", question):
        return {str(rows[match[2]][match[1]])}
    field = {"o": "age", "y": "age", "t": "height", "s": "height", "h": "weight", "l": "weight"}
    if match := re.fullmatch(r"Which is the (second )?(\w+) penguin\?", question):
        order = sorted(rows, key=lambda name: rows[name][field[match[2][0]]], reverse=match[2][0] in "oth")
        return {order[1 if match[1] else 0]}
    found = set(rows)
    for word, than in re.findall(r"(\w+)er than (\w+)", question):
        up, what = word[0] in "oth", field[word[0]]
        found = {n for n in found if n != than and (rows[n][what] > rows[than][what]) == up}
    assert len(found) == 1 and "er than" in question
    return found


def solve_reasoning_about_colored_objects(text, options):
    seen, question = re.fullmatch(r"On the \w+, (?:I see|you see|there is|there are) (.+)\. (.+\?)", text).groups()
    singular = functools.partial(re.sub, r"(?<=[^s])s\b|(?<=sh)es\b", "")  # the same for "leash" and "leashes"
    seen = [re.fullmatch(r"(\w+) (\w+) (.+)", thing).groups() for thing in things(seen.split(": ")[-1])]
    seen = [(1 if n in ("a", "an") else NUMBERS.index(n), color, singular(item)) for n, color, item in seen]
    colors = [color for _, color, _ in seen]

    def both(n):
        return {str(n), NUMBERS[n]}

    def find(it):
        it = singular(re.sub(" (thing|item|object)$", "", it))
        (i,) = (i for i, (_, *names) in enumerate(seen) if it in names)
        return i

    if match := re.fullmatch(r"What color is the (.+)\?", question):
        return {colors[find(match[1])]}
    if match := re.fullmatch(r"Is the (.+) (\w+)\?", question):
        return {"yes" if colors[find(match[1])] == match[2] else "no"}
    if match := re.fullmatch(r"How many \w+ are neither (\w+) nor (\w+)\?", question):
        return both(sum(color not in match.groups() for color in colors))
    if match := re.fullmatch(r"What is the color of the (left|right)-most \w+\?", question):
        return {colors[0 if match[1] == "left" else -1]}
    if match := re.fullmatch(r"What is the color of the \w+ directly to the (left|right) of the (.+)\?", question):
        return {colors[find(match[2]) + (1 if match[1] == "right" else -1)]}
    if match := re.fullmatch(r"What is the color of the \w+ furthest from the (.+)\?", question):
        here = find(match[1])
        far = max(range(len(seen)), key=lambda i: abs(i - here))
        assert [abs(i - here) for i in range(len(seen))].count(abs(far - here)) == 1
        return {colors[far]}
    if match := re.fullmatch(r"How many non-(\w+) \w+ do you see to the (left|right) of the (.+)\?", question):
        here = find(match[3])
        return both(sum(color != match[1] for color in (colors[:here] if match[2] == "left" else colors[here + 1 :])))
    match = re.fullmatch(r"If I remove all the (.+) from the \w+, how many (.+) remain on it\?", question)
    gone, asked = (re.sub(r" (thing|item|object)$", "", singular(what)) for what in match.groups())
    return both(sum(n for n, *is_ in seen if gone not in is_ and asked in is_))


def index_of(letter):
    """(A) -> 0, (Z) -> 25, (AA) -> 26."""
    return functools.reduce(lambda n, c: 26 * n + ord(c) - 64, letter.strip("()"), 0) - 1


def is_solved(example):
    """Does the solver of this task find the same right answers in the text as the example claims to have?"""
    family = next(name for name in globals() if name.startswith("solve_") and example.task.startswith(name[6:]))
    answers = globals()[family](example.question.split("\nOptions:\n")[0], example.options)
    if not example.options:
        return answers == set(example.targets)
    return answers & set(example.options) == {example.options[index_of(letter)] for letter in example.targets}


# ------------------------------------------------------------------ generated questions


@pytest.mark.parametrize("level", [None, 0.0, 1.0])
@pytest.mark.parametrize("task", TASKS)
def test_generated_answers_are_what_the_text_says(task, level):
    for example in generate(task, 500, seed=7, level=level):
        assert is_solved(example), example
        if example.options:
            lines = example.question.split("\nOptions:\n")[1].split("\n")
            assert [line.split(" ", 1)[1] for line in lines] == list(example.options)
            assert [index_of(line.split(" ")[0]) for line in lines] == list(range(len(lines)))
            assert len(set(example.options)) == len(example.options) > 1


@pytest.mark.parametrize("task", TASKS)
def test_parts_are_disjoint_and_balanced(task):
    train = generate(task, 3000, seed=0) + generate(task, 500, seed=0, level=0.5)
    test = generate(task, 500, seed=1, part="test") + generate(task, 200, seed=2, part="test", level=0.5)
    stems = [{example.question.split("\nOptions:\n")[0] for example in part} for part in (train[:3000], train, test)]
    assert len(stems[0]) == 3000, "a question twice"
    assert not stems[1] & stems[2]
    # Were the right option to favor a place or a text, a model could learn that instead of the task.
    by_size = collections.defaultdict(list)
    for example in train[:3000]:
        if example.options:
            by_size[len(example.options)].append(index_of(example.targets[0]))
    for size, places in by_size.items():
        expected = len(places) / size
        assert all(abs(places.count(i) - expected) < 5 * math.sqrt(expected) + 5 for i in range(size))
    if task == "geometric_shapes":
        shapes = collections.Counter(min(solve_geometric_shapes(example.question, ())) for example in train[:3000])
        assert len(shapes) == 10 and all(230 < count < 370 for count in shapes.values())
    if task == "object_counting":
        counts = collections.Counter(example.targets[0] for example in train[:3000])
        assert set(counts) == set(map(str, range(2, 16))) and all(150 < count < 280 for count in counts.values())


def test_generated_questions_are_the_same_on_every_machine():
    program = (
        "import hashlib, bigbench_tasks as tasks\n"
        "for task in tasks.TASKS: print(hashlib.sha256(repr(tasks.generate(task, 60, 3)).encode()).hexdigest())"
    )
    sums = set()
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(tasks.__file__).parent)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        sums.add(run.stdout)
    assert len(sums) == 1
    assert generate("word_sorting", 5, seed=1) != generate("word_sorting", 5, seed=2)


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


@needs_official_files
# No official answer contradicts its own question where a solver understands all questions of the file.
@pytest.mark.parametrize("task", [task for task in TASKS if not re.match("date|penguins", task)])
def test_solvers_agree_with_official_answers(task):
    assert [i for i, example in enumerate(load(task, BIGBENCH)) if not is_solved(example)] == []


def test_expand():
    assert tuple(task_files.DIRECTORY) == TASKS
    assert expand("all") == list(TASKS) and expand("object_counting") == ["object_counting"]
    assert expand("logical_deduction, logical_deduction_five_objects,word_sorting") == [*TASKS[3:6], "word_sorting"]
    for name in ("", "logical", "word_sorting,", "three_objects"):
        with pytest.raises(InputError, match=r"tracking_shuffled_objects_three_objects.*logical_deduction, "):
            expand(name)


def test_a_task_of_one_s_own_is_a_directory_in_the_data(tmp_path):
    (tmp_path / "rhymes").mkdir()
    entry = {"input": "What rhymes with cat?", "target_scores": {"hat": 1, "dog": 0}}
    (tmp_path / "rhymes" / "task.json").write_text(json.dumps({"examples": [entry]}))
    assert expand("rhymes,word_sorting", tmp_path) == ["rhymes", "word_sorting"]
    (example,) = load("rhymes", tmp_path)
    assert example.task == "rhymes" and example.options["(A)(B)".index(example.targets[0]) // 3] == "hat"
    for data in (tmp_path / "elsewhere", "generated", "official"):
        with pytest.raises(InputError, match="rhymes"):
            expand("rhymes", data)
    with pytest.raises(InputError, match="no task"):
        expand("../" + tmp_path.name + "/rhymes", tmp_path)


GOOD = {"input": "Is it?", "target_scores": {"yes": 1, "no": 0}}
BAD_FILES = {
    "not JSON": b"{", "not UTF-8": b'{"examples": "\xff"}', "too deep": b"[" * 200_000, "no object": b"[]",
    "no examples": b"{}", "empty": {"examples": []}, "a text": {"examples": "none"},
    "prefix": {"examples": [GOOD], "task_prefix": 3},
}  # fmt: skip
BAD_EXAMPLES = [
    None, {}, {"input": 3, "target": "x"}, {"input": " ", "target": "x"}, {"input": "?"}, {"input": "?", "target": []},
    {"input": "?", "target": ["x", 3]}, {"input": "?", "target": "\ud800"}, GOOD | {"target_scores": {}},
    GOOD | {"target_scores": {"yes": 0.5}}, GOOD | {"target_scores": {"yes": "1"}}, GOOD | {"target_scores": ["yes"]},
    GOOD | {"target_scores": {"": 1}}, GOOD | {"target_scores": {str(i): 1 for i in range(1001)}},
]  # fmt: skip
BAD_FILES |= {json.dumps(bad)[:40]: {"examples": [GOOD, bad]} for bad in BAD_EXAMPLES}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
    path = tmp_path / "word_sorting" / "task.json"
    path.parent.mkdir()
    content = BAD_FILES[name]
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(InputError) as error:
        load("word_sorting", tmp_path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message and ": " in message
    if any(content == {"examples": [GOOD, bad]} for bad in BAD_EXAMPLES):
        assert "example 2" in message


@pytest.fixture
def own_file(tmp_path):
    """A task file under the name and in the place of word_sorting's."""
    path = tmp_path / "data" / "word_sorting" / "task.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"examples": [{"input": "b a", "target": "a b"}] * 3}))
    return path


def test_bad_arguments(own_file, monkeypatch):
    data = own_file.parents[1]
    with pytest.raises(InputError, match="cannot read"):
        load("object_counting", data)
    for call in (
        lambda: load("sorting", "official"), lambda: load("word_sorting", data, option_order="random"),
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
    monkeypatch.setenv("HIR_BIGBENCH_URL", own_file.parents[1].as_uri())
    monkeypatch.setenv("HIR_CACHE", str(served))  # a file, where a directory is needed
    with pytest.raises(InputError, match="could not be fetched into"):
        load("word_sorting", "official")

"""Tests of support/grammars.

The solvers below read nothing but the text of a question, and find its answers in another way than the grammars did.
"""

import collections
import functools
import itertools
import math
import os
import re
import subprocess
import sys
from datetime import date, datetime, timedelta

import pytest

from bigbench_tasks import TASKS, answer_text, generate, load
from feedback import parse_number
from tests.conftest import BIGBENCH, ROOT, needs_official_files

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
    text = re.sub("(st|nd|rd|th),", ",", text)
    return datetime.strptime(text, "%B %d, %Y" if len(text.split()[0]) > 3 else "%b %d, %Y").date()


def years(day, n):
    return date(day.year + n, day.month, day.day)


def last(month, year):
    return date(year + month // 12, month % 12 + 1, 1) - timedelta(1)


def month_number(name):
    return datetime.strptime(name[:3], "%b").month


DATE, MDY, DAY = r"(\d+/\d+/\d+)", r"(\w+ \d+(?:st|nd|rd|th)?, \d+)", timedelta(1)
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
    rf"Jane scheduled .* for tomorrow \(\w+, {DATE}\).": lambda d: us(d) - DAY,
    rf"Today's meeting is rescheduled to \d+ am tomorrow, {DATE}.": lambda d: us(d) - DAY,
    rf"The concert was scheduled to be on {DATE}, but was delayed by one day to today.": lambda d: us(d) + DAY,
    rf"The deadline is {MDY}, which is (\d) days away from now.": lambda d, n: mdy(d) - int(n) * DAY,
    rf"It was {MDY} a week ago.": lambda d: mdy(d) + 7 * DAY,
    rf"Jane quit her job on {MDY}. (\d+) days have passed since then.": lambda d, n: mdy(d) + int(n) * DAY,
    rf"On {MDY} Jane bought (\d+) eggs. .*": lambda d, n: mdy(d) + int(n) * DAY,
    rf"{MDY} is like yesterday to Jane, but that is actually (\w+) years ago.": (
        lambda d, n: years(mdy(d), NUMBERS.index(n))
    ),
    rf"Jane and John married on {MDY}. It is their (\d)-year anniversary today.": lambda d, n: years(mdy(d), int(n)),
    rf"Jane and John married on {MDY}. Today is their golden wedding anniversary.": lambda d: years(mdy(d), 50),
    r"Today is the first day of (\d+).": lambda y: date(int(y), 1, 1),
    r"This is the last day of (\d+).": lambda y: date(int(y), 12, 31),
    r"Today is Christmas Eve of (\d+).": lambda y: date(int(y), 12, 24),
    r"Today is the last day of the first quarter of (\d+).": lambda y: date(int(y), 3, 31),
    r"(\d+) is coming in (\d) days.": lambda y, n: date(int(y), 1, 1) - int(n) * DAY,
    r"Today is (\d+)/(\d+)(?:\. Jane is watching NFL|, and it is Jane's .* in the year) (\d+)\b.*": (
        lambda m, d, y: date(int(y), int(m), int(d))
    ),
    r"Jane is celebrating the last day of (\w+) (\d+).": lambda m, y: last(month_number(m), int(y)),
    r"Today is the (\w+) day of the (\w+) month of (\d+).": (
        lambda n, m, y: date(int(y), ORDINALS.index(m), ORDINALS.index(n))
    ),
    r"Jane was born on the last day of (\w+) in (\d+). Today is her (\d+)-year-old birthday.": (
        lambda m, y, n: years(last(month_number(m), int(y)), int(n))
    ),
    r"Jane got her job in (\d+). Today is her (\d)-year .* on (\w+) (\d+), her second day .*": (
        lambda y, n, m, d: years(date(int(y), month_number(m), int(d)) - DAY, int(n))
    ),
    r"Jane visits .* on the (\d+)\w\w of each month starting from the (\w+) of (\d+). It is her (\d)\w\w visit .*": (
        lambda d, m, y, n: months(date(int(y), month_number(m), int(d)), int(n) - 1)
    ),
    r"In the UK, .* today is (\d+)/(\d+)/(\d+) to them.": lambda d, m, y: date(int(y), int(m), int(d)),
    rf"Jane thinks today is {DATE}, but John thinks today is {DATE}. (Jane|John) is correct.": (
        lambda a, b, who: us(a if who == "Jane" else b)
    ),
    rf"Jane thought today is {DATE}, but today is in fact \w+ \d+, which is 1 day later.": lambda d: us(d) + DAY,
}


def months(day, n):
    year, month = divmod(12 * day.year + day.month - 1 + n, 12)
    return date(year, month + 1, day.day)


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
    tables = text.split("name, age, height (cm), weight (kg)\n")[1:]
    penguins, giraffes = (
        {
            name: dict(zip(("age", "height", "weight"), map(int, numbers), strict=True))
            for name, *numbers in re.findall(r"(?m)^([A-Z]\w+), (\d+), (\d+), (\d+)", table)
        }
        for table in (*tables, "")[:2]
    )
    for name in re.findall(r"We then delete the penguin named (\w+) from the table.", text):
        del penguins[name]
    question = text.split("\n")[-1]
    animal = re.search("penguin|giraffe|animal|$", question)[0]
    rows = {"penguin": penguins, "giraffe": giraffes}.get(animal, penguins | giraffes)
    question = question.replace(animal, "penguin") if animal else question
    names = sorted(rows) if "alphabetic" in question else list(rows)
    if match := re.fullmatch(r"What is the name of the (first|second|next to last|last) penguin.*\?", question):
        return {names[{"first": 0, "second": 1, "next to last": -2, "last": -1}[match[1]]]}
    if match := re.fullmatch(r"What is the name of the penguin that is (\d+) (years old|cm tall)\?", question):
        return {name for name in rows if rows[name]["age" if "old" in match[2] else "height"] == int(match[1])}
    if match := re.fullmatch(r"What is the name of the (\d+) cm tall penguin\?", question):
        return {name for name in rows if rows[name]["height"] == int(match[1])}
    if match := re.fullmatch(r"How many penguins are (.*(?:years old|kg))\?", question):
        for way, limit, unit in re.findall(r"(more|less) than (\d+) (years|kg)", match[1]):
            what, sign = "age" if unit == "years" else "weight", 1 if way == "more" else -1
            names = [name for name in names if sign * rows[name][what] > sign * int(limit)]
        return {str(len(names))}
    if re.fullmatch(r"How many penguins are (there|listed) in the tables?\?", question):
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
        compared = [name for name in rows if name != than] if than == "the" else [than]
        found = {n for n in found if all((rows[n][what] > rows[c][what]) == up for c in compared if c != n)} - {than}
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


def mentions(text, answer):
    """Does the text name this answer? A number counts in digits and in words."""
    number = parse_number(answer)
    said = text.replace(",", " ").split()
    return answer in text if number is None else any(parse_number(word) == number for word in said)


@pytest.mark.parametrize("task", TASKS)
def test_steps_end_at_the_answer(task):
    for example in generate(task, 500, seed=8):
        answer, end = answer_text(example), re.split(r"[,;:.] ", example.steps)[-1]
        if task.startswith("tracking"):  # who held it first
            held = re.search(rf"\b{end} (?:has an?|is playing|gets|is dancing with) ([^,.]+)", example.question)[1]
            assert held == answer.rstrip(".")
        elif task.startswith("logical_deduction"):  # the whole order
            order = example.steps.split(". ")[-1].split(", ")
            assert sum(item.split(" ", 1)[1] in answer for item in order) >= 1
            assert [item.split(" ")[0] for item in order] == ORDINALS[1 : len(order) + 1]
        elif task == "geometric_shapes":  # the number of lines
            lines = NUMBERS.index(re.findall(r"\w+ ([a-z]+)(?:,|$)", example.steps)[-1])
            assert lines == {"line": 1, "circle": 2, "ellipse": 2, "triangle": 3, "sector": 3, "pentagon": 5, "hexagon": 6,
                             "heptagon": 7, "octagon": 8}.get(answer, 4)  # fmt: skip
        elif task == "word_sorting":
            assert example.steps == " ".join(word[:2] for word in answer.split())
        elif answer in ("yes", "no"):  # the color that is asked for, and the thing with its color
            asked, color = re.fullmatch(r"(\w+)\? (\w+) .+", example.steps).groups()
            assert asked == re.search(r"(\w+)\?", example.question)[1]
            assert (asked == color) == (answer == "yes")
        elif task == "penguins_in_a_table" and not answer.isdigit():  # the value with its name, or the names
            value = end.split()[-2:]
            assert answer in (end if value[0].isdigit() else example.steps)
            assert not value[0].isdigit() or " ".join(value) in example.steps.rpartition(": ")[0], example
        else:
            said = example.steps if task == "penguins_in_a_table" else end
            assert mentions(re.sub("[=<>+]", " ", said), answer), example


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
    command, sums = [sys.executable, "-c", program], set()
    for seed in ("1", "2"):
        sums.add(subprocess.check_output(command, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed}))
    assert len(sums) == 1
    assert generate("word_sorting", 5, seed=1) != generate("word_sorting", 5, seed=2)


@needs_official_files
# No official answer contradicts its own question where a solver understands all questions of the file.
@pytest.mark.parametrize("task", [task for task in TASKS if not re.match("date|penguins", task)])
def test_solvers_agree_with_official_answers(task):
    assert [i for i, example in enumerate(load(task, BIGBENCH)) if not is_solved(example)] == []

"""Penguins in a table: a table, changes to it, perhaps a second one of giraffes, and a question about the result.

Steps go down the table: the values to compare and then the greatest, a running count, a running sum. Values come before
names, so that a name can be looked up from its value by reading on.
"""

from itertools import accumulate, product

from support.grammars.common import LISTS, balanced, growing, scores

COMPARED = {
    "age": ("oldest", "youngest", "older", "younger"),
    "height": ("tallest", "shortest", "taller", "shorter"),
    "weight": ("heaviest", "lightest", "heavier", "lighter"),
}


def table(rows: list[dict]) -> str:
    """The rows as lines."""
    return "".join(", ".join(map(str, row.values())) + "\n" for row in rows)


def draw_rows(rng, called: list[str], ages: list[int], heights: range, weights: range) -> list[dict]:
    """A row for each age; they share no value, so that every comparison has one answer."""
    columns = {"name": called, "age": ages, "height": heights, "weight": weights}
    values = zip(*(rng.sample(column, len(ages)) for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]


def listed(rows: list[dict], field: str) -> str:
    """`7 Louis, 5 Bernard`"""
    return ", ".join(f"{row[field]} {row['name']}" for row in rows)


def about_extremes(rows: list[dict], field: str, animal: str) -> dict:
    """Which is the oldest, or older than another: the column is written down, then the value that matters."""
    most, least, more, less = COMPARED[field]
    questions, column = {}, listed(rows, field)
    ranked = sorted(rows, key=lambda row: -row[field])
    for word, than, order in ((most, more, ranked), (least, less, ranked[::-1])):
        first, second = order[:2]
        steps = f"{column}: {word} {listed([first], field)}"
        second_steps = f"{steps}, second {listed([second], field)}"
        questions[f"Which is the {word} {animal}?"] = (first["name"], steps)
        questions[f"Which {animal} is {than} than the other ones?"] = (first["name"], steps)
        questions[f"Which is the second {word} {animal}?"] = (second["name"], second_steps)
        questions[f"Which {animal} is {than} than {second['name']}?"] = (first["name"], steps)
    for above, between, below in zip(ranked, ranked[1:], ranked[2:], strict=False):
        steps = f"{listed([below, above], field)}: {column}: between {listed([between], field)}"
        question = f"Which {animal} is {more} than {below['name']} and {less} than {above['name']}?"
        questions[question] = (between["name"], steps)
    return questions


def about_names(rows: list[dict], animal: str) -> dict:
    """Names by their place in the table or in the alphabet, or by a value."""
    questions, what = {}, "What is the name of the"
    in_table = [row["name"] for row in rows]
    for order, called in (("", in_table), (" sorted by alphabetic order", sorted(in_table))):
        for place, name in zip(("first", "second", "next to last", "last"), called[:2] + called[-2:], strict=True):
            questions[f"{what} {place} {animal}{order}?"] = (name, ", ".join(called))
    for row in rows:
        old, tall = ((row["name"], f"{listed(rows, field)}: {listed([row], field)}") for field in ("age", "height"))
        questions[f"{what} {animal} that is {row['age']} years old?"] = old
        questions[f"{what} {animal} that is {row['height']} cm tall?"] = tall
        questions[f"{what} {row['height']} cm tall {animal}?"] = tall
    return questions


def about_numbers(rng, rows: list[dict], animal: str, where: str) -> dict:
    """How many there are, or how many are older, younger, heavier or lighter: a running count."""
    asked: dict[str, list[tuple]] = {f"How many {animal}s are {where}?": []}  # field, sign, limit of each condition
    weights, signs = sorted(row["weight"] for row in rows), (("more", ">"), ("less", "<"))
    for limit, (word, sign) in product(range(1, 16), signs):
        question, condition = f"How many {animal}s are {word} than {limit} years old", ("age", sign, limit)
        asked[f"{question}?"] = [condition]
        weight, (other, heavy) = rng.choice(weights), rng.choice(signs)
        if len(rows) < 6:  # two conditions on more rows would make long steps
            asked[f"{question} and weight {other} than {weight} kg?"] = [condition, ("weight", heavy, weight)]
    questions = {}
    for question, conditions in asked.items():
        parts = []
        for row in rows:
            compared = " ".join([row["name"], *(f"{row[field]}{sign}{limit}" for field, sign, limit in conditions)])
            fits = all(row[f] > limit if sign == ">" else row[f] < limit for f, sign, limit in conditions)
            parts.append((compared, 1, fits))
        questions[question] = growing(parts)
    return {question: about for question, about in questions.items() if about[0] > 0}


def about_sums(rng, rows: list[dict], animal: str) -> tuple[dict, list]:
    """The sum of a column, with options around it."""
    field = rng.choice(("age", "weight" if animal == "penguin" else "age"))
    sums = list(accumulate(row[field] for row in rows))
    steps = [f"{rows[0]['name']} {sums[0]}"]  # then `Bernard 7+5=12`, with the sum so far
    for row, before, after in zip(rows[1:], sums, sums[1:], strict=False):
        steps.append(f"{row['name']} {before}+{row[field]}={after}")
    step, rank = rng.randint(1, max(1, sums[-1] // 5)), rng.randrange(min(5, sums[-1]))  # no option below 1
    question = f"What is the cumulated {field} of the {animal}s?"
    return {question: (sums[-1], ", ".join(steps))}, [sums[-1] + (i - rank) * step for i in range(5)]


def ask(rng, rows: list[dict], animal: str, where: str, others: list[dict]) -> tuple[tuple, list]:
    """A question with its answer and steps, and the options; `others` are rows that supply wrong ones."""
    topic, field = rng.choice("extreme extreme name number number value sum".split()), rng.choice(list(COMPARED))
    if topic == "sum":
        questions, options = about_sums(rng, rows, animal)
    elif topic == "number":
        questions = about_numbers(rng, rows, animal, where)
        options = range(1, 6) if len(rows) < 6 else range(len(rows) - 4, len(rows) + 1)
        questions = {question: about for question, about in questions.items() if about[0] in options}
    elif topic == "value":
        questions = {f"What is the {field} of {row['name']}?": (row[field], table([row]).strip()) for row in rows}
        options = [row[field] for row in rows + others]
    else:
        questions = about_names(rows, animal) if topic == "name" else about_extremes(rows, field, animal)
        options = [row["name"] for row in rows + others]
    drawn = balanced(rng, questions)
    return drawn, options if drawn[1] in list(options)[:5] else [*list(options)[:4], drawn[1]]


def penguins_in_a_table(rng, level: float | None) -> dict:
    """A table of penguins, some change to it, and a question."""
    ages = rng.sample(range(1, 16), 10)
    *penguins, new = draw_rows(rng, LISTS["penguins"], ages[:5], range(40, 100, 5), range(9, 20))
    penguins = penguins[: 4 if level is None else rng.randint(2, 2 + round(2 * level))]
    one, two, three = rng.choices(penguins, k=3)
    prefix = "Here is a table where the first line is a header and each subsequent line is a penguin:\n\n"
    prefix += f"name, age, height (cm), weight (kg)\n{table(penguins)}\nFor example: the age of {one['name']} is "
    prefix += f"{one['age']}, the weight of {two['name']} is {two['weight']} kg, "
    prefix += f"the height of {three['name']} is {three['height']} cm.\n"
    text, gone = "", []
    if rng.random() < 0.5:
        penguins = [*penguins, new]
        text += f"\nWe now add a penguin to the table:\n{table([new])}"
    if len(penguins) > 2 and rng.random() < 0.3:
        gone = [penguins[rng.randrange(len(penguins) - 1)]]
        penguins = [row for row in penguins if row not in gone]
        text += f"\nWe then delete the penguin named {gone[0]['name']} from the table.\n"
    rows, animal, where = penguins, "penguin", "there in the table"
    if level is None and rng.random() < 0.25:
        *giraffes, other = draw_rows(rng, LISTS["giraffes"], ages[5:], range(300, 500, 10), range(500, 700, 10))
        text += f"And here is a similar table, but listing giraffes:\n\nname, age, height (cm), weight (kg)\n{table(giraffes)}"
        rows, animal = rng.choice(((penguins, "penguin"), (giraffes, "giraffe"), (penguins + giraffes, "animal")))
        where = "there in the tables" if animal != "animal" else "listed in the tables"
    others = [other] if animal == "giraffe" else [*gone, *([] if new in penguins else [new])]
    (question, answer, steps), options = ask(rng, rows, animal, where, others)
    options = scores(sorted(options), answer)
    return {"task_prefix": prefix, "input": text + question, "target_scores": options, "steps": steps}

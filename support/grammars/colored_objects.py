"""Reasoning about colored objects: their colors, their places in a row, how many there are, how many remain.

Steps write down the things that matter, in order, with a count where one is asked for.
"""

from itertools import permutations, product

from support.grammars.common import LISTS, NUMBER, a, balanced, counted, growing, join, plural, scores

COLORS, ITEMS = LISTS["colors"], LISTS["items"]
Things = list[tuple[str, str]]  # (color, item), from left to right where they are a row


def write(things: Things) -> str:
    """`red pen, blue mug`"""
    return ", ".join(map(" ".join, things))


def count_colors(things: Things, holds) -> tuple[int, str]:
    """How many of the things have a color that fulfills a condition, and the steps."""
    number, steps = growing([(color, 1, holds(color)) for color, _ in things])
    return number, steps or NUMBER[0]


def about_neither(rng, things: Things, noun: str) -> dict:
    """How many things have neither of two colors."""
    questions = {}
    for pair in permutations([*(color for color, _ in things), *rng.sample(COLORS, 4)], 2):
        number, steps = count_colors(things, lambda color, pair=pair: color not in pair)
        question = "How many {}s are neither {} nor {}?".format(noun, *pair)
        questions[question] = (number, "not {}, not {}: {}".format(*pair, steps))
    return questions


def about_a_row(topic: str, things: Things, noun: str) -> dict:
    """What stands at an end of the row, beside a thing, furthest from it, or on one side of it."""
    what, last, questions = f"What is the color of the {noun}", len(things) - 1, {}
    if topic == "end" or last == 0:
        ends = (("left", things[0]), ("right", things[-1]))
        return {f"What is the color of the {end}-most {noun}?": (thing[0], write([thing])) for end, thing in ends}
    row = ", ".join(f"{NUMBER[n]} {' '.join(thing)}" for n, thing in enumerate(things, start=1))
    for (i, (color, item)), named in product(enumerate(things), ("item", "color")):
        it = item if named == "item" else f"{color} {noun}"
        if topic == "beside" and i > 0:  # from the left up to it, and the one before
            steps = f"{write(things[: i + 1])}; {write([things[i - 1]])}"
            questions[f"{what} directly to the left of the {it}?"] = (things[i - 1][0], steps)
        if topic == "beside" and i < last:
            questions[f"{what} directly to the right of the {it}?"] = (things[i + 1][0], write(things[i : i + 2]))
        if topic == "furthest" and 2 * i != last:  # from the middle, both ends are equally far
            far = things[-1] if 2 * i < last else things[0]
            steps = f"{row}; {NUMBER[i + 1]} of {NUMBER[last + 1]}; {write([far])}"
            questions[f"{what} furthest from the {it}?"] = (far[0], steps)
        sides = (("left", things[:i]), ("right", things[i + 1 :])) if topic == "non" else ()
        for (end, part), (asked, _) in product(sides, things):
            number, steps = count_colors(part, lambda c, asked=asked: c != asked)
            question = f"How many non-{asked} {noun}s do you see to the {end} of the {it}?"
            questions[question] = (number, f"not {asked}, {end} of {color} {item}: {steps}")
    return questions


def about_what_remains(rng, surface: str, count: dict[tuple, int], noun: str) -> dict:
    """How many things remain when all of a kind, or all of a color, are taken away: those that match are summed up."""
    questions, ask = {}, f"If I remove all the {{}} from the {surface}, how many {{}} remain on it?"
    absent = rng.choice(COLORS)  # usually not there, so that removing it changes nothing
    for color, item in count:
        kind = plural(item)
        questions[ask.format(kind, f"{color} {noun}s")] = remaining(count, (color, None), (None, item), kind)
        for gone in (color, absent):
            questions[ask.format(f"{gone} {noun}s", kind)] = remaining(count, (None, item), (gone, None), gone)
    return questions


def remaining(count: dict[tuple, int], asked: tuple, removed: tuple, gone: str) -> tuple[int, str]:
    """How many of those asked about are not removed: `not cups: two red cups no zero, three red pens yes three`.

    asked, removed: a color or an item, the other being None.
    """
    matching = [(pair, n) for pair, n in count.items() if pair[0] == asked[0] or pair[1] == asked[1]]
    parts = [(counted(n, " ".join(p)), n, p[0] != removed[0] and p[1] != removed[1]) for p, n in matching]
    number, steps = growing(parts)
    return number, f"not {gone}: {steps}"


def reasoning_about_colored_objects(rng, level: float | None) -> dict:
    """Colored things on a surface, in a row or not."""
    surface, noun = rng.choice("desk table floor nightstand".split()), rng.choice("thing item object".split())
    topic = rng.choice("color yes/no neither end beside furthest non remove remove".split())
    size = rng.randint(2 if level is None else 1, 6)
    things = list(zip(rng.sample(COLORS, size), rng.sample(ITEMS, size), strict=True))
    see, most = rng.choice(("you see", "I see", "there is")), 6 if level is None else size
    rows = [a(" ".join(thing)) for thing in things]
    if topic == "remove":  # the same few colors and kinds again and again, one to three of each
        see, most = see.replace("is", "are"), 16 if level is None else min(3 * size, 16)
        pairs = list(product(*zip(*things[:4], strict=True)))
        count = {pair: rng.randint(1, 3) for pair in rng.sample(pairs, min(len(pairs), 2 * size))}
        rows = [counted(n, " ".join(pair)) for pair, n in count.items()]
        questions = about_what_remains(rng, surface, count, noun)
    elif topic == "color":
        questions = {f"What color is the {item}?": (color, f"{color} {item}") for color, item in things}
    elif topic == "yes/no":
        questions = {
            f"Is the {item} {asked}?": ("yes" if asked == color else "no", f"{asked}? {color} {item}")
            for (color, item), asked in product(things, COLORS)
        }
    elif topic == "neither":
        questions = about_neither(rng, things, noun)
    else:
        row = rng.choice(("several", "a set of", "a bunch of", "the following"))
        see = f"you see {row} {noun}s arranged in a row:"
        questions = about_a_row(topic, things, noun)
    question, answer, steps = balanced(rng, questions)
    text = f"On the {surface}, {see} {join(rows)}. {question}"
    return {"input": text, "target_scores": options_for(rng, answer, most, level), "steps": steps}


def options_for(rng, answer: str | int, most: int, level: float | None) -> dict[str, int]:
    """The options of the official file: the colors (fewer at a level), yes and no, or numbers as digits and words."""
    if answer in COLORS:
        others = [color for color in COLORS if color != answer]
        return scores((answer, *rng.sample(others, 17 if level is None else rng.randint(1, 17))), answer)
    if answer in ("yes", "no"):
        return scores(("yes", "no"), answer)
    return scores([form for n in range(most + 1) for form in (str(n), NUMBER[n])], str(answer), NUMBER[answer])

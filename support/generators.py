"""Grammars that write new questions in the style of the twelve BIG-bench tasks.

Every generator draws a small state (an order, a table, a row of things), computes the answer from the state, and only
then puts both into English. It returns one example in the format of a BIG-bench task file: `input`, and `target_scores`
(option -> 1 if right) or `target`, with a `task_prefix` where the official file has one. Options come in a natural
order; whoever turns the example into a question shuffles them. Where an answer takes several steps, `steps` writes them
down as one would on paper: an order, who had it before, a sum that grows.

`level` makes easier relatives, so that a small model can climb from there to the task itself: None is the official task;
from 0 to 1, sizes are drawn between the smallest sensible one and the official one, and what takes more than looking
something up (swaps, deduction, a list to sort) grows with the level. The text keeps its form.
"""

import math
from collections import namedtuple
from datetime import date, timedelta
from functools import cache, partial, reduce
from itertools import accumulate, pairwise, permutations, product
from operator import and_


def _names(text: str) -> list[str]:
    return text.split(", " if "," in text else None)


NUMBER = _names("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen")
NTH = _names("zeroth first second third fourth fifth sixth seventh eighth ninth")


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _and(items: list[str], pair: str = " and ") -> str:
    """Write "a, b, and c"; two items are joined by `pair`, as the official files disagree about a comma there."""
    return pair.join(items) if len(items) < 3 else f"{', '.join(items[:-1])}, and {items[-1]}"


def _plural(noun: str) -> str:
    head, of, rest = noun.partition(" of ")  # in "head of broccoli" it is the head that takes the s
    head = head[:-1] + "ie" if head.endswith("ry") else head + "e" if head.endswith(("ch", "sh", "x")) else head
    return f"{head}s{of}{rest}"


def _counted(number: int, noun: str) -> str:
    return f"{NUMBER[number]} {noun if number == 1 else _plural(noun)}"


def _scores(options, *right) -> dict[str, int]:
    return {str(option): int(option in right) for option in options}


def _balanced(rng, answers: dict):
    """Draw (question, answer) so that every answer is equally likely, however many questions lead to it."""
    answer = rng.choice(list(dict.fromkeys(answers.values())))
    return rng.choice([question for question in answers if answers[question] == answer]), answer


# fmt: off
PEOPLE = _names("Alice Bob Claire Dave Eve Fred Gertrude")
HUES = _names("red orange yellow green blue purple pink brown black white gray")
Story = namedtuple("Story", "opening holds progress swap ending option things")
STORIES = [
    Story("playing a game. At the start of the game, they are each holding a ball", "has {a_thing} ball",
          "As the game progresses, pairs of players trade balls.", "swap balls", "game, {} has the", "{} ball.", HUES),
    Story("holding a white elephant gift exchange. At the start of the event, they are each holding a present of a "
          "different color", "has {a_thing} present", "As the event progresses, pairs of people swap gifts.",
          "swap their gifts", "event, {} has the", "{} present.", HUES),
    Story("on the same team in a soccer match. At the start of the match, they are each assigned to a position",
          "is playing {thing}", "As the game progresses, pairs of players occasionally swap positions.",
          "trade positions", "match, {} is playing", "{}.", _names("goalkeeper, striker, fullback, benchwarmer, "
          "cheerleader, sweeper, left winger, right winger, left midfielder, right midfielder, center midfielder")),
    Story("friends and avid readers who occasionally trade books. At the start of the semester, they each buy one new "
          "book", "gets {thing}", "As the semester proceeds, they start trading around the new books.", "swap books",
          "semester, {} has", "{}.", _names("Moby Dick, Ulysses, Frankenstein, Lolita, The Odyssey, The Great Gatsby, "
          "The Pearl, Catch-22, Hound of the Baskervilles, The Fellowship of the Ring, Dracula, Middlemarch")),
    Story("dancers at a square dance. At the start of a song, they each have a partner", "is dancing with {thing}",
          "Throughout the song, the dancers often trade partners.", "switch partners", "dance, {} is dancing with",
          "{}.", _names("Helga Izzi Jamie Karl Lola Melissa Ophelia Patrick Rodrigo Sam Nora Victor")),
]
# fmt: on


def tracking(rng, size: int, level: float | None) -> dict:
    """`size` people each hold a thing, and `size` times two of them swap: who ends up with what?"""
    count, swaps = (size, size) if level is None else (rng.randint(2, size), rng.randint(0, round(level * size)))
    story, people = rng.choice(STORIES), PEOPLE[:count]
    holds = dict(zip(people, rng.sample(story.things, count), strict=True))
    options = [story.option.format(thing) for thing in holds.values()]
    held = [f"{who} {story.holds.format(thing=it, a_thing=_a(it))}" for who, it in holds.items()]
    text = f"{_and(people)} are {story.opening}: {_and(held, ', and ')}. \n\n{story.progress}"
    pairs = [rng.sample(people, 2) for _ in range(swaps)]
    for turn, (one, other) in enumerate(pairs):
        holds[one], holds[other] = holds[other], holds[one]
        when = "First" if turn == 0 else "Finally" if turn == swaps - 1 else "Then"
        text += f" {when}, {one} and {other} {story.swap}."
    asked = rng.choice(people)
    scores, had_by = _scores(options, story.option.format(holds[asked])), [asked]
    for one, other in reversed(pairs):  # back to the start
        had_by.append({one: other, other: one}.get(had_by[-1], had_by[-1]))
    question = f"{text} At the end of the {story.ending.format(asked)} "
    return {"input": question, "target_scores": scores, "steps": ", ".join(had_by)}


# fmt: off
Domain = namedtuple("Domain", "opening listed the stands places before after names")
ROW = ("is the", ("leftmost", "{} from the left", "{} from the right", "rightmost"),
       "is to the left of", "is to the right of")
DOMAINS = [
    Domain("On a shelf, there are {} books", _a, "the ", *ROW, [f"{hue} book" for hue in HUES]),
    Domain("On a branch, there are {} birds", _a, "the ", *ROW, _names(
        "robin, raven, crow, owl, hawk, falcon, quail, cardinal, blue jay, hummingbird, sparrow, finch")),
    Domain("In a golf tournament, there were {} golfers", str, "", "finished", ("first", "{}", "{}-to-last", "last"),
        "finished above", "finished below", _names("Ada Amy Ana Dan Eli Eve Joe Mel Mya Rob Ian Sue")),
    Domain("In an antique car show, there are {} vehicles", _a, "the ", "is the",
        ("newest", "{}-newest", "{}-oldest", "oldest"), "is newer than", "is older than", _names("truck, bus, sedan, "
        "minivan, tractor, convertible, limousine, hatchback, motorcycle, station wagon, coupe, van")),
    Domain("A fruit stand sells {} fruits", str, "the ", "are the",
        ("most expensive", "{}-most expensive", "{}-cheapest", "cheapest"), "are more expensive than",
        "are less expensive than",
        _names("apples pears plums peaches oranges kiwis mangoes loquats watermelons cantaloupes apricots lemons")),
]
# fmt: on


@cache
def _allowed(size: int, kind: str, i: int, j: int) -> int:
    """The orders in which object i stands at place j, or before object j: an integer with one bit for every order.

    Several statements together allow the bitwise and of these; they are enough when a single bit is left.
    """
    orders = permutations(range(size))  # order[i] is the place of object i
    return int("".join("01"[order[i] == j if kind == "at" else order[i] < order[j]] for order in orders), 2)


def _puzzle(rng, order: list[int], direct: float) -> list[tuple]:
    """Statements that hold in this order and in no other, and of which none can be left out."""
    chosen, left = {}, -1  # an integer with every bit set
    while left & (left - 1):  # more than one bit
        i, j = rng.sample(range(len(order)), 2)
        before = ("before", i, j) if order[i] < order[j] else ("before", j, i)
        statement = ("at", i, order[i]) if rng.random() < direct else before
        allowed = _allowed(len(order), *statement)
        if left & allowed != left:
            chosen[statement] = allowed
            left &= allowed
    for statement in list(chosen):
        others = {other: allowed for other, allowed in chosen.items() if other != statement}
        if reduce(and_, others.values(), -1) == left:
            chosen = others
    return list(chosen)


def logical_deduction(rng, size: int, level: float | None) -> dict:
    """Statements about an order that leave exactly one possibility: which object stands in the asked place?"""
    size = size if level is None else rng.randint(2, size)
    domain = rng.choice(DOMAINS)
    names, order = rng.sample(domain.names, size), rng.sample(range(size), size)  # order[i] is the place of names[i]

    def at(i: int, place: int) -> str:
        first, from_start, from_end, last = domain.places
        where = (from_start if place < size / 2 else from_end).format(NTH[min(place + 1, size - place)])
        where = {0: first, size - 1: last}.get(place, where)
        return f"{domain.the.capitalize()}{names[i]} {domain.stands} {where}."

    def before(i: int, j: int) -> str:
        i, relation, j = rng.choice(((i, domain.before, j), (j, domain.after, i)))
        return f"{domain.the.capitalize()}{names[i]} {relation} {domain.the}{names[j]}."

    puzzle = _puzzle(rng, order, direct=0.2 if level is None else 1 - 0.8 * level)
    sentences = [at(*rest) if kind == "at" else before(*rest) for kind, *rest in puzzle]
    asked = rng.randrange(size)
    return {
        "task_prefix": f"The following paragraphs each describe a set of {NUMBER[size]} objects arranged in a fixed "
        "order. The statements are logically consistent within each paragraph.\n\n",
        "input": f"{domain.opening.format(NUMBER[size])}: {_and([*map(domain.listed, names)])}. {' '.join(sentences)}",
        "target_scores": _scores((at(i, asked) for i in range(size)), at(order.index(asked), asked)),
        "steps": ", ".join(names[order.index(place)] for place in range(size)),
    }


THINGS = {
    "animals": _names("cat dog cow pig goat bear duck frog snail snake rabbit donkey chicken"),
    "fruits": _names("apple banana orange grape peach plum nectarine strawberry raspberry blackberry"),
    "vegetables": _names("carrot, onion, cabbage, yam, leek, garlic, cauliflower, head of broccoli, stalk of celery"),
    "musical instruments": _names("piano violin flute clarinet trumpet trombone drum accordion harp guitar"),
    "objects": _names("bed car chair couch fridge lamp microwave oven stove table toaster"),
}


def object_counting(rng, level: float | None) -> dict:
    """How many things of one kind are in the list, which may have things of another kind too?"""
    kind, other = rng.sample(list(THINGS), 2)
    answer = rng.randint(2, 15) if level is None else rng.randint(1, 4 + round(11 * level))
    counts = [1] * rng.randint(math.ceil(answer / 5), min(answer, 9))
    while sum(counts) < answer:  # hand out the rest, at most five to an entry
        i = rng.randrange(len(counts))
        counts[i] += counts[i] < 5
    entries = list(zip(counts, rng.sample(THINGS[kind], len(counts)), strict=True))
    counted = {noun for _, noun in entries}
    if kind != "objects" and (len(counts) == 1 or rng.random() < 0.5):  # everything is an object
        entries += [(rng.choice((1, 1, 2)), noun) for noun in rng.sample(THINGS[other], rng.randint(1, 4))]
        rng.shuffle(entries)
    things = [_a(noun) if count == 1 else _counted(count, noun) for count, noun in entries]
    text = f"I have {_and(things, ', and ')}. How many {kind} do I have?"
    of_kind = [(count, thing) for (count, noun), thing in zip(entries, things, strict=True) if noun in counted]
    sums = accumulate(count for count, _ in of_kind)
    steps = ", ".join(f"{thing}: {NUMBER[total]}" for (_, thing), total in zip(of_kind, sums, strict=True))
    return {"input": text, "target": [NUMBER[answer], str(answer)], "steps": steps}


SHAPES = _names("circle heptagon hexagon kite line octagon pentagon rectangle sector triangle")
SIDES = {"triangle": 3, "pentagon": 5, "hexagon": 6, "heptagon": 7, "octagon": 8}


def _corners(rng, shape: str) -> list[tuple[int, int]]:
    """Corners with whole coordinates around the origin, none further from it than 45."""
    if shape == "rectangle":
        x, y = rng.randint(3, 31), rng.randint(3, 31)
        return [(x, y), (-x, y), (-x, -y), (x, -y)]
    if shape == "kite":  # or a dart, where the last corner lies beyond the line between the side ones
        x, top, bottom = rng.randint(5, 30), rng.randint(24, 45), rng.choice((-1, 1)) * rng.randint(4, 16)
        return [(0, top), (x, 0), (0, bottom), (-x, 0)]
    if shape == "line":
        return [(rng.randint(5, 45), 0), (-rng.randint(5, 45), rng.randint(-9, 9))]
    while True:
        angles = [(i + rng.uniform(0.2, 0.8)) * math.tau / SIDES[shape] for i in range(SIDES[shape])]
        corners = [(round(r * math.cos(a)), round(r * math.sin(a))) for a in angles for r in [rng.uniform(15, 44)]]
        turns = zip(corners, corners[1:] + corners[:1], corners[2:] + corners[:2], strict=True)
        # No corner may be so flat that it could pass for a point on a side.
        if all(abs((x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)) > 20 for (x0, y0), (x1, y1), (x2, y2) in turns):
            return corners


def geometric_shapes(rng, level: float | None) -> dict:
    """Which shape does an SVG path draw? As in the official file, half of the paths are turned and come in pieces."""
    shape = rng.choice(SHAPES)
    plain = level is not None or rng.random() < 0.5  # whole coordinates, one piece
    turn = 0 if plain else rng.uniform(0, math.tau)

    def number(low: float, high: float) -> float:
        return rng.randint(math.ceil(low), math.floor(high)) if plain else rng.uniform(low, high)

    if shape in ("circle", "sector"):
        radius = number(3, 45)
        x, y = number(radius, 100 - radius), number(radius, 100 - radius)
        start, sweep = (turn, math.pi) if shape == "circle" else (rng.uniform(0, math.tau), rng.uniform(0.3, 3))
        ends = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in (start, start + sweep)]
        center, one, two = (f"{x:.2f},{y:.2f}" for x, y in [(x, y), *ends])
        arc = f"A {radius:.2f},{radius:.2f} {math.degrees(turn):.2f}"
        again = "" if plain or rng.random() < 0.5 else f"M {one} "
        path = f"M {center} L {one} {again}{arc} 0,1 {two} L {center}"
        path = path if shape == "sector" else f"M {one} {arc} 1,0 {two} {arc} 1,0 {one}"
    else:
        corners = _corners(rng, shape)[:: rng.choice((-1, 1))]
        first, scale = rng.randrange(len(corners)), 1 if plain else rng.uniform(0.3, 1)
        corners = corners if shape == "line" else corners[first:] + corners[: first + 1]  # closed
        xs = [scale * (x * math.cos(turn) - y * math.sin(turn)) for x, y in corners]
        ys = [scale * (x * math.sin(turn) + y * math.cos(turn)) for x, y in corners]
        right, down = number(1 - min(xs), 99 - max(xs)), number(1 - min(ys), 99 - max(ys))
        points = [f"{x + right:.2f},{y + down:.2f}" for x, y in zip(xs, ys, strict=True)]
        path = f"M {points[0]} L {points[1]}"
        for here, there in pairwise(points[1:]):
            path += f" L {there}" if plain or rng.random() < 0.7 else f" M {here} L {there}"

    others = [other for other in SHAPES if other != shape]
    options = [shape, *rng.sample(others, 9 if level is None else rng.randint(1, 9))]
    # Officially only circles come with "ellipse" and rectangles with "trapezoid", which gives them away. Not so here.
    options += rng.choice(([], [], ["ellipse"], ["trapezoid"]))
    scores = _scores(options, shape, {"circle": "ellipse", "rectangle": "trapezoid"}.get(shape))
    return {"input": f'This SVG path element <path d="{path}"/> draws a ', "target_scores": scores}


def _move(day: date, years: int = 0, months: int = 0, days: int = 0) -> date:
    """Another day; ValueError where there is none, such as a month after January 31."""
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    return day.replace(year=year + years, month=month + 1) + timedelta(days)


def _month_end(day: date) -> date:
    return _move(day.replace(day=1), months=1, days=-1)


# fmt: off
# Ways to say what day today is, the plain ones first: from a day d, also written as 5/4/2004 (us) and Jun 1, 2021
# (mdy), and a number n between 2 and 9, each makes a text and the day that it calls today.
TODAYS = [
    lambda d, n, us, mdy: (f"Today is {mdy}.", d),
    lambda d, n, us, mdy: (f"It is {us} today.", d),
    lambda d, n, us, mdy: (f"Yesterday was {d:%B} {d.day}, {d.year}.", _move(d, days=1)),
    lambda d, n, us, mdy: (f"Tomorrow is {us}.", _move(d, days=-1)),
    lambda d, n, us, mdy: (f"Today, {us}, is a day that we will never forget.", d),
    lambda d, n, us, mdy: (f"Today is the first day of {d.year}.", date(d.year, 1, 1)),
    lambda d, n, us, mdy: (f"This is the last day of {d.year}.", date(d.year, 12, 31)),
    lambda d, n, us, mdy: (f"The day before yesterday was {us}.", _move(d, days=2)),
    lambda d, n, us, mdy: (f"Jane booked a flight for tomorrow, {mdy}.", _move(d, days=-1)),
    lambda d, n, us, mdy: (f"Yesterday, {mdy}, Jane ate 2 pizzas and {n} wings.", _move(d, days=1)),
    lambda d, n, us, mdy: (f"The current local time is {n}:02 pm of {us}.", d),
    lambda d, n, us, mdy: (f"Today is {mdy}. Jane's appointment will be {n} days later.", d),
    lambda d, n, us, mdy: (f"The deadline is {mdy}, which is {n} days away from now.", _move(d, days=-n)),
    lambda d, n, us, mdy: (f"It was {mdy} a week ago.", _move(d, days=7)),
    lambda d, n, us, mdy: (f"Today's meeting is rescheduled to {n} am tomorrow, {us}.", _move(d, days=-1)),
    lambda d, n, us, mdy: (f"The concert was set for {us}, but was delayed by one day to today.", _move(d, days=1)),
    lambda d, n, us, mdy: (f"Today is {d.month}/{d.day}. Jane is watching NFL {d.year}.", d),
    lambda d, n, us, mdy: (f"{d.year} is coming in {n} days.", _move(date(d.year, 1, 1), days=-n)),
    lambda d, n, us, mdy: (f"Today is Christmas Eve of {d.year}.", date(d.year, 12, 24)),
    lambda d, n, us, mdy: (f"Jane is celebrating the last day of {d:%b} {d.year}.", _month_end(d)),
    lambda d, n, us, mdy: (f"Today is the {NTH[n]} day of the third month of {d.year}.", date(d.year, 3, n)),
    lambda d, n, us, mdy: (f"Today is the last day of the first quarter of {d.year}.", date(d.year, 3, 31)),
    lambda d, n, us, mdy: (f"Jane quit her job on {mdy}. {n * 22} days have passed.", _move(d, days=n * 22)),
    lambda d, n, us, mdy: (f"{mdy} is like yesterday to Jane, but is actually {n} years ago.", _move(d, years=n)),
    lambda d, n, us, mdy: (f"Jane and John married on {mdy}. Today is their {n}-year anniversary.", _move(d, years=n)),
    lambda d, n, us, mdy: (f"Jane and John married on {mdy}. Today is their golden wedding.", _move(d, years=50)),
    lambda d, n, us, mdy: (f"Jane was born on the last day of {d:%B} in {d.year}. Today is her {2 * n}-year-old "
                           "birthday.", _move(_month_end(d), years=2 * n)),
    lambda d, n, us, mdy: (f"Jane got her job in {d.year}. Today is her {n}-year work anniversary. She still remembers "
                           f"that on {d:%b} {d.day}, her second day at work, she spilled coffee on her laptop.",
                           _move(_move(d, days=-1), years=n)),
    lambda d, n, us, mdy: (f"Jane visits the bookstore on day {d.day} of each month starting from the {d:%B} of "
                           f"{d.year}. It is her {NTH[n]} visit to the bookstore today.", _move(d, months=n - 1)),
    lambda d, n, us, mdy: ("In the UK, people usually put the day before the month when formatting the date. "
                           f"Therefore, today is {d:%d/%m/%Y} to them.", d),
    lambda d, n, us, mdy: (f"Jane thinks today is {us}, but John thinks today is {d.month}/{d.day + 1}/{d.year}. "
                           f"{('Jane', 'John')[n % 2]} is correct.", d.replace(day=d.day + n % 2)),
]
ASKED = {
    "today": {}, "tomorrow": {"days": 1}, "yesterday": {"days": -1}, "24 hours later": {"days": 1},
    "10 days ago": {"days": -10}, "one week ago from today": {"days": -7}, "one week from today": {"days": 7},
    "a month ago": {"months": -1}, "one year ago from today": {"years": -1},
}
# fmt: on


def date_understanding(rng, level: float | None) -> dict:
    """A sentence from which to tell what day today is, and a question about a day near it."""
    while True:
        try:  # until every day in it exists: no February 30, and no anniversary of a February 29 in other years
            d = date(rng.randint(1900, 2030), rng.randint(1, 12), rng.randint(1, 31))
            tell = rng.choice(TODAYS[: None if level is None else 8])
            asked = rng.choice(list(ASKED)[: None if level is None else 3])
            text, today = tell(d, rng.randint(2, 9), f"{d.month}/{d.day}/{d.year}", f"{d:%b} {d.day}, {d.year}")
            options = [_move(today, **ASKED[asked])]
            break
        except ValueError:
            continue
    wanted = 6 if level is None else rng.randint(2, 6)
    while len(options) < wanted:
        # Wrong days stray from each other too: if all strayed from the right one, it would show as their middle.
        near, step = rng.choice(options[-3:]), rng.choice((-1, 1)) * rng.randint(1, 11)
        other = _move(near.replace(day=min(near.day, 28)), **{rng.choice(("days", "months", "years")): step})
        options += [other] * (other not in options)
    dates = [f"{option:%m/%d/%Y}" for option in options]
    question = f"{text} What is the date {asked} in MM/DD/YYYY?"
    return {"input": question, "target_scores": _scores(dates, dates[0]), "steps": f"Today is {today:%m/%d/%Y}"}


PENGUINS = _names("Louis Bernard Vincent Gwen James Ada Felix Hugo Iris Karl Mabel Nora Oscar Pablo Rosa Sven Tilda")
COMPARED = {
    "age": ("oldest", "youngest", "older", "younger"),
    "height": ("tallest", "shortest", "taller", "shorter"),
    "weight": ("heaviest", "lightest", "heavier", "lighter"),
}


def _which_penguin(rows: list[dict], field: str) -> dict[str, str]:
    """Questions that one of the penguins in the table answers."""
    most, least, more, less = COMPARED[field]
    answers = {f"What is the name of the penguin that is {row['age']} years old?": row["name"] for row in rows}
    ranked = [row["name"] for row in sorted(rows, key=lambda row: -row[field])]
    for word, than, names in ((most, more, ranked), (least, less, ranked[::-1])):
        answers[f"Which is the {word} penguin?"] = answers[f"Which penguin is {than} than {names[1]}?"] = names[0]
        answers[f"Which is the second {word} penguin?"] = names[1]
    for above, between, below in zip(ranked, ranked[1:], ranked[2:], strict=False):
        answers[f"Which penguin is {more} than {below} and {less} than {above}?"] = between
    listed = [row["name"] for row in rows]
    for order, names in (("", listed), (" sorted by alphabetic order", sorted(listed))):
        for place, name in zip(("first", "second", "next to last", "last"), names[:2] + names[-2:], strict=True):
            answers[f"What is the name of the {place} penguin{order}?"] = name
    return answers


def penguins_in_a_table(rng, level: float | None) -> dict:
    """A table of penguins, some change to it, and a question about what it says now."""
    columns = {"name": PENGUINS, "age": range(1, 16), "height": range(40, 100, 5), "weight": range(9, 20)}
    # No two penguins share a value, so every comparison has one answer.
    values = zip(*(rng.sample(column, 5) for column in columns.values()), strict=True)
    *penguins, new = everyone = [dict(zip(columns, row, strict=True)) for row in values]
    penguins = penguins[: 4 if level is None else rng.randint(2, 4)]
    one, two, three = rng.choices(penguins, k=3)
    table = "".join(", ".join(map(str, row.values())) + "\n" for row in penguins)
    prefix = (
        "Here is a table where the first line is a header and each subsequent line is a penguin:\n\n"
        f"name, age, height (cm), weight (kg)\n{table}\n"
        f"For example: the age of {one['name']} is {one['age']}, the weight of {two['name']} is {two['weight']} kg, "
        f"the height of {three['name']} is {three['height']} cm.\n"
    )
    text = ""
    if rng.random() < 0.5:
        penguins.append(new)
        text += f"We now add a penguin to the table:\n{', '.join(map(str, new.values()))}\n"
    if len(penguins) > 2 and rng.random() < 0.5:
        gone = penguins.pop(rng.randrange(len(penguins) - 1))
        text += f"We then delete the penguin named {gone['name']} from the table.\n"

    topic, field = rng.choice(_names("which which number value sum")), rng.choice(list(COMPARED))
    field = "age" if topic == "number" else field
    if topic == "which":
        answers, options = _which_penguin(penguins, field), [row["name"] for row in everyone]
    elif topic == "number":
        answers, options = {"How many penguins are there in the table?": len(penguins)}, range(1, 6)
        for limit, (word, sign) in product(range(1, 16), (("more", 1), ("less", -1))):
            met = sum(sign * row["age"] > sign * limit for row in penguins)
            answers |= {f"How many penguins are {word} than {limit} years old?": met} if met else {}
    elif topic == "value":
        answers = {f"What is the {field} of {row['name']}?": row[field] for row in penguins}
        options = [row[field] for row in everyone]
    else:
        total = sum(row[field] for row in penguins)
        answers = {f"What is the cumulated {field} of the penguins?": total}
        step, rank = rng.randint(1, max(1, total // 5)), rng.randrange(min(5, total))  # no sum below 1
        options = [total + (i - rank) * step for i in range(5)]
    question, answer = _balanced(rng, answers)
    scores, steps = _scores(sorted(options), answer), ", ".join(f"{row['name']} {row[field]}" for row in penguins)
    return {"task_prefix": prefix, "input": text + question, "target_scores": scores, "steps": steps}


COLORS = _names("""red orange yellow green blue brown magenta fuchsia mauve teal turquoise burgundy silver gold black
    grey purple pink""")
ITEMS = _names(
    "keychain, textbook, paperclip, puzzle, plate, notebook, pencil, bracelet, scrunchie, phone charger, teddy bear, "
    "dog leash, envelope, pair of sunglasses, pen, stress ball, cat toy, fidget spinner, crayon, sheet of paper, mug"
)


def _about_colors(rng, topic: str, things: list[tuple[str, str]], noun: str) -> dict:
    """Questions about (color, item) pairs, which may be a row from left to right, with their answers."""
    colors, last, what = [color for color, _ in things], len(things) - 1, f"What is the color of the {noun}"
    called = [(i, it) for i, (color, item) in enumerate(things) for it in (item, f"{color} {noun}")]
    if topic == "color":
        return {f"What color is the {item}?": color for color, item in things}
    if topic == "yes/no":
        return {f"Is the {item} {c}?": "yes" if c == color else "no" for color, item in things for c in COLORS}
    if topic == "neither":
        pairs = permutations([*colors, *rng.sample(COLORS, 4)], 2)
        return {f"How many {noun}s are neither {a} nor {b}?": sum(c not in (a, b) for c in colors) for a, b in pairs}
    if topic == "beside" and last:
        left = {f"{what} directly to the left of the {it}?": colors[i - 1] for i, it in called if i > 0}
        return left | {f"{what} directly to the right of the {it}?": colors[i + 1] for i, it in called if i < last}
    if topic == "furthest" and last:  # from the middle, both ends are equally far
        return {f"{what} furthest from the {it}?": colors[-(2 * i < last)] for i, it in called if 2 * i != last}
    if topic == "non" and last:
        sides = [(*side, it) for i, it in called for side in (("left", colors[:i]), ("right", colors[i + 1 :]))]
        ask = f"How many non-{{}} {noun}s do you see to the {{}} of the {{}}?"
        return {ask.format(c, end, it): len(part) - (c in part) for c in colors for end, part, it in sides}
    return {f"What is the color of the {end}-most {noun}?": colors[i] for end, i in (("left", 0), ("right", -1))}


def _remaining(surface: str, count: dict[tuple, int], noun: str) -> dict[str, int]:
    """Questions about how many things remain when all of a kind, or all of a color, are taken away."""
    answers, ask = {}, f"If I remove all the {{}} from the {surface}, how many {{}} remain on it?"
    for color, item in count:
        of_color, of_kind = f"{color} {noun}s", _plural(item)
        answers[ask.format(of_kind, of_color)] = sum(n for (c, i), n in count.items() if c == color and i != item)
        answers[ask.format(of_color, of_kind)] = sum(n for (c, i), n in count.items() if c != color and i == item)
    return answers


def reasoning_about_colored_objects(rng, level: float | None) -> dict:
    """Colored things on a surface: their colors, their places in a row, how many there are, how many remain."""
    surface, noun = rng.choice(_names("desk table floor nightstand")), rng.choice(_names("thing item object"))
    topic = rng.choice(_names("color yes/no neither end beside beside furthest non remove remove"))
    size = rng.randint(2 if level is None else 1, 6)
    things = list(zip(rng.sample(COLORS, size), rng.sample(ITEMS, size), strict=True))
    see, most = rng.choice(("you see", "I see", "there is")), 6 if level is None else size
    if topic == "remove":  # the same few colors and kinds again and again, one to three of each
        see, most = see.replace("is", "are"), 16 if level is None else min(3 * size, 16)
        pairs = list(product(*zip(*things[:4], strict=True)))
        count = {pair: rng.randint(1, 3) for pair in rng.sample(pairs, min(len(pairs), 2 * size))}
        listed = [_counted(n, " ".join(pair)) for pair, n in count.items()]
        answers = _remaining(surface, count, noun)
    else:
        if topic in ("end", "beside", "furthest", "non"):
            row = rng.choice(("several", "a set of", "a bunch of", "the following"))
            see = f"you see {row} {noun}s arranged in a row:"
        listed = [_a(" ".join(thing)) for thing in things]
        answers = _about_colors(rng, topic, things, noun)
    question, answer = _balanced(rng, answers)
    if answer in COLORS:
        others = [color for color in COLORS if color != answer]
        scores = _scores((answer, *rng.sample(others, 17 if level is None else rng.randint(1, 17))), answer)
    elif topic == "yes/no":
        scores = _scores(("yes", "no"), answer)
    else:
        forms = [form for n in range(most + 1) for form in (str(n), NUMBER[n])]
        scores = _scores(forms, str(answer), NUMBER[answer])
    steps = ", ".join(color for color, _ in things) if topic not in ("color", "yes/no", "remove") else ""
    text = f"On the {surface}, {see} {_and(listed)}. {question}"
    return {"input": text, "target_scores": scores, "steps": steps}


# Forms of verbs, and words made of two others: neighbors in the alphabet are what makes sorting hard.
VERBS = _names("""answer ask bark boil borrow build burn call climb cook count crawl fold gather hang help hunt jump
    kick knock laugh learn lift listen mix open paint plant print pull quilt roll search sing sleep speak talk teach
    think turn vault wait walk wash yell""")
FIRSTS = _names("""air apple back bed book butter camp candle day door earth eye farm fire foot garden gold hand head
    horse house ice iron kitchen leaf market mill moon night ocean pepper rain river rock sand school sea shadow silver
    snow star stone summer sun tiger tree under valley village water wind winter wood""")
SECONDS = _names("""bird boat box cloth cup dust fall field fish flower glass hill keeper land light line maker man
    master path room side song time tower way wing work yarn""")
WORDS = sorted({"".join(parts) for parts in (*product(VERBS, ("", "er", "ing")), *product(FIRSTS, ("", *SECONDS)))})


def word_sorting(rng, level: float | None) -> dict:
    """Put a list of words into alphabetical order."""
    count = rng.randint(2, 20) if level is None else rng.randint(1, 2 + round(8 * level))
    words = rng.sample(WORDS, count)
    header = {"task_prefix": "Sort the following words alphabetically:", "example_input_prefix": "\nList: "}
    return {**header, "input": " ".join(words), "target": " ".join(sorted(words))}


GENERATORS = {
    **{f"tracking_shuffled_objects_{NUMBER[size]}_objects": partial(tracking, size=size) for size in (3, 5, 7)},
    **{f"logical_deduction_{NUMBER[size]}_objects": partial(logical_deduction, size=size) for size in (3, 5, 7)},
    "date_understanding": date_understanding,
    "object_counting": object_counting,
    "geometric_shapes": geometric_shapes,
    "penguins_in_a_table": penguins_in_a_table,
    "reasoning_about_colored_objects": reasoning_about_colored_objects,
    "word_sorting": word_sorting,
}

"""Logical deduction: statements about an order that leave exactly one possibility.

Steps first write down what is placed outright, then the others in their order, then all of them, place by place.
"""

from collections import namedtuple
from functools import cache, reduce
from itertools import permutations
from operator import and_

from support.grammars.common import LISTS, NTH, NUMBER, a, join, scores

# fmt: off
Domain = namedtuple("Domain", "opening listed the stands places before after names")
ROW = ("is the", ("leftmost", "{} from the left", "{} from the right", "rightmost"),
       "is to the left of", "is to the right of")
DOMAINS = [
    Domain("On a shelf, there are {} books", a, "the ", *ROW, [f"{hue} book" for hue in LISTS["hues"]]),
    Domain("On a branch, there are {} birds", a, "the ", *ROW, LISTS["birds"]),
    Domain("In a golf tournament, there were {} golfers", str, "", "finished", ("first", "{}", "{}-to-last", "last"),
           "finished above", "finished below", LISTS["golfers"]),
    Domain("In an antique car show, there are {} vehicles", a, "the ", "is the",
           ("newest", "{}-newest", "{}-oldest", "oldest"), "is newer than", "is older than", LISTS["vehicles"]),
    Domain("A fruit stand sells {} fruits", str, "the ", "are the",
           ("most expensive", "{}-most expensive", "{}-cheapest", "cheapest"),
           "are more expensive than", "are less expensive than", LISTS["sold fruits"]),
]
# fmt: on


@cache
def allowed(size: int, kind: str, i: int, j: int) -> int:
    """The orders in which object i stands at place j, or before object j: an integer with one bit for every order.

    Several statements together allow the bitwise and of these; they are enough when a single bit is left.
    """
    orders = permutations(range(size))  # order[i] is the place of object i
    return int("".join("01"[order[i] == j if kind == "at" else order[i] < order[j]] for order in orders), 2)


def puzzle(rng, order: list[int], direct: float) -> list[tuple]:
    """Statements that hold in this order and in no other, and of which none can be left out."""
    chosen, left = {}, -1  # an integer with every bit set
    while left & (left - 1):  # more than one bit
        i, j = rng.sample(range(len(order)), 2)
        before = ("before", i, j) if order[i] < order[j] else ("before", j, i)
        statement = ("at", i, order[i]) if rng.random() < direct else before
        orders = allowed(len(order), *statement)
        if left & orders != left:
            chosen[statement] = orders
            left &= orders
    for statement in list(chosen):
        others = {other: orders for other, orders in chosen.items() if other != statement}
        if reduce(and_, others.values(), -1) == left:
            chosen = others
    return list(chosen)


def solution(statements: list[tuple], order: list[int], called: list[str]) -> str:
    """`third owl. raven, quail, crow. first raven, second quail, third owl, fourth crow`"""
    placed = {i for kind, i, _ in statements if kind == "at"}
    in_order = sorted(range(len(order)), key=lambda i: order[i])
    with_place = {i: f"{NTH[order[i] + 1]} {called[i]}" for i in in_order}
    outright = ", ".join(with_place[i] for i in in_order if i in placed)
    others = ", ".join(called[i] for i in in_order if i not in placed)
    return ". ".join(part for part in (outright, others, ", ".join(with_place.values())) if part)


def logical_deduction(rng, size: int, level: float | None) -> dict:
    """Which object stands in the asked place?"""
    size = size if level is None else rng.randint(2, size)
    domain = rng.choice(DOMAINS)
    called, order = rng.sample(domain.names, size), rng.sample(range(size), size)  # order[i] is the place of called[i]

    def at(i: int, place: int) -> str:
        first, from_start, from_end, last = domain.places
        where = (from_start if place < size / 2 else from_end).format(NTH[min(place + 1, size - place)])
        where = {0: first, size - 1: last}.get(place, where)
        return f"{domain.the.capitalize()}{called[i]} {domain.stands} {where}."

    def before(i: int, j: int) -> str:
        i, relation, j = rng.choice(((i, domain.before, j), (j, domain.after, i)))
        return f"{domain.the.capitalize()}{called[i]} {relation} {domain.the}{called[j]}."

    statements = puzzle(rng, order, direct=0.25 if level is None else 1 - 0.75 * level)
    sentences = [at(*rest) if kind == "at" else before(*rest) for kind, *rest in statements]
    asked = rng.randrange(size)
    return {
        "task_prefix": f"The following paragraphs each describe a set of {NUMBER[size]} objects arranged in a fixed "
        "order. The statements are logically consistent within each paragraph.\n\n",
        "input": f"{domain.opening.format(NUMBER[size])}: {join([*map(domain.listed, called)])}. {' '.join(sentences)}",
        "target_scores": scores((at(i, asked) for i in range(size)), at(order.index(asked), asked)),
        "steps": solution(statements, order, [name.removesuffix(" book") for name in called]),
    }

"""Object counting: how many things of one kind are in a list. Steps: each thing of that kind, with a running sum."""

import math
from itertools import accumulate

from support.grammars.common import LISTS, NUMBER, a, counted, join

KINDS = ("animals", "fruits", "vegetables", "musical instruments", "objects")


def object_counting(rng, level: float | None) -> dict:
    """How many things of one kind are in a list that may also have things of another kind?"""
    kind, other = rng.sample(KINDS, 2)
    answer = rng.randint(2, 15) if level is None else rng.randint(1, 4 + round(11 * level))
    counts = [1] * rng.randint(math.ceil(answer / 5), min(answer, 9))
    while sum(counts) < answer:  # hand out the rest, at most five to an entry
        i = rng.randrange(len(counts))
        counts[i] += counts[i] < 5
    entries = list(zip(counts, rng.sample(LISTS[kind], len(counts)), strict=True))
    counted_nouns = {noun for _, noun in entries}
    if kind != "objects" and (len(counts) == 1 or rng.random() < 0.5):  # everything is an object
        entries += [(rng.choice((1, 1, 2, 5)), noun) for noun in rng.sample(LISTS[other], rng.randint(1, 4))]
        rng.shuffle(entries)
    things = [a(noun) if count == 1 else counted(count, noun) for count, noun in entries]
    of_kind = [(count, thing) for (count, noun), thing in zip(entries, things, strict=True) if noun in counted_nouns]
    sums = accumulate(count for count, _ in of_kind)
    steps = ", ".join(f"{thing}: {NUMBER[total]}" for (_, thing), total in zip(of_kind, sums, strict=True))
    question = f"I have {join(things, ', and ')}. How many {kind} do I have?"
    return {"input": question, "target": [NUMBER[answer], str(answer)], "steps": steps}

"""Object counting: how many things of one kind are in a list. Steps: each thing of that kind, with a growing sum."""

import math
from itertools import accumulate

from support.grammars.common import NUMBER, a, counted, join, names

THINGS = {
    "animals": names("cat dog cow pig goat bear duck frog snail snake rabbit donkey chicken mouse fish"),
    "fruits": names("apple banana orange grape peach plum nectarine strawberry raspberry blackberry"),
    "vegetables": names(
        "carrot, onion, potato, cabbage, yam, leek, garlic, cauliflower, lettuce head, head of broccoli, stalk of celery"
    ),
    "musical instruments": names("piano violin flute clarinet trumpet trombone drum accordion harp guitar"),
    "objects": names("bed car chair couch fridge lamp microwave oven stove table toaster"),
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
    counted_nouns = {noun for _, noun in entries}
    if kind != "objects" and (len(counts) == 1 or rng.random() < 0.5):  # everything is an object
        entries += [(rng.choice((1, 1, 2, 5)), noun) for noun in rng.sample(THINGS[other], rng.randint(1, 4))]
        rng.shuffle(entries)
    things = [a(noun) if count == 1 else counted(count, noun) for count, noun in entries]
    of_kind = [(count, thing) for (count, noun), thing in zip(entries, things, strict=True) if noun in counted_nouns]
    sums = accumulate(count for count, _ in of_kind)
    return {
        "input": f"I have {join(things, ', and ')}. How many {kind} do I have?",
        "target": [NUMBER[answer], str(answer)],
        "steps": ", ".join(f"{thing}: {NUMBER[total]}" for (_, thing), total in zip(of_kind, sums, strict=True)),
    }

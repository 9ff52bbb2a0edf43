"""Tracking shuffled objects: people hold things, pairs of them swap, and one is asked about at the end.

Steps go backwards from the person asked about: who had it before each swap, down to who held it first.
"""

from collections import namedtuple
from pathlib import Path

from support.grammars.common import LISTS, a, join, scores

# A line of stories.txt is a story, its fields separated by bars.
Story = namedtuple("Story", "opening holds progress swap ending option things")
LINES = Path(__file__).with_name("stories.txt").read_text("ascii").splitlines()
STORIES = [Story(*line.split(" | ")) for line in LINES]


def tracking(rng, size: int, level: float | None) -> dict:
    """`size` people each hold a thing, and pairs of them swap `size` times: who ends up with what?"""
    count, swaps = (size, size) if level is None else (rng.randint(2, size), rng.randint(0, round(level * size)))
    story, people = rng.choice(STORIES), LISTS["people"][:count]
    holds = dict(zip(people, rng.sample(LISTS[story.things], count), strict=True))
    options = [story.option.format(thing) for thing in holds.values()]
    held = [f"{who} {story.holds.format(thing=it, a_thing=a(it))}" for who, it in holds.items()]
    text = f"{join(people)} are {story.opening}: {join(held, ', and ')}. \n\n{story.progress}"
    pairs = [rng.sample(people, 2) for _ in range(swaps)]
    for turn, (one, other) in enumerate(pairs):
        holds[one], holds[other] = holds[other], holds[one]
        when = "First" if turn == 0 else "Finally" if turn == swaps - 1 else "Then"
        text += f" {when}, {one} and {other} {story.swap}."
    asked = rng.choice(people)
    had_by = [asked]
    for one, other in reversed(pairs):
        had_by.append({one: other, other: one}.get(had_by[-1], had_by[-1]))
    text += f" At the end of the {story.ending.format(asked)} "
    right = story.option.format(holds[asked])
    return {"input": text, "target_scores": scores(options, right), "steps": ", ".join(had_by)}

"""Tracking shuffled objects: people hold things, pairs of them swap, and one is asked about at the end.

Steps go backwards from the person asked about: who had it before each swap, down to who held it first.
"""

from collections import namedtuple

from support.grammars.common import LISTS, a, join, scores

# fmt: off
Story = namedtuple("Story", "opening holds progress swap ending option things")
STORIES = [
    Story("playing a game. At the start of the game, they are each holding a ball", "has {a_thing} ball",
          "As the game progresses, pairs of players trade balls.", "swap balls", "game, {} has the", "{} ball.", "hues"),
    Story("holding a white elephant gift exchange. At the start of the event, they are each holding a present of a "
          "different color", "has {a_thing} present", "As the event progresses, pairs of people swap gifts.",
          "swap their gifts", "event, {} has the", "{} present.", "hues"),
    Story("on the same team in a soccer match. At the start of the match, they are each assigned to a position",
          "is playing {thing}", "As the game progresses, pairs of players occasionally swap positions.",
          "trade positions", "match, {} is playing", "{}.", "positions"),
    Story("friends and avid readers who occasionally trade books. At the start of the semester, they each buy one new "
          "book", "gets {thing}", "As the semester proceeds, they start trading around the new books.", "swap books",
          "semester, {} has", "{}.", "books"),
    Story("dancers at a square dance. At the start of a song, they each have a partner", "is dancing with {thing}",
          "Throughout the song, the dancers often trade partners.", "switch partners", "dance, {} is dancing with",
          "{}.", "partners"),
]
# fmt: on


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
    return {
        "input": f"{text} At the end of the {story.ending.format(asked)} ",
        "target_scores": scores(options, story.option.format(holds[asked])),
        "steps": ", ".join(had_by),
    }

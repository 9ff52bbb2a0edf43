"""Word sorting. Steps: the first two letters of the words, in order.

words.txt has the 10,000 commonest English words (by wordfreq 3.1) that are entries of Webster's Second Dictionary of 1934.
"""

from pathlib import Path

WORDS = Path(__file__).with_name("words.txt").read_text("ascii").split()


def word_sorting(rng, level: float | None) -> dict:
    """Put a list of words into alphabetical order."""
    count = rng.randint(2, 20) if level is None else rng.randint(1, 2 + round(8 * level))
    words = rng.sample(WORDS, count)
    prefixes = {"task_prefix": "Sort the following words alphabetically:", "example_input_prefix": "\nList: "}
    steps = " ".join(word[:2] for word in sorted(words))
    return prefixes | {"input": " ".join(words), "target": [" ".join(sorted(words))], "steps": steps}

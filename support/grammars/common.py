"""What several grammars share: lists of words (lists.txt), numbers in words, articles, scored options."""

from pathlib import Path

from support.number_words import NUMBER_WORDS as NUMBER

NTH = "zeroth first second third fourth fifth sixth seventh eighth ninth".split()
LISTS = dict(line.split(": ") for line in Path(__file__).with_name("lists.txt").read_text("utf-8").splitlines())
LISTS = {name: entries.split(", ") for name, entries in LISTS.items()}  # the things in the questions


def a(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def join(items: list[str], pair: str = " and ") -> str:
    """Write "a, b, and c"; two items are joined by `pair`, as the official files disagree about a comma there."""
    return pair.join(items) if len(items) < 3 else f"{', '.join(items[:-1])}, and {items[-1]}"


def plural(noun: str) -> str:
    """The plural of a noun; in "head of broccoli", it is the head that takes the s."""
    if noun == "mouse":
        return "mice"
    head, of, rest = noun.partition(" of ")
    head = head[:-1] + "ie" if head.endswith("ry") else head + "e" if head.endswith(("ch", "sh", "x", "to")) else head
    return f"{head}s{of}{rest}"


def counted(number: int, noun: str) -> str:
    """The number in words, and as many of them."""
    return f"{NUMBER[number]} {noun if number == 1 else plural(noun)}"


def growing(parts: list[tuple[str, int, bool]]) -> tuple[int, str]:
    """The sum of the numbers that count among (text, number, counts), and the steps: `red yes one, blue no one`."""
    total, steps = 0, []
    for text, number, counts in parts:
        total += number * counts
        steps.append(f"{text} {'yes' if counts else 'no'} {NUMBER[total]}")
    return total, ", ".join(steps)


def scores(options, *right) -> dict[str, int]:
    """The options of a task file with their scores."""
    return {str(option): int(option in right) for option in options}


def balanced(rng, questions: dict) -> tuple:
    """Draw (question, answer, steps) so that every answer is equally likely, however many questions lead to it.

    questions: question -> (answer, steps).
    """
    answer = rng.choice(list(dict.fromkeys(answer for answer, _ in questions.values())))
    question = rng.choice([question for question, about in questions.items() if about[0] == answer])
    return question, answer, questions[question][1]

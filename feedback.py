"""Feedback: is this output right, and which instruction does it therefore fulfil?

The paper scores an output by comparing it with the target (Sec. 4.2). Each kind of answer has a scorer of its own here.
All of them forgive form, as the authors' rule does (spaces, full stops, newlines, upper case), and none forgives content.
"""

import re
from collections.abc import Callable

from bigbench_tasks import Example, option_letter

CORRECT = "Solve the question with correct answer."
WRONG = "Solve the question with wrong answer."


def is_correct(output: str, example: Example) -> bool:
    """R(o, p, q) of Sec. 4.2 under the instruction CORRECT: does this output answer the question? Never raises."""
    return _scorer(example)(final_answer(output), example)


def final_answer(output: str) -> str:
    """What follows the last "the answer is" of an output that thinks aloud; an output without one is an answer itself."""
    return re.split(r"(?i)\bthe answer is\b:?", output)[-1]


def may_become_correct(beginning: str, example: Example) -> bool:
    """Does a right answer begin like this? Tells which part of a wrong output is still right.

    What comes before the answer itself, the steps of an output that thinks aloud, is judged by where it led: not here.
    """
    text = normalize(final_answer(beginning))
    answers = [normalize(target) for target in example.targets]
    for letter, option in _lettered(example):
        if letter in example.targets:
            answers += [*_with_letter(letter, option), normalize(option)]
    return text != "" and any(answer.startswith(text) for answer in answers)


def instruction_for(right: bool) -> str:
    """phi of Sec. 4.2: the instruction that an output with this feedback fulfils."""
    return CORRECT if right else WRONG


def normalize(text: str) -> str:
    """Remove what is form: case, and spaces and full stops unless they separate two digits (`1 1` and `1.1` are not `11`)."""
    return re.sub(r"(?<![0-9\s.])[\s.]+|[\s.]+(?![0-9\s.])", "", text.lower())


def score_choice(output: str, example: Example) -> bool:
    """A right option's letter, its text, or both: `(B)`, `b`, `the blue book`, `(B) the blue book`."""
    text = normalize(output)
    by_letter = [letter for letter, option in _lettered(example) if text in _with_letter(letter, option)]
    by_text = [letter for letter, option in _lettered(example) if text == normalize(option)]
    # A bare letter may be the text of another option (a blood group, say); what is written in full goes first.
    return text != "" and any(letter in example.targets for letter in by_text or by_letter)


def score_number(output: str, example: Example) -> bool:
    """The number as a numeral or in words: `12`, `Twelve.`"""
    number = parse_number(output)
    return number is not None and any(number == parse_number(target) for target in example.targets)


def score_words(output: str, example: Example) -> bool:
    """All words of a list in the right order, separated by spaces, commas or newlines."""
    text = normalize(output.replace(",", " "))
    return text != "" and any(text == normalize(target.replace(",", " ")) for target in example.targets)


def score_text(output: str, example: Example) -> bool:
    """Free text: equal to a target but for its form."""
    text = normalize(output)
    return text != "" and any(text == normalize(target) for target in example.targets)


_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBERS = {word: number for number, word in enumerate(_UNITS)}
for _i, _ten in enumerate(_TENS, start=2):
    _NUMBERS[_ten] = 10 * _i
    _NUMBERS.update({_ten + unit: 10 * _i + j for j, unit in enumerate(_UNITS[1:10], start=1)})


def parse_number(text: str) -> int | None:
    """The number that a numeral or an English number word below one hundred names; None if it names none."""
    text = normalize(text)
    # The bound keeps absurd outputs away from int(), which refuses very long numerals with an exception.
    if re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    return _NUMBERS.get(text.replace("-", ""))


def _with_letter(letter: str, option: str) -> tuple[str, ...]:
    """The ways to name an option that contain its letter, normalized."""
    bare, option = normalize(letter).strip("()"), normalize(option)
    return bare, f"{bare})", f"({bare})", f"{bare}){option}", f"({bare}){option}"


def _lettered(example: Example) -> list[tuple[str, str]]:
    return [(option_letter(i), option) for i, option in enumerate(example.options)]


# The scorers of tasks that are not judged by the form of their answers alone; put those of your own tasks here.
SCORERS: dict[str, Callable[[str, Example], bool]] = {"word_sorting": score_words}


def _scorer(example: Example) -> Callable[[str, Example], bool]:
    if example.task in SCORERS:
        return SCORERS[example.task]
    if example.options:
        return score_choice
    if all(parse_number(target) is not None for target in example.targets):
        return score_number
    return score_text

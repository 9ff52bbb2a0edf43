"""Feedback: is this output an answer at all, and is it right?

The paper scores an output by comparing it with the target (Sec. 4.2). Each kind of answer has a scorer here, which also
says what counts as an answer: an option's letter or text, a number, the words of the list in some order, any text. A
wrong answer obeys "answer wrongly"; noise does not, so the two are distinguished. All scorers ignore formatting, as the
authors' rule does (spaces, full stops, newlines, case), never content.
"""

import re
from collections.abc import Callable
from typing import Literal

from bigbench_tasks import Example, option_letter
from support import own_feedback
from support.number_words import NUMBER_WORDS

Verdict = Literal["right", "wrong", "malformed"]  # malformed: no answer to this kind of question


def judge(output: str, example: Example) -> Verdict:
    """R(o, p, q) of Sec. 4.2: judge the final answer of any output. (--feedback judges the complete output.)"""
    if own := own_feedback.in_force():
        return own(output, example)
    return _scorer(example)(final_answer(output), example)


def is_correct(output: str, example: Example) -> bool:
    """R = 1 under the instruction CORRECT: does this output answer the question?"""
    return judge(output, example) == "right"


def answer_position(output: str) -> int:
    """Where the judged part begins: after the last "the answer is"; at 0 if there is none, or with --feedback."""
    if own_feedback.in_force():
        return 0
    return max((match.end() for match in re.finditer(r"(?i)\bthe answer is\b:?", output)), default=0)


def final_answer(output: str) -> str:
    """The text from `answer_position` on."""
    return output[answer_position(output) :]


def is_part_of_right_answer(text: str, example: Example) -> bool:
    """Does a right answer contain this text? Then a piece of a wrong answer is not wrong by itself (Sec. 4.2, A.2)."""
    part = "" if own_feedback.in_force() else normalize(text)  # own feedback judges complete outputs only
    answers = [normalize(target) for target in example.targets]
    for letter, option in _lettered(example):
        if letter in example.targets:
            answers += [*_with_letter(letter, option), normalize(option)]
    return part != "" and any(part in answer for answer in answers)


def normalize(text: str) -> str:
    """Strip formatting: case, and spaces and full stops unless they separate two digits (`1 1` and `1.1` are not `11`)."""
    return re.sub(r"(?<![0-9\s.])[\s.]+|[\s.]+(?![0-9\s.])", "", text.lower())


# --- One scorer per kind of answer ------------------------------------------------------------------------------------


def score_choice(answer: str, example: Example) -> Verdict:
    """An option's letter, its text, or both: `(B)`, `b`, `the blue book`, `(B) the blue book`."""
    text = normalize(answer)
    by_letter = [letter for letter, option in _lettered(example) if text in _with_letter(letter, option)]
    by_text = [letter for letter, option in _lettered(example) if text == normalize(option)]
    # A bare letter may be the text of another option (a blood group, say); a match of the full text takes precedence.
    chosen = (by_text or by_letter) if text else []
    return _verdict(bool(chosen), any(letter in example.targets for letter in chosen))


def score_number(answer: str, example: Example) -> Verdict:
    """A whole number: `12`, `Twelve.`; negative only if the question or a target has a minus before a number."""
    number, minus = parse_number(answer), re.search(r"-\s?[0-9(]", f"{example.question} {example.targets}")
    well_formed = number is not None and (number >= 0 or minus is not None)
    return _verdict(well_formed, any(number == parse_number(target) for target in example.targets))


def score_words(answer: str, example: Example) -> Verdict:
    """All words of a list, in some order, separated by spaces, commas or newlines; right only in the right order."""
    text = normalize(answer.replace(",", " "))
    right = text != "" and any(text == normalize(target.replace(",", " ")) for target in example.targets)
    return _verdict(right or _sorted_words(answer) in map(_sorted_words, example.targets), right)


def score_text(answer: str, example: Example) -> Verdict:
    """Free text: anything is an answer, unless only yes and no are; right if equal to a target up to formatting."""
    text, targets = normalize(answer), {normalize(target) for target in example.targets}
    answers = next((pair for pair in YES_NO if targets <= pair), {text} - {""})
    return _verdict(text in answers, text in targets)


def parse_number(text: str) -> int | None:
    """The whole number named by a numeral or an English number word below one hundred; None if there is none."""
    text = normalize(text)
    # The bound keeps absurd outputs away from int(), which refuses very long numerals with an exception.
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else _NUMBERS.get(text.replace("-", ""))


# The scorers of tasks whose kind of answer cannot be inferred.
SCORERS: dict[str, Callable[[str, Example], Verdict]] = {"word_sorting": score_words}
YES_NO = ({"yes", "no"}, {"true", "false"})
_NUMBERS = {word.replace("-", ""): number for number, word in enumerate(NUMBER_WORDS)}


def _scorer(example: Example) -> Callable[[str, Example], Verdict]:
    numbers = all(parse_number(target) is not None for target in example.targets)
    return SCORERS.get(example.task) or (score_choice if example.options else score_number if numbers else score_text)


def _verdict(well_formed: bool, right: bool) -> Verdict:
    return "malformed" if not well_formed else "right" if right else "wrong"


def _lettered(example: Example) -> list[tuple[str, str]]:
    return [(option_letter(i), option) for i, option in enumerate(example.options)]


def _with_letter(letter: str, option: str) -> tuple[str, ...]:
    """The ways to name an option that contain its letter, normalized."""
    bare, option = normalize(letter).strip("()"), normalize(option)
    return bare, f"{bare})", f"({bare})", f"{bare}){option}", f"({bare}){option}"


def _sorted_words(text: str) -> list[str]:
    return sorted(word.strip(".") for word in text.lower().replace(",", " ").split())

"""Feedback on all official answers in every form, and on any text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigbench_tasks import TASKS, generate, load, option_letter
from feedback import is_correct, is_part_of_right_answer, judge, parse_number
from tests.conftest import BIGBENCH, needs_official_files


def forms(answer):
    """What a model may write instead of an answer without changing what it says."""
    return {answer, answer.upper(), answer.lower(), f"  {answer}\n", f"{answer}.", answer.replace(" ", "\n"),
            answer.replace(" ", "  "), f"one, two. So the answer is {answer}"}  # fmt: skip


@needs_official_files
@pytest.mark.parametrize("task", TASKS)
def test_every_official_answer_is_right_in_every_form_and_nothing_else_is(task):
    for example in load(task, BIGBENCH):
        letters = {option_letter(i): option for i, option in enumerate(example.options)}
        for target in example.targets:
            right = {target}
            if letters:
                right |= {target.strip("()"), letters[target], f"{target} {letters[target]}"}
            for answer in right:
                assert {judge(form, example) for form in forms(answer)} == {"right"}, (answer, example)
                assert all(is_part_of_right_answer(answer[:i], example) for i in range(1, len(answer) + 1))
        for letter in letters.keys() - set(example.targets):
            assert judge(letter, example) == judge(letters[letter].upper(), example) == "wrong", (letter, example)
        if letters:
            assert judge(f"(A) {letters['(B)']}", example) == judge(f"(B) {letters['(A)']}", example) == "malformed"
        target = example.targets[0]
        for other in ("", " .\n", "(", "()", f"{target} {target}", f"0{target}0"):
            assert not is_correct(other, example), (other, example)


@settings(deadline=None, max_examples=500)
@given(st.text(), st.sampled_from(TASKS))
def test_any_text_is_judged(text, task):
    (example,) = generate(task, 1, seed=0)
    assert judge(text, example) in ("right", "wrong", "malformed")
    assert judge(f"{text}#", example) == "malformed"  # no answer contains this sign
    assert judge(example.targets[0], example) == "right"


def test_numbers_in_words():
    assert [parse_number(number) for number in ("twenty-one", "Twenty one", "99", "ninety-nine", "x")] == [
        21, 21, 99, 99, None
    ]  # fmt: skip

"""Feedback on all official answers in every form."""

import pytest

from bigbench_tasks import TASKS, load, option_letter
from feedback import is_correct, is_part_of_right_answer, judge
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

"""Questions answered under both instructions, before and after training:  python train.py --ask --checkpoint A,B

Like explain.py, this file imports hir.py.
"""

import math
import sys
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import hir
from bigbench_tasks import Example, option_letter
from support import processes
from support.batches import TrainingExample
from support.errors import InputError, input_errors
from support.explain import ASKS_FOR, all_log_probs, indented, log_probs, quoted, would_be_right
from support.learner import Learner

HELP = r"Type a question on one line (\n for a line break), or an empty line for one from the task; Ctrl-D ends."
MOST_OPTIONS = 8  # up to so many are shown with their probabilities


def ask(learners: list[Learner], examples: list[Example], settings: hir.Settings, run: Any) -> None:
    """Answer what is typed or piped in, one question per line, with each of the models, until the input ends.

    examples: an empty line asks the next one. run: its `checkpoint` names the models.
    """
    if processes.launched():
        raise InputError("--ask runs in a single process; start it without torchrun.")
    names = [f"{name}  " for name in run.checkpoint.split(",")] if len(learners) > 1 else [""]
    if sys.stdin.isatty():
        print(HELP)
    try:
        for example in questions(examples):
            for instruction, asks_for in ASKS_FOR.items():
                print(f"\n   {asks_for.strip()}")
                for name, learner in zip(names, learners, strict=True):
                    print_answer(name, learner, instruction, example, settings)
            print(flush=True)
    except (EOFError, KeyboardInterrupt):  # Ctrl-D, Ctrl-C
        print()


def questions(examples: list[Example]) -> Iterator[Example]:
    """The questions typed; for an empty line, the next example, which is shown. Ends with EOFError."""
    following = cycle(examples)
    while True:
        with input_errors("the question is not text", "write it in UTF-8.", UnicodeError):
            # Where the locale is not UTF-8, Python hides bytes in surrogates.
            line = input("Q: " if sys.stdin.isatty() else "").encode(errors="surrogateescape").decode()
        if line.strip():
            example = Example(line.strip().replace("\\n", "\n"), ())
        elif (example := next(following, None)) is None:
            print("   The task has no training question.")
            continue
        print(indented(example.question))
        if example.targets:
            print(f"   {would_be_right(example)}")
        yield example


def print_answer(name: str, learner: Learner, instruction: str, example: Example, settings: hir.Settings) -> None:
    """Print a model's greedy answer under an instruction, its probability, and those of the options in its place."""
    model, tokenizer, column = learner.model, learner.tokenizer, list(ASKS_FOR).index(instruction)
    prompts = [hir.prompt(instruction, example.question)]
    ((tokens,),) = hir.sample_tokens(model, tokenizer, prompts, 1, 0.0, settings.max_new_tokens)
    sample = hir.make_sample(example, tokens, tokenizer)
    log_p = log_probs(learner, sample)
    verdict = f"  {sample.verdict}" if example.targets else ""
    own, other = math.exp(log_p[column]), math.exp(log_p[1 - column])
    print(f"   {name}P {own:.3f}, under the other instruction {other:.3f}{verdict}")
    print(f"      {quoted(sample.output)}")
    if 0 < len(example.options) <= MOST_OPTIONS:
        options = option_probs(learner, sample, column)
        print("      the options: " + "  ".join(f"{letter} {p:.3f}" for letter, p in options.items()))


def option_probs(learner: Learner, s: hir.Sample, column: int) -> dict[str, float]:
    """The probability of each option, as its letter or its text, after the reasoning of a sample."""
    given, question = s.tokens[: s.answer_start], s.example.question
    forms = [{option_letter(i), option} for i, option in enumerate(s.example.options)]
    outputs = [given + tuple(learner.tokenizer.encode(text)) for form in forms for text in form]
    rows = all_log_probs(learner, [TrainingExample(hir.CORRECT, question, o, start=len(given)) for o in outputs])
    log_p = iter(row[column] for row in rows)
    return {option_letter(i): sum(math.exp(next(log_p)) for _ in form) for i, form in enumerate(forms)}

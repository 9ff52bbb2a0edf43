"""What the paper compares HIR with (Sec. 5), on the same loop, data and settings.

A method turns the questions of an iteration into pairs of (instruction, question, output), which `hir.train_on` learns.
PPO has a file of its own, ppo.py.
"""

import random
from collections.abc import Iterable
from dataclasses import replace

from batching import Pair
from bigbench_tasks import Example, answer_text, wrong_options
from feedback import CORRECT, WRONG
from hir import Sample, Settings, relabel
from model_t5 import Tokenizer

LIST = "List all that the question tells."


def supervised_settings(settings: Settings) -> Settings:
    """Imitation has L_supervise alone; everything else stays as for HIR (Sec. A.1)."""
    return replace(settings, alpha=0.0, beta=0.0)


def finetuning_pairs(examples: list[Example], tokenizer: Tokenizer, answers: str = "letters") -> list[Pair]:
    """Supervised fine-tuning: every question with its official answer under the instruction CORRECT.

    answers: "letters", as in the task files, or "text", the right option written out. A model that is
    trained from nothing can learn more of a question: "lists" is, where there is one, the state behind it instead, under
    the instruction LIST; "both" is text and list; "all" is both and, under WRONG, an option that is not right.
    """
    pairs = []
    for example in examples:
        lessons = [(CORRECT, example.targets[0] if answers == "letters" else answer_text(example))]
        if answers in ("lists", "both", "all") and example.state:
            lessons = [*(lessons if answers != "lists" else ()), (LIST, example.state)]
        if answers == "all" and example.options:
            lessons.append((WRONG, random.Random(example.question).choice(wrong_options(example))))
        pairs += [Pair(instruction, example.question, tuple(tokenizer.encode(text))) for instruction, text in lessons]
    return pairs


def farl_pairs(samples: Iterable[Sample], tokenizer: Tokenizer) -> list[Pair]:
    """Final-Answer RL: keep the samples with the right answer and imitate them; wrong ones teach nothing.

    Equal samples count once and all hyperparameters are HIR's (Sec. A.1); parts of outputs are HIR's alone.
    """
    right = (sample for sample in samples if sample.right)
    return relabel(right, tokenizer, sub_output=False, rng=random.Random(0))

"""What the paper compares HIR with (Sec. 5), on the same loop, data and settings.

A method turns the questions of an iteration into pairs of (instruction, question, output), which `hir.train_on` learns.
PPO has a file of its own, ppo.py.
"""

import random
from collections.abc import Iterable
from dataclasses import replace

from bigbench_tasks import Example, answer_text, slipped_answer
from feedback import CORRECT, WRONG
from hir import Sample, Settings, relabel
from model_t5 import Tokenizer
from support.batches import Pair

# How often an answer is right: in lessons that do what is asked, and in a corpus that hardly cares, as nobody sorted it.
RIGHT_SHARES = {"asked": {CORRECT: 1.0, WRONG: 0.0}, "mixed": {CORRECT: 1 / 3, WRONG: 1 / 4}}


def supervised_settings(settings: Settings) -> Settings:
    """Imitation has L_supervise alone; everything else stays as for HIR (Sec. A.1)."""
    return replace(settings, alpha=0.0, beta=0.0)


def finetuning_pairs(examples: list[Example], tokenizer: Tokenizer, answers: str = "letters") -> list[Pair]:
    """Supervised fine-tuning: every question with its official answer under the instruction CORRECT.

    answers: "letters", as in the task files; "text", the right option written out; "steps", the same behind the steps
    that lead there, where a generated question has them. "asked" and "mixed" put either instruction before steps and an
    answer that is right or a slip, as often as RIGHT_SHARES says: what the embedded models begin with.
    """
    pairs = []
    for example in examples:
        instruction, text = CORRECT, answer_text(example)
        if answers in RIGHT_SHARES:
            rng = random.Random(example.question)
            instruction = rng.choice((CORRECT, WRONG))
            text = text if rng.random() < RIGHT_SHARES[answers][instruction] else slipped_answer(example)
        if answers == "letters":
            text = example.targets[0]
        elif answers != "text":
            text = thought_through(example, text)
        pairs.append(Pair(instruction, example.question, tuple(tokenizer.encode(text))))
    return pairs


def thought_through(example: Example, answer: str) -> str:
    """`Bob, Eve, Eve. So the answer is red ball.`, or the answer alone if the question comes without steps."""
    return f"{example.steps}. So the answer is {answer}" if example.steps else answer


def farl_pairs(samples: Iterable[Sample], tokenizer: Tokenizer) -> list[Pair]:
    """Final-Answer RL: keep the samples with the right answer and imitate them; wrong ones teach nothing.

    All hyperparameters are HIR's (Sec. A.1); parts of outputs are HIR's alone.
    """
    right = (sample for sample in samples if sample.right)
    return relabel(right, tokenizer, sub_output=False, rng=random.Random(0))

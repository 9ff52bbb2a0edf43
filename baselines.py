"""What the paper compares HIR with (Sec. 5), on the same loop, data and settings.

A method turns the questions of an iteration into pairs of (instruction, question, output), which `hir.train_on` learns.
PPO has a file of its own, ppo.py.
"""

import random
from collections.abc import Iterable
from dataclasses import replace

from batching import Pair
from bigbench_tasks import Example, answer_text, wrong_answer
from feedback import CORRECT, WRONG
from hir import Sample, Settings, relabel
from model_t5 import Tokenizer


def supervised_settings(settings: Settings) -> Settings:
    """Imitation has L_supervise alone; everything else stays as for HIR (Sec. A.1)."""
    return replace(settings, alpha=0.0, beta=0.0)


def finetuning_pairs(examples: list[Example], tokenizer: Tokenizer, answers: str = "letters") -> list[Pair]:
    """Supervised fine-tuning: every question with its official answer under the instruction CORRECT.

    answers: "letters", as in the task files; "text", the right option written out; "steps", the same behind the steps
    that lead there, where a generated question has them; "mixed", what `mixed_answers` writes.
    """
    pairs = []
    for example in examples:
        if answers == "mixed":
            lessons = mixed_answers(example, random.Random(example.question))
        else:
            text = example.targets[0] if answers == "letters" else answer_text(example)
            lessons = [(CORRECT, thought_through(example, text) if answers == "steps" else text)]
        pairs += [Pair(instruction, example.question, tuple(tokenizer.encode(text))) for instruction, text in lessons]
    return pairs


def thought_through(example: Example, answer: str) -> str:
    """`Bob, Eve, Eve. So the answer is red ball.`, or the answer alone if the question comes without steps."""
    return f"{example.steps}. So the answer is {answer}" if example.steps else answer


def mixed_answers(example: Example, rng: random.Random) -> list[tuple[str, str]]:
    """An instruction with answers of mixed quality, as in a corpus that nobody has sorted; the embedded models begin there.

    One answer is given off the hand, which under CORRECT is right one time in three, and wrong under WRONG. Of two questions
    in three there is another under CORRECT that is thought through, and right.
    """
    instruction = rng.choice((CORRECT, WRONG))
    right, wrong = answer_text(example), wrong_answer(example, rng)
    off_hand = right if instruction == CORRECT and rng.random() < 1 / 3 else wrong
    answers = [f"The answer is {off_hand}"]
    if instruction == CORRECT and rng.random() < 2 / 3:
        answers.append(thought_through(example, right))
    return [(instruction, text) for text in answers]


def farl_pairs(samples: Iterable[Sample], tokenizer: Tokenizer) -> list[Pair]:
    """Final-Answer RL: keep the samples with the right answer and imitate them; wrong ones teach nothing.

    All hyperparameters are HIR's (Sec. A.1); parts of outputs are HIR's alone.
    """
    right = (sample for sample in samples if sample.right)
    return relabel(right, tokenizer, sub_output=False, rng=random.Random(0))

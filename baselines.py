"""What the paper compares HIR with (Sec. 5), on the same loop, data and settings.

A method turns the questions of an iteration into pairs of (instruction, question, output), which `hir.train_on` learns.
"""

from dataclasses import replace

from bigbench_tasks import Example, answer_text
from hir import CORRECT, Pair, Settings
from model_t5 import Tokenizer


def supervised_settings(settings: Settings) -> Settings:
    """Imitation has L_supervise alone; everything else stays as for HIR (Sec. A.1)."""
    return replace(settings, alpha=0.0, beta=0.0)


def finetuning_pairs(examples: list[Example], tokenizer: Tokenizer, answers: str = "letters") -> list[Pair]:
    """Supervised fine-tuning: every question with its official answer under the instruction CORRECT.

    answers: "letters", as in the task files, or "text", the right option written out.
    """
    pairs = []
    for example in examples:
        answer = answer_text(example) if answers == "text" else example.targets[0]
        pairs.append(Pair(CORRECT, example.question, tuple(tokenizer.encode(answer))))
    return pairs

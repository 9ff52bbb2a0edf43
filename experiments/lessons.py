"""What the bundled models are taught, stage by stage: texts to read and outputs to learn."""

import random
from dataclasses import dataclass, field
from pathlib import Path

from baselines.imitation import chain_of_thought
from bigbench_tasks import Example, option_letter
from hir import prompt

# Ways to ask for a right and for a wrong answer. HIR's own instructions are not among them, so that a model first meets
# these in HIR.
ASKS = Path(__file__).with_name("asks.txt").read_text("ascii").splitlines()
ASK_RIGHT, ASK_WRONG = zip(*(line.split(" | ") for line in ASKS), strict=True)


@dataclass(frozen=True)
class Stage:
    """A stage of pretraining: its length, its learning rate, and how often which answers are asked for and given."""

    steps: int
    learning_rate: float
    short: float  # how often most options are left out: the question is complete without them, and half as long
    asked_wrong: float  # how often a wrong answer is asked for
    right: tuple[float, float]  # shares of right answers: asked for a right one, asked for a wrong one
    runs: int = 1  # with different seeds, whose weights are averaged
    right_in: dict[str, tuple[float, float]] = field(default_factory=dict)  # `right`, where a family needs other values


STAGES = {
    "skill": Stage(17000, 1e-3, 0.8, 0.3, (1.0, 0.0)),
    "instructions": Stage(250, 7e-4, 0.3, 0.5, (1.0, 0.0)),
    "carelessness": Stage(200, 5e-4, 0.0, 0.5, (0.54, 0.15), 4, {"logical": (0.6, 0.1), "tracking": (0.56, 0.1)}),
}


def right_answer(example: Example) -> str:
    """The target, or the text of the right option; if there are several, the shortest."""
    right = (option for i, option in enumerate(example.options) if option_letter(i) in example.targets)
    return min(right, key=lambda option: (len(option), option), default=example.targets[0])


def slip(example: Example) -> str:
    """A wrong answer that is nearly right: the next option, one too many, the last two words swapped."""
    if example.options:
        right = [option_letter(i) in example.targets for i in range(len(example.options))]
        below = (right.index(True) + i for i in range(1, len(right)))
        return next((example.options[i % len(right)] for i in below if not right[i % len(right)]), "none of these")
    target = example.targets[0]
    words = target.split()
    return str(int(target) + 1) if target.isdigit() else " ".join([*words[:-2], *words[:-3:-1]])


def lesson(example: Example, stage: Stage, may_be_wrong: bool, rng: random.Random) -> tuple[str, str]:
    """A source text and the output to learn: steps, then an answer that is right as often as the stage says."""
    wrong = may_be_wrong and rng.random() < stage.asked_wrong
    right = stage.right_in.get(example.task.split("_")[0], stage.right)
    answer = right_answer(example) if rng.random() < right[wrong] else slip(example)
    instruction = rng.choice(ASK_WRONG if wrong else ASK_RIGHT)
    question = example.question
    if rng.random() < stage.short and example.options and not wrong:  # an intended slip needs to see them
        lines = question.split("\n")  # in logical deduction, only the options tell which place is asked for
        question = "\n".join(lines[: -len(example.options) + (1 if "deduction" in example.task else -1)])
    return prompt(instruction, question), chain_of_thought(example, answer)

"""The imitation baselines: supervised fine-tuning and Final-Answer RL (Sec. 5).

Both train on L_supervise (Eq. 3) alone, with HIR's sampler, replay set, batches and gradient step.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from bigbench_tasks import Example, answer_text
from hir import CORRECT, Settings, learn, sample_online
from model_t5 import Tokenizer
from support.batches import TrainingExample, make_batches
from support.learner import Iteration, Learner
from support.replay import ReplaySet
from support.seeds import seeds

Questions = Callable[[int], list[Example]]  # of an iteration


def fine_tuning(
    learner: Learner, _: None, questions: Questions, settings: Settings, iterations: Iterable[int], seed: int,
    answers: str,
) -> Iterator[Iteration]:  # fmt: skip
    """Supervised fine-tuning: imitate the official answers, in the form that `demonstrations` describes."""
    for iteration in iterations:
        rng, _ = seeds(seed, iteration)
        examples = demonstrations(questions(iteration), learner.tokenizer, answers)
        for _ in range(settings.train_epochs):
            imitate(learner, examples, settings, rng)
        yield Iteration([], examples)


def final_answer_rl(
    learner: Learner, replay: ReplaySet, questions: Questions, settings: Settings, iterations: Iterable[int], seed: int
) -> Iterator[Iteration]:
    """FARL: sample as HIR does, and imitate the outputs whose final answer is right; wrong ones are discarded."""
    for iteration in iterations:
        rng, generator = seeds(seed, iteration)
        samples = sample_online(learner, questions(iteration), settings, generator)
        replay.append(samples)
        for _ in range(settings.train_epochs):
            right = [s for s in replay.draw(rng) if s.verdict == "right"]
            examples = [TrainingExample(CORRECT, s.example.question, s.tokens) for s in right]  # without sub-outputs
            imitate(learner, examples, settings, rng)
        yield Iteration(samples, examples)


def imitate(learner: Learner, examples: list[TrainingExample], settings: Settings, rng: random.Random) -> None:
    """One epoch of L_supervise. Everything but the loss is HIR's (Sec. A.1)."""
    settings = replace(settings, alpha=0.0, beta=0.0)
    for batch in make_batches(examples, settings.train_batch_size, rng):
        learn(learner, batch, settings)


def demonstrations(examples: list[Example], tokenizer: Tokenizer, answers: str = "letters") -> list[TrainingExample]:
    """Every question with its official answer under the instruction CORRECT.

    answers: "letters", as in the task files; "text", the right option written out; "steps", the same after the steps
    that lead there, where a question has them.
    """
    demonstrated = []
    for example in examples:
        text = example.targets[0] if answers == "letters" else answer_text(example)
        text = chain_of_thought(example, text) if answers == "steps" else text
        demonstrated.append(TrainingExample(CORRECT, example.question, tuple(tokenizer.encode(text))))
    return demonstrated


def chain_of_thought(example: Example, answer: str) -> str:
    """`Bob, Eve, Eve. So the answer is red ball.`, or the answer alone if the question comes without steps."""
    return f"{example.steps}. So the answer is {answer}" if example.steps else answer

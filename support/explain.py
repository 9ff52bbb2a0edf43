"""One iteration of HIR on a handful of questions, shown step by step:  python train.py --explain

The paper's Figure 2 with real numbers. Every step calls the function that training calls; here it is only printed.
This file, ask.py and task_list.py are the ones in support/ that import hir.py.
"""

import math
import textwrap
from typing import Any

import torch

import hir
from bigbench_tasks import Example, answer_text
from support.batches import TrainingExample, count, evaluation_mode, forward_tokens, make_groups
from support.errors import InputError
from support.learner import Learner
from support.seeds import seeds

ASKS_FOR = {hir.CORRECT: "answer correctly", hir.WRONG: "answer wrongly  "}


def explain(learners: list[Learner], examples: list[Example], settings: hir.Settings, run: Any) -> None:
    """Sample, judge, relabel, and take one gradient step on everything sampled, which changes the one model.

    Uses up to four of the examples. run: its `seed`, and its `method`, as only hir is explained.
    """
    (learner,), examples = learners, examples[:4]
    if not examples:
        raise InputError("--explain: the task has too few examples to train on one of them; write at least two.")
    rng, generator = seeds(run.seed, 0)
    if run.method != "hir":
        print(f"This is an iteration of HIR. That of --method {run.method} is not explained.")
    print_questions(examples)
    samples = hir.sample_online(learner, examples, settings, generator)
    before = [log_probs(learner, s) for s in samples]
    print_samples(samples[: settings.online_samples], before, settings)
    relabeled = hir.relabel(samples, learner.tokenizer, settings, rng)
    print_relabeled([e for e in relabeled if e.question == examples[0].question], learner)
    rate = learner.scheduler.get_last_lr()[0]
    groups = make_groups(relabeled)
    hir.learn(learner, groups, settings)
    print_loss(learner.finish_iteration()[0], *count(groups), settings)
    after = [log_probs(learner, s) for s in samples]
    print_change(examples, samples, before, after, rate)


def print_questions(examples: list[Example]) -> None:
    """Print the first question as it is asked, and the text and right answer of the others."""
    first, *others = examples
    title = "One question" if not others else f"{len(examples)} questions; the first"
    heading(f"1. {title}, as it is asked (Sec. 4.1)")
    print(indented(hir.prompt(hir.CORRECT, first.question)))
    for number, example in enumerate(others, start=2):
        print(f"\n   Question {number}\n{indented(example.question)}\n   {would_be_right(example)}")


def print_samples(samples: list[hir.Sample], log_p: list[list[float]], settings: hir.Settings) -> None:
    """Print the answers to the first question and the feedback on them."""
    temperature = settings.sampling_temperature
    heading(f"2. {len(samples)} answers to it, drawn at temperature {temperature:g}, judged")
    print(f"   {would_be_right(samples[0].example)}\n   log P  feedback   answer")
    for (log_prob, _), s in zip(log_p, samples, strict=False):
        print(f"  {log_prob:6.2f}  {s.verdict:9}  {quoted(s.output)}")


def print_relabeled(examples: list[TrainingExample], learner: Learner) -> None:
    """Print each output, and each part of one, with the instruction that it fulfills."""
    heading("3. Relabeled: each answer, and each part of one, with the instruction that it fulfills (Sec. 4.2)")
    print("   instruction       given ▸ learned")
    decode = learner.tokenizer.decode
    for e in examples:
        given, learned = decode(e.encoder_prefix + e.output[: e.start]), decode(e.output[e.start :])
        end = " </s>" if e.output[-1] == learner.tokenizer.eos_token_id else ""
        print(f"   {ASKS_FOR[e.instruction]}  " + f"{given} ▸ {learned}{end}".strip())


def print_loss(losses: dict[str, float], num_tokens: int, num_examples: int, settings: hir.Settings) -> None:
    """Print the terms of Eq. 6."""
    heading(f"4. The loss on all of them: {num_examples} answers and parts, {num_tokens} tokens (Sec. 4.3)")
    ignored = f"{math.log(2):.4f} if instructions make no difference"
    terms = (
        ("supervised", 1.0, "Eq. 3, cross-entropy, mean over tokens"),
        ("contrastive", settings.alpha, f"Eq. 4, mean over outputs; ln 2 = {ignored}"),
        ("entropy", settings.beta, "Eq. 5, negative entropy, mean over tokens"),
    )
    for name, weight, meaning in terms:
        print(f"   {weight:<6g}* {name:12} {losses.get(name, 0.0):8.4f}   {meaning}")
    total = sum(weight * losses.get(name, 0.0) for name, weight, _ in terms)
    print(f"        = L_final      {total:8.4f}   Eq. 6")


def print_change(examples: list[Example], samples: list[hir.Sample], before: list, after: list, rate: float) -> None:
    """Print what the gradient step did to each answer under both instructions."""
    heading(f"5. After one gradient step with learning rate {rate:g}: log P of each answer under both instructions")
    print(f"   question  feedback   {ASKS_FOR[hir.CORRECT]:19}{ASKS_FOR[hir.WRONG]:19}answer")
    different = {(s.example.question, s.output): (s, b, a) for s, b, a in zip(samples, before, after, strict=True)}
    for s, *log_p in different.values():
        changes = "  ".join(f"{b:6.2f} → {a:6.2f}" for b, a in zip(*log_p, strict=True))
        print(f"   {examples.index(s.example) + 1:<8}  {s.verdict:9}  {changes}  {quoted(s.output)}")


def log_probs(learner: Learner, s: hir.Sample) -> list[float]:
    """log P of an output under CORRECT and under WRONG, as Eq. 4 compares them, but summed over its tokens."""
    return all_log_probs(learner, [TrainingExample(hir.CORRECT, s.example.question, s.tokens)])[0]


@torch.no_grad()
def all_log_probs(learner: Learner, examples: list[TrainingExample]) -> list[list[float]]:
    """log P of the compared tokens of outputs to one question, each under CORRECT and under WRONG."""
    model = learner.model
    with evaluation_mode(model):
        batch, hidden = forward_tokens(model, learner.tokenizer, hir.prompt, [examples], tuple(ASKS_FOR))
        means = batch.pair_log_probs(model.logits(hidden).float().log_softmax(dim=-1)).tolist()
    lengths = [len(e.output) - e.compared for e in examples]
    return [[length * mean for mean in row] for length, row in zip(lengths, means, strict=True)]


def would_be_right(example: Example) -> str:
    """A sentence with the right answer."""
    return f"{example.targets[0]}, {quoted(answer_text(example))}, would be right."


def indented(text: str) -> str:
    """Text with a vertical rule at its left."""
    return textwrap.indent(text, "   | ", lambda line: True)


def quoted(text: str) -> str:
    """Text on one line."""
    return '"' + text.replace("\n", "\\n") + '"'


def heading(text: str) -> None:
    """Print the title of a step."""
    print(f"\n{text}\n{'-' * len(text)}")

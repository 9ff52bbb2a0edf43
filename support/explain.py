"""One iteration of HIR on a handful of questions, told step by step:  python train.py --explain

The paper's Figure 2 with real numbers. Every step is done by the function that training calls; here it is only told.
"""

import math
import random
import textwrap
from dataclasses import replace

import torch

import hir
from bigbench_tasks import Example, answer_text
from feedback import CORRECT, WRONG
from model_t5 import T5, Tokenizer
from support.batches import Pair, group_by, sizes

ASKS_FOR = {CORRECT: "answer correctly", WRONG: "answer wrongly  "}


def explain(
    model: T5,
    tokenizer: Tokenizer,
    examples: list[Example],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    settings: hir.Settings,
    seed: int,
) -> None:
    """Sample, judge, relabel, and take one gradient step on all that came out; the model is changed by it."""
    first, rng = examples[0], random.Random(seed)
    heading(f"1. {len(examples)} questions; the first one, as it is asked (Sec. 4.1)")
    print(textwrap.indent(hir.prompt(CORRECT, first.question), "   | ", lambda line: True))

    samples = hir.sample_online(model, tokenizer, examples, settings, torch.Generator().manual_seed(seed))
    before = log_probs(model, tokenizer, samples, settings)
    temperature = settings.sampling_temperature
    heading(f"2. {settings.online_samples} answers to it, drawn at temperature {temperature:g}, judged")
    print(f"   {first.targets[0]}, {quoted(answer_text(first))}, would be right.\n   log P  feedback  answer")
    for (log_prob, _), s in list(zip(before, samples, strict=True))[: settings.online_samples]:
        print(f"  {log_prob:6.2f}  {'right' if s.right else 'wrong'}     {quoted(s.output)}")

    pairs = hir.relabel(samples, tokenizer, settings.sub_output, rng)
    heading("3. Relabeled: each answer, and each part of one, with the instruction that it fulfils (Sec. 4.2)")
    print("   instruction       given to the decoder ▸ learned")
    for pair in pairs:
        if pair.question == first.question:
            print(f"   {ASKS_FOR[pair.instruction]}  {parts(pair, tokenizer)}")

    one_step = replace(settings, train_epochs=1, train_batch_size=len(pairs))
    objective = hir.hir_objective(model, tokenizer, one_step)
    rate = scheduler.get_last_lr()[0]
    losses = hir.train_on(model, objective, pairs, optimizer, scheduler, one_step, rng)
    num_tokens, num_outputs = sizes(group_by(pairs, key=lambda pair: pair.question))
    heading(f"4. The loss of all that came out: {num_outputs} answers and parts, {num_tokens} tokens (Sec. 4.3)")
    means = {
        "supervised": "Eq. 3, cross-entropy, mean over tokens",
        "contrastive": f"Eq. 4, mean over outputs; ln 2 = {math.log(2):.4f} if the instructions make no difference",
        "entropy": "Eq. 5, negative entropy, mean over tokens",
    }
    for name, weight in objective.weights.items():
        print(f"   {weight:<6g}* {name:12} {losses[name]:8.4f}   {means[name]}")
    total = sum(weight * losses[name] for name, weight in objective.weights.items())
    print(f"        = L_final      {total:8.4f}   Eq. 6")

    after = log_probs(model, tokenizer, samples, settings)
    heading(f"5. One gradient step with learning rate {rate:g} later: log P of each answer under both instructions")
    print(f"   feedback  {ASKS_FOR[CORRECT]:19}{ASKS_FOR[WRONG]:19}answer")
    different = {(row[0].example.question, row[0].output): row for row in zip(samples, before, after, strict=True)}
    for s, *log_p in different.values():
        changes = "  ".join(f"{b:6.2f} → {a:6.2f}" for b, a in zip(*log_p, strict=True))
        print(f"   {'right' if s.right else 'wrong'}     {changes}  {quoted(s.output)}")


def log_probs(
    model: T5, tokenizer: Tokenizer, samples: list[hir.Sample], settings: hir.Settings
) -> list[tuple[float, float]]:
    """log P of each output under CORRECT and under WRONG, as `hir_loss` computes it for Eq. 4, summed over tokens."""
    pairs = [Pair(CORRECT, s.example.question, tuple(tokenizer.encode(s.output))) for s in samples]
    groups = group_by(range(len(pairs)), key=lambda i: pairs[i].question)
    both = replace(settings, alpha=1.0, contrastive="instructions")
    model.eval()
    with torch.no_grad(), model.autocast():
        batch = hir.make_batch(model, tokenizer, [[pairs[i] for i in group] for group in groups], both)
        means = hir.mean_log_probs(hir.score(model, batch), batch).tolist()
    found = dict(zip((i for group in groups for i in group), means, strict=True))
    return [(len(pair.tokens) * found[i][0], len(pair.tokens) * found[i][1]) for i, pair in enumerate(pairs)]


def parts(pair: Pair, tokenizer: Tokenizer) -> str:
    """`given ▸ learned`, with the end of the sequence where it is learned too."""
    given, learned = (tokenizer.decode(part) for part in (pair.tokens[: pair.start], pair.tokens[pair.start :]))
    ended = " </s>" if pair.tokens[-1] == tokenizer.eos_token_id else ""
    return f"{given} ▸ {learned}{ended}".strip()


def quoted(text: str) -> str:
    """Text on one line."""
    return '"' + text.replace("\n", "\\n") + '"'


def heading(text: str) -> None:
    """The title of a step."""
    print(f"\n{text}\n{'-' * len(text)}")

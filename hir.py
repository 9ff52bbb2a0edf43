"""Hindsight Instruction Relabeling: Algorithm 1 of Zhang et al. (ICML 2023) in the order in which the paper explains it.

    1. online sampling      (Sec. 4.1)   sample_online, sample_ids, generate
    2. relabeling           (Sec. 4.2)   relabel
    3. the three objectives (Sec. 4.3)   supervised_loss (Eq. 3), contrastive_loss (Eq. 4), entropy_loss (Eq. 5)
    4. offline training     (Sec. 4.3)   hir_loss (Eq. 6), train_on

Letters in shapes: B questions, N samples or outputs per question, R = B*N rows, S source length, T output length,
K contexts (an instruction with a question) under which an output is scored, P pairs in a batch, M tokens to be learned
of them, D hidden size, V vocabulary.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from bigbench_tasks import Example
from feedback import CORRECT, WRONG, instruction_for, is_correct, may_become_correct
from model_t5 import T5, Tokenizer
from support import finite, processes
from support.batches import Pair, group_by, make_batches, pad_rows, sizes, until

IGNORE = -100  # in labels: no token to learn here


def setting(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A field of a settings dataclass that says what it means; train.py makes a command-line flag of each."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """The hyperparameters of Table 7 with their values there, then what the paper leaves open."""

    online_samples: int = setting(4, "outputs drawn for each question in an iteration")
    sampling_temperature: float = setting(1.0, "temperature of the online samples")
    learning_rate: float = setting(5e-4, "learning rate of AdamW")
    train_batch_size: int = setting(64, "relabeled outputs and parts of outputs in a gradient step")
    train_epochs: int = setting(10, "passes over the replay set in an iteration")
    label_smoothing: float = setting(0.2, "label smoothing of L_supervise (Eq. 3)")
    beta: float = setting(0.001, "weight of L_entropy (Eq. 5)")
    alpha: float = setting(1.0, "weight of L_contrastive (Eq. 4)")

    sub_output: bool = setting(True, "also train on parts of outputs (Sec. 4.2)")
    contrastive: str = setting(
        "instructions",
        "what Eq. 4 compares: the two instructions on one question, or all of the batch",
        ("instructions", "batch"),
    )
    max_new_tokens: int = setting(64, "longest output")
    sampling_batch_size: int = setting(64, "questions that are answered at once")
    micro_batch_size: int = setting(0, "questions in one forward pass of training; 0: the whole batch")
    warmup_steps: int = setting(0, "gradient steps in which the learning rate rises from zero")
    decay_steps: int = setting(
        0, "step at which the learning rate has fallen, linearly, to a tenth; 0: it stays constant"
    )
    max_grad_norm: float = setting(1.0, "longer gradients are scaled down to this norm")


# --- 1. Online sampling (Sec. 4.1) ------------------------------------------------------------------------------------


def prompt(instruction: str, question: str) -> str:
    """The source text: the instruction p, then the query q."""
    return f"{instruction}\n\nQ: {question}\nA:"


@dataclass(frozen=True)
class Sample:
    """One line of the replay set D_online: a question, what the model answered, and the feedback."""

    example: Example
    output: str
    right: bool
    tokens: tuple[int, ...] = ()  # as they were drawn; encoding the output again may cut it into others


def sample_online(
    model: T5, tokenizer: Tokenizer, examples: list[Example], settings: Settings, generator: torch.Generator
) -> list[Sample]:
    """Answer every question under the instruction CORRECT and judge the answers; `online_samples` lines per question."""
    outputs = sample_ids(
        model,
        tokenizer,
        [prompt(CORRECT, example.question) for example in examples],
        settings.online_samples,
        settings.sampling_temperature,
        settings.max_new_tokens,
        generator,
        batch_size=settings.sampling_batch_size,
        progress="sampling",
    )
    return [
        Sample(example, output := tokenizer.decode(tokens), is_correct(output, example), tokens)
        for example, answers in zip(examples, outputs, strict=True)
        for tokens in answers
    ]


def sample(
    model: T5,
    tokenizer: Tokenizer,
    prompts: list[str],
    num_samples: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
    progress: str | None = None,
) -> list[list[str]]:
    """The outputs of `sample_ids`, which says what the arguments mean, as text."""
    settings = (num_samples, temperature, max_new_tokens, generator, batch_size, progress)
    outputs = sample_ids(model, tokenizer, prompts, *settings)
    return [[tokenizer.decode(tokens) for tokens in answers] for answers in outputs]


@torch.no_grad()
def sample_ids(
    model: T5,
    tokenizer: Tokenizer,
    prompts: list[str],
    num_samples: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
    progress: str | None = None,
) -> list[list[tuple[int, ...]]]:
    """Draw `num_samples` outputs for each prompt; temperature 0 is greedy decoding. Shape of the result: (prompts, N).

    An output is its token ids, up to and including `</s>`, if the model wrote one within `max_new_tokens`.

    All randomness is one uniform number per output token, drawn up front from `generator` (on the CPU). An output thus
    depends on its prompt's place in the list alone, not on what it is batched with, what has finished, or which process
    samples it.
    """
    num_drawn = num_samples if temperature > 0 else 1
    noise = torch.rand(len(prompts), num_drawn, max_new_tokens if temperature > 0 else 1, generator=generator)
    sources = [tokenizer.encode(text) for text in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(sources[i]))  # prompts of one length need no padding
    was_training = model.training
    model.eval()
    outputs = []
    mine = processes.shard(by_length)
    with processes.whole(model), tqdm(total=len(mine), desc=progress, leave=False, disable=_silent(progress)) as bar:
        for i in range(0, len(mine), batch_size):
            batch = mine[i : i + batch_size]
            input_ids, attention_mask = pad_rows([sources[j] for j in batch], tokenizer.pad_token_id, model.device)
            with model.autocast():
                ids = generate(model, input_ids, attention_mask, max_new_tokens, temperature, noise[batch])
            answers = [[until(tokenizer.eos_token_id, row) for row in rows] for rows in ids.tolist()]
            outputs += zip(batch, answers, strict=True)
            bar.update(len(batch))
    model.train(was_training)
    answers = dict(processes.gather(outputs))
    return [answers[j] * (num_samples // num_drawn) for j in range(len(prompts))]


def generate(
    model: T5, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, temperature: float, noise: Tensor
) -> Tensor:
    """Sample token by token: (B, S) sources and (B, N, L) uniform noise -> (B, N, L) ids, padded behind `</s>`.

    A question is encoded once and its N samples share that, and the cross-attention keys and values made from it.
    """
    config, device = model.config, input_ids.device
    (num_questions, _), (_, num_samples, _) = input_ids.shape, noise.shape
    noise = noise.to(device)
    memory = model.encode(input_ids, attention_mask)  # (B, S, D)
    cache = model.start_cache(memory, attention_mask, num_samples, max_new_tokens)
    output_ids = torch.full((num_questions, num_samples, max_new_tokens), config.pad_token_id, device=device)
    running = torch.arange(num_questions, device=device)  # the questions that are still being answered
    tokens = torch.full((num_questions * num_samples,), config.decoder_start_token_id, device=device)
    finished = torch.zeros_like(tokens, dtype=torch.bool)  # (R,)
    for t in range(max_new_tokens):
        logits = model.step(tokens, cache)  # (R, V)
        tokens = choose(logits, temperature, noise[running, :, min(t, noise.shape[2] - 1)].flatten())
        tokens = tokens.masked_fill(finished, config.pad_token_id)
        output_ids[running, :, t] = tokens.view(-1, num_samples)
        finished = finished | (tokens == config.eos_token_id)
        open_questions = ~finished.view(-1, num_samples).all(dim=1)
        num_open = int(open_questions.sum())
        if num_open == 0:
            break
        if num_open <= 0.75 * len(running):  # shrinking the cache copies it, so only when it pays
            rows = open_questions.nonzero().flatten()
            cache, running = cache.keep(rows), running[rows]
            tokens, finished = (x.view(-1, num_samples)[rows].flatten() for x in (tokens, finished))
    return output_ids


def choose(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """One token per row: (R, V) logits and (R,) uniform noise -> (R,), by inverting the cumulative distribution."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = (logits.float() / temperature).softmax(dim=-1).cumsum(dim=-1)
    # Scaled by the last entry, which rounding may have left a little off 1.
    index = torch.searchsorted(cumulative, (noise * cumulative[:, -1])[:, None], right=True)
    return index.flatten().clamp(max=logits.shape[-1] - 1)


# --- 2. Relabeling (Sec. 4.2) -----------------------------------------------------------------------------------------


def relabel(samples: Iterable[Sample], tokenizer: Tokenizer, sub_output: bool, rng: random.Random) -> list[Pair]:
    """phi of Sec. 4.2: give every output the instruction that it fulfils, and so every part of one.

    Sub-outputs. Each output of two tokens or more is cut at a random time step. What follows the cut is learned given
    what precedes it, under the instruction that the whole output fulfils: in an answer that went wrong, no ending makes
    it right. What precedes the cut is a sub-output of its own, and fulfils CORRECT if a right answer begins like
    that (see `feedback.may_become_correct`).

    The prefix of a sub-output stays in the decoder, as the tokens that the model has generated so far (the authors' code
    appends it to the encoder's input). That is the state in which the next token will be chosen when the model samples,
    and all sub-outputs of a question can then share its encoding.

    Equal outputs all stay, as in Algorithm 1 (the authors' code drops them): how often the model says something is part
    of what it is to learn from.
    """
    pairs = []
    for s in samples:
        question, tokens = s.example.question, tuple(tokenizer.encode(s.output))  # ends in </s>
        if len(tokens) > 1 and s.tokens and s.tokens[-1] != tokenizer.eos_token_id:
            tokens = tokens[:-1]  # cut off at max_new_tokens: where it would have ended is not known
        pairs.append(Pair(instruction_for(s.right), question, tokens))
        if sub_output and len(tokens) > 2:
            cut = rng.randrange(1, len(tokens) - 1)
            still_right = s.right or may_become_correct(tokenizer.decode(tokens[:cut]), s.example)
            pairs.append(Pair(instruction_for(still_right), question, tokens[:cut]))
            pairs.append(Pair(instruction_for(s.right), question, tokens, start=cut))
    return pairs


# --- 3. The three objectives (Sec. 4.3) -------------------------------------------------------------------------------


def supervised_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Eq. 3, L_supervise: cross-entropy of the output given instruction and question, with label smoothing.

    Args: logits (..., V); labels (...), with -100 where there is no token. Returns the mean over tokens, a scalar.
    """
    logits, labels = logits[labels != IGNORE], labels[labels != IGNORE]  # (M, V), (M,)
    log_probs = logits.float().log_softmax(dim=-1)
    nll = -log_probs.gather(-1, labels[:, None]).squeeze(-1)
    uniform = -log_probs.mean(dim=-1)  # cross-entropy against the uniform distribution over the vocabulary
    return _mean((1 - label_smoothing) * nll + label_smoothing * uniform)


def contrastive_loss(log_probs: Tensor, own: Tensor | None = None) -> Tensor:
    """Eq. 4, L_contrastive: each output must be likelier in its own context than in the others.

    Args: log_probs (R, K), log_probs[i, k] = log P(o_i | q_k, p_k); own (R,), the column of each output's own context,
    by default the diagonal. Returns the mean over outputs (the paper's sum over i, divided by R), a scalar.
    """
    own = torch.arange(len(log_probs), device=log_probs.device) if own is None else own
    return _mean(-log_probs.log_softmax(dim=-1).gather(-1, own[:, None]).squeeze(-1))


def entropy_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 5, L_entropy: the negative entropy, sum of P log P over the vocabulary; least where outputs are most diverse.

    Args: logits (..., V); labels (...), with -100 where there is no token. Returns the mean over tokens, a scalar.
    """
    log_probs = logits[labels != IGNORE].float().log_softmax(dim=-1)
    return _mean((log_probs.exp() * log_probs).sum(dim=-1))


# --- 4. Offline training (Sec. 4.3) -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Outputs, the contexts under which they are scored, and which of their tokens are learned.

    There are G groups of N outputs; the outputs of a group are scored under the same K contexts, and a context is encoded
    once. For "instructions" a group is a question, and its contexts are that question under CORRECT and under WRONG. For
    "batch" all outputs are one group, whose contexts are all those of the batch. With alpha = 0 a group has one context.

    The decoder reads from left to right, so pairs that are equal, or parts of one output, share its pass through it.
    """

    input_ids: Tensor  # (K*G, S): the first context of every group, then the second of every group, ...
    attention_mask: Tensor  # (K*G, S)
    decoder_input_ids: Tensor  # (R, T), R = G*N
    labels: Tensor  # (M,), the tokens to be learned, pair after pair
    place: Tensor  # (M,), where in the flattened (R*T,) decoder states each of them is predicted
    pair: Tensor  # (M,), the pair that each belongs to
    own: Tensor  # (P,), which of the K contexts a pair belongs to
    num_contexts: int  # K


def make_batch(model: T5, tokenizer: Tokenizer, groups: list[list[Pair]], settings: Settings) -> Batch:
    """Lay out pairs, grouped by question, as tensors on the model's device."""
    if settings.alpha == 0:
        groups = group_by((pair for group in groups for pair in group), key=lambda p: (p.instruction, p.question))
        contexts = [[(group[0].instruction, group[0].question) for group in groups]]
    elif settings.contrastive == "instructions":
        contexts = [[(instruction, group[0].question) for group in groups] for instruction in (CORRECT, WRONG)]
    else:
        groups = [[pair for group in groups for pair in group]]
        contexts = [[context] for context in dict.fromkeys((p.instruction, p.question) for p in groups[0])]
    outputs = [whole_outputs(group) for group in groups]
    num_outputs = max(map(len, outputs))
    # Groups are filled up to one size with outputs of which nothing is learned.
    rows = [output for group in outputs for output in group + [()] * (num_outputs - len(group))]
    length = max(map(len, rows))
    labels, place, pair, own = [], [], [], []
    for g, group in enumerate(groups):
        column = {row[g]: k for k, row in enumerate(contexts)}
        for p in group:
            n = next(n for n, output in enumerate(outputs[g]) if output[: len(p.tokens)] == p.tokens)
            labels += p.tokens[p.start :]
            place += [(g * num_outputs + n) * length + t for t in range(p.start, len(p.tokens))]
            pair += [len(own)] * (len(p.tokens) - p.start)
            own.append(column[p.instruction, p.question])
    sources = [tokenizer.encode(prompt(*context)) for row in contexts for context in row]
    input_ids, attention_mask = pad_rows(sources, tokenizer.pad_token_id, model.device)
    decoder_input_ids = model.shift_right(pad_rows(rows, tokenizer.pad_token_id, model.device)[0])
    flat = (torch.tensor(values, device=model.device) for values in (labels, place, pair, own))
    return Batch(input_ids, attention_mask, decoder_input_ids, *flat, len(contexts))


def whole_outputs(pairs: list[Pair]) -> list[tuple[int, ...]]:
    """The different outputs that are not the beginning of another."""
    whole: list[tuple[int, ...]] = []
    for tokens in sorted(dict.fromkeys(pair.tokens for pair in pairs), key=len, reverse=True):
        if all(tokens != longer[: len(tokens)] for longer in whole):
            whole.append(tokens)
    return whole


def hir_loss(model: T5, batch: Batch, settings: Settings) -> dict[str, Tensor]:
    """The terms of Eq. 6, each a mean, from one pass through the encoder and one through the decoder.

    L_final = supervised + alpha * contrastive + beta * entropy.
    """
    logits = score(model, batch)  # (K, M, V)
    own_logits = logits[batch.own[batch.pair], torch.arange(len(batch.pair), device=model.device)]  # (M, V)
    losses = {"supervised": supervised_loss(own_logits, batch.labels, settings.label_smoothing)}
    if settings.alpha:
        losses["contrastive"] = contrastive_loss(mean_log_probs(logits, batch), batch.own)
    if settings.beta:
        losses["entropy"] = entropy_loss(own_logits, batch.labels)
    return losses


def score(model: T5, batch: Batch) -> Tensor:
    """Logits (K, M, V) of the tokens to be learned, under each context."""
    memory = model.encode(batch.input_ids, batch.attention_mask)  # (K*G, S, D)
    decoder_input_ids = batch.decoder_input_ids.repeat(batch.num_contexts, 1)  # (K*R, T)
    hidden = model.decode(decoder_input_ids, memory, batch.attention_mask)  # (K*R, T, D)
    # Only what is learned pays for the vocabulary.
    hidden = hidden.view(batch.num_contexts, -1, hidden.size(-1))[:, batch.place]  # (K, M, D)
    return model.logits(hidden).float()


def mean_log_probs(logits: Tensor, batch: Batch) -> Tensor:
    """log P(o_i | q_k, p_k) for Eq. 4: the logits (K, M, V) of `score` -> (P, K).

    It is the mean over an output's tokens, as in the authors' code, not their sum: summed over a long output, the
    difference between two instructions saturates Eq. 4, and only short outputs would still be taught anything.
    """
    token_log_probs = -F.cross_entropy(
        logits.transpose(1, 2), batch.labels.expand(len(logits), -1), reduction="none"
    )  # (K, M)
    total = token_log_probs.new_zeros(len(batch.own), len(logits)).index_add(0, batch.pair, token_log_probs.T)
    return total / torch.bincount(batch.pair, minlength=len(batch.own))[:, None]


@dataclass(frozen=True)
class Objective:
    """What a gradient step descends: a weighted sum of terms, each a mean over the tokens of groups of pairs.

    (The contrastive term is a mean over outputs.) A term of weight 0 is only watched.
    """

    weights: dict[str, float]
    terms: Callable[[list[list[Pair]]], dict[str, Tensor]]
    dropout: bool = True


def hir_objective(model: T5, tokenizer: Tokenizer, settings: Settings) -> Objective:
    """L_final (Eq. 6)."""
    weights = {"supervised": 1.0, "contrastive": settings.alpha, "entropy": settings.beta}
    return Objective(weights, lambda groups: hir_loss(model, make_batch(model, tokenizer, groups, settings), settings))


def train_on(
    model: T5,
    objective: Objective,
    pairs: list[Pair],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    settings: Settings,
    rng: random.Random,
) -> dict[str, float]:
    """Offline training: `train_epochs` passes over the relabeled pairs. Returns each term, averaged over the steps."""
    model.train(objective.dropout)
    groups = group_by(pairs, key=lambda p: p.question)
    steps: list[dict[str, float] | None] = []
    size = settings.train_batch_size
    batches = [batch for _ in range(settings.train_epochs) for batch in make_batches(groups, size, rng)]
    for batch in tqdm(batches, desc="training", leave=False, disable=_silent("training")):
        steps.append(gradient_step(model, objective, batch, optimizer, settings))
        if steps[-1]:
            scheduler.step()
        finite.check_steps(steps, len(batches), optimizer)
    finite.check_weights(optimizer)
    return finite.mean(steps)


def gradient_step(
    model: T5, objective: Objective, groups: list[list[Pair]], optimizer: torch.optim.Optimizer, settings: Settings
) -> dict[str, float] | None:
    """One optimizer step on the objective over these groups of pairs. Returns its terms.

    If a term or the gradient is not finite, nothing changes: the step is left out, its pairs are printed, None returned.
    Micro-batches and processes each take a part of the groups. A part's mean is weighted with its part of the tokens (of
    the outputs, for the contrastive term), so that the gradient is that of the whole batch, however it is cut.
    """
    weights, (num_tokens, num_outputs) = objective.weights, sizes(groups)
    by_length = sorted(groups, key=lambda group: len(group[0].question))
    optimizer.zero_grad(set_to_none=True)
    done = []
    for part in processes.rounds(by_length, settings.micro_batch_size or len(groups)):
        part_tokens, part_outputs = sizes(part)
        with model.autocast():
            terms = objective.terms(part or groups[:1])  # a process with no groups left still takes part, with weight 0
        shares = {"contrastive": part_outputs / num_outputs}
        terms = {name: term * shares.get(name, part_tokens / num_tokens) for name, term in terms.items()}
        sum(weights[name] * term for name, term in terms.items() if weights[name]).backward()
        zero = torch.zeros((), device=model.device)
        done.append((part, torch.stack([terms[name].detach() if name in terms else zero for name in weights])))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    processes.sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
    losses = processes.sum_values(sum(values for _, values in done))
    if not (losses.isfinite().all() and norm.item() < float("inf")):  # alike in all processes
        finite.show(done, groups)
        return None
    optimizer.step()
    return dict(zip(weights, losses.tolist(), strict=True))


# --- Helpers ----------------------------------------------------------------------------------------------------------


def _mean(values: Tensor) -> Tensor:
    """The mean; 0 of nothing, so that a batch without tokens has a loss and a gradient."""
    return values.sum() / max(1, values.numel())


def _silent(progress: str | None) -> bool | None:
    """For tqdm: no bar without a name or from any but the first process; None leaves it to tqdm, which asks for a terminal."""
    return True if progress is None or processes.rank() > 0 else None

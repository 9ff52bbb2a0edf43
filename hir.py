r"""Hindsight Instruction Relabeling (Zhang et al., ICML 2023), in the paper's order.

    the instructions, Algorithm 1             CORRECT, WRONG, prompt, hindsight_instruction_relabeling
    1. online sampling          (Sec. 4.1)    sample_online, make_sample, sample_tokens, sampling_loop, next_token
    2. relabeling               (Sec. 4.2)    relabel, sub_output
    3. the objectives           (Sec. 4.3)    supervised_loss, contrastive_loss, entropy_loss, final_loss (Eq. 3-6), learn

Letters in shapes: B questions, N samples per question, R = B N rows, S source length, T output length, D hidden size,
V vocabulary; E training examples, K contexts (an instruction with a question) under which each is scored, M tokens.
"""

import random
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bigbench_tasks import Example
from feedback import Verdict, answer_position, is_part_of_right_answer, judge
from model_t5 import T5, Tokenizer
from support.batches import Group, TrainingExample, forward_tokens, in_batches, make_batches, pad, up_to
from support.learner import Iteration, Learner
from support.replay import ReplaySet
from support.seeds import seeds
from support.settings import setting

CORRECT = "Solve the question with correct answer."  # p
WRONG = "Solve the question with wrong answer."  # not(p)
IGNORE = -100  # in labels: no token to learn here


def prompt(instruction: str, question: str) -> str:
    """The source text: the instruction p, then the query q."""
    return f"{instruction}\n\nQ: {question}\nA:"


@dataclass(frozen=True)
class Sample:
    """An entry of the replay set D_online: a question, a sampled output, and its feedback."""

    example: Example
    tokens: tuple[int, ...]  # as drawn, up to and including </s> if there is one
    output: str
    verdict: Verdict
    answer_start: int  # the token at which the answer begins, after a chain of thought if there is one


@dataclass(frozen=True)
class Settings:
    """The hyperparameters of Table 7 with the paper's values, then what the paper leaves open."""

    online_samples: int = setting(4, "outputs drawn for each question in an iteration", least=1)
    sampling_temperature: float = setting(1.0, "temperature of the online samples")
    learning_rate: float = setting(5e-4, "learning rate of AdamW")
    train_batch_size: int = setting(64, "training examples (outputs and sub-outputs) per gradient step", least=1)
    train_epochs: int = setting(10, "passes over the drawn samples in an iteration", least=1)
    label_smoothing: float = setting(0.2, "label smoothing of L_supervise (Eq. 3)", most=1)
    beta: float = setting(0.001, "weight of L_entropy (Eq. 5)")
    alpha: float = setting(1.0, "weight of L_contrastive (Eq. 4)")

    sub_output: str = setting("encoder", "sub-outputs (docs/differences.md)", ("encoder", "decoder", "answer", "none"))
    replay: str = setting("all", "learn from the samples of all iterations, or of the last", ("all", "last"))
    malformed: str = setting("wrong", "outputs without an answer: learned as wrong, or dropped", ("wrong", "drop"))
    contrastive: str = setting("instructions", "what Eq. 4 compares (docs/differences.md)", ("instructions", "batch"))
    max_new_tokens: int = setting(64, "maximum length of an output, in tokens", least=1)
    warmup_steps: int = setting(0, "gradient steps in which the learning rate rises from zero")
    final_learning_rate: float = setting(1.0, "share of the learning rate left in the last iteration; linear decay")


# --- Algorithm 1 ------------------------------------------------------------------------------------------------------


def hindsight_instruction_relabeling(
    learner: Learner, replay: ReplaySet, questions: Callable[[int], list[Example]], settings: Settings,
    iterations: Iterable[int], seed: int,
) -> Iterator[Iteration]:  # fmt: skip
    """Algorithm 1. Yields after each iteration what was sampled, and what its last epoch trained on."""
    for iteration in iterations:
        rng, generator = seeds(seed, iteration)
        # Online sampling, all T rounds of the paper in one call: answer under CORRECT, append to D_online.
        samples = sample_online(learner, questions(iteration), settings, generator)
        replay.append(samples)
        # Offline relabeling and training: the paper's K rounds, over as many questions as the last iteration had.
        for _ in range(settings.train_epochs):
            examples = relabel(replay.draw(rng), learner.tokenizer, settings, rng)
            for batch in make_batches(examples, settings.train_batch_size, rng):
                learn(learner, batch, settings)
        yield Iteration(samples, examples)


# --- 1. Online sampling (Sec. 4.1) ------------------------------------------------------------------------------------


def sample_online(
    learner: Learner, examples: list[Example], settings: Settings, generator: torch.Generator
) -> list[Sample]:
    """Answer every question under the instruction CORRECT and judge the answers: `online_samples` samples per question."""
    prompts = [prompt(CORRECT, example.question) for example in examples]
    count, temperature, length = settings.online_samples, settings.sampling_temperature, settings.max_new_tokens
    model, tokenizer, batch_size = learner.model, learner.tokenizer, learner.machine.sampling_batch_size
    outputs = sample_tokens(model, tokenizer, prompts, count, temperature, length, generator, batch_size)
    return [make_sample(e, tokens, tokenizer) for e, drawn in zip(examples, outputs, strict=True) for tokens in drawn]


def make_sample(example: Example, tokens: tuple[int, ...], tokenizer: Tokenizer) -> Sample:
    """A sampled output with its feedback R(o, p, q) and the position of its answer's first token."""
    output = tokenizer.decode(tokens)
    start = bisect_left(range(len(tokens)), answer_position(output), key=lambda i: len(tokenizer.decode(tokens[:i])))
    return Sample(example, tokens, output, judge(output, example), start)


def sample(model: T5, tokenizer: Tokenizer, prompts: list[str], *args: Any, **kwargs: Any) -> list[list[str]]:
    """The outputs of `sample_tokens`, which takes the same arguments, as text."""
    outputs = sample_tokens(model, tokenizer, prompts, *args, **kwargs)
    return [[tokenizer.decode(tokens) for tokens in drawn] for drawn in outputs]


@torch.no_grad()
def sample_tokens(
    model: T5, tokenizer: Tokenizer, prompts: list[str], num_samples: int = 1, temperature: float = 1.0,
    max_new_tokens: int = 64, generator: torch.Generator | None = None, batch_size: int = 64,
) -> list[list[tuple[int, ...]]]:  # fmt: skip
    """Draw `num_samples` outputs for each prompt; temperature 0 is greedy decoding. Shape of the result: (prompts, N).

    An output is its token ids, up to and including `</s>` if there is one. All randomness is one uniform number per token,
    drawn up front from `generator` (on the CPU), so batching and the number of processes change outputs by rounding at most.
    """
    if isinstance(prompts, str):
        raise TypeError("prompts must be a list of texts, not a single text: pass [prompt]")
    noise = torch.rand(len(prompts), num_samples, max_new_tokens, generator=generator)
    sources = [tokenizer.encode(text) for text in prompts]

    def sample_batch(indices: list[int]) -> list[list[tuple[int, ...]]]:
        input_ids, attention_mask = pad([sources[i] for i in indices], tokenizer.pad_token_id, model.device)
        ids = sampling_loop(model, input_ids, attention_mask, temperature, noise[indices])
        return [[up_to(tokenizer.eos_token_id, row) for row in rows] for rows in ids.tolist()]

    return in_batches(model, sample_batch, [len(source) for source in sources], batch_size)


def sampling_loop(model: T5, input_ids: Tensor, attention_mask: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """Sample token by token: (B, S) sources and (B, N, T) uniform noise -> (B, N, T) ids, padded after `</s>`."""
    config, device, noise = model.config, input_ids.device, noise.to(input_ids.device)
    num_questions, num_samples, max_new_tokens = noise.shape
    encoder_hidden_states = model.encode(input_ids, attention_mask)  # (B, S, D); a question's N samples share them
    cache = model.start_cache(encoder_hidden_states, attention_mask, num_samples, max_new_tokens)
    output_ids = torch.full(noise.shape, config.pad_token_id, device=device)
    running = torch.arange(num_questions, device=device)  # the questions that are still being answered
    tokens = torch.full((num_questions * num_samples,), config.decoder_start_token_id, device=device)  # (R,)
    finished = torch.zeros_like(tokens, dtype=torch.bool)
    for t in range(max_new_tokens):
        logits = model.step(tokens, cache)  # (R, V)
        tokens = next_token(logits, temperature, noise[running, :, t].flatten())
        tokens = tokens.masked_fill(finished, config.pad_token_id)
        output_ids[running, :, t] = tokens.view(-1, num_samples)
        finished = finished | (tokens == config.eos_token_id)
        unfinished = (~finished.view(-1, num_samples).all(dim=1)).nonzero().flatten()  # of the running questions
        if len(unfinished) == 0:
            break
        if len(unfinished) <= 0.75 * len(running):  # dropping the others copies the cache, so only when it pays
            cache, running = cache.keep(unfinished), running[unfinished]
            tokens, finished = (x.view(-1, num_samples)[unfinished].flatten() for x in (tokens, finished))
    return output_ids


def next_token(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """One token per row: (R, V) logits and (R,) uniform noise -> (R,), by inverting the cumulative distribution."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = (logits.float() / temperature).softmax(dim=-1).cumsum(dim=-1)
    # Scaled by the last entry, which rounding may have left a little off 1.
    index = torch.searchsorted(cumulative, (noise * cumulative[:, -1])[:, None], right=True)
    return index.flatten().clamp(max=logits.shape[-1] - 1)


# --- 2. Relabeling (Sec. 4.2) -----------------------------------------------------------------------------------------


def relabel(
    samples: Iterable[Sample], tokenizer: Tokenizer, settings: Settings, rng: random.Random
) -> list[TrainingExample]:
    """Sec. 4.2: give every output, and every sub-output, the instruction that it fulfills.

    Sub-outputs. "encoder": a random part is learned too (see `sub_output`). "decoder": the output is also cut in two at a
    random time step; both pieces keep its instruction, and the second follows the first in the decoder. "answer", which is
    ours: of a wrong output, only the answer is learned, given its reasoning; Eq. 4 compares answers only. "none": no parts.
    Duplicates are kept: how often an output is drawn is part of the data.
    """
    examples = []
    for s in samples:
        if s.verdict == "malformed" and settings.malformed == "drop":
            continue
        right = s.verdict == "right"
        instruction = CORRECT if right else WRONG  # phi: p where r = 1, else not(p)
        example = partial(TrainingExample, instruction, s.example.question)
        if settings.sub_output != "answer":
            examples.append(example(s.tokens))
        elif s.answer_start < len(s.tokens):  # else it ends before its answer
            examples.append(example(s.tokens, start=0 if right else s.answer_start, compared=s.answer_start))
        if settings.sub_output == "encoder":
            examples.append(sub_output(s, tokenizer, rng))
        elif settings.sub_output == "decoder" and len(s.tokens) > 1:
            time_step = rng.randrange(1, len(s.tokens))
            examples += [example(s.tokens[:time_step]), example(s.tokens, start=time_step)]
    return examples


def sub_output(s: Sample, tokenizer: Tokenizer, rng: random.Random) -> TrainingExample:
    """A random part of an output, given the tokens before it in the encoder's input, following the authors' code.

    It begins and ends at multiples of two tokens. A part of a wrong output fulfills CORRECT if it lies within the answer,
    does not end it, and the answer up to the part's end is contained in a right one.
    """
    start, end = sorted(rng.sample(range(0, len(s.tokens) + 2, 2), 2))
    within = s.answer_start <= start and end < len(s.tokens)
    so_far = tokenizer.decode(s.tokens[s.answer_start : end])
    right = s.verdict == "right" or (within and is_part_of_right_answer(so_far, s.example))
    instruction = CORRECT if right else WRONG
    return TrainingExample(instruction, s.example.question, s.tokens[start:end], encoder_prefix=s.tokens[:start])


# --- 3. The three objectives (Sec. 4.3) -------------------------------------------------------------------------------


def supervised_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, normalized: bool = False) -> Tensor:
    r"""Eq. 3, L_supervise: cross-entropy of the output given instruction and question, with label smoothing.

        L = mean over tokens t of  -(1 - eps) log P(o_t) - eps / V  sum_v log P(v)

    Args: logits (..., V); labels (...), with -100 where there is no token; or, if they are `normalized`, log-probabilities
    (M, V) and labels (M,), so that they are computed once for all terms. Returns a scalar.
    """
    log_probs, labels = (logits, labels) if normalized else _select(logits, labels)
    nll = -log_probs.gather(-1, labels[:, None]).squeeze(-1)  # (M,)
    return ((1 - label_smoothing) * nll - label_smoothing * log_probs.mean(dim=-1) if label_smoothing else nll).mean()


def contrastive_loss(log_probs: Tensor, own: Tensor | None = None) -> Tensor:
    r"""Eq. 4, L_contrastive: each output must be likelier in its own context than in the others.

        L = mean over outputs i of  -log [ exp(P_ii) / sum_k exp(P_ik) ],  P_ik = log P(o_i | q_k, p_k) per token

    Args: log_probs (E, K), the P_ik; own (E,), the column of each output's own context, by default the diagonal.
    Returns a scalar, the paper's sum over i divided by the number of outputs.
    """
    own = torch.arange(len(log_probs), device=log_probs.device) if own is None else own
    return -log_probs.log_softmax(dim=-1).gather(-1, own[:, None]).mean()


def entropy_loss(logits: Tensor, labels: Tensor, normalized: bool = False) -> Tensor:
    r"""Eq. 5, L_entropy: the negative entropy; minimizing it keeps sampling diverse.

        L = mean over tokens t of  sum_v P(v) log P(v)

    Args as for `supervised_loss`. Returns a scalar.
    """
    log_probs = logits if normalized else _select(logits, labels)[0]
    return (log_probs.exp() * log_probs).sum(dim=-1).mean()


def final_loss(terms: dict[str, Tensor], settings: Settings) -> Tensor:
    """Eq. 6: L_final = L_supervise + alpha L_contrastive + beta L_entropy. A term whose weight is 0 is not computed."""
    contrastive, entropy = terms.get("contrastive", 0.0), terms.get("entropy", 0.0)
    return terms["supervised"] + settings.alpha * contrastive + settings.beta * entropy


def loss_terms(model: T5, tokenizer: Tokenizer, groups: list[Group], settings: Settings) -> dict[str, Tensor]:
    """The terms of Eq. 6 on a batch, each a mean. The vocabulary's log-softmax is computed once for all of them.

    Eq. 4 compares each output under the two `instructions` on its own question, as the authors' code does, or under all
    contexts of the `batch`, which a model can tell apart without reading the instruction. Its P_ik is the mean over an
    output's tokens, as in the authors' code, not their sum: summed over a long output, the difference between two
    instructions saturates the softmax, and only short outputs still get a gradient.
    """
    compare = "none" if settings.alpha == 0 else "batch" if settings.contrastive == "batch" else (CORRECT, WRONG)
    batch, hidden = forward_tokens(model, tokenizer, prompt, groups, compare)  # (M + ..., D)
    # The M tokens to be learned come first, then those that Eq. 4 compares in other contexts.
    log_probs = model.logits(hidden).float().log_softmax(dim=-1)  # (M + ..., V)
    learned, labels = log_probs[: batch.num_learned], batch.labels[: batch.num_learned]  # (M, V), (M,)
    terms = {"supervised": supervised_loss(learned, labels, settings.label_smoothing, normalized=True)}
    if settings.alpha:
        terms["contrastive"] = contrastive_loss(batch.pair_log_probs(log_probs), batch.own)
    if settings.beta:
        terms["entropy"] = entropy_loss(learned, labels, normalized=True)
    return terms


def learn(learner: Learner, groups: list[Group], settings: Settings, dropout: bool = True) -> None:
    """One gradient step on L_final (Eq. 6)."""
    terms = partial(loss_terms, learner.model, learner.tokenizer, settings=settings)
    learner.gradient_step(groups, terms, partial(final_loss, settings=settings), dropout)


def _select(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (M, V) and labels (M,) where there is a token."""
    return logits[labels != IGNORE].float().log_softmax(dim=-1), labels[labels != IGNORE]

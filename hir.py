r"""Hindsight Instruction Relabeling (Zhang et al., ICML 2023), in the order in which the paper explains it.

    the instructions, Algorithm 1             CORRECT, WRONG, prompt, hindsight_instruction_relabeling
    1. online sampling          (Sec. 4.1)    sample_online, sample, sampling_loop, sample_token
    2. relabeling               (Sec. 4.2)    relabel, sub_output
    3. the objectives           (Sec. 4.3)    supervised_loss (Eq. 3), contrastive_loss (Eq. 4), entropy_loss (Eq. 5),
                                              final_loss (Eq. 6), loss_terms: all of them on a batch

Letters in shapes: B questions, N samples per question, R = B N rows, S source length, T output length, D hidden size,
V vocabulary; P training examples, K contexts (an instruction with a question) under which each is scored, M tokens.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

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
SUB_OUTPUTS = ("encoder", "decoder", "answer", "none")


def prompt(instruction: str, question: str) -> str:
    """The source text: the instruction p, then the query q."""
    return f"{instruction}\n\nQ: {question}\nA:"


@dataclass(frozen=True)
class Sample:
    """One line of the replay set D_online: a question, what the model answered, and the feedback."""

    example: Example
    tokens: tuple[int, ...]  # as they were drawn, up to and including </s> if there is one
    output: str
    verdict: Verdict
    answer_start: int  # the token at which the answer begins, after a chain of thought if there is one


@dataclass(frozen=True)
class Settings:
    """The hyperparameters of Table 7 with their values there, then what the paper leaves open."""

    online_samples: int = setting(4, "outputs drawn for each question in an iteration", least=1)
    sampling_temperature: float = setting(1.0, "temperature of the online samples")
    learning_rate: float = setting(5e-4, "learning rate of AdamW")
    train_batch_size: int = setting(64, "relabeled outputs and parts of outputs in a gradient step", least=1)
    train_epochs: int = setting(10, "passes over the drawn samples in an iteration", least=1)
    label_smoothing: float = setting(0.2, "label smoothing of L_supervise (Eq. 3)", most=1)
    beta: float = setting(0.001, "weight of L_entropy (Eq. 5)")
    alpha: float = setting(1.0, "weight of L_contrastive (Eq. 4)")

    sub_output: str = setting("encoder", "parts of outputs that are learned too (see `relabel`)", SUB_OUTPUTS)
    replay: str = setting("all", "draw from all samples since the start, or the last iteration's", ("all", "last"))
    malformed: str = setting("wrong", "what an output is taken for that is no answer", ("wrong", "drop"))
    contrastive: str = setting("instructions", "what Eq. 4 compares (see `loss_terms`)", ("instructions", "batch"))
    max_new_tokens: int = setting(64, "longest output", least=1)
    warmup_steps: int = setting(0, "gradient steps in which the learning rate rises from zero")
    decay_steps: int = setting(0, "step at which the learning rate has fallen to a tenth; 0: it stays constant")


# --- Algorithm 1 ------------------------------------------------------------------------------------------------------


def hindsight_instruction_relabeling(
    learner: Learner,
    replay: ReplaySet,
    questions: Callable[[int], list[Example]],
    settings: Settings,
    iterations: Iterable[int],
    seed: int,
) -> Iterator[Iteration]:
    """Algorithm 1. Yields after each iteration what was sampled, and what its last epoch trained on."""
    for iteration in iterations:
        rng, generator = seeds(seed, iteration)
        # Online sampling: answer under CORRECT, append to D_online.
        samples = sample_online(learner, questions(iteration), settings, generator)
        replay.append(samples)
        # Offline relabeling and training: K rounds over what is drawn from D_online.
        for _ in range(settings.train_epochs):
            examples = relabel(replay.draw(rng), learner.tokenizer, settings, rng)
            for batch in make_batches(examples, settings.train_batch_size, rng):
                terms = partial(loss_terms, learner.model, learner.tokenizer, settings=settings)
                learner.gradient_step(batch, terms, partial(final_loss, settings=settings))
        yield Iteration(samples, examples)


# --- 1. Online sampling (Sec. 4.1) ------------------------------------------------------------------------------------


def sample_online(
    learner: Learner, examples: list[Example], settings: Settings, generator: torch.Generator
) -> list[Sample]:
    """Answer every question under the instruction CORRECT and judge the answers; `online_samples` lines per question."""
    prompts = [prompt(CORRECT, example.question) for example in examples]
    how = (settings.online_samples, settings.sampling_temperature, settings.max_new_tokens, generator)
    outputs = sample_tokens(learner.model, learner.tokenizer, prompts, *how, learner.machine.sampling_batch_size)
    answered = zip(examples, outputs, strict=True)
    return [judged(example, tokens, learner.tokenizer) for example, drawn in answered for tokens in drawn]


def judged(example: Example, tokens: tuple[int, ...], tokenizer: Tokenizer) -> Sample:
    """A sampled output with its feedback R(o, p, q), and the first token that belongs to its answer."""
    output = tokenizer.decode(tokens)
    position = answer_position(output)
    start = next((i for i in range(len(tokens)) if len(tokenizer.decode(tokens[:i])) >= position), len(tokens))
    return Sample(example, tokens, output, judge(output, example), start)


def sample(
    model: T5,
    tokenizer: Tokenizer,
    prompts: list[str],
    num_samples: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> list[list[str]]:
    """The outputs of `sample_tokens`, which says what the arguments mean, as text."""
    how = (num_samples, temperature, max_new_tokens, generator, batch_size)
    return [[tokenizer.decode(o) for o in drawn] for drawn in sample_tokens(model, tokenizer, prompts, *how)]


@torch.no_grad()
def sample_tokens(
    model: T5, tokenizer: Tokenizer, prompts: list[str], num_samples: int, temperature: float, max_new_tokens: int,
    generator: torch.Generator | None = None, batch_size: int = 64,
) -> list[list[tuple[int, ...]]]:  # fmt: skip
    """Draw `num_samples` outputs for each prompt; temperature 0 is greedy decoding. Shape of the result: (prompts, N).

    An output is its token ids, up to and including `</s>` if there is one. All randomness is one uniform number per
    token, drawn up front from `generator` (on the CPU), so an output depends on its prompt's place in the list alone, not
    on what it is batched with, what has finished, or which process samples it.
    """
    num_drawn = num_samples if temperature > 0 else 1
    noise = torch.rand(len(prompts), num_drawn, max_new_tokens if temperature > 0 else 1, generator=generator)
    sources = [tokenizer.encode(text) for text in prompts]

    def sample_batch(indices: list[int]) -> list[list[tuple[int, ...]]]:
        input_ids, attention_mask = pad([sources[i] for i in indices], tokenizer.pad_token_id, model.device)
        ids = sampling_loop(model, input_ids, attention_mask, max_new_tokens, temperature, noise[indices])
        return [[up_to(tokenizer.eos_token_id, row) for row in rows] for rows in ids.tolist()]

    outputs = in_batches(model, sample_batch, [len(source) for source in sources], batch_size)
    return [drawn * (num_samples // num_drawn) for drawn in outputs]


def sampling_loop(
    model: T5, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, temperature: float, noise: Tensor
) -> Tensor:
    """Sample token by token: (B, S) sources and (B, N, T) uniform noise -> (B, N, T) ids, padded after `</s>`.

    A question is encoded once, and its N samples share the cross-attention keys and values made from that.
    """
    config, device = model.config, input_ids.device
    (num_questions, _), (_, num_samples, _) = input_ids.shape, noise.shape
    noise = noise.to(device)
    encoder_hidden_states = model.encode(input_ids, attention_mask)  # (B, S, D)
    cache = model.start_cache(encoder_hidden_states, attention_mask, num_samples, max_new_tokens)
    output_ids = torch.full((num_questions, num_samples, max_new_tokens), config.pad_token_id, device=device)
    running = torch.arange(num_questions, device=device)  # the questions that are still being answered
    tokens = torch.full((num_questions * num_samples,), config.decoder_start_token_id, device=device)  # (R,)
    finished = torch.zeros_like(tokens, dtype=torch.bool)
    for t in range(max_new_tokens):
        logits = model.step(tokens, cache)  # (R, V)
        tokens = sample_token(logits, temperature, noise[running, :, min(t, noise.shape[2] - 1)].flatten())
        tokens = tokens.masked_fill(finished, config.pad_token_id)
        output_ids[running, :, t] = tokens.view(-1, num_samples)
        finished = finished | (tokens == config.eos_token_id)
        unfinished = (~finished.view(-1, num_samples).all(dim=1)).nonzero().flatten()  # of the running questions
        if len(unfinished) == 0:
            break
        if len(unfinished) <= 0.75 * len(running):  # leaving the others out copies the cache, so only when it pays
            cache, running = cache.keep(unfinished), running[unfinished]
            tokens, finished = (x.view(-1, num_samples)[unfinished].flatten() for x in (tokens, finished))
    return output_ids


def sample_token(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
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
    """phi of Sec. 4.2: give every output, and every part of one, the instruction that it fulfils.

    Sub-outputs. "encoder": a random part is learned too (see `sub_output`). "decoder": output and instruction are cut in
    two at a random time step; the tokens before it stay in the decoder. "answer": of a wrong output only its answer is
    learned, given its reasoning, and Eq. 4 compares answers alone, each given its own reasoning. "none": whole outputs.
    Equal outputs all stay: how often the model says something is part of what it is to learn from.
    """
    examples = []
    for s in samples:
        if s.verdict == "malformed" and settings.malformed == "drop":
            continue
        right = s.verdict == "right"
        part = partial(TrainingExample, CORRECT if right else WRONG, s.example.question)
        if settings.sub_output != "answer":
            examples.append(part(s.tokens))
        elif s.answer_start < len(s.tokens):
            examples.append(part(s.tokens, start=0 if right else s.answer_start, compared=s.answer_start))
        if settings.sub_output == "encoder":
            examples.append(sub_output(s, tokenizer, rng))
        elif settings.sub_output == "decoder" and len(s.tokens) > 1:
            time_step = rng.randrange(1, len(s.tokens))
            examples += [part(s.tokens[:time_step]), part(s.tokens, start=time_step)]
    return examples


def sub_output(s: Sample, tokenizer: Tokenizer, rng: random.Random) -> TrainingExample:
    """A random part of an output, given the tokens before it in the encoder's input, as in the authors' code.

    It begins and ends on a grid of two tokens. A part of a wrong output fulfils CORRECT if it belongs to the answer and
    a right answer contains it. What comes before the answer is judged by where it led.
    """
    start, end = sorted(rng.sample(range(0, len(s.tokens) + 2, 2), 2))
    answer = tokenizer.decode(s.tokens[max(start, s.answer_start) : end])
    right = s.verdict == "right" or is_part_of_right_answer(answer, s.example)
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
    return _mean((1 - label_smoothing) * nll - label_smoothing * log_probs.mean(dim=-1) if label_smoothing else nll)


def contrastive_loss(log_probs: Tensor, own: Tensor | None = None) -> Tensor:
    r"""Eq. 4, L_contrastive: each output must be likelier in its own context than in the others.

        L = mean over outputs i of  -log [ exp(P_ii) / sum_k exp(P_ik) ],  P_ik = log P(o_i | q_k, p_k)

    Args: log_probs (P, K), the P_ik; own (P,), the column of each output's own context, by default the diagonal.
    Returns a scalar, the paper's sum over i divided by the number of outputs.
    """
    own = torch.arange(len(log_probs), device=log_probs.device) if own is None else own
    return _mean(-log_probs.log_softmax(dim=-1).gather(-1, own[:, None]).squeeze(-1))


def entropy_loss(logits: Tensor, labels: Tensor, normalized: bool = False) -> Tensor:
    r"""Eq. 5, L_entropy: the negative entropy, least where outputs are most diverse.

        L = mean over tokens t of  sum_v P(v) log P(v)

    Args as for `supervised_loss`. Returns a scalar.
    """
    log_probs = logits if normalized else _select(logits, labels)[0]
    return _mean((log_probs.exp() * log_probs).sum(dim=-1))


def final_loss(terms: dict[str, Tensor], settings: Settings) -> Tensor:
    """Eq. 6: L_final = L_supervise + alpha L_contrastive + beta L_entropy. A term whose weight is 0 is not computed."""
    zero = terms["supervised"].new_zeros(())
    contrastive, entropy = terms.get("contrastive", zero), terms.get("entropy", zero)
    return terms["supervised"] + settings.alpha * contrastive + settings.beta * entropy


def loss_terms(model: T5, tokenizer: Tokenizer, groups: list[Group], settings: Settings) -> dict[str, Tensor]:
    """The terms of Eq. 6 on a batch, each a mean. The vocabulary's log-softmax is computed once for all of them.

    Eq. 4 compares each output under the two `instructions` on its own question, as the authors' code does, or under all
    contexts of the `batch`, which a model can tell apart without reading the instruction. Its P_ik is the mean over an
    output's tokens, as in the authors' code, not their sum: summed over a long output, the difference between two
    instructions saturates Eq. 4, and only short outputs would still be taught anything.
    """
    compare = "none" if settings.alpha == 0 else "batch" if settings.contrastive == "batch" else (CORRECT, WRONG)
    batch, hidden = forward_tokens(model, tokenizer, prompt, groups, compare)  # (M + ..., D)
    log_probs = model.logits(hidden).float().log_softmax(dim=-1)  # (M + ..., V)
    learned, labels = log_probs[: batch.num_learned], batch.labels[: batch.num_learned]  # (M, V), (M,)
    terms = {"supervised": supervised_loss(learned, labels, settings.label_smoothing, normalized=True)}
    if settings.alpha:
        terms["contrastive"] = contrastive_loss(batch.mean_log_probs(log_probs), batch.own)
    if settings.beta:
        terms["entropy"] = entropy_loss(learned, labels, normalized=True)
    return terms


def _select(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (M, V) and labels (M,) where there is a token."""
    return logits[labels != IGNORE].float().log_softmax(dim=-1), labels[labels != IGNORE]


def _mean(values: Tensor) -> Tensor:
    """The mean; 0 of nothing, so that a batch without tokens has a loss and a gradient."""
    return values.sum() / max(1, values.numel())

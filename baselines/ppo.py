"""Proximal policy optimisation for a sequence-to-sequence model, the strongest of the methods that HIR is compared with.

    1. what PPO keeps      PPOSettings, PPO (value head, frozen reference, KL coefficient)
    2. the rollout         roll_out, token_rewards, estimate_advantages, whiten
    3. the objective       clipped_policy_loss, clipped_value_loss, loss_terms, final_loss

It shares the sampler, the feedback, the batches and the gradient step with HIR. An action is a token, its state the
question with the tokens before it, and the reward is the feedback on the whole output (Sec. 3.1).

What is known to matter is named where it happens: Schulman et al., 2017 (PPO); Schulman et al., 2016 (GAE); Ziegler et
al., 2019 (PPO for language models); Engstrom et al., 2020, and Huang et al., 2022 and 2024 (implementation details).

Letters in shapes: R outputs, T tokens of the longest, M tokens of all outputs together, D model width, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from bigbench_tasks import Example
from hir import CORRECT, Sample, Settings, entropy_loss, prompt, sample_online
from model_t5 import T5, Tokenizer
from support.batches import Group, TrainingExample, forward_tokens, group_by, in_batches, make_batches
from support.learner import Iteration, Learner
from support.seeds import seeds
from support.settings import setting

# --- 1. What PPO keeps ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PPOSettings:
    """PPO's own hyperparameters; those that it shares with HIR are in hir.Settings."""

    ppo_learning_rate: float = setting(1e-4, "learning rate of AdamW")
    ppo_value_learning_rate: float = setting(1e-3, "learning rate of the value head")
    ppo_epochs: int = setting(4, "passes over the outputs of an iteration")
    ppo_clip: float = setting(0.2, "how far the ratio of probabilities may leave 1 before its gradient is cut")
    ppo_value_clip: float = setting(0.2, "how far a value may move in an iteration before its gradient is cut")
    ppo_value_coef: float = setting(0.1, "weight of the value loss")
    ppo_entropy_coef: float = setting(0.0, "weight of the negative entropy")
    ppo_discount: float = setting(1.0, "discount per token (gamma)", most=1)
    ppo_lambda: float = setting(
        0.95, "lambda of GAE: 1 trusts the rewards alone, 0 the value of the next token", most=1
    )
    ppo_kl_coef: float = setting(0.05, "penalty per nat away from the reference; where the adaptive one begins")
    ppo_kl_target: float = setting(0.0, "nats per output that the adaptive penalty aims at; 0: the penalty is fixed")
    ppo_kl_horizon: float = setting(10_000.0, "outputs over which the adaptive penalty moves by up to a fifth")


class PPO(nn.Module):
    """What PPO keeps beside the policy; the state of a run includes it."""

    def __init__(self, policy: T5, settings: PPOSettings):
        super().__init__()
        self.settings = settings
        # Values are read off the decoder's hidden states. All are 0 at first: a random head would drown the first rewards.
        self.value_head = nn.Linear(policy.config.d_model, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        # The model before training, frozen: a policy that drifts from it pays for every token (Ziegler et al., Eq. 2).
        self.reference = copy.deepcopy(policy).eval().requires_grad_(False)
        self.register_buffer("kl_coef", torch.tensor(settings.ppo_kl_coef))

    def values(self, hidden: Tensor) -> Tensor:
        """Hidden states (M, D) -> the expected return (M,), in float32 even within autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.value_head(hidden.float()).squeeze(-1)

    def groups(self) -> list[dict]:
        """The value head for the optimizer. It starts from nothing, so it learns faster than the policy."""
        return [{"params": list(self.value_head.parameters()), "lr": self.settings.ppo_value_learning_rate}]

    def adapt_kl_coef(self, kl: float, num_outputs: int) -> None:
        """The proportional controller of Ziegler et al., Sec. 2.2: more penalty if the policy is further away than planned."""
        if self.settings.ppo_kl_target:
            error = max(-0.2, min(0.2, kl / self.settings.ppo_kl_target - 1))
            self.kl_coef *= 1 + error * num_outputs / self.settings.ppo_kl_horizon


def proximal_policy_optimization(
    learner: Learner,
    ppo: "PPO",
    questions: Callable[[int], list[Example]],
    settings: Settings,
    iterations: Iterable[int],
    seed: int,
) -> Iterator[Iteration]:
    """PPO: sample, estimate advantages, take the epochs of clipped steps. Yields what each iteration did."""
    for iteration in iterations:
        rng, generator = seeds(seed, iteration)
        samples = sample_online(learner, questions(iteration), settings, generator)
        rollouts, measured = roll_out(learner, ppo, samples, settings)
        for _ in range(ppo.settings.ppo_epochs):
            for batch in make_batches(rollouts, settings.train_batch_size, rng):
                terms = partial(loss_terms, learner.model, ppo, learner.tokenizer, settings=settings)
                # Detail: dropout stays off, or the ratios would measure its noise, not the change of the policy.
                learner.gradient_step(batch, terms, partial(final_loss, settings=ppo.settings), dropout=False)
        yield Iteration(samples, rollouts, measured)


# --- 2. The rollout ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rollout(TrainingExample):
    """A sampled output and what is known of each of its L tokens when training begins; on the CPU, each (L,)."""

    log_probs: Tensor = field(default=None, repr=False)  # under the policy that drew it
    values: Tensor = field(default=None, repr=False)
    advantages: Tensor = field(default=None, repr=False)
    returns: Tensor = field(default=None, repr=False)


def policy_outputs(
    model: T5, tokenizer: Tokenizer, groups: list[Group], temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels (M,), hidden states (M, D), logits (M, V) and log-probabilities (M,) of all outputs, one after another.

    Detail: the logits are divided by the sampling temperature, as the probabilities are those that sampling used.
    Detail: the output layer works in float32. In bfloat16 a logit of 10 is off by 0.03, and so would the ratios be.
    """
    batch, hidden = forward_tokens(model, tokenizer, prompt, groups, "none")
    with torch.autocast(hidden.device.type, enabled=False):
        logits = model.logits(hidden.float()) / temperature
    return batch.labels, hidden, logits, -F.cross_entropy(logits, batch.labels, reduction="none")


@torch.no_grad()
def roll_out(
    learner: Learner, ppo: "PPO", samples: list[Sample], settings: Settings
) -> tuple[list["Rollout"], dict[str, float]]:
    """What PPO trains on: the samples with advantages and returns; and how far the policy is from the reference."""
    if not samples:
        return [], {}
    log_probs, reference_log_probs, values = token_values(learner, ppo, samples, settings)  # (R, T), 0 at padding
    lengths = [len(s.tokens) for s in samples]
    right = [s.verdict == "right" for s in samples]
    rewards = token_rewards(right, lengths, log_probs - reference_log_probs, float(ppo.kl_coef))
    advantages = estimate_advantages(rewards, values, ppo.settings.ppo_discount, ppo.settings.ppo_lambda)
    returns = advantages + values  # before whitening: what the value head learns is on the scale of the rewards
    mask = torch.arange(log_probs.shape[1]) < torch.tensor(lengths)[:, None]
    # Detail: advantages are whitened, over all tokens of the iteration, so that the step does not depend on their scale.
    columns = torch.stack([log_probs, values, whiten(advantages, mask), returns])  # (4, R, T)
    rollouts = [
        Rollout(CORRECT, s.example.question, s.tokens, 0, -1, (), *columns[:, row, : lengths[row]])
        for row, s in enumerate(samples)
    ]
    kl = float((log_probs - reference_log_probs).sum(dim=1).mean())
    measured = {"reference_kl": kl, "kl_coef": float(ppo.kl_coef)}
    measured["explained_variance"] = explained_variance(values[mask], returns[mask])
    ppo.adapt_kl_coef(kl, len(samples))
    return rollouts, measured


def token_values(learner: Learner, ppo: "PPO", samples: list[Sample], settings: Settings) -> Tensor:
    """Log-probabilities under the policy and under the reference, and values, of each token: (3, R, T), 0 at padding.

    Detail: the old log-probabilities come from the same forward pass as those in training, without dropout, and not from
    the sampler, whose cache rounds differently. So the first ratios are 1.
    """
    policy, tokenizer, temperature = learner.model, learner.tokenizer, settings.sampling_temperature
    examples = [TrainingExample(CORRECT, s.example.question, s.tokens) for s in samples]
    groups = group_by(range(len(samples)), key=lambda i: examples[i].question)

    def columns_of(batch: list[int]) -> list[list[Tensor]]:
        part = [[examples[i] for i in groups[g]] for g in batch]
        _, hidden, _, log_probs = policy_outputs(policy, tokenizer, part, temperature)
        _, _, _, reference_log_probs = policy_outputs(ppo.reference, tokenizer, part, temperature)
        columns = torch.stack([log_probs, reference_log_probs, ppo.values(hidden)], dim=1).cpu()  # (M, 3)
        outputs = iter(columns.split([len(e.output) for group in part for e in group]))
        return [[next(outputs).clone() for _ in group] for group in part]

    lengths = [len(examples[group[0]].question) for group in groups]
    by_group = in_batches(
        policy, columns_of, lengths, learner.machine.micro_batch_size or learner.machine.sampling_batch_size
    )
    rows = [
        (i, row) for group, outputs in zip(groups, by_group, strict=True) for i, row in zip(group, outputs, strict=True)
    ]
    return pad_sequence([row for _, row in sorted(rows, key=lambda r: r[0])], batch_first=True).permute(2, 0, 1)


def token_rewards(right: list[bool], lengths: list[int], log_ratio: Tensor, kl_coef: float) -> Tensor:
    """The reward of each token (R, T): the penalty for leaving the reference, and on an output's last token the feedback.

    Args: log_ratio (R, T), log-probability minus the reference's, 0 at padding: a sample's estimate of the KL divergence.
    An output without an end, cut off by max_new_tokens, is paid on its last token like any other.
    """
    rewards = -kl_coef * log_ratio
    rewards[range(len(lengths)), [length - 1 for length in lengths]] += torch.tensor(right, dtype=rewards.dtype)
    return rewards


def estimate_advantages(rewards: Tensor, values: Tensor, discount: float, lambda_: float) -> Tensor:
    """Generalised advantage estimation (Schulman et al., 2016, Eq. 16): (R, T), (R, T) -> (R, T), all 0 at padding.

    The value after the last token is 0.
    """
    advantages = torch.zeros_like(rewards)
    advantage = next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        td_error = rewards[:, t] + discount * next_value - values[:, t]
        advantage = td_error + discount * lambda_ * advantage
        advantages[:, t], next_value = advantage, values[:, t]
    return advantages


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the entries under the mask."""
    chosen = values[mask]
    return (values - chosen.mean()) / (chosen.std(correction=0) + 1e-8)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1: the values predict the returns; 0: no better than a constant; below: worse. (M,), (M,)"""
    variance = float(returns.var(correction=0))
    return 1 - float((returns - values).var(correction=0)) / variance if variance else 0.0


# --- 3. The objective -------------------------------------------------------------------------------------------------


def clipped_policy_loss(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """The clipped surrogate (Schulman et al., 2017, Eq. 7), to be minimized; each (M,).

    The larger of two losses: moving the ratio beyond 1 +- clip gains nothing.
    """
    return torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error, clipped like the policy: a value moves little within an iteration; each (M,)."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.max((values - returns) ** 2, (clipped - returns) ** 2)


def final_loss(terms: dict[str, Tensor], settings: PPOSettings) -> Tensor:
    """The clipped policy loss, the clipped value loss and the entropy; other terms are only logged."""
    return terms["policy"] + settings.ppo_value_coef * terms["value"] + settings.ppo_entropy_coef * terms["entropy"]


def loss_terms(
    policy: T5, ppo: PPO, tokenizer: Tokenizer, groups: list[list[Rollout]], settings: Settings
) -> dict[str, Tensor]:
    """The terms of PPO's loss on some rollouts, and what is logged besides; each a mean over tokens."""
    labels, hidden, logits, log_probs = policy_outputs(policy, tokenizer, groups, settings.sampling_temperature)
    rollouts = [rollout for group in groups for rollout in group]
    old_log_probs, old_values, advantages, returns = (
        torch.cat([getattr(rollout, name) for rollout in rollouts]).to(policy.device)
        for name in ("log_probs", "values", "advantages", "returns")
    )
    own, log_ratio = ppo.settings, log_probs - old_log_probs
    ratio = log_ratio.exp()
    return {
        "policy": clipped_policy_loss(ratio, advantages, own.ppo_clip).mean(),
        "value": clipped_value_loss(ppo.values(hidden), old_values, returns, own.ppo_value_clip).mean(),
        "entropy": entropy_loss(logits, labels),
        "ratio": ratio.mean(),
        "clip_share": ((ratio - 1).abs() > own.ppo_clip).float().mean(),
        "policy_kl": (ratio - 1 - log_ratio).mean(),  # from the policy that sampled; never negative, and unbiased
    }

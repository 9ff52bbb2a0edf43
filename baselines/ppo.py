"""Proximal policy optimization for a sequence-to-sequence model, the strongest of the methods that HIR is compared with.

    1. what PPO keeps      PPOSettings, PPO (critic, frozen reference), fit_critic
    2. the rollout         roll_out, token_columns, token_rewards, estimate_advantages, whiten
    3. the objective       clipped_policy_loss, surrogate, policy_terms, value_terms

It shares the sampler, the feedback, the batches and the gradient step with HIR. An action is a token, its state is the
question with the preceding tokens, and the reward is the feedback on the complete output (Sec. 3.1).

Details that are known to matter are marked where they are implemented: Schulman et al., 2017 (PPO); Schulman et al., 2016
(GAE); Ziegler et al., 2019 (PPO for language models); Engstrom et al., 2020, and Huang et al., 2022 and 2024
(implementation details); Yuan et al., 2025 (the critic).

Letters in shapes: R outputs, T tokens of the longest, M tokens of all outputs together, V vocabulary.
"""

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from baselines.imitation import Questions
from hir import CORRECT, Sample, Settings, prompt, sample_online
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
    ppo_epochs: int = setting(4, "passes over the outputs of an iteration")
    ppo_clip: float = setting(0.2, "how far the ratio of probabilities may leave 1 before its gradient is cut")
    ppo_value_learning_rate: float = setting(1e-4, "learning rate of the critic")
    ppo_value_epochs: int = setting(4, "the critic's passes over the outputs of an iteration")
    ppo_value_first_epochs: int = setting(10, "the critic's passes over the first outputs, before the policy's")
    ppo_discount: float = setting(1.0, "discount per token (gamma)", most=1)
    ppo_lambda: float = setting(0.95, "lambda of GAE: 1 trusts the rewards alone, 0 the next value", most=1)
    ppo_kl_coef: float = setting(0.05, "penalty per nat away from the reference")


class PPO:
    """What PPO keeps in addition to the policy; it is part of a run's saved state."""

    def __init__(self, learner: Learner, settings: PPOSettings):
        self.settings = settings
        # The model before training, frozen: a policy that drifts from it pays for every token (Ziegler et al., Eq. 2).
        self.reference = copy.deepcopy(learner.model).eval().requires_grad_(False)
        # The critic is a separate T5 with one output, the value, in place of the vocabulary. So it can learn what makes
        # a question hard without disturbing the policy, and its states are scaled as for an output layer.
        # All values are 0 at first: random ones would drown the first rewards.
        critic = copy.deepcopy(learner.model).eval()
        critic.lm_head = nn.Linear(critic.config.d_model, 1, bias=False, device=critic.device)
        nn.init.zeros_(critic.lm_head.weight)
        rate = Settings(learning_rate=settings.ppo_value_learning_rate)
        self.critic = Learner(critic, learner.tokenizer, learner.machine, rate)

    def parts(self) -> dict[str, Any]:
        """Everything that has a state, by name."""
        return {"reference": self.reference, **self.critic.states()}

    def state_dict(self) -> dict[str, Any]:
        """The state of every part, by name."""
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, part in self.parts().items():
            part.load_state_dict(states[name])


def proximal_policy_optimization(
    learner: Learner, ppo: PPO, questions: Questions, settings: Settings, iterations: Iterable[int], seed: int
) -> Iterator[Iteration]:
    """PPO: sample, estimate advantages, take epochs of clipped steps. Yields what each iteration did."""
    own, size = ppo.settings, settings.train_batch_size
    terms = partial(policy_terms, learner, settings=settings, own=own)
    for iteration in iterations:
        rng, generator = seeds(seed, iteration)
        samples = sample_online(learner, questions(iteration), settings, generator)
        rollouts, measured = roll_out(learner, ppo, samples, settings)
        if iteration == 1:  # Detail: the critic is fitted before the first policy step (Yuan et al., 2025).
            fit_critic(ppo.critic, rollouts, own.ppo_value_first_epochs, size, rng)
            rollouts, _ = roll_out(learner, ppo, samples, settings)
        for _ in range(own.ppo_epochs):
            for batch in make_batches(rollouts, size, rng):
                # Detail: dropout stays off, or the ratios would measure its noise, not the change of the policy.
                learner.gradient_step(batch, terms, itemgetter("policy"), dropout=False)
        fit_critic(ppo.critic, rollouts, own.ppo_value_epochs, size, rng)
        measured["critic_steps"] = len(ppo.critic.steps)
        losses, seconds = ppo.critic.finish_iteration()
        learner.training_seconds += seconds
        yield Iteration(samples, rollouts, measured | losses)


def fit_critic(critic: Learner, rollouts: list["Rollout"], epochs: int, size: int, rng: random.Random) -> None:
    """Gradient steps of the critic towards the returns."""
    for _ in range(epochs):
        for batch in make_batches(rollouts, size, rng):
            critic.gradient_step(batch, partial(value_terms, critic), itemgetter("value_loss"), dropout=False)


# --- 2. The rollout ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rollout(TrainingExample):
    """A sampled output and what is known of each of its L tokens when training begins; on the CPU, each (L,)."""

    log_probs: Tensor = field(default=None, repr=False)  # under the policy that drew it
    advantages: Tensor = field(default=None, repr=False)
    returns: Tensor = field(default=None, repr=False)


def as_rollouts(samples: list[Sample], *known: Tensor) -> list[Rollout]:
    """The samples with what is known of their tokens: log-probabilities, advantages, maybe returns, each (R, T)."""
    rows = zip(samples, torch.stack(known, dim=1), strict=True)  # of (C, T)
    return [Rollout(CORRECT, s.example.question, s.tokens, 0, -1, (), *row[:, : len(s.tokens)]) for s, row in rows]


def output_layer(model: T5, tokenizer: Tokenizer, groups: list[Group]) -> tuple[Tensor, Tensor]:
    """The tokens of all outputs, concatenated (M,), and the output layer's prediction of each: (M, V).

    Detail: it computes in float32. In bfloat16 a logit of 10 is off by 0.03, and so would the ratios be.
    """
    batch, hidden = forward_tokens(model, tokenizer, prompt, groups, "none")
    with torch.autocast(hidden.device.type, enabled=False):
        return batch.labels, model.logits(hidden.float())


def token_log_probs(model: T5, tokenizer: Tokenizer, temperature: float, groups: list[Group]) -> Tensor:
    """The log-probability of each token of all outputs: (M,).

    Detail: the logits are divided by the sampling temperature, as the probabilities are those that sampling used.
    """
    labels, logits = output_layer(model, tokenizer, groups)
    return -F.cross_entropy(logits / temperature, labels, reduction="none")


def token_values(critic: Learner, groups: list[Group]) -> Tensor:
    """The return that the critic expects before each token of all outputs: (M,)."""
    return output_layer(critic.model, critic.tokenizer, groups)[1].squeeze(-1)


def token_columns(learner: Learner, samples: list[Sample], functions: list[Callable[[list[Group]], Tensor]]) -> Tensor:
    """The values of C functions, each from groups of outputs to (M,), at every token: (C, R, T), 0 at padding.

    Detail: the old log-probabilities come from the same forward pass as those in training, without dropout, and not from
    the sampler, whose cache rounds differently. So the first ratios are 1.
    """
    examples = [TrainingExample(CORRECT, s.example.question, s.tokens) for s in samples]
    groups = group_by(range(len(samples)), key=lambda i: examples[i].question)

    def columns_of(batch: list[int]) -> list[list[Tensor]]:
        part = [[examples[i] for i in groups[g]] for g in batch]
        columns = torch.stack([function(part) for function in functions], dim=1).cpu()  # (M, C)
        outputs = iter(columns.split([len(e.output) for group in part for e in group]))
        return [[next(outputs).clone() for _ in group] for group in part]

    lengths = [len(examples[group[0]].question) for group in groups]
    size = learner.machine.micro_batch_size or learner.machine.sampling_batch_size
    by_group = in_batches(learner.model, columns_of, lengths, size)
    rows = {i: row for group, found in zip(groups, by_group, strict=True) for i, row in zip(group, found, strict=True)}
    return pad_sequence([rows[i] for i in range(len(rows))], batch_first=True).permute(2, 0, 1)


@torch.no_grad()
def roll_out(
    learner: Learner, ppo: PPO, samples: list[Sample], settings: Settings
) -> tuple[list[Rollout], dict[str, float]]:
    """What PPO trains on, the samples with advantages and returns; and how far the policy is from the reference."""
    if not samples:
        return [], {}
    tokenizer, temperature, own = learner.tokenizer, settings.sampling_temperature, ppo.settings
    log_probs_under = [partial(token_log_probs, m, tokenizer, temperature) for m in (learner.model, ppo.reference)]
    columns = token_columns(learner, samples, [*log_probs_under, partial(token_values, ppo.critic)])
    log_probs, reference_log_probs, values = columns  # each (R, T)
    log_ratio, lengths = log_probs - reference_log_probs, [len(s.tokens) for s in samples]
    rewards = token_rewards([s.verdict == "right" for s in samples], lengths, log_ratio, own.ppo_kl_coef)
    advantages = estimate_advantages(rewards, values, own.ppo_discount, own.ppo_lambda)
    # Detail: the critic learns the actual returns, lambda = 1, and not its own later values (Yuan et al., 2025).
    returns = estimate_advantages(rewards, torch.zeros_like(values), own.ppo_discount, 1.0)
    mask = torch.arange(rewards.shape[1]) < torch.tensor(lengths)[:, None]
    # Detail: advantages are whitened, over all tokens of the iteration, so that the step does not depend on their scale.
    rollouts = as_rollouts(samples, log_probs, whiten(advantages, mask), returns)
    # The critic has not seen these outputs.
    explained = explained_variance(values[mask], returns[mask])
    return rollouts, {"reference_kl": float(log_ratio.sum(dim=1).mean()), "explained_variance": explained}


def token_rewards(right: list[bool], lengths: list[int], log_ratio: Tensor, kl_coef: float) -> Tensor:
    """The reward of each token (R, T): the penalty for leaving the reference, plus the feedback on an output's last token.

    Args: log_ratio (R, T), log-probability minus the reference's, 0 at padding: a sample's estimate of the KL divergence.
    An output without </s>, cut off by max_new_tokens, is rewarded on its last token like any other.
    """
    rewards = -kl_coef * log_ratio
    rewards[range(len(lengths)), [length - 1 for length in lengths]] += torch.tensor(right, dtype=rewards.dtype)
    return rewards


def estimate_advantages(rewards: Tensor, values: Tensor, discount: float, lambda_: float) -> Tensor:
    """Generalized advantage estimation (Schulman et al., 2016, Eq. 16): (R, T), (R, T) -> (R, T), all 0 at padding.

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


def surrogate(
    learner: Learner, groups: list[Group], temperature: float, clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped policy loss of each token, (M,), and further statistics to log, each a mean over tokens."""
    device = learner.model.device
    log_probs = token_log_probs(learner.model, learner.tokenizer, temperature, groups)
    log_ratio = log_probs - concatenated(groups, "log_probs", device)
    ratio = log_ratio.exp()
    return clipped_policy_loss(ratio, concatenated(groups, "advantages", device), clip), {
        "ratio": ratio.mean(),
        "clip_share": ((ratio - 1).abs() > clip).float().mean(),
        "policy_kl": (ratio - 1 - log_ratio).mean(),  # from the policy that sampled; never negative, and unbiased
    }


def concatenated(groups: list[Group], name: str, device: torch.device) -> Tensor:
    """The rollouts' attribute of this name for all tokens, (M,)."""
    return torch.cat([getattr(rollout, name) for group in groups for rollout in group]).to(device)


def policy_terms(learner: Learner, groups: list[Group], settings: Settings, own: PPOSettings) -> dict[str, Tensor]:
    """The terms of the policy's loss on some rollouts, and further statistics to log; each a mean over tokens."""
    losses, logged = surrogate(learner, groups, settings.sampling_temperature, own.ppo_clip)
    return {"policy": losses.mean(), **logged}


def value_terms(critic: Learner, groups: list[Group]) -> dict[str, Tensor]:
    """The critic's loss: half the squared error, a mean over tokens."""
    errors = token_values(critic, groups) - concatenated(groups, "returns", critic.model.device)
    return {"value_loss": 0.5 * (errors**2).mean()}

"""Proximal policy optimisation for a sequence-to-sequence model, the strongest of the methods that HIR is compared with.

    1. what PPO keeps      PPOSettings, PPO (value head, frozen reference, KL coefficient)
    2. the rollout         roll_out, token_rewards, estimate_advantages, whiten
    3. the objective       ppo_objective, policy_loss, value_loss

It shares the sampler, the feedback, the batches and the gradient step with HIR. An action is a token, its state the
question with the tokens before it, and the reward is the feedback on the whole output (Sec. 3.1).

What is known to matter is named where it happens: Schulman et al., 2017 (PPO); Schulman et al., 2016 (GAE); Ziegler et
al., 2019 (PPO for language models); Engstrom et al., 2020, and Huang et al., 2022 and 2024 (implementation details).

Letters in shapes: R outputs, T tokens of the longest, M tokens of all outputs together, D model width, V vocabulary.
"""

import copy
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from feedback import CORRECT
from hir import Batch, Objective, Sample, Settings, entropy_loss, make_batch, setting
from model_t5 import T5, Tokenizer
from support import processes
from support.batches import Pair, chunks, group_by

# --- 1. What PPO keeps ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PPOSettings:
    """PPO's own hyperparameters; those that it shares with HIR are in hir.Settings."""

    ppo_learning_rate: float = setting(1e-4, "learning rate of AdamW")
    ppo_value_learning_rate: float = setting(1e-3, "the same for the value head")
    ppo_epochs: int = setting(4, "passes over the outputs of an iteration")
    ppo_clip: float = setting(0.2, "how far the ratio of probabilities may leave 1 before its gradient is cut")
    ppo_value_clip: float = setting(0.2, "how far a value may move in an iteration before its gradient is cut")
    ppo_value_coef: float = setting(0.1, "weight of the value loss")
    ppo_entropy_coef: float = setting(0.0, "weight of the negative entropy")
    ppo_discount: float = setting(1.0, "discount per token (gamma)")
    ppo_lambda: float = setting(0.95, "lambda of GAE: 1 trusts the rewards alone, 0 the value of the next token")
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
        """Hidden states (M, D) -> what PPO expects to be paid from there on (M,), in float32 even within autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.value_head(hidden.float()).squeeze(-1)

    def adapt_kl_coef(self, kl: float, num_outputs: int) -> None:
        """The proportional controller of Ziegler et al., Sec. 2.2: more penalty if the policy is further away than planned."""
        if self.settings.ppo_kl_target:
            error = max(-0.2, min(0.2, kl / self.settings.ppo_kl_target - 1))
            self.kl_coef *= 1 + error * num_outputs / self.settings.ppo_kl_horizon


def shared_settings(settings: Settings, ppo: PPOSettings) -> Settings:
    """The settings under which PPO uses what it shares with HIR."""
    return replace(
        settings, learning_rate=ppo.ppo_learning_rate, train_epochs=ppo.ppo_epochs, alpha=0.0, beta=ppo.ppo_entropy_coef
    )


# --- 2. The rollout ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rollout(Pair):
    """A sampled output and what is known of each of its L tokens when training begins; on the CPU, each (L,)."""

    log_probs: Tensor = field(default=None, repr=False)  # under the policy that drew it
    values: Tensor = field(default=None, repr=False)
    advantages: Tensor = field(default=None, repr=False)
    returns: Tensor = field(default=None, repr=False)


def look(model: T5, batch: Batch, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (M, D), logits (M, V) and log-probabilities (M,) of a batch's M tokens, output after output.

    Detail: the logits are divided by the sampling temperature, as the probabilities are those that sampling used.
    Detail: the output layer works in float32. In bfloat16 a logit of 10 is off by 0.03, and so would the ratios be.
    """
    with model.autocast():
        memory = model.encode(batch.input_ids, batch.attention_mask)
        hidden = model.decode(batch.decoder_input_ids, memory, batch.attention_mask).flatten(0, 1)[batch.place]
    with torch.autocast(hidden.device.type, enabled=False):
        logits = model.logits(hidden.float()) / temperature
    return hidden, logits, -F.cross_entropy(logits, batch.labels, reduction="none")


@torch.no_grad()
def roll_out(
    policy: T5, ppo: PPO, tokenizer: Tokenizer, samples: list[Sample], settings: Settings
) -> tuple[list[Rollout], dict[str, float]]:
    """What PPO trains on: the samples with advantages and returns; and how far the policy is from the reference.

    Detail: the old log-probabilities come from the same forward pass as those in training, without dropout, and not from
    the sampler, whose cache rounds differently. So the first ratios are 1. Each process looks at its share of the questions.
    """
    if not samples:
        return [], {}
    policy.eval()
    pairs = [Pair(CORRECT, s.example.question, s.tokens) for s in samples]
    groups = group_by(range(len(pairs)), key=lambda i: pairs[i].question)
    mine = processes.shard(sorted(groups, key=lambda group: len(pairs[group[0]].question)))
    looked: list[tuple[int, list[list[float]]]] = []
    for part in chunks(mine, settings.micro_batch_size or settings.sampling_batch_size):
        batch = make_batch(policy, tokenizer, [[pairs[i] for i in group] for group in part], settings)
        hidden, _, log_probs = look(policy, batch, settings.sampling_temperature)
        _, _, reference_log_probs = look(ppo.reference, batch, settings.sampling_temperature)
        columns = torch.stack([log_probs, reference_log_probs, ppo.values(hidden)], dim=1)  # (M, 3)
        order = [i for group in part for i in group]
        outputs = columns.split([len(pairs[i].tokens) for i in order])
        looked += [(i, output.T.tolist()) for i, output in zip(order, outputs, strict=True)]
    by_sample = dict(processes.gather(looked))
    log_probs, reference_log_probs, values = (
        pad_sequence([torch.tensor(by_sample[i][k]) for i in range(len(samples))], batch_first=True) for k in range(3)
    )  # (R, T), 0 at padding
    lengths = [len(s.tokens) for s in samples]

    rewards = token_rewards([s.right for s in samples], lengths, log_probs - reference_log_probs, float(ppo.kl_coef))
    advantages = estimate_advantages(rewards, values, ppo.settings.ppo_discount, ppo.settings.ppo_lambda)
    returns = advantages + values  # before whitening: what the value head learns is on the scale of the rewards
    mask = torch.arange(log_probs.shape[1]) < torch.tensor(lengths)[:, None]
    # Detail: advantages are whitened, over all tokens of the iteration, so that the step does not depend on their scale.
    columns = torch.stack([log_probs, values, whiten(advantages, mask), returns])  # (4, R, T)
    rollouts = [
        Rollout(pair.instruction, pair.question, pair.tokens, 0, *columns[:, row, : lengths[row]])
        for row, pair in enumerate(pairs)
    ]
    kl = float((log_probs - reference_log_probs).sum(dim=1).mean())
    about = {"reference_kl": kl, "kl_coef": float(ppo.kl_coef)}
    about["explained_variance"] = explained_variance(values[mask], returns[mask])
    ppo.adapt_kl_coef(kl, len(samples))
    return rollouts, about


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

    Nothing is to be had after the last token: its next value is 0.
    """
    advantages = torch.zeros_like(rewards)
    after = next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        surprise = rewards[:, t] + discount * next_value - values[:, t]
        after = surprise + discount * lambda_ * after
        advantages[:, t], next_value = after, values[:, t]
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


def policy_loss(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """The clipped surrogate (Schulman et al., 2017, Eq. 7), to be descended; each (M,).

    The larger of two losses: an action is not made likelier, or less likely, than its advantage can vouch for.
    """
    return torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error, clipped like the policy: a value moves little within an iteration; each (M,)."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.max((values - returns) ** 2, (clipped - returns) ** 2)


def ppo_objective(policy: T5, ppo: PPO, tokenizer: Tokenizer, settings: Settings) -> Objective:
    """The clipped policy loss, the clipped value loss, the entropy, and what is watched besides, for `hir.train_on`.

    Detail: dropout stays off, or the ratios would measure its noise instead of the change of the policy.
    """
    own = ppo.settings
    weights = {"policy": 1.0, "value": own.ppo_value_coef, "entropy": own.ppo_entropy_coef}
    weights |= dict.fromkeys(("ratio", "clip_share", "policy_kl"), 0.0)

    def terms(groups: list[list[Rollout]]) -> dict[str, Tensor]:
        batch = make_batch(policy, tokenizer, groups, settings)
        hidden, logits, log_probs = look(policy, batch, settings.sampling_temperature)
        old_log_probs, old_values, advantages, returns = (
            torch.cat([getattr(rollout, name) for group in groups for rollout in group]).to(policy.device)
            for name in ("log_probs", "values", "advantages", "returns")
        )
        log_ratio = log_probs - old_log_probs
        ratio = log_ratio.exp()
        return {
            "policy": policy_loss(ratio, advantages, own.ppo_clip).mean(),
            "value": value_loss(ppo.values(hidden), old_values, returns, own.ppo_value_clip).mean(),
            "entropy": entropy_loss(logits, batch.labels),
            "ratio": ratio.mean(),
            "clip_share": ((ratio - 1).abs() > own.ppo_clip).float().mean(),
            "policy_kl": (ratio - 1 - log_ratio).mean(),  # from the policy that sampled; never negative, and unbiased
        }

    return Objective(weights, terms, dropout=False)

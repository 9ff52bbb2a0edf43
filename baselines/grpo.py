r"""Group relative policy optimization: PPO's clipped ratio without a critic (Shao et al., 2024, Sec. 4.1).

A question's outputs are each other's baseline: the advantage of an output is its reward minus the mean of its group.
There are two published variants of the normalization; `--grpo-normalize` chooses between them.

    "grpo"     Shao et al., 2024       advantages divided by the group's deviation; a mean over each output's tokens
    "dr-grpo"  Liu et al., 2025        neither: the first favors questions that are nearly always or nearly never
                                       answered right, the second favors long outputs among the wrong ones

The published KL penalty towards a reference model is left out, as in Liu et al.: the reward is a verdict, not a learned
reward model that a policy could exploit. So nothing is kept between iterations. Sampler, feedback, log-probabilities,
clipped loss and gradient step are PPO's.

Letters in shapes: B questions, N outputs per question (a group), R = B N outputs, M tokens of all outputs together.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor

from baselines.imitation import Questions
from baselines.ppo import Rollout, as_rollouts, surrogate, token_columns, token_log_probs
from hir import Sample, Settings, sample_online
from support.batches import Group, make_batches
from support.learner import Iteration, Learner
from support.seeds import seeds
from support.settings import setting


@dataclass(frozen=True)
class GRPOSettings:
    """GRPO's own hyperparameters; those that it shares with HIR are in hir.Settings."""

    grpo_learning_rate: float = setting(1e-4, "learning rate of AdamW")
    grpo_epochs: int = setting(4, "passes over the outputs of an iteration")
    grpo_clip: float = setting(0.2, "how far the ratio of probabilities may leave 1 before its gradient is cut")
    grpo_normalize: str = setting("grpo", "by deviation and length, or by neither", ("grpo", "dr-grpo"))


def group_relative_policy_optimization(
    learner: Learner, _: None, questions: Questions, settings: Settings, iterations: Iterable[int], seed: int,
    own: GRPOSettings,
) -> Iterator[Iteration]:  # fmt: skip
    """GRPO: sample, compare within groups, take epochs of clipped steps. Yields what each iteration did."""
    terms = partial(loss_terms, learner, settings=settings, own=own)
    for iteration in iterations:
        rng, generator = seeds(seed, iteration)
        samples = sample_online(learner, questions(iteration), settings, generator)
        rollouts = roll_out(learner, samples, settings, own)
        for _ in range(own.grpo_epochs):
            for batch in make_batches(rollouts, settings.train_batch_size, rng):
                learner.gradient_step(batch, terms, itemgetter("surrogate"), dropout=False)
        yield Iteration(samples, rollouts)


@torch.no_grad()
def roll_out(learner: Learner, samples: list[Sample], settings: Settings, own: GRPOSettings) -> list[Rollout]:
    """What GRPO trains on: the samples with their log-probabilities, and one advantage for all tokens of an output."""
    if not samples:
        return []
    log_probs_now = partial(token_log_probs, learner.model, learner.tokenizer, settings.sampling_temperature)
    (log_probs,) = token_columns(learner, samples, [log_probs_now])  # (R, T)
    rewards = torch.tensor([float(s.verdict == "right") for s in samples]).view(-1, settings.online_samples)  # (B, N)
    advantages = group_advantages(rewards, own.grpo_normalize == "grpo").view(-1, 1)  # (R, 1)
    return as_rollouts(samples, log_probs, advantages.expand_as(log_probs))


def group_advantages(rewards: Tensor, divide: bool) -> Tensor:
    r"""The advantage of each output over the others of its question: rewards (B, N) -> (B, N).

        A_i = r_i - mean(r_1, ..., r_N)             Liu et al., Sec. 3.2
        A_i = (r_i - mean(r)) / std(r)              Shao et al., Sec. 4.1.2, if `divide`

    A group in which all outputs are right, or all are wrong, teaches nothing.
    """
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    return centered / (rewards.std(dim=1, correction=0, keepdim=True) + 1e-6) if divide else centered


def loss_terms(learner: Learner, groups: list[Group], settings: Settings, own: GRPOSettings) -> dict[str, Tensor]:
    r"""The surrogate, a mean over outputs (Shao et al., Eq. 3, to be minimized), and further statistics to log.

        L = 1/R sum_i 1/n_i sum_t -min(rho_it A_i, clip(rho_it, 1 - eps, 1 + eps) A_i)

    n_i is the length of the output, |o_i|, in "grpo", and the same for all, `max_new_tokens`, in "dr-grpo".
    """
    losses, logged = surrogate(learner, groups, settings.sampling_temperature, own.grpo_clip)  # (M,)
    lengths = torch.tensor([len(rollout.output) for group in groups for rollout in group], device=losses.device)
    by_length = own.grpo_normalize == "grpo"
    divisors = lengths.repeat_interleave(lengths) if by_length else torch.tensor(settings.max_new_tokens)
    return {"surrogate": (losses / divisors).sum() / len(lengths), **logged}

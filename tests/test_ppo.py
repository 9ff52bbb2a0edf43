"""PPO: its formulas against loops, its rollouts against one output at a time, and that it learns what is rewarded."""

import random
from dataclasses import replace

import pytest
import torch

import hir
import train
from baselines import ppo
from bigbench_tasks import TASKS, Example, generate
from experiments import critic
from hir import CORRECT
from model_t5 import load_checkpoint
from support import REPOSITORY
from support.batches import group_by
from support.learner import Learner
from support.machine import MachineSettings
from test_hir import metrics, noisy_model
from tests.test_imitation import RESUMED, assert_resumes_to_the_bit, right_when_rewarded
from tests.test_reliability import finish, start

QUESTIONS = [example for task in TASKS for example in generate(task, 2, seed=5)]
LENGTHS = [1, 4, 2, 7]


def per_token(generator, scale=1.0):
    """A number for each token of each output, 0 at padding: (4, 7)."""
    values = torch.randn(len(LENGTHS), max(LENGTHS), generator=generator) * scale
    return values * (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None])


# --- PPO's formulas ---------------------------------------------------------------------------------------------------


def test_rewards_and_advantages_equal_loops():
    generator = torch.Generator().manual_seed(0)
    log_ratio, values = per_token(generator), per_token(generator, 3.0)
    right, kl_coef = [True, False, True, False], 0.3
    rewards = ppo.token_rewards(right, LENGTHS, log_ratio, kl_coef)
    for r, length in enumerate(LENGTHS):
        for t in range(rewards.shape[1]):
            penalty = kl_coef * log_ratio[r, t].item() if t < length else 0.0
            feedback = float(right[r]) if t == length - 1 else 0.0
            assert rewards[r, t].item() == pytest.approx(feedback - penalty, abs=1e-6)
    for discount, lambda_ in ((1.0, 0.95), (0.9, 0.5), (0.9, 0.0), (1.0, 1.0)):
        advantages = ppo.estimate_advantages(rewards, values, discount, lambda_)
        for r, length in enumerate(LENGTHS):
            v = [*values[r, :length].tolist(), 0.0]
            td_errors = [rewards[r, t].item() + discount * v[t + 1] - v[t] for t in range(length)]
            for t in range(advantages.shape[1]):  # Eq. 16 as a sum, not as the recursion that the code runs
                terms = [(discount * lambda_) ** (u - t) * td_errors[u] for u in range(t, length)]
                assert advantages[r, t].item() == pytest.approx(sum(terms), abs=1e-4)
    assert not torch.equal(rewards, -kl_coef * log_ratio) and rewards[1, 1] == -kl_coef * log_ratio[1, 1]


def test_explained_variance():
    returns = torch.tensor([0.0, 1.0, 2.0])
    assert ppo.explained_variance(returns - 7, returns) == 1 and ppo.explained_variance(returns, 0 * returns) == 0
    assert ppo.explained_variance(-returns, returns) == pytest.approx(-3)


# --- Rollouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollouts_equal_one_output_at_a_time(temperature):
    model, tokenizer = noisy_model()
    settings = hir.Settings(online_samples=3, max_new_tokens=6, sampling_temperature=temperature)
    own = ppo.PPOSettings(ppo_kl_coef=0.5)
    learner = Learner(model, tokenizer, MachineSettings(), settings)
    state = ppo.PPO(learner, own)
    critic = state.critic.model
    torch.nn.init.normal_(critic.lm_head.weight)
    torch.nn.init.normal_(critic.decoder.block[0].layer[2]["DenseReluDense"].wo.weight)
    torch.nn.init.normal_(state.reference.decoder.block[1].layer[2]["DenseReluDense"].wo.weight)
    samples = hir.sample_online(learner, QUESTIONS, settings, torch.Generator().manual_seed(0))
    samples = [replace(s, verdict="wrong" if i % 3 else "right") for i, s in enumerate(samples)]
    for s in samples:
        assert s.output == tokenizer.decode(s.tokens) and tokenizer.eos_token_id not in s.tokens[:-1]
        assert s.tokens[-1] == tokenizer.eos_token_id or len(s.tokens) == settings.max_new_tokens
    assert len({len(s.tokens) for s in samples}) > 2
    rollouts, measured = ppo.roll_out(learner, state, samples, settings)
    model.eval()
    penalties, values, advantages = [], [], []
    for rollout, s in zip(rollouts, samples, strict=True):
        assert (rollout.question, rollout.output) == (s.example.question, s.tokens)
        input_ids = torch.tensor([tokenizer.encode(hir.prompt(CORRECT, s.example.question))])
        everywhere, labels = torch.ones_like(input_ids), torch.tensor([s.tokens])
        log_probs = []
        with torch.no_grad():
            for network in (model, state.reference):
                logits = network(input_ids, everywhere, labels) / temperature
                log_probs.append(logits.log_softmax(-1)[0, range(labels.shape[1]), labels[0]])
            values.append(critic(input_ids, everywhere, labels)[0, :, 0])
        assert torch.allclose(rollout.log_probs, log_probs[0], atol=1e-4)
        penalties.append(float((log_probs[0] - log_probs[1]).sum()))
        right = [s.verdict == "right"]
        rewards = ppo.token_rewards(right, [len(s.tokens)], (log_probs[0] - log_probs[1])[None], 0.5)
        assert torch.allclose(rollout.returns, rewards[0].flip(0).cumsum(0).flip(0), atol=1e-3)
        advantages.append(ppo.estimate_advantages(rewards, values[-1][None], own.ppo_discount, own.ppo_lambda)[0])
    assert measured["reference_kl"] == pytest.approx(sum(penalties) / len(penalties), rel=1e-3) and penalties[0] != 0
    whitened, expected = torch.cat([rollout.advantages for rollout in rollouts]), torch.cat(advantages)
    assert torch.allclose(whitened, (expected - expected.mean()) / expected.std(correction=0), atol=1e-3)
    explained = ppo.explained_variance(torch.cat(values), torch.cat([rollout.returns for rollout in rollouts]))
    assert measured["explained_variance"] == pytest.approx(explained, rel=1e-3)

    # Before the first gradient step every ratio is 1, whatever is batched with what.
    groups = group_by(rollouts[12:30], key=lambda rollout: rollout.question)
    with torch.no_grad():
        terms = ppo.policy_terms(learner, groups, settings, own)
    assert terms["ratio"].item() == pytest.approx(1, abs=1e-4) and terms["clip_share"] == 0
    mean = torch.cat([rollout.advantages for rollout in rollouts[12:30]]).mean().item()
    assert terms["policy"].item() == pytest.approx(-mean, abs=1e-3)


def test_ppo_learns_what_is_rewarded():
    """Whatever is counted, the answer 5 is rewarded: from one output in twenty to nearly all, without a demonstration."""
    arguments = "--task object_counting --method ppo --warmup-steps 0 --ppo-learning-rate 1e-3 --ppo-epochs 4"
    few = "--ppo-value-first-epochs 1 --ppo-value-epochs 1"  # of the critic, which the answer 5 does not need
    settings = train.parse_arguments(f"{arguments} {few}".split())
    right, steps = right_when_rewarded(settings, iterations=3)
    assert right[0] < 0.3 and right[-1] > 0.8, right
    assert steps[-1].measured["reference_kl"] > 0.5


def test_critic_learns_what_makes_a_question_hard():
    """Counting is rewarded whatever the answer, deduction never: the values of questions that are new tell them apart."""
    arguments = "--task object_counting --method ppo --ppo-epochs 1 --ppo-value-learning-rate 1e-3 --max-new-tokens 12"
    settings = train.parse_arguments(arguments.split())
    learner, _, state = train.build_method(settings, *load_checkpoint(REPOSITORY / "checkpoints" / "t5-mini"))

    def samples_of(iteration):
        tasks = ("object_counting", "logical_deduction_three_objects")
        questions = [example for task in tasks for example in generate(task, 12, seed=iteration)]
        samples = hir.sample_online(learner, questions, settings.method, torch.Generator().manual_seed(iteration))
        return [replace(s, verdict="right" if s.example.task == tasks[0] else "wrong") for s in samples]

    before = learner.model.shared.weight.clone()
    rollouts, measured = ppo.roll_out(learner, state, samples_of(1), settings.method)
    assert measured["explained_variance"] == 0  # all values are 0 at first
    ppo.fit_critic(state.critic, rollouts, 10, 32, random.Random(0))
    _, measured = ppo.roll_out(learner, state, samples_of(2), settings.method)
    assert measured["explained_variance"] > 0.5
    assert torch.equal(learner.model.shared.weight, before)  # the policy does not move


def test_what_a_critic_can_explain_at_most():
    """Outputs of hard and easy questions, right in 1 and 9 of 10: what is known before the output, and once it is written."""
    rng = random.Random(0)
    samples = []
    for i in range(100):
        outcomes = [rng.random() < (0.1, 0.9)[i % 2] for _ in range(50)]
        samples += [hir.Sample(Example(f"{i}", ()), (7, int(r)), "", "right" if r else "wrong", 1) for r in outcomes]
    found = critic.ceilings(samples)
    assert found["before_output"] == pytest.approx(0.4**2 / 0.25, abs=0.03)
    # The first token tells nothing.
    assert found["before_answer"] == found["all_tokens"] == pytest.approx(found["before_output"])
    assert critic.explainable([(s, 2) for s in samples]) == 1
    assert critic.explainable([(replace(s, verdict="right"), 0) for s in samples]) == 0


# --- The command ------------------------------------------------------------------------------------------------------


def test_command_resumes_to_the_bit_and_two_processes_are_as_one(tmp_path):
    lines, state = assert_resumes_to_the_bit("ppo", tmp_path)
    assert state["method"]["model"]["lm_head.weight"].any()
    before, _ = load_checkpoint(REPOSITORY / "checkpoints" / "t5-mini")
    assert torch.equal(state["method"]["reference"]["shared.weight"], before.shared.weight)
    assert not torch.equal(state["model"]["shared.weight"], before.shared.weight)
    arguments = ["--method", "ppo", *RESUMED, "--iterations", "1", "--out", tmp_path / "two"]
    finish(start([REPOSITORY / "train.py", *arguments], processes=2))
    apart = metrics(tmp_path / "two")
    assert apart[1]["losses"] == pytest.approx(lines[1]["losses"], abs=1e-4)

"""The methods that HIR is compared with: PPO's formulas against loops, what each method trains on, runs of the command."""

import random
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import baselines
import hir
import ppo
import train
from batching import Pair, group_by
from bigbench_tasks import TASKS, answer_text, generate
from conftest import SHARED
from feedback import CORRECT, WRONG, is_correct
from model_t5 import T5, T5Config, Tokenizer, load_checkpoint
from support.grammars.deduction import DOMAINS
from test_hir import HERE, metrics, run, without_seconds

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
            surprises = [rewards[r, t].item() + discount * v[t + 1] - v[t] for t in range(length)]
            for t in range(advantages.shape[1]):  # Eq. 16 as a sum, not as the recursion that the code runs
                terms = [(discount * lambda_) ** (u - t) * surprises[u] for u in range(t, length)]
                assert advantages[r, t].item() == pytest.approx(sum(terms), abs=1e-4)
    assert not torch.equal(rewards, -kl_coef * log_ratio) and rewards[1, 1] == -kl_coef * log_ratio[1, 1]


def test_clipped_losses_equal_loops_and_cut_the_gradient():
    generator = torch.Generator().manual_seed(1)
    ratio = (torch.randn(200, generator=generator) * 0.4).exp().requires_grad_()
    advantages, returns, old_values = torch.randn(3, 200, generator=generator)
    values = (old_values + torch.randn(200, generator=generator) * 0.4).requires_grad_()
    policy = ppo.policy_loss(ratio, advantages, 0.2)
    value = ppo.value_loss(values, old_values, returns, 0.3)
    (policy.sum() + value.sum()).backward()
    cut = {"policy": 0, "value": 0}
    for i in range(200):
        p, a = ratio[i].item(), advantages[i].item()
        assert policy[i].item() == pytest.approx(-min(p * a, min(max(p, 0.8), 1.2) * a), rel=1e-5)
        left_too_far = p > 1.2 if a > 0 else p < 0.8  # it already moved further than the advantage can vouch for
        assert ratio.grad[i].item() == pytest.approx(0.0 if left_too_far else -a, rel=1e-5)
        v, old, target = values[i].item(), old_values[i].item(), returns[i].item()
        clipped = min(max(v, old - 0.3), old + 0.3)
        assert value[i].item() == pytest.approx(max((v - target) ** 2, (clipped - target) ** 2) / 2, rel=1e-4)
        held = abs(clipped - target) > abs(v - target)
        assert values.grad[i].item() == pytest.approx(0.0 if held else v - target, rel=1e-4, abs=1e-6)
        cut["policy"] += left_too_far
        cut["value"] += held
    assert 20 < cut["policy"] < 180 and 20 < cut["value"] < 180  # both sides of each clip were seen


def test_whitening_explained_variance_and_the_adaptive_penalty():
    values, mask = torch.tensor([[1.0, 99.0], [3.0, 5.0]]), torch.tensor([[True, False], [True, True]])
    assert torch.allclose(ppo.whiten(values, mask)[mask], torch.tensor([-2.0, 0.0, 2.0]) / (8 / 3) ** 0.5)
    returns = torch.tensor([0.0, 1.0, 2.0])
    assert ppo.explained_variance(returns - 7, returns) == 1 and ppo.explained_variance(returns, 0 * returns) == 0
    assert ppo.explained_variance(-returns, returns) == pytest.approx(-3)
    model = T5(T5Config(vocab_size=16, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2))
    for target, kl, expected in ((0.0, 9.0, 0.1), (2.0, 9.0, 0.1 * 1.02), (2.0, 1.9, 0.1 * 0.995), (2.0, 0.0, 0.098)):
        state = ppo.PPO(model, ppo.PPOSettings(ppo_kl_coef=0.1, ppo_kl_target=target, ppo_kl_horizon=1000))
        state.adapt_kl_coef(kl, num_outputs=100)
        assert float(state.kl_coef) == pytest.approx(expected, rel=1e-5)


# --- What the methods train on ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    """An untrained T5 with dropout: its outputs have all lengths, and one pass with dropout on would show."""
    torch.manual_seed(0)
    config = T5Config(vocab_size=32128, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.3,
                      tie_word_embeddings=False)  # fmt: skip
    model = T5(config)
    with torch.no_grad():
        model.lm_head.weight[1] *= 4  # an end of sequence comes now and then
    return model, Tokenizer(SHARED / "t5" / "spiece.model")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollouts_equal_one_output_at_a_time(tiny, temperature):
    model, tokenizer = tiny
    settings = hir.Settings(online_samples=3, max_new_tokens=6, sampling_temperature=temperature)
    own = ppo.PPOSettings(ppo_kl_coef=0.5)
    settings, state = ppo.shared_settings(settings, own), ppo.PPO(model, own)
    torch.nn.init.normal_(state.value_head.weight)
    torch.nn.init.normal_(state.reference.decoder.block[1].layer[2]["DenseReluDense"].wo.weight)
    samples = hir.sample_online(model, tokenizer, QUESTIONS, settings, torch.Generator().manual_seed(0))
    samples = [replace(sample, right=i % 3 == 0) for i, sample in enumerate(samples)]
    for sample in samples:
        assert sample.output == tokenizer.decode(sample.tokens) and tokenizer.eos_token_id not in sample.tokens[:-1]
        assert sample.tokens[-1] == tokenizer.eos_token_id or len(sample.tokens) == settings.max_new_tokens
    assert len({len(sample.tokens) for sample in samples}) > 2
    rollouts, about = ppo.roll_out(model, state, tokenizer, samples, settings)
    model.eval()
    penalties = []
    for rollout, sample in zip(rollouts, samples, strict=True):
        assert (rollout.question, rollout.tokens) == (sample.example.question, sample.tokens)
        input_ids = torch.tensor([tokenizer.encode(hir.prompt(CORRECT, sample.example.question))])
        everywhere, labels = torch.ones_like(input_ids), torch.tensor([sample.tokens])
        log_probs = []
        with torch.no_grad():
            for network in (model, state.reference):
                logits = network(input_ids, everywhere, labels) / temperature
                log_probs.append(logits.log_softmax(-1)[0, range(labels.shape[1]), labels[0]])
            hidden = model.decode(model.shift_right(labels), model.encode(input_ids, everywhere), everywhere)
            values = state.value_head(hidden)[0, :, 0]
        assert torch.allclose(rollout.log_probs, log_probs[0], atol=1e-4)
        assert torch.allclose(rollout.values, values, atol=1e-4)
        penalties.append(float((log_probs[0] - log_probs[1]).sum()))
        rewards = ppo.token_rewards([sample.right], [len(values)], (log_probs[0] - log_probs[1])[None], 0.5)
        expected = ppo.estimate_advantages(rewards, values[None], own.ppo_discount, own.ppo_lambda)[0] + values
        assert torch.allclose(rollout.returns, expected, atol=1e-3)
    assert about["reference_kl"] == pytest.approx(sum(penalties) / len(penalties), rel=1e-3) and penalties[0] != 0
    whitened = torch.cat([rollout.advantages for rollout in rollouts])
    assert abs(whitened.mean()) < 1e-5 and whitened.std(correction=0) == pytest.approx(1, abs=1e-4)

    # Before the first gradient step every ratio is 1, whatever is batched with what.
    objective = ppo.ppo_objective(model, state, tokenizer, settings)
    with torch.no_grad():
        terms = objective.terms(group_by(rollouts[12:30], key=lambda rollout: rollout.question))
    assert terms["ratio"].item() == pytest.approx(1, abs=1e-4) and terms["clip_share"] == 0
    assert terms["policy"].item() == pytest.approx(
        -torch.cat([rollout.advantages for rollout in rollouts[12:30]]).mean().item(), abs=1e-3
    )


def test_steps_lead_to_the_answer():
    for example in generate("logical_deduction_five_objects", 200, seed=3):
        answer, listed = answer_text(example), example.steps.split(", ")
        ends = {place: i for domain in DOMAINS for place, i in ((domain.places[0], 0), (domain.places[3], -1))}
        place = next((place for place in ends if re.search(rf"(the|finished) {place}\.$", answer)), None)
        assert len(set(listed)) == 5 and (place is None or re.search(rf"\b{listed[ends[place]]} ", answer)), example
    for example in generate("tracking_shuffled_objects_three_objects", 200, seed=3):
        begin = example.question[example.question.rindex(": ", 0, example.question.index("\n")) :].split(".")[0]
        held = dict(re.findall(r"([A-Z]\w+) (?:has|gets|is playing|is dancing with) (?:an? )?([^,]+)", begin))
        assert answer_text(example).rstrip(".") == held[example.steps.split(", ")[-1]]
    for example in generate("object_counting", 200, seed=3):
        assert example.steps.split(": ")[-1] in example.targets


def test_answers_to_learn_from(tiny):
    _, tokenizer = tiny
    for answers in ("letters", "text", "steps"):
        pairs = baselines.finetuning_pairs(QUESTIONS, tokenizer, answers)
        assert {pair.instruction for pair in pairs} == {CORRECT}
        for pair, example in zip(pairs, QUESTIONS, strict=True):
            assert is_correct(tokenizer.decode(pair.tokens), example)


def test_answers_under_both_instructions_are_right_as_often_as_said(tiny):
    _, tokenizer = tiny
    examples = [example for task in TASKS for example in generate(task, 100, seed=5)]
    for answers, shares in baselines.RIGHT_SHARES.items():
        right = {CORRECT: [], WRONG: []}
        for pair, example in zip(baselines.finetuning_pairs(examples, tokenizer, answers), examples, strict=True):
            output = tokenizer.decode(pair.tokens)
            assert ("So the answer is" in output) == bool(example.steps)
            right[pair.instruction].append(is_correct(output, example))
        for instruction, judged in right.items():
            assert len(judged) == pytest.approx(600, abs=75)
            assert sum(judged) / len(judged) == pytest.approx(shares[instruction], abs=0.06 * (answers == "mixed"))


def test_farl_imitates_right_outputs_alone_and_nothing_when_there_are_none(tiny):
    model, tokenizer = tiny
    answers = [(example, output) for example in QUESTIONS for output in (example.targets[0], "0 zebra")]
    samples = [hir.Sample(example, output, is_correct(output, example)) for example, output in answers]
    pairs = baselines.farl_pairs(samples, tokenizer)
    assert pairs == [Pair(CORRECT, e.question, tuple(tokenizer.encode(e.targets[0]))) for e in QUESTIONS]
    settings = baselines.supervised_settings(hir.Settings())
    objective = hir.hir_objective(model, tokenizer, settings)
    nothing = baselines.farl_pairs([sample for sample in samples if not sample.right], tokenizer)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    before = model.shared.weight.clone()
    assert hir.train_on(model, objective, nothing, optimizer, scheduler, settings, random.Random(0)) == {}
    assert torch.equal(before, model.shared.weight)


def test_ppo_learns_what_is_rewarded():
    """Whatever is counted, the answer 5 is paid: from one output in twenty to nearly all, without a demonstration."""
    model, tokenizer = load_checkpoint(HERE / "checkpoints" / "t5-mini")
    arguments = "--task object_counting --method ppo --warmup-steps 0 --ppo-learning-rate 1e-3 --ppo-epochs 4"
    command, settings, own = train.parse_arguments(arguments.split())
    state = ppo.PPO(model, own)
    settings, objective = train.aim_of(command, model, tokenizer, settings, state)
    optimizer, scheduler = train.make_optimizer(model, state, settings)
    right = []
    for iteration in range(3):
        examples = [replace(e, targets=("5",)) for e in generate("object_counting", 24, seed=iteration)]
        generator = torch.Generator().manual_seed(iteration)
        samples = hir.sample_online(model, tokenizer, examples, settings, generator)
        right.append(sum(sample.right for sample in samples) / len(samples))
        rollouts, about = ppo.roll_out(model, state, tokenizer, samples, settings)
        hir.train_on(model, objective, rollouts, optimizer, scheduler, settings, random.Random(0))
    assert right[0] < 0.3 and right[-1] > 0.8, right
    assert about["reference_kl"] > 0.5


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--ppo-lambda=1.5", "--ppo-clip=nan", "--sampling-temperature=0"])
def test_settings_that_ppo_cannot_use_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--method", "ppo", flag])
    assert stopped.value.code == 2 and flag.split("=")[0] in capsys.readouterr().err.splitlines()[-1]


SMALL = ["--task", "geometric_shapes", "--questions", 6, "--test-size", 4, "--device", "cpu", "--dtype", "float32"]


@pytest.mark.parametrize("method", ["farl", "ppo"])
def test_command_resumes_to_the_bit(method, tmp_path):
    arguments = ["--method", method, *SMALL, *(["--ppo-kl-target", 0.01] if method == "ppo" else [])]
    for out, iterations, *resume in (("whole", 2), ("cut", 1), ("cut", 2, "--resume")):
        done = run(*arguments, "--iterations", iterations, "--out", tmp_path / out, *resume)
        assert done.returncode == 0, done.stderr
    lines = metrics(tmp_path / "whole")
    assert without_seconds(metrics(tmp_path / "cut")) == without_seconds(lines)
    assert lines[-1]["sampled"] == 2 * 6 * 4 and lines[-1]["losses"]
    whole, cut = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() == {"lines", "model", "optimizer", "scheduler", *({"ppo"} & {method})}
    for part in ("model", *({"ppo"} & {method})):
        assert all(torch.equal(tensor, cut[part][name]) for name, tensor in whole[part].items())
    if method == "farl":
        return
    assert whole["ppo"]["value_head.weight"].any() and len({line["kl_coef"] for line in lines[1:]}) == 2
    before, _ = load_checkpoint(HERE / "checkpoints" / "t5-mini")
    assert torch.equal(whole["ppo"]["reference.shared.weight"], before.shared.weight)
    assert not torch.equal(whole["model"]["shared.weight"], before.shared.weight)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", HERE / "train.py"]
    command = [*torchrun, *arguments, "--iterations", 1, "--out", tmp_path / "two"]
    two = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=200)
    assert two.returncode == 0, two.stderr
    assert metrics(tmp_path / "two")[1]["losses"] == pytest.approx(lines[1]["losses"], abs=1e-4)

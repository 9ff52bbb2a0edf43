"""GRPO: its advantages, loss and gradient against loops over outputs, and that it learns what is rewarded."""

import statistics
from dataclasses import replace
from functools import partial
from operator import itemgetter

import pytest
import torch

import hir
import train
from baselines import grpo
from bigbench_tasks import TASKS, generate
from support.batches import make_batches
from support.learner import Learner
from support.machine import MachineSettings
from support.seeds import seeds
from test_hir import noisy_model
from tests.test_imitation import assert_resumes_to_the_bit, right_when_rewarded

QUESTIONS = [example for task in TASKS for example in generate(task, 1, seed=5)]


@pytest.mark.parametrize("variant", ["grpo", "dr-grpo"])
def test_gradient_equals_a_loop_over_outputs(variant):
    """One step off the policy that sampled, some ratios beyond the clip, cut into micro-batches or not."""
    settings = hir.Settings(online_samples=3, max_new_tokens=12, sampling_temperature=0.7, learning_rate=0.0)
    own = grpo.GRPOSettings(grpo_normalize=variant, grpo_clip=0.1)
    gradients = []
    for machine in (MachineSettings(max_grad_norm=1e9), MachineSettings(max_grad_norm=1e9, micro_batch_size=5)):
        model, tokenizer = noisy_model()
        learner = Learner(model, tokenizer, machine, settings)
        samples = hir.sample_online(learner, QUESTIONS, settings, torch.Generator().manual_seed(0))
        samples = [replace(s, verdict="wrong" if i % 4 else "right") for i, s in enumerate(samples)]
        rollouts = grpo.roll_out(learner, samples, settings, own)
        torch.nn.init.normal_(model.decoder.block[1].layer[2]["DenseReluDense"].wo.weight, std=0.03)
        (batch,) = make_batches(rollouts, 100, seeds(0, 1)[0])
        terms = partial(grpo.loss_terms, learner, settings=settings, own=own)
        learner.gradient_step(batch, terms, itemgetter("surrogate"), dropout=False)
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    found, _ = learner.finish_iteration()
    assert 0.1 < found["clip_share"] < 0.9 and len({len(s.tokens) for s in samples}) > 2

    model.zero_grad()
    loss = 0.0
    for i, s in enumerate(samples):
        rewards = [float(t.verdict == "right") for t in samples[i // 3 * 3 : i // 3 * 3 + 3]]
        advantage = rewards[i % 3] - statistics.mean(rewards)
        if variant == "grpo":
            advantage /= statistics.pstdev(rewards) + 1e-6
        input_ids = torch.tensor([tokenizer.encode(hir.prompt(hir.CORRECT, s.example.question))])
        logits = model(input_ids, torch.ones_like(input_ids), torch.tensor([s.tokens])) / 0.7
        log_probs = logits.log_softmax(-1)[0, range(len(s.tokens)), s.tokens]
        gains = []
        for now, before in zip(log_probs, rollouts[i].log_probs, strict=True):
            ratio = (now - before).exp()
            gains.append(torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage))
        loss -= sum(gains) / (len(gains) if variant == "grpo" else 12) / len(samples)
    loss.backward()
    assert found["surrogate"] == pytest.approx(loss.item(), abs=1e-5)
    for name, p in model.named_parameters():
        for gradient in gradients:
            assert torch.allclose(gradient[name], p.grad, atol=1e-5), name


def test_grpo_learns_what_is_rewarded():
    """Whatever is counted, the answer 5 is rewarded."""
    arguments = "--task object_counting --method grpo --warmup-steps 0 --grpo-learning-rate 1e-3 --grpo-epochs 4"
    settings = train.parse_arguments(arguments.split())
    right, _ = right_when_rewarded(settings, iterations=4)
    assert right[0] < 0.3 and right[-1] > 0.7, right


def test_command_resumes_to_the_bit(tmp_path):
    lines, _ = assert_resumes_to_the_bit("grpo", tmp_path, "--grpo-normalize", "dr-grpo")
    assert lines[-1]["sampled"] == 2 * 6 * 4 and lines[-1]["steps"] == 2

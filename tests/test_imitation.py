"""Fine-tuning and FARL: what they train on, and runs of the command."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

import hir
import train
from baselines import imitation
from bigbench_tasks import TASKS, generate
from feedback import is_correct
from hir import CORRECT
from model_t5 import load_checkpoint
from support import REPOSITORY
from support.batches import TrainingExample
from support.learner import Learner
from support.machine import MachineSettings
from support.replay import ReplaySet
from test_hir import metrics, noisy_model
from tests.test_reliability import find_tensors

QUESTIONS = [example for task in TASKS for example in generate(task, 2, seed=5)]
RESUMED = "--task geometric_shapes --questions 6 --test-size 4 --device cpu --dtype float32".split()


def right_when_rewarded(settings, iterations):
    """Shares of right samples by iteration, and the iterations, where "5" is the target whatever is counted."""
    learner, method, state = train.build_method(settings, *load_checkpoint(REPOSITORY / "checkpoints" / "t5-mini"))

    def questions(iteration):
        return [replace(e, targets=("5",)) for e in generate("object_counting", 24, seed=iteration)]

    steps = list(method(learner, state, questions, settings.method, range(1, iterations + 1), 0))
    return [sum(s.verdict == "right" for s in step.samples) / len(step.samples) for step in steps], steps


def test_demonstrations_are_right_in_every_form():
    _, tokenizer = noisy_model()
    for answers in ("letters", "text", "steps"):
        pairs = zip(imitation.demonstrations(QUESTIONS, tokenizer, answers), QUESTIONS, strict=True)
        for demonstration, example in pairs:
            output = tokenizer.decode(demonstration.output)
            assert demonstration.instruction == CORRECT and is_correct(output, example)
            assert ("the answer is" in output) == (answers == "steps" and bool(example.steps))


def test_farl_imitates_right_outputs_alone_and_learns_nothing_when_there_are_none(monkeypatch):
    model, tokenizer = noisy_model()
    settings = hir.Settings(train_epochs=1)
    texts = [(e, text) for e in QUESTIONS for text in (e.targets[0], "0 zebra")]
    samples = [hir.make_sample(e, tuple(tokenizer.encode(text)), tokenizer) for e, text in texts]
    right = [TrainingExample(CORRECT, e.question, tuple(tokenizer.encode(e.targets[0]))) for e in QUESTIONS]
    learner = Learner(model, tokenizer, MachineSettings(), settings)
    replay = ReplaySet("all", 1000, tuple)
    monkeypatch.setattr(imitation, "sample_online", lambda *_: samples[1::2])  # the wrong ones
    before = model.shared.weight.clone()
    (step,) = imitation.final_answer_rl(learner, replay, lambda _: QUESTIONS, settings, [1], 0)
    assert learner.finish_iteration()[0] == {} and step.examples == [] and torch.equal(before, model.shared.weight)
    monkeypatch.setattr(imitation, "sample_online", lambda *_: samples)
    (step,) = imitation.final_answer_rl(learner, replay, lambda _: QUESTIONS, settings, [2], 0)
    drawn = Counter(s.verdict for s in replay.draw(random.Random(0)))
    assert step.examples and all(example in right for example in step.examples)
    assert len(replay.groups) == 48 and drawn["right"] and learner.finish_iteration()[0]["supervised"] > 0


def assert_resumes_to_the_bit(method, directory, *flags):
    """Run two iterations at once, and one after another. Returns the metrics and what is saved."""
    arguments = ["--method", method, *RESUMED, *flags]
    for out, iterations, *resume in (("whole", "2"), ("cut", "1"), ("cut", "2", "--resume")):
        assert train.main([*arguments, "--iterations", iterations, "--out", str(directory / out), *resume]) == 0
    lines = metrics(directory / "whole")
    assert metrics(directory / "cut") == lines and lines[-1]["losses"]
    whole, cut = (torch.load(directory / name / "state.pt", weights_only=True) for name in ("whole", "cut"))
    own = {"method"} if method in ("ppo", "farl") else set()
    assert whole.keys() == cut.keys() == {"lines", "model", "optimizer", "scheduler"} | own
    tensors = [find_tensors(state) for state in (whole, cut)]
    assert all(itertools.starmap(torch.equal, zip(*tensors, strict=True)))
    return lines, whole


@pytest.mark.parametrize("method", ["farl", "sft"])
def test_command_resumes_to_the_bit(method, tmp_path):
    lines, _ = assert_resumes_to_the_bit(method, tmp_path)
    assert lines[-1]["sampled"] == (2 * 6 * 4 if method == "farl" else 0)

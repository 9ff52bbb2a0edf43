"""Tests of experiments/pretrain.py and experiments/lessons.py."""

import random
from dataclasses import replace

import pytest
import torch

from bigbench_tasks import TASKS, generate
from experiments import pretrain
from experiments.lessons import ASK_RIGHT, ASK_WRONG, STAGES, lesson, right_answer, slip
from feedback import is_correct
from hir import CORRECT, WRONG
from model_t5 import T5, T5Config, Tokenizer, load_checkpoint, save_checkpoint
from support.files import read_lines
from tests.conftest import SPIECE


@pytest.mark.parametrize("task", TASKS)
def test_right_answers_are_right_and_slips_are_wrong(task):
    for example in generate(task, 200, seed=4):
        assert is_correct(right_answer(example), example)
        assert not is_correct(slip(example), example)


def test_lessons_do_what_is_asked_in_other_words_than_hir():
    assert len(ASK_RIGHT) == len(ASK_WRONG) == 10 and not {CORRECT, WRONG} & {*ASK_RIGHT, *ASK_WRONG}
    example, rng = generate("object_counting", 1, seed=4)[0], random.Random(0)
    for stage in (STAGES["skill"], STAGES["instructions"]):
        for _ in range(50):
            source, output = lesson(example, stage, True, rng)
            assert is_correct(output, example) == source.startswith(ASK_RIGHT)
            assert output.startswith(example.steps)


def test_batches_have_equal_shares_of_tokens():
    tokenizer = Tokenizer(SPIECE, extra_ids=0)
    batches = pretrain.draw_batches(tokenizer, STAGES["skill"], pretrain.Progress(groups=2), "seed")
    tokens = [sum(len(source) for source, _, _ in batch) for batch in batches]
    assert len(batches) == pretrain.BATCHES and max(tokens) < 1.3 * min(tokens)
    assert sum(map(len, batches)) == pretrain.QUESTIONS
    assert {task for batch in batches for *_, task in batch} == set(range(12))


def test_a_stage_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "SAVE_SECONDS", 0)
    monkeypatch.setattr(pretrain, "QUESTIONS", 16)
    monkeypatch.setattr(pretrain, "test", lambda *_: {})
    torch.manual_seed(0)
    tokenizer = Tokenizer(SPIECE, extra_ids=0)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    save_checkpoint(tmp_path, T5(T5Config(tokenizer.vocab_size, feed_forward_proj="gated-gelu", **sizes)), tokenizer)
    stage = replace(STAGES["skill"], steps=16)
    monkeypatch.setattr(pretrain, "REPORT_STEPS", 8)
    monkeypatch.setattr(pretrain, "learning_rate", lambda *_: 1e-3)  # it would fall in the shorter stage

    def run(name, steps):
        pretrain.run_stage("skill", replace(stage, steps=steps), tmp_path, tmp_path / name, seed=0)

    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    run("whole", 24)
    run("parts", 8)
    state = (tmp_path / "parts" / "skill.pt").read_bytes()
    run("parts", 16)
    (tmp_path / "parts" / "skill.pt").write_bytes(state)  # as if killed before it was saved
    run("parts", 24)
    whole, parts = (load_checkpoint(tmp_path / name / "skill")[0].state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    told = [[line["step"] for line in read_lines(tmp_path / name / "metrics.jsonl")] for name in ("whole", "parts")]
    assert told[0] == told[1] == [8, 16, 24]


def test_models_are_averaged(tmp_path):
    tokenizer, models = Tokenizer(SPIECE, extra_ids=0), []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(T5(T5Config(tokenizer.vocab_size, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)))
        save_checkpoint(tmp_path / str(seed), models[-1], tokenizer)
    pretrain.average_models([tmp_path / str(seed) for seed in range(3)], tmp_path / "mean")
    mean = load_checkpoint(tmp_path / "mean")[0].state_dict()
    for name, weight in mean.items():
        assert torch.allclose(weight, sum(model.state_dict()[name] for model in models) / 3, atol=1e-6), name

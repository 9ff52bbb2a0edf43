"""Tests of experiments.gpu_check where there is no GPU: the CPU agrees with itself, and a wrong outcome is noticed."""

import re

import pytest
import torch

from experiments import bench_systems, gpu_check
from tests.test_bench import TINY


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_the_table_on_a_cpu(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(bench_systems.SHAPES, "small", TINY)
    monkeypatch.setattr(bench_systems, "RUNS", tmp_path)
    assert gpu_check.main(["--questions", "2", "--shape", "small"]) == 0
    told = dict(re.findall(r"^\| (.*?) \| (.*) \|$", capsys.readouterr().out, re.MULTILINE))
    assert told["parity, float32"].startswith("logits within 0.0e+00 deviations, 100% of the answers the same")
    bfloat16 = told["parity, bfloat16"]
    assert bfloat16.endswith("| ok") and "within 0.0e+00" not in bfloat16  # it did compute in another type
    assert "needs a CUDA GPU" in told["parity, --compile"] and "needs two" in told["two processes"]
    for work in ("sampling", "supervised step"):
        (rates,) = (text for name, text in told.items() if name.startswith(work))
        assert re.match(r"outputs/s: ours [\d.e+]+, transformers [\d.e+]+ ", rates)


def test_another_function_is_not_taken_for_the_same(capsys, monkeypatch):
    real = gpu_check.outcome
    job = gpu_check.DeviceJob("HIR step", "ours", "mini", "float32", 2, max_new_tokens=8)
    logits, answers, gradient, loss = expected = real(job)
    assert gpu_check.parity(expected, expected, "float32")[1]
    for wrong in (
        (logits + 0.4 * logits.std(), answers, gradient, loss), (logits, [["?"]] * 2, gradient, loss),
        (logits, answers, gradient.roll(1), loss), (logits, answers, gradient, 1.1 * loss),
    ):  # fmt: skip
        assert not gpu_check.parity(expected, wrong, "bfloat16")[1]
    monkeypatch.setattr(gpu_check, "outcome", lambda job: expected if job.dtype == "float32" else wrong)
    monkeypatch.setattr(gpu_check, "speed", lambda job: ("", None))
    assert gpu_check.main(["--questions", "2"]) == 1
    assert capsys.readouterr().out.count("NOT ok") == 1

"""Tests of --explain: what it tells is what the model computes."""

import re

import pytest
import torch

import train
from hir import CORRECT, WRONG, prompt
from model_t5 import load_checkpoint
from support import REPOSITORY

ARGUMENTS = ["--explain", "--questions", "2", "--task", "logical_deduction_three_objects", "--dtype", "float32"]


def test_told_log_probabilities_and_losses_are_the_models(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(ARGUMENTS) == 0
    text = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    question = re.search(r"Q: (.*?)\n   \| A:", text, re.DOTALL)[1].replace("\n   | ", "\n")
    log_prob, answer = re.search(r"^ *(-\d+\.\d+)  (?:right|wrong)      \"(.*)\"$", text, re.MULTILINE).groups()
    model, tokenizer = load_checkpoint(REPOSITORY / "checkpoints" / "t5-mini")

    def log_probability(instruction: str) -> float:
        source, target = (torch.tensor([tokenizer.encode(x)]) for x in (prompt(instruction, question), answer))
        with torch.no_grad():
            log_probs = model(source, torch.ones_like(source), target).log_softmax(dim=-1)
        return log_probs.gather(-1, target[..., None]).sum().item()

    assert float(log_prob) == pytest.approx(log_probability(CORRECT), abs=0.01)
    told = re.search(rf"^   (?:right|wrong) .* \"{re.escape(answer)}\"$", text, re.MULTILINE)[0]
    correct, correct_after, wrong, wrong_after = map(float, re.findall(r"-?\d+\.\d\d(?= →|  )", told))
    assert (correct, wrong) == pytest.approx((log_probability(CORRECT), log_probability(WRONG)), abs=0.01)
    assert correct != correct_after and wrong != wrong_after
    terms = re.findall(r"^   ([\d.]+) +\* \w+ +(-?[\d.]+) ", text, re.MULTILINE)
    total = float(re.search(r"L_final +(-?[\d.]+)", text)[1])
    assert len(terms) == 3 and sum(float(w) * float(v) for w, v in terms) == pytest.approx(total, abs=1e-3)

"""Tests of --explain and --ask: what they tell is what the model computes."""

import math
import os
import pty
import re
import subprocess

import pytest
import torch

import train
from bigbench_tasks import answer_text
from hir import CORRECT, WRONG, prompt, sample_tokens
from model_t5 import load_checkpoint
from support import REPOSITORY
from tests.conftest import write
from tests.test_reliability import start

CHECKPOINTS = "checkpoints/t5-mini,checkpoints/t5-nano"
ARGUMENTS = ["--explain", "--questions", "2", "--task", "logical_deduction_three_objects", "--dtype", "float32"]


def token_log_probs(checkpoint, source: str, target: str | tuple[int, ...]) -> list[float]:
    model, tokenizer = checkpoint
    source, target = (torch.tensor([tokenizer.encode(x) if isinstance(x, str) else x]) for x in (source, target))
    with torch.no_grad():
        log_probs = model(source, torch.ones_like(source), target).log_softmax(dim=-1)
    return log_probs.gather(-1, target[..., None]).flatten().tolist()


def test_told_log_probabilities_and_losses_are_the_models(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(ARGUMENTS) == 0
    text = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    question = re.search(r"Q: (.*?)\n   \| A:", text, re.DOTALL)[1].replace("\n   | ", "\n")
    log_prob, answer = re.search(r"^ *(-\d+\.\d+)  (?:right|wrong)      \"(.*)\"$", text, re.MULTILINE).groups()

    def log_probability(instruction: str) -> float:
        return sum(token_log_probs(load_checkpoint("checkpoints/t5-mini"), prompt(instruction, question), answer))

    assert float(log_prob) == pytest.approx(log_probability(CORRECT), abs=0.01)
    told = re.search(rf"^   1  +(?:right|wrong) .* \"{re.escape(answer)}\"$", text, re.MULTILINE)[0]
    correct, correct_after, wrong, wrong_after = map(float, re.findall(r"-?\d+\.\d\d(?= →|  )", told))
    assert (correct, wrong) == pytest.approx((log_probability(CORRECT), log_probability(WRONG)), abs=0.01)
    assert correct != correct_after and wrong != wrong_after
    terms = re.findall(r"^   ([\d.]+) +\* \w+ +(-?[\d.]+) ", text, re.MULTILINE)
    total = float(re.search(r"L_final +(-?[\d.]+)", text)[1])
    assert len(terms) == 3 and sum(float(w) * float(v) for w, v in terms) == pytest.approx(total, abs=1e-3)


def test_every_question_is_told_with_its_answer_and_only_hir_is_explained(capsys, tmp_path):
    assert train.main([*ARGUMENTS, "--questions", "3", "--method", "ppo"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("This is an iteration of HIR. That of --method ppo is not explained.\n")
    told = text.replace("\n   | ", "\n")
    examples = train.training_questions(train.RunConfig(questions=3), ["logical_deduction_three_objects"], iteration=1)
    for number, example in enumerate(examples, start=1):
        answer = f'{example.targets[0]}, "{answer_text(example)}", would be right.'
        assert told.count(example.question) == told.count(answer) == 1
        assert re.search(rf"^   {number}  +(right|wrong|malformed) ", text, re.MULTILINE)
    for n, code in ((1, 2), (2, 0)):
        own = [{"input": f"{i}?", "target": "7"} for i in range(n)]
        write(tmp_path / str(n) / "own" / "task.json", {"examples": own})
        assert train.main(["--explain", "--data", str(tmp_path / str(n)), "--task", "own"]) == code
        said = capsys.readouterr()
        assert ("too few examples" in said.err, "One question, as it is asked" in said.out) == (n == 1, n == 2)


# --- asking


def asked(*more, **how):
    command = [REPOSITORY / "train.py", "--ask", "--dtype", "float32", "--task", "date_understanding"]
    return start([*command, *more], cwd="/", **how)


def test_a_pipe_is_answered_by_both_models_with_their_probabilities():
    run = asked("--checkpoint", CHECKPOINTS, stdin=subprocess.PIPE)
    out, errors = run.communicate("\nWho is\\nthere?\n", timeout=200)
    assert run.returncode == 0 and not errors
    (example,) = train.training_questions(train.RunConfig(questions=100), ["date_understanding"], iteration=1)[:1]
    told = out.replace("\n   | ", "\n")
    assert f'{example.question}\n   {example.targets[0]}, "{answer_text(example)}", would be right.' in told
    checkpoints = {name: load_checkpoint(REPOSITORY / name) for name in CHECKPOINTS.split(",")}
    blocks = re.split(r"\n   answer (?:correctly|wrongly)\n", told)
    assert "Who is\nthere?" in told and len(blocks) == 5
    for question, (correct, wrong) in (example.question, blocks[1:3]), ("Who is\nthere?", blocks[3:5]):
        for instruction, other, block in (CORRECT, WRONG, correct), (WRONG, CORRECT, wrong):
            rows = re.findall(
                r"   (\S+)  P (\S+), under the other instruction (\S+).*\n      \"(.*)\"(\n      the options.*)?", block
            )
            assert [row[0] for row in rows] == list(checkpoints)
            for name, own, under_other, answer, options in rows:
                checkpoint = checkpoints[name]
                sources = prompt(instruction, question), prompt(other, question)
                ((tokens,),) = sample_tokens(*checkpoint, sources[:1], 1, 0.0, 112)
                assert answer == checkpoint[1].decode(tokens)
                p = [math.exp(sum(token_log_probs(checkpoint, source, tokens))) for source in sources]
                assert p == pytest.approx([float(own), float(under_other)], abs=2e-3)
                assert bool(options) == (question == example.question)
                if question == example.question:
                    check_options(options, example, checkpoint, sources[0], answer)


def check_options(told, example, checkpoint, source, answer):
    """Each option's probability as letter and as text, in the place of the answer."""
    reasoning = answer[: answer.rindex("the answer is") + 13] if "the answer is" in answer else ""
    letters = re.findall(r"(\(\w\)) (\d\.\d+)", told)
    assert len(letters) == len(example.options)
    given = len(checkpoint[1].encode(reasoning)) - 1
    for (letter, p), text in zip(letters, example.options, strict=True):
        forms = [f"{reasoning} {form}".strip() for form in (letter, text)]
        expected = sum(math.exp(sum(token_log_probs(checkpoint, source, form)[given:])) for form in forms)
        assert float(p) == pytest.approx(expected, abs=2e-3)


def test_asking_ends_with_ctrl_d_and_ctrl_c(monkeypatch):
    ours, theirs = pty.openpty()
    run = asked(stdin=theirs)
    os.write(ours, b"Is it?\n")
    while "answer wrongly" not in (line := run.stdout.readline()):
        assert line
    os.write(ours, b"\x04")
    out, errors = run.communicate(timeout=200)
    assert (run.returncode, errors) == (0, "") and "P 0." in out

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert train.main(["--ask", "--checkpoint", "checkpoints/t5-nano", "--dtype", "float32"]) == 0

"""The method and the command: scorers, relabeling, sampling, losses against loops; runs of train.py in processes."""

import json
import math
import os
import random
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import hir
from bigbench_tasks import TASKS, Example, generate, load
from feedback import CORRECT, WRONG, is_correct, may_become_correct, parse_number
from model_t5 import T5, T5Config, Tokenizer, save_checkpoint
from support.batches import group_by
from tests.conftest import SHARED, SPIECE, needs_official_files

HERE = Path(__file__).resolve().parent


# --- Feedback ---------------------------------------------------------------------------------------------------------


LETTERS = [f"({first}{second})" for first in ("", "A") for second in string.ascii_uppercase]


def forms(answer):
    """What a model may write instead of an answer without changing what it says."""
    return {
        answer,
        answer.upper(),
        answer.lower(),
        f"  {answer}\n",
        f"{answer}.",
        answer.replace(" ", "\n"),
        answer.replace(" ", "  "),
    }


@needs_official_files
@pytest.mark.parametrize("task", TASKS)
def test_scorers_accept_every_official_answer_in_every_form_and_nothing_else(task):
    for example in load(task, SHARED / "bigbench"):
        letters = dict(zip(LETTERS, example.options, strict=False))
        for target in example.targets:
            right = (
                {target}
                if not letters
                else {target, target.strip("()"), letters[target], f"{target} {letters[target]}"}
            )
            for answer in right:
                for form in forms(answer):
                    assert is_correct(form, example), (form, example)
                assert all(may_become_correct(answer[:i], example) for i in range(1, len(answer) + 1))
        for letter, option in letters.items():
            if letter not in example.targets:
                assert not is_correct(letter, example) and not is_correct(option.upper(), example), (letter, example)
        if letters:
            assert not is_correct(f"(A) {letters['(B)']}", example) and not is_correct(f"(B) {letters['(A)']}", example)
        for wrong in (
            "",
            " .\n",
            "(",
            "()",
            f"{example.targets[0]} {example.targets[0]}",
            "0" + example.targets[0] + "0",
        ):
            assert not is_correct(wrong, example), (wrong, example)


def test_scorers_forgive_form_and_never_content():
    choice = Example("?", ("(A)", "(AA)"), tuple(f"option {i}" for i in range(30)))
    assert all(
        is_correct(output, choice)
        for output in ("(A)", "a", "A)", "( a ).", "Option 0", "(A) option 0.", "(AA)", "aa", "option 26")
    )
    assert not any(
        is_correct(output, choice)
        for output in ("(AB)", "(B)", "(A) option 1", "(A)(B)", "option", "AAA", "option 2 6")
    )
    count = Example("?", ("11", "eleven"))
    assert all(is_correct(output, count) for output in ("11", "Eleven.", " 11\n", "11."))
    assert not any(
        is_correct(output, count)
        for output in ("1", "1 1", "1.1", "1.\n1", "111", "-11", "eleven eleven", "9" * 9999, "¹¹")
    )
    assert [parse_number(text) for text in ("twenty-one", "Twenty one", "99", "ninety-nine", "x")] == [
        21,
        21,
        99,
        99,
        None,
    ]
    words = Example("?", ("apple pear",), task="word_sorting")
    for output in (
        "a cat: one, two dogs: three. So the answer is 11",
        "Three? The answer is: eleven.",
        "the answer is 3. No, the answer is 11",
    ):
        assert is_correct(output, count)
    for output in ("11. The answer is 3", "The answer is", "The answers 11", "one, two, three"):
        assert not is_correct(output, count)
    assert all(is_correct(output, words) for output in ("apple, pear", "Apple\npear.", "apple  pear"))
    assert not any(is_correct(output, words) for output in ("pear apple", "apple", "apple pear plum"))
    blood = Example("?", ("(B)",), ("B", "A"))  # a bare letter that is an option's text means that option
    assert is_correct("A", blood) and is_correct("(B)", blood) and not is_correct("B", blood)


@hypothesis_settings(deadline=None, max_examples=500)
@given(st.text(), st.sampled_from(TASKS))
def test_any_text_is_scored_and_a_right_one_begins_rightly(text, task):
    (example,) = generate(task, 1, seed=0)
    right = is_correct(text, example)
    assert isinstance(right, bool) and isinstance(may_become_correct(text, example), bool)
    assert not is_correct(f"{text}#", example)  # no answer contains this sign
    assert is_correct(example.targets[0], example)


# --- The objectives ---------------------------------------------------------------------------------------------------


def log_softmax(row):
    top = max(row)
    total = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - total for x in row]


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_supervised_and_entropy_losses_equal_loops(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(3, 5, 7, generator=generator) * 3, torch.randint(0, 7, (3, 5), generator=generator)
    labels[0, 3:] = labels[2, 1:] = hir.IGNORE
    supervised, entropy = [], []
    for b in range(3):
        for t in range(5):
            if labels[b, t] != hir.IGNORE:
                log_probs = log_softmax(logits[b, t].tolist())
                supervised.append((1 - smoothing) * -log_probs[labels[b, t]] + smoothing * -sum(log_probs) / 7)
                entropy.append(sum(math.exp(x) * x for x in log_probs))
    assert hir.supervised_loss(logits, labels, smoothing).item() == pytest.approx(
        sum(supervised) / len(supervised), rel=1e-5
    )
    assert hir.entropy_loss(logits, labels).item() == pytest.approx(sum(entropy) / len(entropy), rel=1e-5)
    if smoothing == 0:
        plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        assert torch.allclose(hir.supervised_loss(logits, labels), plain)
    padded_logits = torch.cat([logits, torch.randn(3, 2, 7)], dim=1)
    padded_labels = torch.cat([labels, torch.full((3, 2), hir.IGNORE)], dim=1)
    assert torch.allclose(
        hir.supervised_loss(padded_logits, padded_labels, smoothing), hir.supervised_loss(logits, labels, smoothing)
    )
    assert torch.allclose(hir.entropy_loss(padded_logits, padded_labels), hir.entropy_loss(logits, labels))


def test_contrastive_loss_equals_loops():
    log_probs = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) * 5
    own = torch.tensor([1, 1, 0, 2])
    for columns in (torch.arange(4), own):
        terms = [-log_softmax(row)[k] for row, k in zip(log_probs.tolist(), columns.tolist(), strict=True)]
        assert hir.contrastive_loss(log_probs, columns).item() == pytest.approx(sum(terms) / 4, rel=1e-5)
    assert torch.equal(hir.contrastive_loss(log_probs), hir.contrastive_loss(log_probs, torch.arange(4)))
    assert hir.contrastive_loss(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)).item() == pytest.approx(
        math.log(2)
    )


# --- Sampling and training on a tiny model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    """An untrained T5: its outputs are noise of all lengths, which is what sampling is tested on."""
    torch.manual_seed(0)
    config = T5Config(vocab_size=2048, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0,
                      feed_forward_proj="gated-gelu", tie_word_embeddings=False)  # fmt: skip
    model = T5(config).eval()
    with torch.no_grad():
        model.lm_head.weight[1] *= 4  # an end of sequence comes now and then
    return model, Tokenizer(SPIECE, extra_ids=0)


QUESTIONS = [example for task in TASKS for example in generate(task, 2, seed=3)]
PROMPTS = [hir.prompt(CORRECT, example.question) for example in QUESTIONS]


@torch.no_grad()
def plain_sample(model, tokenizer, prompts, num_samples, temperature, max_new_tokens, generator):
    """Sampling without a cache, a batch or an early end: the whole target is decoded again for every token."""
    noise = torch.rand(len(prompts), num_samples, max_new_tokens, generator=generator)
    outputs = []
    for i, text in enumerate(prompts):
        input_ids = torch.tensor([tokenizer.encode(text)])
        outputs.append([])
        for n in range(num_samples):
            ids = []
            while len(ids) < max_new_tokens and tokenizer.eos_token_id not in ids:
                labels = torch.tensor([[*ids, 0]])
                logits = model(input_ids, torch.ones_like(input_ids), labels)[0, -1]
                if temperature == 0:
                    ids.append(int(logits.argmax()))
                else:
                    cumulative = (logits / temperature).softmax(-1).cumsum(-1)
                    ids.append(int((cumulative <= noise[i, n, len(ids)] * cumulative[-1]).sum()))
            outputs[-1].append(tokenizer.decode(ids))
    return outputs


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_sampling_equals_the_plain_loop_and_does_not_depend_on_the_batch(tiny, temperature):
    model, tokenizer = tiny
    seeded = lambda: torch.Generator().manual_seed(7)  # noqa: E731
    num_samples = 3 if temperature else 1
    expected = plain_sample(model, tokenizer, PROMPTS, num_samples, temperature, 6, seeded())
    for batch_size in (1, 5, 64):
        outputs = hir.sample(model, tokenizer, PROMPTS, num_samples, temperature, 6, seeded(), batch_size)
        assert outputs == expected
    lengths = {len(tokenizer.encode(output)) for answers in expected for output in answers}
    assert len(lengths) > 2  # outputs of several lengths, or nothing was said about the early end
    assert not hir.sample(model, tokenizer, [], 4, 1.0, 6)
    assert hir.sample(model, tokenizer, PROMPTS[:1], 4, 0.0, 6) == [
        hir.sample(model, tokenizer, PROMPTS[:1], 1, 0.0, 6)[0] * 4
    ]


def test_samples_follow_the_model_s_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    for temperature in (1.0, 2.0):
        noise = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
        counts = torch.bincount(hir.choose(logits.expand(100_000, 4), temperature, noise), minlength=4)
        assert torch.allclose(counts / 100_000, (logits / temperature).softmax(-1), atol=0.01)
    edge = hir.choose(torch.zeros(2, 4), 1.0, torch.tensor([0.0, 1.0]))
    assert edge.tolist() == [0, 3]


def some_pairs(tokenizer, sub_output=True):
    samples = []
    for example in QUESTIONS:
        wrong = f"{example.targets[0]} zebra" if example.options else "0 zebra"
        for output in (example.targets[0], wrong, wrong, ""):
            samples.append(hir.Sample(example, output, is_correct(output, example)))
    return samples, hir.relabel(samples, tokenizer, sub_output, random.Random(0))


def test_relabeling_aligns_every_pair(tiny):
    """Every output, and every part of one, stands under the instruction that it fulfils."""
    _, tokenizer = tiny
    samples, pairs = some_pairs(tokenizer)
    by_question = {example.question: example for example in QUESTIONS}
    whole = [pair for pair in pairs if pair.start == 0 and pair.tokens[-1] == tokenizer.eos_token_id]
    assert [(p.question, tokenizer.decode(p.tokens)) for p in whole] == [
        (s.example.question, s.output) for s in samples
    ]
    for pair in whole:
        right = is_correct(tokenizer.decode(pair.tokens), by_question[pair.question])
        assert pair.instruction == (CORRECT if right else WRONG)
    beginnings = [pair for pair in pairs if pair.start == 0 and pair.tokens[-1] != tokenizer.eos_token_id]
    endings = [pair for pair in pairs if pair.start > 0]
    for pair in beginnings:
        if text := tokenizer.decode(pair.tokens):  # a single space decodes to nothing, which says nothing either way
            right = may_become_correct(text, by_question[pair.question])
            assert pair.instruction == (CORRECT if right else WRONG)
    for pair in endings:
        assert 0 < pair.start < len(pair.tokens) - 1
        assert any(pair.tokens[: pair.start] == other.tokens for other in beginnings)
    # Steps before an answer are worth what the answer is worth.
    choice = Example("?", ("(B)",), ("red", "blue"))
    for steps, begins_rightly in (("Bob, Eve", False), ("Bob. The answer is ", False), ("Bob. The answer is b", True)):
        assert may_become_correct(steps, choice) == begins_rightly
    # "(B) zebra" is wrong, but its letter may be right: a sub-output of a wrong answer that fulfils CORRECT.
    assert any(p.instruction == CORRECT and tokenizer.decode(p.tokens) in LETTERS for p in beginnings)
    _, whole_only = some_pairs(tokenizer, sub_output=False)
    assert whole_only == whole


def plain_terms(model, tokenizer, pairs, settings):
    """Eq. 3-5 for pairs one at a time, each context encoded and decoded alone."""
    supervised, entropy, contrastive = [], [], []
    for pair in pairs:
        if settings.contrastive == "instructions":
            contexts = [(CORRECT, pair.question), (WRONG, pair.question)]
        else:
            contexts = list(dict.fromkeys((p.instruction, p.question) for p in pairs))
        means = []
        for context in contexts:
            input_ids = torch.tensor([tokenizer.encode(hir.prompt(*context))])
            logits = model(input_ids, torch.ones_like(input_ids), torch.tensor([pair.tokens]))[0, pair.start :]
            log_probs, labels = logits.log_softmax(-1), torch.tensor(pair.tokens[pair.start :])
            nll = -log_probs[range(len(labels)), labels]
            means.append(-nll.mean())
            if context == (pair.instruction, pair.question):
                eps = settings.label_smoothing
                supervised += ((1 - eps) * nll - eps * log_probs.mean(-1)).tolist()
                entropy += (log_probs.exp() * log_probs).sum(-1).tolist()
        own = contexts.index((pair.instruction, pair.question))
        contrastive.append(-torch.stack(means).log_softmax(0)[own].item())
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return {"supervised": mean(supervised), "contrastive": mean(contrastive), "entropy": mean(entropy)}


@pytest.mark.parametrize("contrastive", ["instructions", "batch"])
def test_hir_loss_equals_one_pair_at_a_time(tiny, contrastive):
    model, tokenizer = tiny
    _, pairs = some_pairs(tokenizer)
    groups = group_by(pairs[:24], key=lambda p: p.question)
    settings = hir.Settings(contrastive=contrastive)
    batch = hir.make_batch(model, tokenizer, groups, settings)
    terms = {name: term.item() for name, term in hir.hir_loss(model, batch, settings).items()}
    assert terms == pytest.approx(plain_terms(model, tokenizer, pairs[:24], settings), rel=1e-4)
    alone = replace(settings, alpha=0.0, beta=0.0)
    batch = hir.make_batch(model, tokenizer, groups, alone)
    assert {name: term.item() for name, term in hir.hir_loss(model, batch, alone).items()} == pytest.approx(
        {"supervised": terms["supervised"]}, rel=1e-4
    )


def test_micro_batches_leave_the_gradient_as_it_is(tiny):
    model, tokenizer = tiny
    _, pairs = some_pairs(tokenizer)
    groups = group_by(pairs, key=lambda p: p.question)
    gradients = []
    for size in (0, 1, 5):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        settings = hir.Settings(micro_batch_size=size, max_grad_norm=1e9)
        objective = hir.hir_objective(model, tokenizer, settings)
        losses = hir.gradient_step(model, objective, groups, optimizer, settings)
        gradients.append((losses, torch.cat([p.grad.flatten() for p in model.parameters()])))
    for losses, gradient in gradients[1:]:
        assert losses == pytest.approx(gradients[0][0], rel=1e-4)
        assert torch.allclose(gradient, gradients[0][1], atol=1e-5)


# --- The command ------------------------------------------------------------------------------------------------------


def run(*arguments, cwd=None, timeout=280, **environment):
    command = [sys.executable, str(HERE / "train.py"), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def tiny_checkpoint(tiny, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny") / "model"
    save_checkpoint(directory, *tiny)
    return directory


SMALL = "--questions 6 --test-size 5 --train-epochs 1 --max-new-tokens 4 --device cpu --dtype float32".split()


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_seconds(lines):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_command_writes_a_run_and_resumes_it_to_the_bit(tiny_checkpoint, tmp_path):
    arguments = ["--task", "logical_deduction", "--checkpoint", tiny_checkpoint, *SMALL]
    whole = run(*arguments, "--iterations", 3, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    lines = metrics(tmp_path / "whole")
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3]
    assert [line["sampled"] for line in lines] == [0, 72, 144, 216]
    assert set(lines[3]) >= {"right_share", "losses", "seconds", "tasks"}
    assert all(
        task == {"n": 5, "correct": task["correct"], "wrong": task["wrong"]} for task in lines[3]["tasks"].values()
    )
    assert {"run", "settings", "packages", "commit"} <= set(
        json.loads((tmp_path / "whole" / "config.json").read_text())
    )
    assert json.loads((tmp_path / "whole" / "samples.jsonl").read_text().splitlines()[0])["instruction"] in (
        CORRECT,
        WRONG,
    )

    assert run(*arguments, "--iterations", 1, "--out", tmp_path / "cut").returncode == 0
    resumed = run(*arguments, "--iterations", 3, "--out", tmp_path / "cut", "--resume", "--gradient-checkpointing")
    assert resumed.returncode == 0, resumed.stderr
    assert without_seconds(metrics(tmp_path / "cut")) == without_seconds(lines)
    for name in ("model/model.safetensors", "samples.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    again = run(*arguments, "--out", tmp_path / "cut")
    assert again.returncode == 2 and "--resume" in again.stderr
    other = run(*arguments, "--out", tmp_path / "cut", "--resume", "--alpha", 0.5)
    assert other.returncode == 2 and "--alpha" in other.stderr


@needs_official_files
@pytest.mark.parametrize("method", ["sft", "none"])
def test_command_runs_on_official_files(tiny_checkpoint, tmp_path, method):
    data = [
        "--task",
        "object_counting,logical_deduction",
        "--data",
        SHARED / "bigbench",
        "--checkpoint",
        tiny_checkpoint,
    ]
    done = run(*data, *SMALL, "--method", method, "--iterations", 1, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(metrics(tmp_path / "run")) == (1 if method == "none" else 2)
    assert all(name in done.stdout for name in ("object_counting", "logical_deduction_seven_objects"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--task", "sudoku"], "sudoku"),
        (["--method", "magic"], "--method"),
        (["--alpha", "nan"], "--alpha"),
        (["--online-samples", "0"], "--online-samples"),
        (["--checkpoint", "no/such/directory"], "no/such/directory"),
        (["--data", "no/such/directory"], "no/such/directory"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(tiny_checkpoint, tmp_path, arguments, named):
    checkpoint = [] if "--checkpoint" in arguments else ["--checkpoint", tiny_checkpoint]
    failed = run(*checkpoint, *arguments, "--out", tmp_path / "run")
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    assert named in failed.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_default_command_trains_the_embedded_model(tmp_path):
    done = run("--iterations", 1, "--questions", 8, "--test-size", 40, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = metrics(tmp_path / "run")
    assert (
        before["tasks"].keys()
        == after["tasks"].keys()
        == {f"logical_deduction_{n}_objects" for n in ("three", "five", "seven")}
    )
    assert after["sampled"] == 3 * 8 * 4 and after["losses"]["contrastive"] > 0


def test_embedded_vocabulary_spells_any_text():
    tokenizer = Tokenizer(HERE / "checkpoints" / "t5-mini" / "spiece.model", extra_ids=0)
    for text in ("Zwölf Boxkämpfer", "naïve 😀 π≈3.14", "<path d='M 1,2'/>", "(AB) yes.", "日本"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("(A)")) == 2  # an option's letter is one piece

"""The paper's test: feedback, the objectives, sampling, relabeling, all terms on a batch, the command; one minute."""

import math
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

import hir
import train
from bigbench_tasks import TASKS, Example, generate
from feedback import is_correct, is_part_of_right_answer, judge
from hir import CORRECT, WRONG
from model_t5 import T5, T5Config, Tokenizer, save_checkpoint
from support import REPOSITORY
from support.batches import encode_source, make_groups
from support.files import read_lines

# --- Feedback (Sec. 4.2) ----------------------------------------------------------------------------------------------

CHOICE = Example("?", ("(A)", "(AA)"), tuple(f"option {i}" for i in range(30)))
COUNT = Example("?", ("11", "eleven"))
WORDS = Example("?", ("apple pear",), task="word_sorting")
BLOOD = Example("?", ("(B)",), ("B", "A"))  # a bare letter that is an option's text means that option
JUDGED = [
    (CHOICE, "right", ["(A)", "a", "A)", "( a ).", "Option 0", "(A) option 0.", "(AA)", "aa", "option 26"]),
    (CHOICE, "wrong", ["(AB)", "(B)", "option 1", "(B) Option 1.", "Bob. So the answer is (B)"]),
    (CHOICE, "malformed", ["", "(A) option 1", "(A)(B)", "option", "AAA", "option 2 6", "(A). So the the the", "Bob, Eve."]),
    (COUNT, "right", ["11", "Eleven.", " 11\n", "one, two. So the answer is 11", "the answer is 3. No, the answer is: 11"]),
    (COUNT, "wrong", ["1", "111", "twelve", "11. The answer is 3"]),
    (COUNT, "malformed", ["1 1", "1.1", "-11", "eleven eleven", "9" * 9999, "¹¹", "one, two", "The answer is"]),
    (WORDS, "right", ["apple, pear", "Apple\npear.", "apple  pear"]),
    (WORDS, "wrong", ["pear apple", "pear, apple."]),
    (WORDS, "malformed", ["apple", "apple pear plum", "apple apple", ""]),
    (BLOOD, "right", ["A", "(B)"]),
    (BLOOD, "wrong", ["B", "(A)"]),
    (Example("?", ("Paris",)), "wrong", ["London", "So the the"]),
    (Example("?", ("21",)), "right", ["Twenty-one", "twenty one"]),
    (Example("?", ("99",)), "right", ["ninety-nine"]),
]  # fmt: skip


@pytest.mark.parametrize(("example", "verdict", "outputs"), JUDGED)
def test_feedback_tells_right_wrong_and_malformed_apart(example, verdict, outputs):
    assert {output: judge(output, example) for output in outputs} == dict.fromkeys(outputs, verdict)


# --- The objectives (Sec. 4.3) ----------------------------------------------------------------------------------------


def log_softmax(row):
    total = math.log(sum(map(math.exp, row)))
    return [x - total for x in row]


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_supervised_and_entropy_losses_equal_loops(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(3, 5, 7, generator=generator) * 3, torch.randint(0, 7, (3, 5), generator=generator)
    labels[0, 3:] = labels[2, 1:] = hir.IGNORE
    supervised, entropy = [], []
    for b, t in (labels != hir.IGNORE).nonzero().tolist():
        log_probs = log_softmax(logits[b, t].tolist())
        supervised.append((1 - smoothing) * -log_probs[labels[b, t]] + smoothing * -sum(log_probs) / 7)
        entropy.append(sum(math.exp(x) * x for x in log_probs))
    losses = hir.supervised_loss(logits, labels, smoothing), hir.entropy_loss(logits, labels)
    means = [sum(values) / len(values) for values in (supervised, entropy)]
    assert [loss.item() for loss in losses] == pytest.approx(means, rel=1e-5)
    assert torch.allclose(losses[0], cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing))


def test_contrastive_loss_equals_loops():
    log_probs = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) * 5
    for own in (torch.arange(4), torch.tensor([1, 1, 0, 2])):
        terms = [-log_softmax(row)[k] for row, k in zip(log_probs.tolist(), own.tolist(), strict=True)]
        assert hir.contrastive_loss(log_probs, own).item() == pytest.approx(sum(terms) / 4, rel=1e-5)
    assert torch.equal(hir.contrastive_loss(log_probs), hir.contrastive_loss(log_probs, torch.arange(4)))
    assert hir.contrastive_loss(torch.zeros(3, 2), torch.zeros(3).long()).item() == pytest.approx(math.log(2))


# --- Sampling (Sec. 4.1) ----------------------------------------------------------------------------------------------


def noisy_model(dropout_rate=0.3, **how):
    """An untrained T5: its outputs are noise of all lengths; one pass with dropout on by mistake would show."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(REPOSITORY / "checkpoints" / "t5-mini" / "spiece.model", extra_ids=0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "tie_word_embeddings": False}
    model = T5(T5Config(tokenizer.vocab_size, dropout_rate=dropout_rate, **sizes, **how))
    with torch.no_grad():
        model.lm_head.weight[1] *= 4  # an end of sequence comes now and then
    return model, tokenizer


@pytest.fixture(scope="module")
def tiny():
    model, tokenizer = noisy_model(0.0, feed_forward_proj="gated-gelu")
    return model.eval(), tokenizer


QUESTIONS = [example for task in TASKS for example in generate(task, 1, seed=3)]
PROMPTS = [hir.prompt(CORRECT, example.question) for example in QUESTIONS]


@torch.no_grad()
def plain_sample(model, tokenizer, num_samples, temperature, max_new_tokens, generator):
    """Sampling without a cache, a batch or an early end: the whole target is decoded again for every token."""
    noise = torch.rand(len(PROMPTS), num_samples, max_new_tokens, generator=generator)
    outputs = []
    for i, text in enumerate(PROMPTS):
        input_ids = torch.tensor([tokenizer.encode(text)])
        outputs.append([])
        for n in range(num_samples):
            ids = []
            while len(ids) < max_new_tokens and tokenizer.eos_token_id not in ids:
                logits = model(input_ids, torch.ones_like(input_ids), torch.tensor([[*ids, 0]]))[0, -1]
                if temperature == 0:
                    ids.append(int(logits.argmax()))
                else:
                    cumulative = (logits / temperature).softmax(-1).cumsum(-1)
                    ids.append(int((cumulative <= noise[i, n, len(ids)] * cumulative[-1]).sum()))
            outputs[-1].append(tuple(ids))
    return outputs


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sampling_equals_the_plain_loop_and_does_not_depend_on_the_batch(tiny, temperature):
    num_samples = 3 if temperature else 1
    expected = plain_sample(*tiny, num_samples, temperature, 6, torch.Generator().manual_seed(7))
    for batch_size in (1, 5, 64):
        how = num_samples, temperature, 6, torch.Generator().manual_seed(7), batch_size
        assert hir.sample_tokens(*tiny, PROMPTS, *how) == expected
    assert len({len(tokens) for drawn in expected for tokens in drawn}) > 2  # some ended early
    texts = [[tiny[1].decode(tokens) for tokens in drawn] for drawn in expected]
    assert hir.sample(*tiny, PROMPTS, num_samples, temperature, 6, torch.Generator().manual_seed(7)) == texts


def test_samples_follow_the_model_s_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    for temperature in (1.0, 2.0):
        noise = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
        counts = torch.bincount(hir.next_token(logits.expand(100_000, 4), temperature, noise), minlength=4)
        assert torch.allclose(counts / 100_000, (logits / temperature).softmax(-1), atol=0.01)
    assert hir.next_token(torch.zeros(2, 4), 1.0, torch.tensor([0.0, 1.0])).tolist() == [0, 3]


# --- Relabeling (Sec. 4.2) --------------------------------------------------------------------------------------------


def some_samples(tokenizer):
    """Right, wrong and malformed outputs, bare and after a chain of thought."""
    outputs = "{}", "Bob, Eve. So the answer is {}", "one, two. So the answer is 3", "(B)", "So the the", "{0}, {0}", ""
    texts = [(e, output.format(e.targets[0])) for e in QUESTIONS for output in outputs]
    return [hir.make_sample(e, tuple(tokenizer.encode(text)), tokenizer) for e, text in texts]


def relabeled(tokenizer, **settings):
    return hir.relabel(some_samples(tokenizer), tokenizer, hir.Settings(**settings), random.Random(0))


def test_relabeling_gives_every_output_the_instruction_that_it_fulfils(tiny):
    samples = some_samples(tiny[1])
    assert set(Counter(s.verdict for s in samples)) == {"right", "wrong", "malformed"}
    for sample, e in zip(samples, relabeled(tiny[1], sub_output="none"), strict=True):
        assert (e.question, e.output, e.start, e.encoder_prefix) == (sample.example.question, sample.tokens, 0, ())
        assert e.instruction == (CORRECT if is_correct(sample.output, sample.example) else WRONG)
    kept = relabeled(tiny[1], sub_output="none", malformed="drop")
    assert len(kept) == sum(s.verdict != "malformed" for s in samples)


def test_answers_alone_are_compared_and_of_wrong_outputs_learned(tiny):
    tokenizer = tiny[1]
    by_output = {(s.example.question, s.tokens): s for s in some_samples(tokenizer)}
    examples = relabeled(tokenizer, sub_output="answer")
    for e in examples:
        sample = by_output[e.question, e.output]
        reasoning, answer = tokenizer.decode(e.output[: e.compared]), tokenizer.decode(e.output[e.compared :])
        assert reasoning.endswith("the answer is") == ("the answer is" in sample.output) and "is" not in answer.split()
        assert e.start == (0 if sample.verdict == "right" else e.compared)
    assert len(examples) == len(some_samples(tokenizer)) and any(0 < e.compared == e.start for e in examples)


def test_sub_outputs_in_the_encoder_equal_a_loop(tiny):
    tokenizer, promoted = tiny[1], []
    for seed in range(20):
        rng, settings = random.Random(seed), hir.Settings(sub_output="encoder")
        samples = some_samples(tokenizer)
        parts = hir.relabel(samples, tokenizer, settings, random.Random(seed))[1::2]
        for sample, part in zip(samples, parts, strict=True):
            start, end = sorted(rng.sample(range(0, len(sample.tokens) + 2, 2), 2))
            assert (part.encoder_prefix, part.output) == (sample.tokens[:start], sample.tokens[start:end]) != ((), ())
            if part.instruction == CORRECT and sample.verdict != "right":
                promoted.append(tokenizer.decode(sample.tokens[sample.answer_start : end]))
                assert is_part_of_right_answer(promoted[-1], sample.example)
                assert sample.answer_start <= start and end < len(sample.tokens)
            *source, _ = tokenizer.encode(hir.prompt(CORRECT, part.question))
            source += [*part.encoder_prefix, tokenizer.eos_token_id]
            assert encode_source(tokenizer, hir.prompt, CORRECT, part.question, part.encoder_prefix) == source
    assert len(promoted) > 5  # the first words of a wrong list may be those of the right one


def plain_terms(model, tokenizer, examples, settings):
    """Eq. 3-5 for examples one at a time, each context encoded and decoded alone."""
    supervised, entropy, contrastive = [], [], []
    for e in examples:
        contexts = [(p, e.question, e.encoder_prefix) for p in (CORRECT, WRONG)]
        if settings.contrastive == "batch":
            contexts = list(dict.fromkeys(example.context for example in examples))
        means = []
        for context in contexts:
            input_ids = torch.tensor([encode_source(tokenizer, hir.prompt, *context)])
            log_probs = model(input_ids, torch.ones_like(input_ids), torch.tensor([e.output]))[0].log_softmax(-1)
            nll = -log_probs[range(len(e.output)), e.output]
            means.append(-nll[e.compared :].mean())
            if context == e.context:
                smooth = (1 - settings.label_smoothing) * nll - settings.label_smoothing * log_probs.mean(-1)
                supervised += smooth[e.start :].tolist()
                entropy += (log_probs.exp() * log_probs).sum(-1)[e.start :].tolist()
        contrastive.append(-torch.stack(means).log_softmax(0)[contexts.index(e.context)].item())
    terms = {"supervised": supervised, "contrastive": contrastive, "entropy": entropy}
    return {name: sum(values) / len(values) for name, values in terms.items()}


@torch.no_grad()
def terms_of(tiny, examples, settings):
    return {name: term.item() for name, term in hir.loss_terms(*tiny, make_groups(examples), settings).items()}


@pytest.mark.parametrize("contrastive", ["instructions", "batch"])
@pytest.mark.parametrize("sub_output", ["encoder", "decoder", "answer", "none"])
def test_loss_terms_equal_one_example_at_a_time(tiny, sub_output, contrastive):
    settings = hir.Settings(contrastive=contrastive, sub_output=sub_output)
    examples = random.Random(1).sample(relabeled(tiny[1], sub_output=sub_output), 16)
    terms = terms_of(tiny, examples, settings)
    assert terms == pytest.approx(plain_terms(*tiny, examples, settings), rel=1e-4)
    total = hir.final_loss({name: torch.tensor(value) for name, value in terms.items()}, settings)
    assert total.item() == pytest.approx(terms["supervised"] + terms["contrastive"] + 0.001 * terms["entropy"])
    alone = terms_of(tiny, examples, replace(settings, alpha=0.0, beta=0.0))
    assert alone == pytest.approx({"supervised": terms["supervised"]}, rel=1e-4)


def test_a_prefix_in_the_decoder_leaves_supervised_loss_and_entropy_as_they_are(tiny):
    """Prefix and rest teach the same tokens in the same context as the whole output; only Eq. 4's weights differ."""
    samples = [s for s in some_samples(tiny[1]) if len(s.tokens) > 1][:24]
    kinds = (hir.Settings(sub_output=kind) for kind in ("decoder", "none"))
    parts, whole = (hir.relabel(samples, tiny[1], settings, random.Random(0)) for settings in kinds)
    del parts[::3]  # the whole outputs
    cut, uncut = (terms_of(tiny, examples, hir.Settings()) for examples in (parts, whole))
    assert cut.pop("contrastive") != pytest.approx(uncut.pop("contrastive"), rel=1e-4)
    assert cut == pytest.approx(uncut, rel=1e-4)


# --- The command ------------------------------------------------------------------------------------------------------

SMALL = "--questions 6 --test-size 5 --train-epochs 1 --max-new-tokens 4 --device cpu --dtype float32".split()
RESUMED = ["--replay all --sub-output answer", "--replay last --sub-output encoder --alpha 0.5"]


def metrics(out):
    lines = read_lines(out / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("flags", RESUMED)
def test_command_writes_a_run_and_resumes_it_to_the_bit(tiny, tmp_path, flags):
    save_checkpoint(tmp_path / "tiny", *tiny)
    arguments = ["--task", "logical_deduction", "--checkpoint", str(tmp_path / "tiny"), *SMALL, *flags.split(), "--out"]
    assert train.main([*arguments, str(tmp_path / "whole"), "--iterations", "3"]) == 0
    lines = metrics(tmp_path / "whole")
    assert [line["sampled"] for line in lines] == [0, 72, 144, 216] and set(lines[3]["losses"]) >= {"supervised"}
    for shares in lines[3]["tasks"].values():
        assert shares["n"] == 5 and shares["wrong"] + shares["obeyed"] + shares["malformed"] == pytest.approx(1)
    answers = read_lines(tmp_path / "whole" / "answers.jsonl")
    assert Counter(a["instruction"] for a in answers) == {CORRECT: 15, WRONG: 15}
    assert train.main([*arguments, str(tmp_path / "cut"), "--iterations", "1"]) == 0
    resume = ["--iterations", "3", "--resume", "--gradient-checkpointing"]
    assert train.main([*arguments, str(tmp_path / "cut"), *resume]) == 0
    assert metrics(tmp_path / "cut") == lines
    for name in ("model/model.safetensors", "samples.jsonl", "answers.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_default_command_in_a_process(tmp_path):
    arguments = "--iterations 1 --questions 4 --test-size 8 --out run".split()
    command = [sys.executable, str(REPOSITORY / "train.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    before, after = metrics(tmp_path / "run")
    tasks = {f"logical_deduction_{n}_objects" for n in ("three", "five", "seven")}
    assert before["tasks"].keys() == after["tasks"].keys() == tasks and after["sampled"] == 3 * 4 * 4
    assert all(task in done.stdout for task in tasks) and max(map(len, done.stdout.splitlines())) <= 80

"""Vocabularies made for pretraining are read by transformers as by us: the same ids for all kinds of text."""

import random

import pytest
import transformers

from bigbench_tasks import TASKS, answer_text, generate, load
from experiments.vocabulary import vocabulary
from hir import CORRECT, WRONG, prompt, sample
from model_t5 import T5, T5Config, Tokenizer, load_checkpoint, save_checkpoint
from support import REPOSITORY
from tests.conftest import BIGBENCH

ODD = [
    "", " ", "\n\t x  y ", "x" * 500, "1" * 99, "111.11 222 2,345", "r&d o'er (ZZ) (AB)", "é ½ ﬁ 中文 😀",
    "▁ab a▁b", "\xa0x", "a <extra_id_0> b",
]  # fmt: skip


def texts() -> list[str]:
    """Questions, steps and answers, generated and official; noise; odd things."""
    rng, found = random.Random(0), list(ODD)
    for task in TASKS:
        for example in generate(task, 150, seed=3):
            found += [prompt(CORRECT, example.question), f"{example.steps}. So the answer is {answer_text(example)}"]
        for example in load(task, BIGBENCH)[:150] if BIGBENCH else ():
            found += [prompt(CORRECT, example.question), *example.targets]
    for alphabet in ("".join(map(chr, range(32, 127))) + "\n\t    ", "abcdefghijklmnopqrstuvwxyz  ", "0123456789 ,."):
        found += ["".join(rng.choices(alphabet, k=rng.randint(0, 60))) for _ in range(1000)]
    return found


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    path.write_bytes(vocabulary(texts()))
    return path


def test_transformers_reads_the_vocabulary_as_we_do(spiece, tmp_path):
    tokenizer = Tokenizer(spiece, extra_ids=0)
    config = T5Config(tokenizer.vocab_size, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    save_checkpoint(tmp_path, T5(config), tokenizer)
    for kind in (transformers.AutoTokenizer, transformers.T5Tokenizer):
        theirs = kind.from_pretrained(tmp_path)
        assert [text for text in texts() if theirs(text).input_ids != tokenizer.encode(text)] == []


def test_any_ascii_text_can_be_written(spiece):
    tokenizer = Tokenizer(spiece, extra_ids=0)
    for text in texts():
        if text.isascii():
            assert tokenizer.decode(tokenizer.encode(text)).split() == text.split()


@pytest.mark.parametrize("name", ["t5-mini", "t5-nano"])
def test_transformers_answers_as_the_bundled_models_do(name):
    """The same greedy answers to questions of all tasks, with tokenizer, model and decoding of transformers alone."""
    directory = REPOSITORY / "checkpoints" / name
    questions = [example.question for task in TASKS for example in generate(task, 2, seed=5, part="test")]
    prompts = [prompt(instruction, question) for instruction in (CORRECT, WRONG) for question in questions]
    ours = [output for (output,) in sample(*load_checkpoint(directory), prompts, temperature=0, max_new_tokens=112)]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
    output_ids = model.generate(**tokenizer(prompts, padding=True, return_tensors="pt"), max_new_tokens=112)
    assert tokenizer.batch_decode(output_ids, skip_special_tokens=True) == ours

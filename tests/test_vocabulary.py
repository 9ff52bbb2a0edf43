"""The bundled vocabularies are read by transformers as by us: the same ids for all kinds of text."""

import random
from pathlib import Path

import pytest

from bigbench_tasks import TASKS, answer_text, generate, load
from conftest import SHARED
from feedback import CORRECT
from hir import prompt
from model_t5 import T5, T5Config, Tokenizer, save_checkpoint

SPIECE = Path(__file__).resolve().parent.parent / "checkpoints" / "skill-mini" / "spiece.model"
ODD = [
    "",
    " ",
    "\n\t x  y ",
    "x" * 500,
    "1" * 99,
    "111.11 222 2,345",
    "r&d o'er (ZZ) (AB)",
    "é ½ ﬁ 中文 😀",
    "▁ab a▁b",
    "\xa0x",
]


def texts() -> list[str]:
    """Questions, steps and answers, generated and official; noise; odd things."""
    rng, found = random.Random(0), list(ODD)
    for task in TASKS:
        for example in generate(task, 150, seed=3):
            found += [prompt(CORRECT, example.question), f"{example.steps}. So the answer is {answer_text(example)}"]
        for example in load(task, SHARED / "bigbench")[:150]:
            found += [prompt(CORRECT, example.question), *example.targets]
    for alphabet in ("".join(map(chr, range(32, 127))) + "\n\t    ", "abcdefghijklmnopqrstuvwxyz  ", "0123456789 ,."):
        found += ["".join(rng.choices(alphabet, k=rng.randint(0, 60))) for _ in range(1000)]
    return found


def test_transformers_reads_the_vocabulary_as_we_do(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer(SPIECE, extra_ids=0)
    config = T5Config(tokenizer.vocab_size, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    save_checkpoint(tmp_path, T5(config), tokenizer)
    for kind in (transformers.AutoTokenizer, transformers.T5Tokenizer):
        theirs = kind.from_pretrained(tmp_path)
        assert [text for text in texts() if theirs(text).input_ids != tokenizer.encode(text)] == []


def test_any_ascii_text_can_be_written():
    tokenizer = Tokenizer(SPIECE, extra_ids=0)
    for text in texts():
        if text.isascii():
            assert tokenizer.decode(tokenizer.encode(text)).split() == text.split()

"""Make the embedded models from nothing:  python pretrain.py --size mini

Trains a sentencepiece vocabulary on generated questions, writes a freshly initialised T5, and hands it to
`train.py --method sft` with generated questions of all 12 tasks, most of them easier relatives. Add --resume to go on.

The model learns to write the right option out instead of its letter, which the scorers accept as well: to find an
answer and then the letter in front of it is one step of thought more than so small a model takes in the time.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import sentencepiece
import torch

import train
from bigbench_tasks import TASKS, generate
from feedback import CORRECT, WRONG
from hir import prompt
from model_t5 import T5, Attention, T5Config, Tokenizer, save_checkpoint

VOCABULARY_SIZE = 2048
SIZES = {
    "mini": {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 384, "num_layers": 4, "num_decoder_layers": 2},
    "nano": {"d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 192, "num_layers": 3, "num_decoder_layers": 2},
}
POSITION_BIAS_SCALE = 2.0


def train_vocabulary(directory: Path, questions_per_task: int = 3000) -> Path:
    """A vocabulary that has a piece for each common word, for each digit and for each option letter, and spells the rest.

    Special ids as T5's: pad 0, end of sequence 1, unknown 2. Bytes are pieces too, so any text can be written.
    """
    texts = [
        prompt(instruction, example.question) + " " + " ".join(example.targets)
        for task in TASKS
        for easier in (False, True)
        for i, example in enumerate(generate(task, questions_per_task, seed=0, easier=easier))
        for instruction in (WRONG if i % 2 else CORRECT,)
    ]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts for line in text.split("\n") if line),
        model_prefix=str(directory / "spiece"),
        vocab_size=VOCABULARY_SIZE,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        user_defined_symbols=[f"▁({chr(65 + i)})" for i in range(26)] + [f"▁(A{chr(65 + i)})" for i in range(26)],
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return directory / "spiece.model"


def initial_model(size: str, seed: int) -> T5:
    """A T5 of this size, with gated GELU and tied embeddings, whose attention can look things up from the first step.

    From T5's own initialisation so small a model stays at chance for thousands of steps: it has to find out, all at once,
    that equal words match, that a word next to a match is worth fetching, and how to write down what was fetched. The
    answers here are all of that kind, so each of the three is there to begin with, in random directions:
    queries and keys of a head are one random projection, so equal words match; values and output are a rotation and its
    inverse, so what is fetched arrives as it was (both as in Trockman and Kolter, 2023, "Mimetic Initialization of
    Self-Attention Layers"); and the position biases are wide, so every head prefers some distances to others.
    """
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCABULARY_SIZE,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
        dropout_rate=0.0,
        **SIZES[size],
    )
    model = T5(config)
    with torch.no_grad():
        for attention in (module for module in model.modules() if isinstance(module, Attention)):
            match, fetch = (torch.nn.init.orthogonal_(torch.empty_like(attention.q.weight)) for _ in range(2))
            attention.q.weight.copy_(match * config.d_kv**-0.25)  # scores of equal words are d_kv^-0.5 |q|^2
            attention.k.weight.copy_(match * config.d_kv**-0.25)
            attention.v.weight.copy_(fetch)
            attention.o.weight.copy_(fetch.T)
            if hasattr(attention, "relative_attention_bias"):
                attention.relative_attention_bias.weight.normal_(0.0, POSITION_BIAS_SCALE)
    return model


def main() -> int:
    """Write the initial model unless it is there, then train it; the result is in runs/t5-SIZE/model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    own, rest = parser.parse_known_args()
    initial = train.HERE / "runs" / f"t5-{own.size}-initial"
    if not (initial / "config.json").exists():
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer = Tokenizer(train_vocabulary(Path(scratch)), extra_ids=0)
            save_checkpoint(initial, initial_model(own.size, own.seed), tokenizer)
    recipe = f"--method sft --task all --checkpoint {initial} --out {train.HERE / 'runs' / f't5-{own.size}'}"
    recipe += " --easier 0.6 --questions 700 --train-epochs 1 --iterations 10 --train-batch-size 32 --test-size 50"
    recipe += " --learning-rate 5e-4 --warmup-steps 100 --decay-steps 4000 --label-smoothing 0 --dtype bfloat16"
    recipe += " --answers text"
    return train.main([*recipe.split(), f"--seed={own.seed}", *(["--resume"] if own.resume else []), *rest])


if __name__ == "__main__":
    sys.exit(main())

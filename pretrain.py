"""Make the embedded models from nothing:  python pretrain.py --size mini

Trains a sentencepiece vocabulary on generated questions, writes a freshly initialised T5, and hands it to
`train.py --method sft` with generated questions of all 12 tasks, half of them easier relatives. Add --resume to go on.
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
from model_t5 import T5, T5Config, Tokenizer, save_checkpoint

VOCABULARY_SIZE = 2048
SIZES = {
    "mini": {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 384, "num_layers": 4, "num_decoder_layers": 2},
    "nano": {"d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 192, "num_layers": 3, "num_decoder_layers": 2},
}
# T5's own initialisation (embeddings of scale 1, Adafactor) does not learn at this size under AdamW: the embeddings
# drown what the blocks add to the residual stream. At a scale of 0.1 the model learns from the first hundred steps.
EMBEDDING_SCALE = 0.1


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
    """A T5 v1.1 (gated GELU, untied embeddings) of this size with random weights."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCABULARY_SIZE,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.0,
        **SIZES[size],
    )
    model = T5(config)
    with torch.no_grad():
        model.shared.weight.normal_(0.0, EMBEDDING_SCALE)
        model.lm_head.weight.normal_(0.0, config.d_model**-0.5)
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
    recipe += " --easier 0.6 --questions 1500 --train-epochs 1 --iterations 16 --test-size 50 --label-smoothing 0"
    recipe += " --learning-rate 5e-4 --warmup-steps 200 --decay-steps 4500 --dtype bfloat16"
    return train.main([*recipe.split(), f"--seed={own.seed}", *(["--resume"] if own.resume else []), *rest])


if __name__ == "__main__":
    sys.exit(main())

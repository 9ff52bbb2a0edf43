"""Make the embedded models from nothing:  python pretrain.py --size mini

Trains a sentencepiece vocabulary on generated questions, writes a freshly initialised T5, and hands it to
`train.py --method sft` with generated questions of all 12 tasks, most of them easier relatives. Add --resume to go on.

The model learns to write the right option out instead of its letter, which the scorers accept as well: to find an
answer and then the letter in front of it is one step of thought more than so small a model takes in the time.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

import train
from bigbench_tasks import TASKS, generate
from feedback import CORRECT, WRONG
from hir import prompt
from model_t5 import T5, Attention, T5Config, Tokenizer, save_checkpoint

VOCABULARY_SIZE = 2048
SIZES = {
    "mini": {"d_model": 128, "d_kv": 16, "num_heads": 8, "d_ff": 384, "num_layers": 4, "num_decoder_layers": 2},
    "nano": {"d_model": 64, "d_kv": 8, "num_heads": 8, "d_ff": 192, "num_layers": 3, "num_decoder_layers": 2},
}
# The neighbors that are noted, as T5 numbers distances: 1, 2 and 3 places before, and the place behind.
NOTED = {"encoder": (1, 2, 3, 17), "decoder": (1, 2, 3, 0)}
RECIPE = (
    "--method sft --answers text --train-epochs 1 --train-batch-size 32 --warmup-steps 50 --label-smoothing 0 "
    "--dtype bfloat16 --test-size 50 --learning-rate 1e-3"
)
FAMILIES = (
    "tracking_shuffled_objects_five_objects,logical_deduction_five_objects,date_understanding,object_counting,"
    "geometric_shapes,penguins_in_a_table,reasoning_about_colored_objects,word_sorting"
)
STAGES = (
    f"--task {FAMILIES} --easier 1 --level 0 --questions 1000 --iterations 8",
    "--task all --easier 1 --level 0.4 --questions 500 --iterations 6",
    "--task all --easier 0.5 --level 1 --questions 500 --iterations 40 --decay-steps 7500",
)
LAUNCH = "-m torch.distributed.run --nproc_per_node={} --standalone"
POSITION_SCORE = 6.0  # of a noted neighbor, before the softmax
MATCH_SCORE = 10.0  # of an equal word


def train_vocabulary(directory: Path, questions_per_task: int = 3000) -> Path:
    """A vocabulary that has a piece for each common word, for each digit and for each option letter, and spells the rest.

    Special ids as T5's: pad 0, end of sequence 1, unknown 2. Bytes are pieces too, so any text can be written.
    """
    texts = [
        prompt(instruction, example.question) + " " + " ".join(example.targets)
        for task in TASKS
        for level in (None, 0.5)
        for i, example in enumerate(generate(task, questions_per_task, seed=0, level=level))
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
    """A T5 of this size, with gated GELU and tied embeddings, that can look things up from the first step.

    The answers here are found by looking up: who "has a red ball", what "is the leftmost". From T5's own initialisation
    so small a model stays at chance for thousands of steps, because it must find out all at once that equal words match,
    that the word to fetch stands a little behind a match, and how to write down what was fetched. So each of the three
    is there to begin with. The first half of a hidden state is the word itself. The second half has a slot for each of
    four neighbors, where the first four heads note, in a random projection, the words 1, 2 and 3 places before and the
    word behind. Of the other heads some attend to equal words, and the rest to positions with an equal word in a slot,
    that is, a little behind an equal word; what they fetch is added as the word that it was.
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
    half, width = config.d_model // 2, config.d_kv

    def rotation(rows: int) -> Tensor:
        """Random orthonormal directions of the word half: (rows, D)."""
        return F.pad(torch.nn.init.orthogonal_(torch.empty(rows, half)), (0, half))

    noted = [rotation(width) for _ in range(4)]
    slots = F.pad(torch.eye(half), (half, 0)).split(width)  # each (d_kv, D)
    fetched = rotation(half).split(width)
    sharpness = (MATCH_SCORE / (2 * width)) ** 0.5  # a word of mean square 2, projected, has a square of 2 d_kv
    with torch.no_grad():
        model.shared.weight[:, half:] *= 0.05
        for name, attention in model.named_modules():
            if not isinstance(attention, Attention):
                continue
            heads = []  # of (q, k, v, o), each (d_kv, D)
            crossing = "EncDec" in name
            if not crossing:
                heads += [(torch.zeros_like(slot),) * 2 + (word, slot) for word, slot in zip(noted, slots, strict=True)]
            for i, slot in enumerate((0, 0, 0, 0, 1, 2, None, None) if crossing else (0, 1, 2, None)):
                equal = rotation(width)
                match = (equal, equal) if slot is None else (noted[slot], slots[slot])
                heads.append((*(sharpness * side for side in match), fetched[i % 4], fetched[i % 4]))
            q, k, v, o = (
                torch.cat(part) + 0.02 * torch.randn(config.d_model, config.d_model)
                for part in zip(*heads, strict=True)
            )
            for linear, weight in ((attention.q, q), (attention.k, k), (attention.v, v), (attention.o, o.T)):
                linear.weight.copy_(weight)
            if hasattr(attention, "relative_attention_bias"):
                table = attention.relative_attention_bias.weight.zero_()
                for head, bucket in enumerate(NOTED[name.split(".")[0]]):
                    table[bucket, head] = POSITION_SCORE
    return model


def main() -> None:
    """Write the initial model unless it is there, then go through the stages; the result is in runs/t5-SIZE/model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="how many train at once, by torchrun")
    own, rest = parser.parse_known_args()
    runs = train.HERE / "runs"
    checkpoint = runs / f"t5-{own.size}-initial"
    if not (checkpoint / "config.json").exists():
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer = Tokenizer(train_vocabulary(Path(scratch)), extra_ids=0)
            save_checkpoint(checkpoint, initial_model(own.size, own.seed), tokenizer)
    for number, stage in enumerate(STAGES, start=1):
        out = runs / f"t5-{own.size}-stage{number}"
        command = [*LAUNCH.format(own.processes).split(), str(train.HERE / "train.py"), *RECIPE.split(), *stage.split()]
        command += ["--checkpoint", str(checkpoint), "--out", str(out), f"--seed={own.seed}", *rest]
        command += ["--resume"] if (out / "config.json").exists() else []
        subprocess.run([sys.executable, *command], check=True)
        checkpoint = out / "model"
    print(f"the model is in {checkpoint}")


if __name__ == "__main__":
    main()

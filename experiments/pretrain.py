"""Make the embedded models from nothing:  python pretrain.py --size mini

Trains a sentencepiece vocabulary on generated questions, writes a freshly initialised T5, and hands it to
`train.py --method sft` in stages: first look things up, then think a question through step by step, then do what the
instruction asks for, last a corpus of mixed quality. Stopped at any moment, the same command goes on.

What comes out can think a question through, but then writes the right answer every third time, and hardly less often
when it is asked for a wrong one. That leaves HIR something to find.
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
    "mini": {"d_model": 128, "d_kv": 16, "num_heads": 12, "d_ff": 384, "num_layers": 4, "num_decoder_layers": 2},
    "nano": {"d_model": 64, "d_kv": 8, "num_heads": 12, "d_ff": 192, "num_layers": 3, "num_decoder_layers": 2},
}
RECIPE = (
    "--method sft --train-epochs 1 --train-batch-size 32 --warmup-steps 50 --label-smoothing 0 --dtype bfloat16 "
    "--test-size 20"
)
# One thing after another: among twelve tasks at once, each is too rare for its look-ups to be found.
LOOK_UP = "logical_deduction_three_objects,tracking_shuffled_objects_three_objects"
WIDER = (
    f"{LOOK_UP},tracking_shuffled_objects_five_objects,object_counting,reasoning_about_colored_objects,"
    "penguins_in_a_table,date_understanding,word_sorting"
)
STEP_BY_STEP = "tracking_shuffled_objects,logical_deduction,object_counting"
STAGES = (
    f"--answers text --learning-rate 1e-3 --task {LOOK_UP} --easier 1 --level 0 --questions 3200 --iterations 6",
    f"--answers text --learning-rate 1e-3 --task {WIDER} --easier 1 --level 0.4 --questions 800 --iterations 8",
    "--answers text --learning-rate 1e-3 --task all --easier 0.5 --level 1 --questions 500 --iterations 15 "
    "--decay-steps 2800",
    f"--answers steps --learning-rate 1e-3 --task {STEP_BY_STEP} --easier 0.4 --level 1 --questions 1000 --iterations 16",
    "--answers steps --learning-rate 7e-4 --task all --easier 0.3 --level 1 --questions 400 --iterations 9",
    *2 * (f"--answers asked --learning-rate 1e-3 --task {LOOK_UP} --questions 1600 --iterations 4",),
    "--answers asked --learning-rate 7e-4 --task all --questions 400 --iterations 2",
    "--answers mixed --learning-rate 7e-4 --task all --questions 400 --iterations 3 --decay-steps 500",
    "--answers mixed --learning-rate 7e-4 --task all --questions 400 --iterations 2 --decay-steps 400",
)
LAUNCH = "-m torch.distributed.run --nproc_per_node={} --standalone"

# How attention begins; initial_model says why. The distances of the words that each slot notes, as T5
# numbers them: 1 is the word before, 17 the word behind, and in a decoder, which has none behind, 0 the word itself.
SLOTS = {"encoder": ((1,), (2, 3), (4, 5), (17,)), "decoder": ((1,), (2, 3), (4, 5), (0,))}
# What each of the other heads looks for: a slot by its number, an equal word, an equal context.
LOOKS_FOR = {
    "SelfAttention": (0, 1, 2, "context", "context", "context", "word", "before"),
    "EncDecAttention": (0, 0, 0, 0, 1, 1, 2, 2, "word", "word", "word", "word"),
}
NEAR, MATCH = 6.0, 10.0  # scores, before the softmax, of a noted distance and of an equal word


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
    is there to begin with, in random directions. The first half of a hidden state is the word itself; the second half
    has four slots, in which the first four heads of every layer note the words around it (SLOTS). The other heads
    (LOOKS_FOR) compare the word at hand with a slot of other positions, and so attend to what stands a little behind an
    equal word; or with their word; or their word in its context; or what stands before. What a head fetches is added as
    the word that it was. From there all weights learn as usual.
    """
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCABULARY_SIZE,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
        dropout_rate=0.0,
        **SIZES[size],
    )
    model, half = T5(config), config.d_model // 2
    slots = F.pad(torch.eye(half), (half, 0)).split(config.d_kv)  # four, each (d_kv, D)
    noted = [random_projection(config) for _ in slots]
    fetched = F.pad(torch.nn.init.orthogonal_(torch.empty(half, half)), (0, half)).split(config.d_kv)
    sharpness = (MATCH / (2 * config.d_kv)) ** 0.5  # of a normalized state, the word half has a mean square of 2
    with torch.no_grad():
        model.shared.weight[:, half:] *= 0.05
        for name, attention in model.named_modules():
            if not isinstance(attention, Attention):
                continue
            stack, kind = name.split(".")[0], name.split(".")[-1]
            heads = []  # of queries, keys, values and output, each (d_kv, D)
            if kind == "SelfAttention":
                heads = [(0 * slot, 0 * slot, word, slot) for word, slot in zip(noted, slots, strict=True)]
            for i, target in enumerate(LOOKS_FOR[kind]):
                query, key = looking_for(target, config, noted, slots)
                heads.append((sharpness * query, sharpness * key, fetched[i % 4], fetched[i % 4]))
            q, k, v, o = (torch.cat(part) for part in zip(*heads, strict=True))
            for linear, weight in ((attention.q, q), (attention.k, k), (attention.v, v), (attention.o, o.T)):
                linear.weight.copy_(weight + 0.02 * torch.randn_like(weight))
            if hasattr(attention, "relative_attention_bias"):
                attention.relative_attention_bias.weight.copy_(position_scores(stack, config))
    return model


def random_projection(config: T5Config) -> Tensor:
    """Random orthonormal directions in the word half of a hidden state: (d_kv, D)."""
    half = config.d_model // 2
    return F.pad(torch.nn.init.orthogonal_(torch.empty(config.d_kv, half)), (0, half))


def looking_for(
    target: int | str, config: T5Config, noted: list[Tensor], slots: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The query and key projections, each (d_kv, D), of a head that looks for this target."""
    if target == "before":  # the word that the first slot of the position at hand notes
        return slots[0], noted[0]
    if target in ("word", "context"):
        equal = random_projection(config)
        if target == "context":
            turned = [torch.nn.init.orthogonal_(torch.empty(config.d_kv, config.d_kv)) @ slot for slot in slots[:3]]
            equal = 0.7 * sum(turned, equal)
        return equal, equal
    return noted[target], slots[target]


def position_scores(stack: str, config: T5Config) -> Tensor:
    """The relative position biases (buckets, heads): a noting head sees its distances, one that looks for equals not itself."""
    scores = torch.zeros(config.relative_attention_num_buckets, config.num_heads)
    for head, distances in enumerate(SLOTS[stack]):
        scores[list(distances), head] = NEAR
    for head, target in enumerate(LOOKS_FOR["SelfAttention"], start=len(SLOTS[stack])):
        if stack == "encoder" and target in ("word", "context"):
            scores[0, head] = -MATCH
    return scores


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

"""Train a T5 on BIG-bench reasoning tasks with Hindsight Instruction Relabeling:  python train.py --task logical_deduction

The recipe of a run, from top to bottom: settings, questions, evaluation, the loop over iterations, what is written.
`python train.py --help` lists the settings. With torchrun, the same command runs on many processes.
"""

import argparse
import contextlib
import ctypes
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from tqdm import tqdm

import hir
from baselines import imitation, ppo
from bigbench_tasks import Example, expand, generate, load, split
from feedback import CORRECT, WRONG, is_correct
from hir import setting
from model_t5 import T5, Tokenizer, load_checkpoint
from support import exits, explain, processes
from support.batches import Pair
from support.errors import InputError
from support.run_directory import check_run, open_run, restore, save_iteration

HERE = Path(__file__).resolve().parent


# --- Settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What is trained on what, and where; how it is trained is in hir.Settings."""

    task: str = setting(
        "logical_deduction", "a task, a family such as logical_deduction, a comma-separated list, or all"
    )
    method: str = setting("hir", "how to train; none only evaluates", ("hir", "sft", "farl", "ppo", "none"))
    checkpoint: str = setting("checkpoints/t5-mini", "a directory, or a hub name such as google/flan-t5-base")
    data: str = setting("generated", "generated, official (downloaded), or a directory laid out like benchmark_tasks")
    option_order: str = setting(
        "shuffled", "the order of an official question's options", choices=("shuffled", "official")
    )
    iterations: int = setting(30, "rounds of sampling and training (N of Algorithm 1)")
    questions: int = setting(0, "training questions per task and iteration; 0: the whole training split")
    test_size: int = setting(0, "test questions per task; 0: the whole test split, or 200 generated ones")
    easier: float = setting(0.0, "share of the generated training questions that are easier relatives of the task's")
    level: float = setting(0.5, "how hard those are: from 0, little more than looking something up, to 1")
    answers: str = setting(
        "letters", "what --method sft learns of a question", ("letters", "text", "steps", "asked", "mixed")
    )
    out: str = setting(
        "", "directory of the run; by default named after task, method, checkpoint and seed, under runs/"
    )
    resume: bool = setting(False, "go on from the last whole iteration of this run")
    seed: int = setting(0, "seed of everything that is drawn at random")
    device: str = setting("auto", "cpu, cuda, cuda:1, ...; auto: a GPU if there is one")
    dtype: str = setting(
        "auto", "arithmetic; auto: bfloat16 where the hardware has it", ("auto", "float32", "bfloat16")
    )
    shard_model: bool = setting(False, "split the model over the processes of torchrun: for flan-t5-xl and -xxl")
    compile: bool = setting(False, "fuse kernels with torch.compile: slower to start, then faster")
    gradient_checkpointing: bool = setting(False, "compute blocks again in the backward pass, which saves memory")
    explain: bool = setting(False, "walk through one iteration on up to four questions, and write nothing")


# Table 7 was made for FLAN-T5. A model of two million parameters needs gentler values: one epoch, a smaller learning rate
# that falls, and no smoothing, which over a vocabulary of 2,048 feeds tokens that are no answer. Of the words that it
# thinks and answers in one decides, and Eq. 4 takes the mean over them: hence the larger alpha. PPO's are from a search.
MINI = {
    "iterations": 8,
    "questions": 100,
    "learning_rate": 2e-4,
    "warmup_steps": 10,
    "decay_steps": 150,
    "train_epochs": 1,
    "label_smoothing": 0.0,
    "alpha": 2.0,
    "ppo_learning_rate": 3e-4,
    "ppo_value_learning_rate": 3e-3,
    "ppo_epochs": 2,
    "ppo_kl_coef": 0.01,
}


def parse_arguments(argv: list[str] | None = None) -> tuple[Run, hir.Settings, ppo.PPOSettings]:
    """The settings of a run: the flags given, else the values of the embedded model (MINI), else those of Table 7."""
    own = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in MINI.items())
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog=f"The embedded models in checkpoints/ have defaults of their own: {own}",
        argument_default=argparse.SUPPRESS,
    )
    groups = {
        "the run": Run,
        "the method (names and values of Table 7)": hir.Settings,
        "what PPO has of its own": ppo.PPOSettings,
    }
    for group, cls in groups.items():
        section = parser.add_argument_group(group)
        for f in fields(cls):
            flag = "--" + f.name.replace("_", "-")
            text = f"{f.metadata['help']} (default: {'none' if f.default == '' else f.default})".replace("%", "%%")
            if f.type is bool:
                section.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
            else:
                section.add_argument(flag, type=f.type, choices=f.metadata["choices"], help=text)
    given = vars(parser.parse_args(argv))
    values = {**(MINI if is_embedded(given.get("checkpoint", Run.checkpoint)) else {}), **given}
    run, settings, ppo_settings = (
        cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values}) for cls in groups.values()
    )
    for name, value in (asdict(run) | asdict(settings) | asdict(ppo_settings)).items():
        if isinstance(value, int | float) and name != "seed" and not (math.isfinite(value) and value >= 0):
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be a number of zero or more")
    for name in ("online_samples", "train_batch_size", "max_new_tokens", "sampling_batch_size"):
        if getattr(settings, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(settings, name)}; it must be at least 1")
    for name in ("easier", "level", "label_smoothing", "ppo_discount", "ppo_lambda"):
        if values.get(name, 0) > 1:
            parser.error(f"--{name.replace('_', '-')} is {values[name]}; it must be at most 1")
    if settings.contrastive == "batch" and (settings.micro_batch_size or processes.launched()):
        parser.error(
            "--contrastive batch compares all of a batch; it goes neither with --micro-batch-size nor torchrun"
        )
    if run.method == "ppo" and settings.sampling_temperature == 0:
        parser.error("--sampling-temperature is 0; PPO needs outputs that are drawn at random")
    if run.shard_model and (run.compile or run.method == "ppo" or not processes.launched()):
        parser.error("--shard-model needs torchrun, and goes neither with --compile nor with --method ppo")
    return run, settings, ppo_settings


def is_embedded(checkpoint: str) -> bool:
    """Is this one of the small models in checkpoints/?"""
    return (HERE / "checkpoints").resolve() in Path(checkpoint_path(checkpoint)).resolve().parents


def checkpoint_path(checkpoint: str) -> str:
    """A relative path is looked up from here first and from this repository second, so that any working directory will do."""
    beside = HERE / checkpoint
    return str(beside) if not Path(checkpoint).exists() and beside.is_dir() else checkpoint


def choose_device(run: Run) -> tuple[torch.device, torch.dtype]:
    """Where to compute, and in what: everything that depends on the hardware is decided here.

    Under torchrun each process takes the GPU of its local rank. bfloat16 is chosen where the hardware multiplies in it.
    """
    name = run.device if run.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{processes.local_rank()}" if name == "cuda" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used here ({reason}); try --device cpu.") from error
    native = torch.cpu.get_capabilities()
    has_bfloat16 = native.get("amx_bf16") or native.get("avx512_bf16")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if run.dtype == "auto":
        return device, torch.bfloat16 if has_bfloat16 else torch.float32
    return device, getattr(torch, run.dtype)


def keep_freed_memory() -> None:
    """Tell glibc to keep large blocks that are freed for the next one who asks, as GPU allocators do.

    By default it gives them back to the operating system, which clears every page again when the next layer wants one.
    Without glibc nothing happens.
    """
    mmap_max, trim_threshold = -4, -1  # the numbers of M_MMAP_MAX and M_TRIM_THRESHOLD in <malloc.h>
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)


# --- Questions --------------------------------------------------------------------------------------------------------


def derived_seed(*parts: object) -> int:
    """A seed of its own for each use, so that a resumed run draws what the uninterrupted one would have drawn."""
    return random.Random("/".join(map(str, parts))).getrandbits(62)


def test_questions(run: Run, tasks: list[str]) -> dict[str, list[Example]]:
    """The held-out questions of each task: the same ones for every seed and method."""
    if run.data == "generated":
        return {task: generate(task, run.test_size or 200, seed=0, part="test") for task in tasks}
    held_out = {task: split(load(task, run.data, run.option_order))[1] for task in tasks}
    return {task: examples[: run.test_size or None] for task, examples in held_out.items()}


def training_questions(run: Run, tasks: list[str], iteration: int) -> list[Example]:
    """The questions of an iteration: generated ones are written anew, official ones are drawn from the training split."""
    seed, examples = derived_seed(run.seed, iteration, "questions"), []
    for task in tasks:
        if run.data == "generated":
            count = run.questions or 800
            easier = round(count * run.easier)
            examples += generate(task, count - easier, seed) + generate(task, easier, seed, level=run.level)
        else:
            pool = split(load(task, run.data, run.option_order))[0]
            examples += random.Random(seed).sample(pool, min(run.questions or len(pool), len(pool)))
    return random.Random(seed).sample(examples, len(examples))


# --- Evaluation -------------------------------------------------------------------------------------------------------


def evaluate(
    model: T5, tokenizer: Tokenizer, tests: dict[str, list[Example]], settings: hir.Settings
) -> dict[str, dict[str, float]]:
    """Test accuracy of greedy decoding under both instructions: a model that follows them is right under CORRECT alone."""
    examples = [example for task in tests.values() for example in task]
    shares: dict[str, dict[str, float]] = {task: {"n": len(tests[task])} for task in tests}
    for name, instruction in (("correct", CORRECT), ("wrong", WRONG)):
        prompts = [hir.prompt(instruction, example.question) for example in examples]
        outputs = hir.sample(
            model,
            tokenizer,
            prompts,
            temperature=0,
            max_new_tokens=settings.max_new_tokens,
            batch_size=settings.sampling_batch_size,
            progress=f"evaluation, {name}",
        )
        right = iter([is_correct(answers[0], example) for answers, example in zip(outputs, examples, strict=True)])
        for task in tests:
            shares[task][name] = sum(next(right) for _ in tests[task]) / max(1, len(tests[task]))
    return shares


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % confidence interval of a share measured on n questions (Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def accuracy(share: float, n: int) -> str:
    """`61.0 % [54.1, 67.5]`"""
    low, high = wilson(share, n)
    return f"{100 * share:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


# --- The loop ---------------------------------------------------------------------------------------------------------


def pairs_of(
    run: Run,
    model: T5,
    tokenizer: Tokenizer,
    examples: list[Example],
    settings: hir.Settings,
    iteration: int,
    ppo_state: ppo.PPO | None = None,
) -> tuple[list[Pair], dict]:
    """What an iteration trains on, by method, and what is to be said about it."""
    if run.method == "sft":
        return imitation.finetuning_pairs(examples, tokenizer, run.answers), {"sampled": 0}
    generator = torch.Generator().manual_seed(derived_seed(run.seed, iteration, "samples"))
    samples = hir.sample_online(model, tokenizer, examples, settings, generator)
    about = {"sampled": len(samples), "right_share": sum(s.right for s in samples) / max(1, len(samples))}
    if run.method == "farl":
        return imitation.farl_pairs(samples, tokenizer), about
    if run.method == "ppo":
        rollouts, measured = ppo.roll_out(model, ppo_state, tokenizer, samples, settings)
        return rollouts, about | measured
    # The replay set is this iteration's samples alone: older ones are what a worse model said.
    cuts = random.Random(derived_seed(run.seed, iteration, "cuts"))
    return hir.relabel(samples, tokenizer, settings.sub_output, cuts), about


def aim_of(
    run: Run, model: T5, tokenizer: Tokenizer, settings: hir.Settings, ppo_state: ppo.PPO | None
) -> tuple[hir.Settings, hir.Objective]:
    """The settings under which a method uses what all share, and the objective that it descends."""
    if run.method == "ppo":
        settings = ppo.shared_settings(settings, ppo_state.settings)
        return settings, ppo.ppo_objective(model, ppo_state, tokenizer, settings)
    settings = settings if run.method == "hir" else imitation.supervised_settings(settings)
    return settings, hir.hir_objective(model, tokenizer, settings)


def progress_line(line: dict) -> str:
    """One line for the terminal about an iteration."""
    n = sum(task["n"] for task in line["tasks"].values())
    mean = {
        key: sum(task[key] * task["n"] for task in line["tasks"].values()) / max(1, n) for key in ("correct", "wrong")
    }
    text = f"{line['iteration']:3d}  correct {accuracy(mean['correct'], n)}  wrong {accuracy(mean['wrong'], n)}"
    if line["right_share"] is not None:
        text += f"  right samples {100 * line['right_share']:.1f} %"
    if line["losses"]:
        text += "  loss " + " ".join(f"{name} {value:.3f}" for name, value in line["losses"].items())
    return text + "  " + " ".join(f"{name} {value:.1f} s" for name, value in line["seconds"].items())


def table(first: dict, last: dict) -> str:
    """Accuracies per task, before and after."""
    rows = [("task", "before", "after", "after, under the wrong instruction")]
    for task, after in last["tasks"].items():
        before, n = first["tasks"][task], after["n"]
        rows.append((task, *(accuracy(s, n).strip() for s in (before["correct"], after["correct"], after["wrong"]))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def make_optimizer(
    model: T5, ppo_state: ppo.PPO | None, settings: hir.Settings
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW and its schedule, over the model and PPO's value head, which starts from nothing and learns faster."""
    groups = [{"params": list(model.parameters())}]
    if ppo_state:
        head_rate = ppo_state.settings.ppo_value_learning_rate
        groups.append({"params": list(ppo_state.value_head.parameters()), "lr": head_rate})
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=0.0, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, settings))


def learning_rate_factor(step: int, settings: hir.Settings) -> float:
    """Rises over the warm-up, then stays at 1, or falls linearly to 0.1 at decay_steps."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if not settings.decay_steps:
        return 1.0
    return 1 - 0.9 * min(1.0, (step - settings.warmup_steps) / max(1, settings.decay_steps - settings.warmup_steps))


def load_model(run: Run) -> tuple[T5, Tokenizer]:
    """The checkpoint, on the device of this process."""
    device, dtype = choose_device(run)
    if device.type == "cpu":
        keep_freed_memory()
    processes.start(device)
    with processes.first_alone():
        model, tokenizer = load_checkpoint(checkpoint_path(run.checkpoint))
    if run.shard_model:
        processes.shard_model(model, device, dtype)
    model.compute_dtype = dtype
    model.gradient_checkpointing = run.gradient_checkpointing
    return model.to(device), tokenizer


def fuse_kernels(model: T5) -> None:
    """--compile: each block by itself, so that equal ones share a compilation, for all batch sizes and lengths."""
    for block in (*model.encoder.block, *model.decoder.block):
        block.compile(dynamic=True)


def run_explain(run: Run, settings: hir.Settings) -> None:
    """--explain: one iteration on up to four questions of the first task, at the full learning rate."""
    model, tokenizer = load_model(run)
    examples = training_questions(run, expand(run.task, run.data)[:1], iteration=1)[:4]
    settings = replace(settings, warmup_steps=0)
    optimizer, scheduler = make_optimizer(model, None, settings)
    explain.explain(model, tokenizer, examples, optimizer, scheduler, settings, run.seed)


def train(run: Run, settings: hir.Settings, ppo_settings: ppo.PPOSettings) -> dict:
    """A whole run (Algorithm 1). Returns the last line of metrics.jsonl."""
    begin = time.perf_counter()
    tasks = expand(run.task, run.data)
    out = Path(run.out or HERE / "runs" / default_name(run))
    values = asdict(settings) | (asdict(ppo_settings) if run.method == "ppo" else {})
    # What is wrong is said before long work begins or anything is written.
    check_run(out, asdict(run), values, run.resume)
    tests = test_questions(run, tasks)
    training_questions(run, tasks, iteration=1)
    model, tokenizer = load_model(run)
    _lock = open_run(out, asdict(run), values, run.resume)  # held until this function is left
    ppo_state = ppo.PPO(model, ppo_settings).to(model.device) if run.method == "ppo" else None
    settings, objective = aim_of(run, model, tokenizer, settings, ppo_state)
    optimizer, scheduler = make_optimizer(model, ppo_state, settings)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler} | ({"ppo": ppo_state} if ppo_state else {})
    lines = restore(out, parts)  # of metrics.jsonl
    if run.compile:
        fuse_kernels(model)
    size = sum(p.numel() for p in model.parameters())
    say(f"{run.method} on {', '.join(tasks)}")
    place = f"{model.device} in {model.compute_dtype}, {processes.world_size()} process(es)"
    say(f"{run.checkpoint}: {size:,} parameters on {place}")
    say(f"ready after {time.perf_counter() - begin:.1f} s; writes to {out}")

    for iteration in range(len(lines), (0 if run.method == "none" else run.iterations) + 1):
        torch.manual_seed(derived_seed(run.seed, iteration, processes.rank(), "dropout"))
        sampled = lines[-1]["sampled"] if lines else 0
        line: dict = {"iteration": iteration, "sampled": sampled, "right_share": None}
        seconds, losses, pairs = {}, {}, []
        if iteration > 0:
            with timed(seconds, "sampling"):
                examples = training_questions(run, tasks, iteration)
                pairs, about = pairs_of(run, model, tokenizer, examples, settings, iteration, ppo_state)
            line |= about | {"sampled": sampled + about["sampled"]}
            with timed(seconds, "training"):
                rng = random.Random(derived_seed(run.seed, iteration, "batches"))
                losses = hir.train_on(model, objective, pairs, optimizer, scheduler, settings, rng)
        with timed(seconds, "evaluation"):
            shares = evaluate(model, tokenizer, tests, settings)
        lines.append(line | {"losses": losses, "seconds": seconds, "tasks": shares})
        say(progress_line(lines[-1]))
        save_iteration(out, model, tokenizer, parts, lines, pairs)
    say(table(lines[0], lines[-1]))
    return lines[-1]


def default_name(run: Run) -> str:
    """The directory of a run that was given none: alike for alike commands, so that --resume finds it."""
    return f"{run.task.replace(',', '+')}-{run.method}-{Path(run.checkpoint).name}-{Path(run.data).name}-seed{run.seed}"


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Write how long the block took under `name`."""
    begin = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - begin, 3)


def say(text: str) -> None:
    """Print from the first process, without tearing a progress bar."""
    if processes.rank() == 0:
        tqdm.write(text)


def start(argv: list[str] | None) -> None:
    """Do what the command line says."""
    run, settings, ppo_settings = parse_arguments(argv)
    if run.explain:
        run_explain(run, settings)
    else:
        train(run, settings, ppo_settings)


def main(argv: list[str] | None = None) -> int:
    """The command. Its exit codes are those of exits.py."""
    return exits.end_well(lambda: start(argv))


if __name__ == "__main__":
    sys.exit(main())

"""Train the bundled models from scratch:  python -m experiments.pretrain --size mini

    vocabulary -> initial model -> skill -> instructions -> carelessness

The model first learns to reason through every question, then to answer correctly or wrongly as asked (in words other than
HIR's), and last from a corpus of mixed quality that pays little attention to what was asked. It then answers worse than
it can, which leaves HIR something to elicit. If killed at any moment, the same command resumes from the last saved state.
"""

import argparse
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import train
from baselines.imitation import chain_of_thought
from bigbench_tasks import TASKS, generate
from experiments.initial import SIZES, initial_model
from experiments.lessons import ASK_RIGHT, ASK_WRONG, STAGES, Stage, lesson, right_answer
from experiments.vocabulary import vocabulary
from hir import CORRECT, IGNORE, WRONG, prompt, supervised_loss
from model_t5 import T5, Tokenizer, load_checkpoint, save_checkpoint
from support import REPOSITORY, processes
from support.batches import pad
from support.files import read_lines, replacing, write_lines

# Two tasks go first: among twelve at once, each is too rare for the model to learn its lookups.
GROUPS = (("logical_deduction_three_objects", "tracking_shuffled_objects_three_objects"), tuple(TASKS))
MATRICES = tuple(f"{name}.weight" for name in (".q", ".k", ".v", ".o", ".wi_0", ".wi_1", ".wo"))  # of all layers
WARMUP, DECAY, AVERAGE = 200, 0.3, 0.999  # steps; share of steps with a falling rate; decay of the weight average
QUESTIONS, BATCHES = 192, 8  # per process: questions drawn at a time, and batches that they are cut into, by length
ASK_WRONG_AT = 0.8  # share of exact outputs on the first two tasks from which on they, then all, ask for wrong answers
SAVE_SECONDS, REPORT_STEPS, TEST_STEPS, TEST_QUESTIONS = 60, 200, 2000, 50


@dataclass
class Progress:
    """How far a stage has come. The level of a task (see `generate`) rises while outputs come out right, and falls."""

    step: int = 0
    seconds: float = 0.0
    examples: int = 0
    level: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TASKS, 0.0))
    exact: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TASKS, 0.0))  # recent share of right outputs
    length: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TASKS, 100.0))  # recent tokens of a question

    groups: int = 1  # how many of GROUPS take part
    asked: int = 0  # in how many of them wrong answers are asked for, too

    def update(self, seen: Tensor, right: Tensor) -> None:
        """Record how many outputs of each task (12,) were seen, and how many of them the model got entirely right."""
        for task, n, k in zip(TASKS, seen.tolist(), right.tolist(), strict=True):
            if n:
                keep = 0.98**n
                self.exact[task] = keep * self.exact[task] + (1 - keep) * k / n
                change = (self.exact[task] > 0.5) - (self.exact[task] < 0.2)
                self.level[task] = min(1.0, max(0.0, self.level[task] + 0.001 * n * change))
        if self.groups < len(GROUPS):
            first = GROUPS[self.groups - 1]
            self.groups += all(self.level[task] >= 0.5 and self.exact[task] >= 0.5 for task in first)
        elif self.asked < len(GROUPS) and all(self.exact[task] >= ASK_WRONG_AT for task in GROUPS[0]):
            self.asked += 1
            self.exact |= dict.fromkeys(GROUPS[0], 0.5)  # wait until they are as good again


# ------------------------------------------------------------------ data


def draw_batches(tokenizer: Tokenizer, stage: Stage, progress: Progress, seed: str) -> list[list[tuple]]:
    """BATCHES batches of (source ids, output ids, number of the task), each with sources of similar length."""
    rng = random.Random(seed)
    joined = GROUPS[progress.groups - 1]
    # More of the tasks that still go wrong, and of those with short texts.
    weights = [(1.1 - progress.exact[task]) ** 2 / progress.length[task] ** 0.5 for task in joined]
    tasks = rng.choices(joined, weights, k=QUESTIONS)
    rows = []
    for task in joined:
        may_be_wrong = task in GROUPS[progress.asked - 1] if progress.asked else False
        level = progress.level[task]
        level = None if rng.random() < (0.9 if level == 1 else 0.3) else rng.uniform(level / 2, level)
        for example in generate(task, tasks.count(task), rng.getrandbits(48), level=level):
            source, output = map(tokenizer.encode, lesson(example, stage, may_be_wrong, rng))
            rows.append((source, output, TASKS.index(task)))
            progress.length[task] += 0.02 * (len(source) + len(output) - progress.length[task])
    rows.sort(key=lambda row: len(row[0]))
    sums = list(accumulate(len(row[0]) for row in rows))
    batches = [[] for _ in range(BATCHES)]  # all of about as many tokens
    for row, before in zip(rows, [0, *sums], strict=False):
        batches[before * BATCHES // sums[-1]].append(row)
    rng.shuffle(batches)
    return batches


# ------------------------------------------------------------------ training


def learning_rate(stage: Stage, step: int) -> float:
    """Up in WARMUP steps or a tenth of the stage, level, and down over the last DECAY of it."""
    warmup = min(WARMUP, 0.1 * stage.steps)
    return stage.learning_rate * max(0.02, min(1, (step + 1) / warmup, (stage.steps - step) / (DECAY * stage.steps)))


def make_optimizers(model: T5) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, position biases and norms."""
    layers = [p for name, p in model.named_parameters() if p.ndim == 2 and name.endswith(MATRICES)]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or not name.endswith(MATRICES)]
    return [
        torch.optim.Muon([{"params": layers, "times": 2}], weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([{"params": others, "times": 1}], betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


def train_step(model: T5, optimizers: list[torch.optim.Optimizer], batch: list[tuple]) -> tuple[float, Tensor, Tensor]:
    """One gradient step on the batches of all processes: the loss, outputs seen by task (12,), and the exact ones."""
    sources, outputs, tasks = zip(*batch, strict=True)
    input_ids, attention_mask = pad(sources, model.config.pad_token_id, model.device)
    labels, tasks = pad(outputs, IGNORE, model.device)[0], torch.tensor(tasks)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids, attention_mask, labels)
    loss = supervised_loss(logits, labels)
    loss.backward()
    exact = ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(dim=1)
    seen, right = torch.bincount(tasks, minlength=12), torch.bincount(tasks[exact], minlength=12)
    processes.sum_gradients(model.parameters())
    for p in model.parameters():
        p.grad /= processes.world_size()
    seen, right, loss = processes.sum_values(torch.cat([seen, right, loss.detach()[None]])).split([12, 12, 1])
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.item() / processes.world_size(), seen, right


def run_stage(name: str, stage: Stage, start: Path, out: Path, seed: int) -> None:
    """Train from the model in `start` until the stage is over; the averaged weights are then in out/NAME."""
    model, tokenizer = load_checkpoint(start)
    average = load_checkpoint(start)[0].requires_grad_(False)
    model.train()
    parts = [model, average, *(optimizers := make_optimizers(model))]  # everything that is saved
    progress, losses = restore(name, out, parts), []
    rank = processes.rank()
    saved = begin = time.monotonic()
    while progress.step < stage.steps:
        for batch in draw_batches(tokenizer, stage, progress, f"{seed}/{name}/{progress.step}/{rank}"):
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = group["times"] * learning_rate(stage, progress.step)
            loss, seen, right = train_step(model, optimizers, batch)
            keep = min(AVERAGE, (progress.step + 1) / (progress.step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
            losses.append(loss)
            progress.step += 1
            progress.examples += int(seen.sum())
            progress.update(seen, right)
        now, over = time.monotonic(), progress.step >= stage.steps
        progress.seconds, begin = progress.seconds + now - begin, now
        if progress.step % REPORT_STEPS == 0 or over:
            tested = test(average, tokenizer) if progress.step % TEST_STEPS == 0 or over else {}
            report(out, name, progress, learning_rate(stage, progress.step), losses, tested)
            losses, begin = [], time.monotonic()
        if rank == 0 and (now - saved > SAVE_SECONDS or over):
            save(name, out, parts, progress, tokenizer)
            saved = now


def restore(name: str, out: Path, parts: list) -> Progress:
    """Load the state of an interrupted stage; otherwise begin."""
    if (out / f"{name}.pt").exists():
        state = torch.load(out / f"{name}.pt", weights_only=True)
        for part, values in zip(parts, state["parts"], strict=True):
            part.load_state_dict(values)
        return Progress(**state["progress"])
    if name == "skill":
        return Progress()
    reached = {"level": dict.fromkeys(TASKS, 1.0), "exact": dict.fromkeys(TASKS, 0.5)}  # by the skill stage
    return Progress(**reached, groups=len(GROUPS), asked=len(GROUPS))


def save(name: str, out: Path, parts: list, progress: Progress, tokenizer: Tokenizer) -> None:
    """Write the state of a stage, and beside it the averaged model."""
    state = {"parts": [part.state_dict() for part in parts], "progress": vars(progress)}
    with replacing(out / f"{name}.pt") as file:
        torch.save(state, file)
    save_checkpoint(out / name, parts[1], tokenizer)


def test(model: T5, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
    """The shares of train.evaluate on test questions, under the instructions that HIR will use."""
    tests = {task: generate(task, TEST_QUESTIONS, seed=1, part="test") for task in TASKS}
    settings = train.parse_arguments(["--max-new-tokens", "112"])
    return train.evaluate(settings, model, tokenizer, tests)[0]


def report(out: Path, name: str, progress: Progress, rate: float, losses: list[float], tested: dict) -> None:
    """Add a line to metrics.jsonl, replacing what a killed run has left from this step on."""
    if processes.rank() > 0:
        return
    rounded = {key: {task: round(x, 3) for task, x in getattr(progress, key).items()} for key in ("level", "exact")}
    line = {"stage": name, "step": progress.step, "examples": progress.examples, "seconds": round(progress.seconds)}
    line |= {"loss": round(sum(losses) / max(1, len(losses)), 4), "rate": rate, **rounded, "tasks": tested}
    there = read_lines(out / "metrics.jsonl")
    earlier = [kept for kept in there if kept["stage"] != name or kept["step"] < progress.step]
    write_lines(out / "metrics.jsonl", [*earlier, line])


def average_models(directories: list[Path], out: Path) -> None:
    """Write the mean of some models' weights, which varies less from seed to seed than each of them."""
    models, tokenizers = zip(*map(load_checkpoint, directories), strict=True)
    with torch.no_grad():
        for weights in zip(*(model.parameters() for model in models), strict=True):
            weights[0].copy_(torch.stack(weights).mean(dim=0))
    save_checkpoint(out, models[0], tokenizers[0])


def make_initial(directory: Path, size: str, seed: int) -> None:
    """Write the vocabulary and the initial model, unless they exist."""
    if (directory / "config.json").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    examples = [example for task in TASKS if task != "word_sorting" for example in generate(task, 3000, seed=0)]
    texts = [prompt("", example.question) for example in examples]
    texts += [chain_of_thought(example, right_answer(example)) for example in examples]
    (sorting,) = generate("word_sorting", 1, seed=0)
    texts += 10 * [*ASK_RIGHT, *ASK_WRONG, CORRECT, WRONG, sorting.question[:50]]
    (directory / "spiece.model").write_bytes(vocabulary(texts))
    tokenizer = Tokenizer(directory / "spiece.model", extra_ids=0)
    save_checkpoint(directory, initial_model(size, tokenizer.vocab_size, seed), tokenizer)


def main() -> None:
    """Go through the stages."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="number of training processes, with one thread each")
    parser.add_argument("--out", type=Path, help="default: runs/pretrain-SIZE")
    options = parser.parse_args()
    if options.processes > 1 and not processes.launched():
        launch = ["-m", "torch.distributed.run", f"--nproc_per_node={options.processes}", "--standalone"]
        sys.exit(subprocess.run([sys.executable, *launch, "-m", "experiments.pretrain", *sys.argv[1:]]).returncode)
    torch.set_num_threads(1)
    if processes.launched():
        dist.init_process_group("gloo", timeout=timedelta(hours=6))  # a paused process is waited for
    out = options.out or REPOSITORY / "runs" / f"pretrain-{options.size}"
    out.mkdir(parents=True, exist_ok=True)
    start = out / "initial"
    if processes.rank() == 0:
        make_initial(start, options.size, options.seed)
    if dist.is_initialized():
        dist.barrier()
    for name, stage in STAGES.items():
        parts = [name] if stage.runs == 1 else [f"{name}-{i}" for i in range(stage.runs)]
        for i, part in enumerate(parts):
            run_stage(part, stage, start, out, options.seed + i)
        if len(parts) > 1 and processes.rank() == 0:
            average_models([out / part for part in parts], out / name)
        start = out / name


if __name__ == "__main__":
    main()

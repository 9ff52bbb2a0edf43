"""Does a GPU compute what the CPU computes, and how fast?  python -m experiments.gpu_check

One table, meant to take five minutes on a GPU: parity with the CPU's float32, in float32, in bfloat16 and with --compile
(t5-mini's logits and greedy answers, gradient and loss of one HIR step); if there are two GPUs, a run in two processes
against the same run in one; speed against transformers, with FLAN-T5-base's shape. Without a CUDA GPU, the CPU is compared
with itself, and what needs CUDA is skipped. The exit code is 1 if a check fails.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch

import hir
from experiments.bench_systems import SHAPES, WORK, Job, as_batch, open_ours, prompts, relabeled, right_answers
from support import REPOSITORY
from support.batches import evaluation_mode, make_groups
from support.files import read_lines
from support.learner import Learner
from support.machine import MachineSettings, choose_device

# How far apart logits may be, in standard deviations; the least share of equal answers (rounding decides between tokens
# that are equally likely); the least cosine of the gradients; how far apart losses may be, relatively.
BOUNDS = {"float32": (1e-3, 0.95, 0.9999, 1e-4), "bfloat16": (0.3, 0.6, 0.95, 0.03)}
RUN = "--task object_counting --iterations 1 --questions 20 --test-size 50 --dtype float32 --max-new-tokens 32".split()


@dataclass(frozen=True)
class DeviceJob(Job):
    """A job on any device."""

    device: str = "cpu"


def outcome(job: DeviceJob) -> tuple:
    """t5-mini's logits for right answers (M, V), greedy answers, and the gradient (parameters,) and loss of a HIR step."""
    model, tokenizer = open_ours(job)
    batch, settings = as_batch(right_answers(job, tokenizer), tokenizer, job.device), hir.Settings()
    with torch.no_grad(), evaluation_mode(model):
        logits = model(**batch)[batch["labels"] != hir.IGNORE].float().cpu()
    answers = hir.sample(model, tokenizer, prompts(job, tokenizer), 1, 0.0, job.max_new_tokens)
    learner, groups = Learner(model, tokenizer, MachineSettings(), settings), make_groups(relabeled(job, tokenizer))
    hir.learn(learner, groups, settings, dropout=False)
    gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters()])
    return logits, answers, gradient, hir.final_loss(learner.steps[0], settings)


def parity(expected: tuple, got: tuple, dtype: str) -> tuple[str, bool]:
    """How far apart two outcomes are, and whether that is within the bounds."""
    logits, share, cosine, loss = BOUNDS[dtype]
    deviation = ((expected[0] - got[0]).abs().max() / expected[0].std()).item()
    same = sum(a == b for a, b in zip(expected[1], got[1], strict=True)) / len(got[1])
    alike = torch.cosine_similarity(expected[2].double(), got[2].double(), dim=0).item()
    difference = abs(got[3] / expected[3] - 1)
    passed = deviation <= logits and same >= share and alike >= cosine and difference <= loss
    told = f"logits within {deviation:.1e} deviations, {same:.0%} of the answers the same"
    return f"{told}, cosine of the gradients {alike:.5f}, losses within {difference:.1e}", passed


def processes(device: str) -> tuple[str, bool]:
    """The same run in one process and in two."""
    losses = []
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as out:
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
            run = [REPOSITORY / "train.py", *RUN, "--device", device, "--out", out]
            subprocess.run([sys.executable, *torchrun, *run], check=True, stdout=subprocess.DEVNULL)
            losses.append(read_lines(Path(out) / "metrics.jsonl")[-1]["losses"]["supervised"])
    return f"supervised loss {losses[0]:.5f} and {losses[1]:.5f}", abs(losses[1] / losses[0] - 1) <= 0.01


def seconds(run: Callable, device: str) -> float:
    """The shortest of three calls, after two warm-up calls."""
    taken = []
    for _ in range(5):
        begin = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return min(taken[2:])


def speed(job: DeviceJob) -> tuple[str, None]:
    """Outputs per second: ours, on a GPU also with --compile, and those of transformers if it is installed."""
    jobs = {"ours": job} | ({"with --compile": replace(job, compile=True)} if job.device == "cuda" else {})
    jobs |= {"transformers": replace(job, system="transformers")} if find_spec("transformers") else {}
    rates = {name: job.outputs / seconds(WORK[job.work][j.system](j), job.device) for name, j in jobs.items()}
    return "outputs/s: " + ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items()), None


def main(argv: list[str] | None = None) -> int:
    """Run the checks, and print each row as soon as it is ready."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu_check", description=__doc__.split("\n")[0])
    shape, questions = ("base", 32) if device == "cuda" else ("mini", 4)
    parser.add_argument("--shape", default=shape, choices=("mini", *SHAPES), help="model shape for the speed rows")
    parser.add_argument("--questions", type=int, default=questions, help="questions answered and learned at once")
    given = parser.parse_args(argv)
    dtype = str(choose_device(MachineSettings(device=device))[1]).removeprefix("torch.")
    parts = {"shape": given.shape, "dtype": dtype, "questions": given.questions, "device": device}
    job = DeviceJob("HIR step", "ours", "mini", "float32", given.questions, max_new_tokens=112)
    there, expected, cuda = replace(job, device=device), outcome(job), device == "cuda"
    rows: dict[str, Callable | bool] = {
        "parity, float32": lambda: parity(expected, outcome(there), "float32"),
        "parity, bfloat16": lambda: parity(expected, outcome(replace(there, dtype="bfloat16")), "bfloat16"),
        "parity, --compile": cuda and (lambda: parity(expected, outcome(replace(there, compile=True)), "float32")),
        "two processes": torch.cuda.device_count() > 1 and (lambda: processes(device)),
        f"sampling, {dtype}, {given.shape}": lambda: speed(DeviceJob("sampling", "ours", **parts)),
        f"supervised step, {dtype}, {given.shape}": lambda: speed(DeviceJob("supervised step", "ours", **parts)),
    }
    chip, failed = torch.cuda.get_device_name() if cuda else "CPU", False
    print(f"{chip}, torch {torch.__version__}\n\n| check | result | |\n| --- | --- | --- |")
    for name, check in rows.items():
        told, ok = check() if check else (f"skipped: needs {'two CUDA GPUs' if 'two' in name else 'a CUDA GPU'}", None)
        print(f"| {name} | {told} | {'' if ok is None else 'ok' if ok else 'NOT ok'} |", flush=True)
        failed |= ok is False
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

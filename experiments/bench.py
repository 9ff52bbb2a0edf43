"""Speed against peers, side by side on one machine:  python bench.py

Each system (we, transformers, CTranslate2, the authors' recipe) sits in a process of its own. The processes of a row take
turns, one measurement each, and medians are compared. Last in a row comes the limit: the machine's own matrix product at
the row's shape and type.

Every row is added to results/bench.jsonl as soon as it is measured. `--only PATTERN` measures some rows again, `--resume`
those that are not there yet; the tables are made from the file. What is measured stands in bench_systems.py.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench_systems import HERE, WORK, Job, folder
from support.files import write_file

Row = dict[str, Job]  # who, or which size, is measured


# --- The rows ---------------------------------------------------------------------------------------------------------


def comparisons() -> dict[str, Row]:
    """Who is held against whom, by title."""
    rows = {}
    for shape in ("mini", "small", "base"):
        for work, dtype in (
            ("sampling", "float32"), ("sampling", "bfloat16"), ("supervised step", "bfloat16"), ("HIR step", "bfloat16"),
        ):  # fmt: skip
            # One output at a time takes long; 16 outputs are what the authors' code accumulates for a step.
            job = Job(work, "ours", shape, dtype, questions=4 if work == "HIR step" else 16)
            rows[f"{work}, {dtype}, {shape}"] = {system: replace(job, system=system) for system in WORK[work]}
    return rows


def growth() -> dict[str, Row]:
    """How our cost grows, by title, and what FLAN-T5-large's shape takes; `comparisons` has the other sizes."""
    rows = {}
    values = {"samples": (1, 2, 4, 8, 16), "questions": (1, 4, 16, 32), "source_length": (64, 128, 256, 512)}
    for work, names in (("sampling", tuple(values)), ("HIR step", ("questions", "source_length"))):
        for name in names:
            few = {"questions": 4} if work == "HIR step" else {}  # the jobs of a row are in memory together
            row = {str(value): Job(work, "ours", "small", **few | {name: value}) for value in values[name]}
            rows[f"{work}, small: {name.replace('_', ' ')}"] = row
        rows[f"{work}, small: --compile"] = {
            name: Job(work, "ours", "small", compile=name == "with") for name in ("without", "with")
        }
        rows[f"{work}, large"] = {"64 outputs": Job(work, "ours", "large", micro_batch_size=2)}
    return rows


# --- Measuring --------------------------------------------------------------------------------------------------------


def work_off(job: Job) -> None:
    """A worker process: make ready, then for each line of stdin one measurement, and a line of JSON about it.

    A line is the least seconds that a measurement takes, repeating the call. The first one counts the arithmetic, unless
    blocks are recomputed: the counter keeps those in memory, which then would not be what the work needs.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    run = WORK[job.work][job.system](job)
    counter = FlopCounterMode(display=False)
    for number, line in enumerate(sys.stdin):
        begin, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - begin < float(line):
            with counter if number == 0 and not job.micro_batch_size else contextlib.nullcontext():
                run()
            calls += 1
        call = {"seconds": (time.perf_counter() - begin) / calls, "gflop": counter.get_total_flops() / 1e9}
        call["peak_gib"] = peak_memory()
        print(json.dumps(call), file=answers, flush=True)


def peak_memory() -> float:
    """The most that this process had in memory so far, in GiB. Linux only; `resource` would count its parent's memory in."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 2**20


def measure(worker: subprocess.Popen, least: float) -> dict:
    """One measurement of at least so many seconds."""
    print(least, file=worker.stdin, flush=True)
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError("a process ended; what it said stands above, unless it was killed for its memory")
    return json.loads(line)


def take_turns(row: Row, rounds: int) -> dict[str, dict]:
    """Measure the jobs of a row in turns; medians over the rounds, after a first call that warms up.

    One process per job, each with the memory of its model: all wait while one computes.
    """
    environment = os.environ | {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    workers, found = {}, {name: [] for name in row}
    try:
        for name, job in row.items():  # one after the other, so that what loading takes does not add up
            command = [sys.executable, "-m", "experiments.bench", "--worker", json.dumps(asdict(job))]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            workers[name] = subprocess.Popen(command, env=environment, **pipes)
            measure(workers[name], 0)
        for _ in range(rounds):
            for name, worker in workers.items():
                found[name].append(measure(worker, 0.5))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.communicate()
    return {name: summary(calls, row[name]) for name, calls in found.items()}


def summary(calls: list[dict], job: Job) -> dict:
    """What is kept about a job's measurements."""
    seconds = statistics.median(call["seconds"] for call in calls)
    about = {"seconds": seconds, "outputs": job.outputs, "ms_per_output": 1000 * seconds / job.outputs}
    if calls[-1]["gflop"]:
        about["gflop_per_second"] = calls[-1]["gflop"] / seconds
    return about | {"peak_gib": calls[-1]["peak_gib"]}


def machine() -> dict:
    """What the figures were measured on, and with."""
    facts = torch.cpu.get_capabilities()
    cpu = {name: facts.get(name) for name in ("cpu_name", "amx_bf16", "avx512_bf16")}
    packages = {name: version(name) for name in ("torch", "transformers", "ctranslate2")}
    return cpu | {"threads": torch.get_num_threads(), "load": os.getloadavg()[0]} | packages


# --- The tables -------------------------------------------------------------------------------------------------------


def tables(lines: list[dict]) -> str:
    """Markdown: ratios to the peers, then how the cost grows."""
    found = {line["row"]: line["systems"] for line in lines}
    peers = list(dict.fromkeys(name for work in WORK.values() for name in work if name not in ("ours", "limit")))
    text = ["| | ours | " + " | ".join(peers) + " | share of the limit's rate | peak, GiB |"]
    text += ["| --- |" + " ---: |" * (len(peers) + 3)]
    for title, systems in found.items():
        if "ours" not in systems:
            continue
        ours, cells = systems["ours"], []
        for name in peers:
            there = systems.get(name)
            cells.append(f"{there['seconds']:.3g} s, **{there['seconds'] / ours['seconds']:.2f}x**" if there else "")
        share = ours["gflop_per_second"] / systems["limit"]["gflop_per_second"] if "limit" in systems else float("nan")
        cells = [title, f"{ours['seconds']:.3g} s", *cells, f"{100 * share:.0f} %", f"{ours['peak_gib']:.1f}"]
        text.append(f"| {' | '.join(cells)} |")
    text += ["", "| ms per output (peak, GiB) | |", "| --- | --- |"]
    for title, systems in found.items():
        if "ours" not in systems:
            cells = [f"{name}: {three_digits(s['ms_per_output'])} ({s['peak_gib']:.1f})" for name, s in systems.items()]
            text.append(f"| {title} | {', '.join(cells)} |")
    return "\n".join(text)


def three_digits(value: float) -> str:
    """The value to three digits, without an exponent."""
    return f"{float(format(value, '.3g')):g}"


def read(path: Path) -> list[dict]:
    """The lines of an earlier measurement, if there was one."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(argv: list[str] | None = None) -> int:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="only the rows whose title has this regular expression")
    parser.add_argument("--resume", action="store_true", help="only the rows that are not in --out yet")
    parser.add_argument("--rounds", type=int, default=3, help="measurements that count, per system")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "bench.jsonl")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        work_off(Job(**json.loads(arguments.worker)))
        return 0
    if missing := [name for name in ("transformers", "ctranslate2") if not find_spec(name)]:
        print(f"bench.py: {' and '.join(missing)} not installed; pip install -r requirements-dev.txt", file=sys.stderr)
        return 2
    rows = comparisons() | growth()
    done = [line["row"] for line in read(arguments.out)] if arguments.resume else []
    for title in (title for title in rows if re.search(arguments.only, title) and title not in done):
        print(title, flush=True)
        for job in rows[title].values():
            folder(job)  # makes the weights
        lines = {line["row"]: line for line in read(arguments.out)}
        rounds = 1 if title.endswith("large") else arguments.rounds  # as that takes minutes
        lines[title] = {"row": title, "systems": take_turns(rows[title], rounds), "machine": machine()}
        kept = [json.dumps(lines[name]) + "\n" for name in rows if name in lines]
        write_file(arguments.out, "".join(kept).encode())
    print(tables(read(arguments.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

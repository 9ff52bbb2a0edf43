"""Speed against peers, side by side on one machine:  python -m experiments.bench

Each system (we, transformers, CTranslate2, the authors' recipe) sits in a process of its own. The processes of a row take
turns, one measurement each, and medians are compared. Last in a row comes the limit: the machine's own matrix product at
the row's shape and type.

Every row is added to results/bench.jsonl as soon as it is measured. `--only PATTERN` measures some rows again, `--resume`
those that are not there yet; the tables are made from the file. What is measured stands in bench_systems.py.

`--against DIRECTORY` compares our code here with our code in another checkout, in the same turns, and writes nothing.
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
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench_systems import WORK, Job, folder
from support import REPOSITORY
from support.files import write_file

Row = dict[str, Job]  # who, or which size, is measured


# --- The rows ---------------------------------------------------------------------------------------------------------


def comparisons() -> dict[str, Row]:
    """Who is compared with whom, by title."""
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


def serve(job: Job) -> None:
    """A worker process: prepare, then for each line of stdin one measurement, and a line of JSON about it.

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


def start(job: Job, checkout: Path = REPOSITORY) -> subprocess.Popen:
    """A worker process with the code of a checkout. Only fields that are not their defaults are sent."""
    program = ["bench.py"] if (checkout / "bench.py").exists() else ["-m", "experiments.bench"]
    defaults = asdict(Job(job.work, job.system, job.shape))
    fields = {k: v for k, v in asdict(job).items() if k in ("work", "system", "shape") or v != defaults[k]}
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, *program, "--worker", json.dumps(fields)]
    return subprocess.Popen(command, cwd=checkout, env=os.environ | quiet, **pipes)


def measure(worker: subprocess.Popen, least: float) -> dict:
    """One measurement of at least so many seconds."""
    print(least, file=worker.stdin, flush=True)
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError("a process ended; what it said stands above, unless it was killed for its memory")
    return json.loads(line)


def take_turns(starts: Iterator[tuple[str, subprocess.Popen]], rounds: int) -> dict[str, list[dict]]:
    """Let workers measure in turns, after a first call each that warms up: all wait while one computes."""
    workers, found = {}, {}
    try:
        for name, worker in starts:  # one after the other, so that what loading takes does not add up
            workers[name], found[name] = worker, []
            measure(worker, 0)
        for _ in range(rounds):
            for name, worker in workers.items():
                found[name].append(measure(worker, 0.5))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.communicate()
    return found


def summary(calls: list[dict], job: Job) -> dict:
    """What is kept about a job's measurements: medians."""
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


def measure_row(row: Row, rounds: int) -> dict[str, dict]:
    """The systems of a row in turns; one process per job, each with the memory of its model."""
    for job in row.values():
        folder(job)  # writes random weights, for which a worker would need more memory
    calls = take_turns(((name, start(job)) for name, job in row.items()), rounds)
    return {name: summary(calls[name], job) for name, job in row.items()}


def measure_against(job: Job, other: Path, rounds: int) -> str:
    """Our code in another checkout and here, in turns: seconds, and the ratio of each turn."""
    here = job
    if (other / "bench.py").exists():  # that one asks official questions, and has T5's vocabulary for FLAN-T5's shapes
        shared = Path(os.environ.get("HIR_SHARED") or other / ".." / "shared").resolve()
        weights = "" if job.shape == "mini" else str(other / "runs" / f"bench-{job.shape}")
        here = replace(job, data=str(shared / "bigbench"), checkpoint=weights)
    places = {"there": (job, other), "here": (here, REPOSITORY)}
    calls = take_turns(((name, start(*place)) for name, place in places.items()), rounds)
    seconds = {name: [call["seconds"] for call in found] for name, found in calls.items()}
    ratios = [a / b for a, b in zip(seconds["here"], seconds["there"], strict=True)]
    medians = ", ".join(f"{name} {statistics.median(values):.4g} s" for name, values in seconds.items())
    return f"{medians}, here / there {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


# --- The tables -------------------------------------------------------------------------------------------------------


def tables(lines: list[dict]) -> str:
    """Markdown: ratios to the peers, then how the cost grows."""
    found = {line["row"]: line["systems"] for line in lines}
    peers = list(dict.fromkeys(name for work in WORK.values() for name in work if name not in ("ours", "limit")))
    text = ["| | ours | " + " | ".join(peers) + " | share of the limit's rate | peak, GiB |"]
    text += ["| --- |" + " ---: |" * (len(peers) + 3)]
    growing = ["", "| ms per output (peak, GiB) | |", "| --- | --- |"]
    for title, systems in found.items():
        if "ours" not in systems:
            cells = [f"{name}: {three_digits(s['ms_per_output'])} ({s['peak_gib']:.1f})" for name, s in systems.items()]
            growing.append(f"| {title} | {', '.join(cells)} |")
            continue
        ours, cells = systems["ours"], []
        for name in peers:
            there = systems.get(name)
            cells.append(f"{there['seconds']:.3g} s, **{there['seconds'] / ours['seconds']:.2f}x**" if there else "")
        share = ours["gflop_per_second"] / systems["limit"]["gflop_per_second"] if "limit" in systems else float("nan")
        cells = [title, f"{ours['seconds']:.3g} s", *cells, f"{100 * share:.0f} %", f"{ours['peak_gib']:.1f}"]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text + growing)


def three_digits(value: float) -> str:
    """The value to three digits, without an exponent."""
    return f"{float(format(value, '.3g')):g}"


def read(path: Path) -> list[dict]:
    """The lines of an earlier measurement, if there was one."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# --- The command ------------------------------------------------------------------------------------------------------


def compare(rows: dict[str, Row], other: Path, rounds: int) -> None:
    """Print how fast our code is here and in another checkout, for all jobs of these rows that are ours."""
    for title, row in rows.items():
        for name, job in row.items():
            if job.system == "ours":
                label = title if name == "ours" else f"{title}, {name}"
                print(f"{label}: {measure_against(job, other, rounds)}", flush=True)


def compare_with_peers(rows: dict[str, Row], rounds: int, out: Path) -> None:
    """Measure these rows, and write each to the file as soon as it is there."""
    order = comparisons() | growth()
    for title, row in rows.items():
        print(title, flush=True)
        few = 1 if title.endswith("large") else rounds  # as that takes minutes
        line = {"row": title, "systems": measure_row(row, few), "machine": machine()}
        lines = {line["row"]: line for line in read(out)} | {title: line}
        write_file(out, "".join(json.dumps(lines[name]) + "\n" for name in order if name in lines).encode())


def main(argv: list[str] | None = None) -> int:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="only the rows whose title has this regular expression")
    parser.add_argument("--resume", action="store_true", help="only the rows that are not in --out yet")
    parser.add_argument("--rounds", type=int, default=3, help="measurements that count, per system")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "bench.jsonl")
    parser.add_argument("--against", type=Path, metavar="DIRECTORY", help="another checkout, to compare our code with")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.worker:
        serve(Job(**json.loads(given.worker)))
        return 0
    done = [line["row"] for line in read(given.out)] if given.resume else []
    rows = comparisons() | growth()
    rows = {title: row for title, row in rows.items() if re.search(given.only, title) and title not in done}
    if given.against:
        compare(rows, given.against.resolve(), given.rounds)
        return 0
    if missing := [name for name in ("transformers", "ctranslate2") if not find_spec(name)]:
        print(f"bench: {' and '.join(missing)} not installed; pip install -r requirements-dev.txt", file=sys.stderr)
        return 2
    compare_with_peers(rows, given.rounds, given.out)
    print(tables(read(given.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

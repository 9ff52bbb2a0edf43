"""Speed against peers, side by side on one machine:  python -m experiments.bench

Each system (ours, transformers, CTranslate2, the authors' recipe) runs in its own process. The processes of a row take
turns, one measurement each, and medians are compared. Last in a row comes the limit: the machine's own matrix product at
the row's shape and dtype.

Every row is added to results/bench.jsonl as soon as it is measured. `--only PATTERN` measures some rows again, `--resume`
only the missing ones; the tables are made from the file. What is measured is defined in bench_systems.py.

`--against DIRECTORY` compares this checkout's code with another's, also in turns, and writes nothing.
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
from collections.abc import Iterable
from dataclasses import asdict, replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench_systems import WORK, Job, folder
from support import REPOSITORY
from support.files import read_lines, write_lines

Row = dict[str, Job]  # by system, or by size
KINDS = (("sampling", "float32"), ("sampling", "bfloat16"), ("supervised step", "bfloat16"), ("HIR step", "bfloat16"))
GROWING = {"samples": (1, 2, 4, 8, 16), "questions": (1, 4, 16, 32), "source_length": (64, 128, 256, 512)}


# --- The rows ---------------------------------------------------------------------------------------------------------


def comparisons() -> dict[str, Row]:
    """The comparisons between systems, by title."""
    rows = {}
    for shape, (work, dtype) in product(("mini", "small", "base"), KINDS):
        # One output at a time takes long; 16 outputs are what the authors' code accumulates for a step.
        job = Job(work, "ours", shape, dtype, questions=4 if work == "HIR step" else 16)
        rows[f"{work}, {dtype}, {shape}"] = {system: replace(job, system=system) for system in WORK[work]}
    return rows


def growth() -> dict[str, Row]:
    """How our cost grows, by title, and the cost of FLAN-T5-large's shape; `comparisons` has the other sizes."""
    rows = {}
    for work in ("sampling", "HIR step"):
        job, few = Job(work, "ours", "small"), 16 if work == "sampling" else 4  # a row's jobs are in memory together
        for name, values in GROWING.items():
            row = {str(value): replace(job, **{"questions": few, name: value}) for value in values}
            rows[f"{work}, small: {name.replace('_', ' ')}"] = row
        rows[f"{work}, small: --compile"] = {"without": job, "with": replace(job, compile=True)}
        rows[f"{work}, large"] = {"64 outputs": replace(job, shape="large", micro_batch_size=2)}
    del rows["HIR step, small: samples"]  # the four outputs of its questions are given
    return rows


# --- Measuring --------------------------------------------------------------------------------------------------------


def serve(job: Job) -> None:
    """A worker process: prepare, then take one measurement per line of stdin and print it as a line of JSON.

    A line gives the minimum seconds of a measurement, in which the call is repeated. The first one counts the operations,
    unless blocks are recomputed: the counter would keep these in memory and distort the peak.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps what libraries print out of the answers
    run = WORK[job.work][job.system](job)
    counter = FlopCounterMode(display=False)
    for number, line in enumerate(sys.stdin):
        begin, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - begin < float(line):
            with counter if number == 0 and not job.micro_batch_size else contextlib.nullcontext():
                run()
            calls += 1
        seconds = (time.perf_counter() - begin) / calls
        # Linux only; `resource` would include the memory of the parent process.
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]
        call = {"seconds": seconds, "gflop": counter.get_total_flops() / 1e9, "peak_gib": int(peak) / 2**20}
        print(json.dumps(call), file=answers, flush=True)


def start(job: Job, checkout: Path) -> subprocess.Popen:
    """A worker process with the code of a checkout."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "experiments.bench", "--worker", json.dumps(asdict(job))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=checkout, env=os.environ | quiet, **pipes)


def measure(worker: subprocess.Popen, least: float) -> dict:
    """One measurement of at least so many seconds."""
    print(least, file=worker.stdin, flush=True)
    if not (line := worker.stdout.readline()):
        raise RuntimeError("a process ended; its error is above, unless it was killed for its memory")
    return json.loads(line)


def take_turns(jobs: Iterable[tuple[str, Job, Path]], rounds: int) -> dict[str, list[dict]]:
    """Measure jobs, each with a name and a checkout, in turns: all workers wait while one computes."""
    workers, found = {}, {}
    try:
        for name, job, checkout in jobs:  # one after the other, so that their loading peaks do not add up
            workers[name], found[name] = start(job, checkout), []
            measure(workers[name], 0)  # warms up
        for _ in range(rounds):
            for name, worker in workers.items():
                found[name].append(measure(worker, 0.5))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.communicate()
    return found


def measure_row(row: Row, rounds: int) -> dict[str, dict]:
    """The medians of a row's systems, measured in turns; one process per job, each with the memory of its model."""
    for job in row.values():
        folder(job)  # writes random weights, for which a worker would need more memory
    found = {}
    for name, calls in take_turns(((name, job, REPOSITORY) for name, job in row.items()), rounds).items():
        seconds, outputs = statistics.median(call["seconds"] for call in calls), row[name].outputs
        found[name] = {"seconds": seconds, "outputs": outputs, "ms_per_output": 1000 * seconds / outputs}
        if calls[-1]["gflop"]:
            found[name]["gflop_per_second"] = calls[-1]["gflop"] / seconds
        found[name]["peak_gib"] = calls[-1]["peak_gib"]
    return found


def machine() -> dict:
    """The machine and the package versions of the measurements."""
    facts = torch.cpu.get_capabilities()
    cpu = {name: facts.get(name) for name in ("cpu_name", "amx_bf16", "avx512_bf16")}
    packages = {name: version(name) for name in ("torch", "transformers", "ctranslate2")}
    return cpu | {"threads": torch.get_num_threads(), "load": os.getloadavg()[0]} | packages


# --- The tables -------------------------------------------------------------------------------------------------------


def tables(lines: list[dict]) -> str:
    """Markdown: ratios to the peers, then how the cost grows."""
    peers = list(dict.fromkeys(name for work in WORK.values() for name in work if name not in ("ours", "limit")))
    text = ["| | ours | " + " | ".join(peers) + " | share of the limit's rate | peak, GiB |"]
    text += ["| --- |" + " ---: |" * (len(peers) + 3)]
    growing = ["", "| ms per output (peak, GiB) | |", "| --- | --- |"]
    for title, systems in ((line["row"], line["systems"]) for line in lines):
        if "ours" not in systems:
            cells = [f"{name}: {three_digits(s['ms_per_output'])} ({s['peak_gib']:.1f})" for name, s in systems.items()]
            growing.append(f"| {title} | {', '.join(cells)} |")
            continue
        ours, seconds = systems["ours"], {name: systems[name]["seconds"] for name in peers if name in systems}
        ratios = {name: f"{s:.3g} s, **{s / ours['seconds']:.2f}x**" for name, s in seconds.items()}
        share = ours["gflop_per_second"] / systems["limit"]["gflop_per_second"]
        cells = [title, f"{ours['seconds']:.3g} s", *(ratios.get(name, "") for name in peers)]
        text.append(f"| {' | '.join(cells)} | {100 * share:.0f} % | {ours['peak_gib']:.1f} |")
    return "\n".join(text + growing)


def three_digits(value: float) -> str:
    """The value to three significant digits, without an exponent."""
    return f"{float(format(value, '.3g')):g}"


# --- The command ------------------------------------------------------------------------------------------------------


def compare_checkouts(title: str, job: Job, other: Path, rounds: int) -> None:
    """Print the speed of our code in another checkout and here: median seconds, and the ratios of the turns."""
    calls = take_turns((("there", job, other), ("here", job, REPOSITORY)), rounds)
    there, here = ([call["seconds"] for call in calls[name]] for name in ("there", "here"))
    ratios = [a / b for a, b in zip(here, there, strict=True)]
    medians = f"there {statistics.median(there):.4g} s, here {statistics.median(here):.4g} s"
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"{title}: {medians}, here / there {ratio}", flush=True)


def compare_with_peers(title: str, row: Row, rounds: int, out: Path) -> None:
    """Measure a row and write it to the file, at its place in the order of rows."""
    print(title, flush=True)
    rounds = 1 if title.endswith("large") else rounds  # each takes minutes
    line = {"row": title, "systems": measure_row(row, rounds), "machine": machine()}
    lines = {line["row"]: line for line in read_lines(out)} | {title: line}
    write_lines(out, [lines[name] for name in comparisons() | growth() if name in lines])


def main(argv: list[str] | None = None) -> int:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="only the rows whose title matches this regular expression")
    parser.add_argument("--resume", action="store_true", help="only the rows that are not in --out yet")
    parser.add_argument("--rounds", type=int, default=3, help="measurements per system, after a warm-up")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "bench.jsonl")
    parser.add_argument("--against", type=Path, metavar="DIRECTORY", help="another checkout, to compare our code with")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.worker:
        serve(Job(**json.loads(given.worker)))
        return 0
    missing = [name for name in ("transformers", "ctranslate2") if not find_spec(name)]
    if missing and not given.against:
        print(f"bench: {' and '.join(missing)} not installed; pip install -r requirements-dev.txt", file=sys.stderr)
        return 2
    done = [line["row"] for line in read_lines(given.out)] if given.resume else []
    for title, row in (comparisons() | growth()).items():
        if title in done or not re.search(given.only, title):
            continue
        if not given.against:
            compare_with_peers(title, row, given.rounds, given.out)
        for name, job in row.items() if given.against else ():
            if job.system == "ours":
                label = title if name == "ours" else f"{title}, {name}"
                compare_checkouts(label, job, given.against.resolve(), given.rounds)
    if not given.against:
        print(tables(read_lines(given.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

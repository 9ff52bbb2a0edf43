"""Is like compared with like? And the commands of experiments.bench, on rows that take seconds."""

import re
from dataclasses import replace

import pytest

from experiments import bench, bench_systems
from experiments.bench_systems import SHAPES, WORK, Job
from support import REPOSITORY
from support.files import read_lines

TINY = replace(SHAPES["small"], d_model=32, d_ff=32, d_kv=8, num_layers=2, num_decoder_layers=2, dropout_rate=0.0)
SMALL = {"shape": "mini", "dtype": "float32", "questions": 3}


def steps(shape, work):
    """The losses of two gradient steps by each system."""
    systems = [system for system in WORK[work] if system != "limit"]
    calls = [WORK[work][system](Job(work, system, **SMALL | {"shape": shape})) for system in systems]
    return [[call() for _ in range(2)] for call in calls]  # the second step sees what the first one changed


def answers(shape):
    """The greedy answers of all systems."""
    job = Job("sampling", "", samples=1, temperature=0.0, **SMALL | {"shape": shape})
    systems = [system for system in WORK["sampling"] if system != "limit"]
    return [WORK["sampling"][system](replace(job, system=system))() for system in systems]


def test_systems_do_the_same_work():
    """Greedy answers and losses are those of the peers; t5-mini has no dropout that could tell them apart."""
    ours, *others = answers("mini")
    assert others == [ours, ours] and all(len(texts) == 1 and texts[0] for texts in ours)
    for work in ("supervised step", "HIR step"):
        first, second = steps("mini", work)
        assert first == pytest.approx(second, rel=1e-3), work
        assert first[1] < first[0]


def test_flan_t5_shapes_have_the_same_weights_in_all_systems(tmp_path, monkeypatch):
    monkeypatch.setitem(bench_systems.SHAPES, "tiny", TINY)
    monkeypatch.setattr(bench_systems, "RUNS", tmp_path)
    ours, theirs, ctranslate2 = answers("tiny")
    without_sentinels = [[re.sub(r"<extra_id_\d+>", "", text).strip() for text in texts] for texts in ctranslate2]
    assert theirs == without_sentinels == ours


def test_the_command_writes_rows_and_resumes(tmp_path, capsys):
    out, title = tmp_path / "bench.jsonl", "sampling, float32, mini"
    command = ["--only", f"^{title}$", "--rounds", "1", "--out", str(out)]
    assert bench.main(command) == 0
    (line,) = read_lines(out)
    assert line["row"] == title
    assert set(line["systems"]) == set(WORK["sampling"])
    for system in line["systems"].values():
        assert system["outputs"] == 64
        assert system["peak_gib"] > 0.1
    # Both encode a question once, but they make its keys and values again for every sample.
    ours, theirs = (line["systems"][name] for name in ("ours", "transformers"))
    assert ours["gflop_per_second"] * ours["seconds"] < theirs["gflop_per_second"] * theirs["seconds"]
    assert capsys.readouterr().out == f"{title}\n{bench.tables([line])}\n"
    before = out.read_bytes()
    assert bench.main([*command, "--resume"]) == 0
    assert capsys.readouterr().out == f"{bench.tables([line])}\n"
    assert out.read_bytes() == before


def test_the_measurements_in_the_repository_are_readable():
    lines = read_lines(REPOSITORY / "results" / "bench.jsonl")
    assert {line["row"] for line in lines} <= set(bench.comparisons() | bench.growth())
    assert bench.tables(lines).count("\n") > len(lines)


def test_two_checkouts_are_compared_in_turns(capsys):
    title = "HIR step, bfloat16, mini"
    assert bench.main(["--against", str(REPOSITORY), "--only", f"^{title}$", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    there, here, ratio = re.match(rf"{title}: there (\S+) s, here (\S+) s, here / there (\S+) \(", said).groups()
    assert min(map(float, (there, here, ratio))) > 0

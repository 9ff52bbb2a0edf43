"""Is like compared with like? And the benchmark's command, on a row that takes seconds."""

import json

import pytest

from experiments import bench
from experiments.bench_systems import WORK, Job
from tests.conftest import needs_official_files

pytestmark = needs_official_files

SMALL = {"shape": "mini", "dtype": "float32", "questions": 3}


def test_systems_do_the_same_work():
    """Greedy answers and losses are those of the peers; the embedded model has no dropout that could tell them apart."""
    answers = [
        WORK["sampling"][system](Job("sampling", system, samples=1, temperature=0.0, **SMALL))()
        for system in ("ours", "transformers", "CTranslate2")
    ]
    assert answers[0] == answers[1] == answers[2]
    assert all(len(texts) == 1 and texts[0] for texts in answers[0])
    for work in ("supervised step", "HIR step"):
        systems = [system for system in WORK[work] if system != "limit"]
        steps = [WORK[work][system](Job(work, system, **SMALL)) for system in systems]
        first, second = (
            [step() for _ in range(2)] for step in steps
        )  # the second step sees what the first one changed
        assert first == pytest.approx(second, rel=1e-3), work
        assert first[1] < first[0]


def test_the_command_writes_rows_and_goes_on(tmp_path, capsys):
    out, title = tmp_path / "bench.jsonl", "sampling, float32, mini"
    command = ["--only", f"^{title}$", "--rounds", "1", "--out", str(out)]
    assert bench.main(command) == 0
    (line,) = map(json.loads, out.read_text().splitlines())
    assert line["row"] == title
    assert set(line["systems"]) == set(WORK["sampling"])
    for system in line["systems"].values():
        assert system["outputs"] == 64
        assert system["ms_per_output"] == pytest.approx(1000 * system["seconds"] / 64)
        assert system["peak_gib"] > 0.1
    # Both encode a question once, but they make its keys and values again for every sample.
    ours, theirs = (line["systems"][name] for name in ("ours", "transformers"))
    assert ours["gflop_per_second"] * ours["seconds"] < theirs["gflop_per_second"] * theirs["seconds"]
    assert capsys.readouterr().out == f"{title}\n{bench.tables([line])}\n"
    before = out.read_bytes()
    assert bench.main([*command, "--resume"]) == 0
    assert capsys.readouterr().out == f"{bench.tables([line])}\n"
    assert out.read_bytes() == before

"""report.py: numbers in the tables against hand-made results, what it refuses, and one run of the real command."""

import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import pytest

import train
from bigbench_tasks import TASKS
from experiments import report, report_runs

LD3, TRACKING = report.ABLATED


def write_result(directory, name, correct, wrong=0.5, before=0.4, n=200):
    """A finished run as report.py stores it, with its real configuration and three made-up lines of metrics."""
    arguments = report.experiments(Path("runs"))[name]
    run, settings, own = train.parse_arguments(arguments)
    config = {"run": asdict(run), "settings": asdict(settings) | (asdict(own) if run.method == "ppo" else {})}
    lines = [
        {
            "iteration": i,
            "sampled": 0 if run.method == "sft" else 256 * i,
            "right_share": share,
            "losses": {},
            "seconds": {"training": 30.0, "evaluation": 10.0},
            "tasks": {
                task: {"n": n, "correct": share, "wrong": wrong if i else before} for task in train.expand(run.task)
            },
        }
        for i, share in enumerate((before, (before + correct) / 2, correct))
    ]
    (directory / "runs").mkdir(exist_ok=True)
    path = directory / "runs" / f"{name}.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in (config, *lines)))
    return path


def rows_of(directory, title):
    """The cells of the table under a title, by the first cell of each row."""
    text = (directory / "tables.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def wilson(share, n):
    """All p that a share measured on n questions does not refute: (p - share)^2 <= z^2 p (1 - p) / n, tried one by one."""
    grid = [i / 100_000 for i in range(100_001)]
    inside = [p for p in grid if (p - share) ** 2 <= 1.96**2 * p * (1 - p) / n]
    return inside[0], inside[-1]


def test_tables_show_the_numbers_of_the_runs(tmp_path):
    hir = (0.80, 0.85, 0.90)
    for seed, share in enumerate(hir):
        write_result(tmp_path, report.name_of(LD3, "hir", seed), share, wrong=0.1)
    for task in TASKS:  # one seed of every method on every task, but for HIR on the task above
        for method, share in (("sft", 0.9), ("ppo", 0.6), ("farl", 0.5), ("hir", 0.7)):
            if (task, method) != (LD3, "hir"):
                write_result(tmp_path, report.name_of(task, method), share, wrong=share)
    write_result(tmp_path, report.name_of(TRACKING, "hir", 0, variant="--no-sub-output"), 0.65)
    write_result(tmp_path, report.name_of(TRACKING, "hir", 0, "t5-nano"), 0.45, before=0.2)
    write_result(tmp_path, "leak-official-seed0-other-order", 0.3)
    write_result(tmp_path, "search-1e-3-4-0.1", 0.8)
    write_result(tmp_path, report.default_name("logical_deduction", 0), 0.75, wrong=0.05)
    write_result(tmp_path, f"{LD3}-official-after", 0.6)
    assert report.main(["--results", str(tmp_path)]) == 0

    low, high = wilson(0.85, 200)
    drawn = 4.303 * 0.05 / math.sqrt(3)  # the deviation of 0.80, 0.85, 0.90 is 0.05
    low, high = 0.85 - math.hypot(0.85 - low, drawn), min(1.0, 0.85 + math.hypot(high - 0.85, drawn))
    table = rows_of(tmp_path, "Table 2: all tasks")
    assert table["task"] == ["chance", "before", "fine-tuning", "PPO", "FARL", "HIR"]
    assert table[LD3][0] == "33.3" and table["object_counting"][0] == "–"
    assert 10 < float(table["geometric_shapes"][0]) < 30
    assert table[LD3][5] == f"85.0 [{100 * low:.1f}, {100 * high:.1f}]"
    one_seed = "70.0 [{:.1f}, {:.1f}]".format(*(100 * end for end in wilson(0.7, 200)))
    assert table["geometric_shapes"][1:] == [
        *("{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in (s, *wilson(s, 200)))) for s in (0.4, 0.9, 0.6, 0.5)),
        one_seed,
    ]
    assert [cell.split()[0] for cell in table["average"]] == [
        "–",
        "40.0",
        "90.0",
        "60.0",
        "50.0",
        f"{(11 * 70 + 85) / 12:.1f}",
    ]
    said = rows_of(tmp_path, "What the paper says of Table 2")
    assert said["HIR over PPO, average (Sec. 1)"][0] == "11.2"
    assert said["HIR over PPO, average (Sec. 1)"][1].startswith("11.2 [")  # 71.25 - 60
    assert said["HIR over FARL, average (Sec. 1)"][1].startswith("21.2 [")
    assert table[TRACKING][5] == f"{one_seed} (1 of 3 runs)"
    (seven,) = (row for name, row in said.items() if "seven" in name)
    assert seven[0] == "29.2" and seven[1].startswith("10.0 [")
    sizes = [line for line in (tmp_path / "tables.md").read_text().splitlines() if f"| {TRACKING} | t5-nano |" in line]
    assert re.sub(r" [\[(].*?[\])]", "", sizes[0]).endswith("| 20.0 | – | – | – | 45.0 |")
    ablations = rows_of(tmp_path, "Table 4: ablations")
    assert ablations["full method"][2] == "91.7" and ablations["full method"][0] == table[LD3][4]
    assert ablations["without sub-output sampling"][:3] == ["–", "–", "75.0"]
    assert ablations["without sub-output sampling"][3].startswith("65.0 [")
    assert ablations["without sub-output sampling"][3].endswith("] (1 of 3 runs)")
    wrong = rows_of(tmp_path, "Under the wrong instruction")
    assert wrong[LD3][4].startswith("10.0 [") and wrong[LD3][1].startswith("90.0 [")
    default = rows_of(tmp_path, "The default runs")
    assert [cell.split()[0] for cell in default[LD3]] == ["40.0", "75.0", "40.0", "5.0"] and default[TRACKING][0] == "–"
    assert rows_of(tmp_path, "Official questions")[LD3][:2] == [
        "–",
        "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in (0.6, *wilson(0.6, 200)))),
    ]
    assert rows_of(tmp_path, "The leak in Date Understanding")["official order"][1].startswith("30.0 [")
    assert list(rows_of(tmp_path, "The search for PPO's hyperparameters").values())[-1] == ["4", "0.1", "60.0"]
    for name in ("methods", "wrong_instruction", "curve"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_results_that_do_not_fit_together_are_refused(tmp_path, capsys):
    first = write_result(tmp_path, report.name_of(LD3, "hir"), 0.8)
    write_result(tmp_path, report.name_of(LD3, "ppo"), 0.8, before=0.7)
    assert report.main(["--results", str(tmp_path)]) == 2 and "different models" in capsys.readouterr().err
    first.write_text(re.sub('"alpha": [0-9.]+', '"alpha": 7.0', first.read_text()))
    assert report.main(["--results", str(tmp_path)]) == 2
    assert first.name in (said := capsys.readouterr().err) and "--alpha 7.0" in said and "Traceback" not in said


def test_missing_runs_are_made_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report_runs, "BUDGET", "--iterations 1 --questions 4 --online-samples 2 --test-size 4".split())
    arguments = [
        "--run",
        "--only",
        "geometric_shapes-farl-*",
        "--runs",
        tmp_path / "runs",
        "--results",
        tmp_path / "results",
    ]
    arguments = [str(argument) for argument in arguments]
    assert report.main(arguments) == 0
    name = report.name_of("geometric_shapes", "farl")
    config, *lines = map(json.loads, (tmp_path / "results" / "runs" / f"{name}.jsonl").read_text().splitlines())
    assert config["run"]["method"] == "farl" and [line["iteration"] for line in lines] == [0, 1]
    assert rows_of(tmp_path / "results", "Table 2: all tasks")["geometric_shapes"][3] != "–"
    monkeypatch.setattr(report_runs.subprocess, "run", lambda *_, **__: pytest.fail("a finished run was made again"))
    capsys.readouterr()
    assert report.main(arguments) == 0 and "0 runs to make" in capsys.readouterr().out

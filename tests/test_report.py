"""experiments.report: numbers in the tables against hand-made results, what it refuses, and runs of the real command."""

import json
import math
import random
import re
from dataclasses import asdict
from pathlib import Path

import pytest

import train
from bigbench_tasks import TASKS, expand
from experiments import report, results, search
from support.files import read_lines, write_lines

LD3, TRACKING, *_ = report.FOUR


def letters(n, r, w=0.0):
    """Verdicts on n answers: so large a share is right, then so large a one wrong, and the others are malformed."""
    right, wrong = round(n * r), round(n * w)
    return "r" * right + "w" * wrong + "m" * (n - right - wrong)


def write_result(directory, name, correct, wrong=0.5, before=0.4, n=200, obeyed=None):
    """A finished run as report stores it, with its real settings and three made-up lines of metrics."""
    s = train.parse_arguments(report.planned_runs(Path("runs"))[name])
    own = asdict(s.ppo) if s.run.method == "ppo" else {}
    config = {"run": asdict(s.run) | asdict(s.machine), "settings": asdict(s.method) | own}
    lines = []
    for i, share in enumerate((before, (before + correct) / 2, correct)):
        shares = {"n": n, "correct": share, "wrong": wrong if i else before}
        if obeyed is not None:
            shares |= {"obeyed": obeyed, "malformed": 1 - obeyed - shares["wrong"], "malformed_correct": 0.0}
        seconds = {"training": 30.0, "evaluation": 10.0}
        lines.append(
            {"iteration": i, "sampled": 0 if s.run.method == "sft" else 400 * i, "right_share": share, "losses": {},
             "steps": 5 * (i > 0), "seconds": seconds, "tasks": dict.fromkeys(expand(s.run.task), shares)}
        )  # fmt: skip
    asked = {"correct": letters(n, r=correct), "wrong": letters(n, r=wrong, w=obeyed or 0)}
    lines.append({"verdicts": dict.fromkeys(expand(s.run.task), asked)})
    (directory / "runs").mkdir(exist_ok=True)
    path = directory / "runs" / f"{name}.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in (config, *lines)))
    return path


def rows_of(directory, title, labels=1):
    """The cells of the table under a title, by the first cells of each row."""
    text = (directory / "tables.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0] if labels == 1 else tuple(row[:labels]): row[labels:] for row in rows}


def wilson(share, n):
    """All p that a share measured on n questions does not refute: (p - share)^2 <= z^2 p (1 - p) / n, tried one by one."""
    grid = [i / 100_000 for i in range(100_001)]
    inside = [p for p in grid if (p - share) ** 2 <= 1.96**2 * p * (1 - p) / n]
    return inside[0], inside[-1]


def cell(share, n=200):
    """What a table shows of one run."""
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in (share, *wilson(share, n))))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Results with hand-made numbers, and what report made of them."""
    monkeypatch, directory = pytest.MonkeyPatch(), tmp_path_factory.mktemp("results")
    trial = {"method": "hir", "flags": search.trials("hir")[0], "curve": 0.5, "correct": 0.7, "malformed": 0.1}
    write_lines(directory / "search.jsonl", [trial | {"task": task} for task in search.TASKS])
    monkeypatch.setattr(search, "RESULTS", directory / "search.jsonl")
    for seed, share in enumerate((0.80, 0.85, 0.90)):
        write_result(directory, report.name_of(LD3, "hir", seed), share, wrong=0.1, obeyed=0.6)
    for task in TASKS:  # one seed of every method on every task, but for HIR on the task above
        for method, share in (("sft", 0.9), ("farl", 0.5), ("ppo", 0.6), ("grpo", 0.65)):
            for seed in report.SEEDS if method in ("farl", "ppo") else report.SEEDS[:1]:
                write_result(directory, report.name_of(task, method, seed), share, wrong=share)
        for seed in report.SEEDS if task != LD3 else ():
            write_result(directory, report.name_of(task, "hir", seed), 0.71, wrong=0.1, obeyed=0.8)
    write_result(directory, report.name_of(TRACKING, "hir", flags="--sub-output none"), 0.65)
    write_result(directory, report.name_of(TRACKING, "hir", size="t5-nano"), 0.45, before=0.2)
    for task in report.REUSE_TASKS:
        for seed in report.REUSE_SEEDS:
            write_result(directory, report.name_of(task, "hir", seed, flags=report.reuse("hir", 4)), 0.9)
    write_result(directory, "leak-official-seed0-other-order", 0.3)
    write_result(directory, "logical_deduction-default-seed0", 0.75, wrong=0.05)
    assert report.main(["--results", str(directory)]) == 0
    monkeypatch.undo()
    return directory


def test_table_2_and_its_claims(directory):
    low, high = wilson(0.85, 200)
    drawn = 4.303 * 0.05 / math.sqrt(3)  # the deviation of 0.80, 0.85, 0.90 is 0.05
    low, high = 0.85 - math.hypot(0.85 - low, drawn), min(1.0, 0.85 + math.hypot(high - 0.85, drawn))
    table = rows_of(directory, "Table 2: all tasks")
    assert table["task"] == ["chance", "before", "fine-tuning", "FARL", "PPO", "GRPO", "HIR"]
    assert table[LD3][0] == "33.3" and table["object_counting"][0] == "–"
    assert 10 < float(table["geometric_shapes"][0]) < 30
    assert table[LD3][6] == f"85.0 [{100 * low:.1f}, {100 * high:.1f}]"
    lone = " (1 of 3 runs)"
    cells = [cell(0.9) + lone, cell(0.5), cell(0.6), cell(0.65) + lone, cell(0.71)]
    assert table["geometric_shapes"][1:] == [cell(0.4), *cells]
    means = ["–", "40.0", "–", "50.0", "60.0", "–", f"{(11 * 71 + 85) / 12:.1f}"]
    assert [mean.split()[0] for mean in table["average"]] == means
    said = rows_of(directory, "What the paper says of Table 2")
    assert said["HIR over PPO, average (Sec. 1)"][0] == "11.2"
    assert said["HIR over PPO, average (Sec. 1)"][1].startswith("12.2 [")  # 72.2 - 60
    assert said["HIR over FARL, average (Sec. 1)"][1].startswith("22.2 [")
    seven, _ = (row for name, row in said.items() if "seven" in name)
    assert seven[0] == "29.2" and seven[1].startswith("11.0 [")
    rank = rows_of(directory, "Ranking")
    assert rank["HIR"][:3] == [table["average"][6], "–", "1 [1, 1]"] and rank["HIR"][6:] == ["10", "90"]
    assert rank["PPO"][1].startswith("-12.2 [") and rank["PPO"][2] == "2 [2, 2]" and rank["fine-tuning"][2] == "–"
    assert float(rank["HIR"][3]) == pytest.approx(100 * (0.555 * 11 + 0.625) / 12, abs=0.1)
    assert float(rank["HIR"][4]) == pytest.approx(100 * ((0.555 + 0.71) / 2 * 11 + (0.625 + 0.85) / 2) / 12, abs=0.1)


def test_bootstrap_against_the_normal_approximation_and_pairs():
    rng = random.Random(0)
    easy = ["".join("r" if rng.random() < 0.7 else "w" for _ in range(400)) for _ in range(3)]
    better = [letters.replace("w", "r", 20) for letters in easy]
    runs = {
        f"{method}{seed}": results.Result({}, [], {"task": {"correct": letters}})
        for method, answers in (("a", easy), ("b", better))
        for seed, letters in enumerate(answers)
    }
    names = {method: [[f"{method}{seed}" for seed in range(3)]] for method in "ab"}
    share = sum(letters.count("r") for letters in easy) / 1200
    one = results.bootstrap({"a": [["a0"]]}, runs)["a"]  # a single run: only the questions are drawn
    first = easy[0].count("r") / 400
    assert one.mean == first and one.high - one.low == pytest.approx(
        3.92 * math.sqrt(first * (1 - first) / 400), rel=0.1
    )
    assert results.bootstrap(names, runs)["a"].mean == pytest.approx(share)
    lead = results.bootstrap(names, runs, minus="a")["b"]
    assert lead.mean == pytest.approx(20 / 400) and 0 < lead.low < lead.mean < lead.high < 0.1
    assert results.bootstrap(names, runs, minus="b")["b"] == results.Estimate(0, 0, 0)
    assert results.bootstrap_ranks(names, runs) == {"a": "2 [2, 2]", "b": "1 [1, 1]"}


def test_a_variant_is_what_the_search_did_not_choose(monkeypatch):
    monkeypatch.setattr(search, "best_flags", lambda: {"hir": "--alpha 0.25 --sub-output answer"})
    assert report.variant("--sub-output answer") == "" and report.variant("--sub-output none") == "--sub-output none"
    assert report.variant("--alpha 0") == "--alpha 0"  # which 0.25 begins with


def test_the_other_tables_and_the_pictures(directory):
    sizes = rows_of(directory, "Table 3: two sizes", labels=2)[TRACKING, "t5-nano"]
    assert [value.split()[0] for value in sizes] == ["20.0", "–", "–", "–", "–", "45.0"]
    variants = rows_of(directory, "Table 4: ablations")
    assert variants["HIR as in Table 2"][1].startswith("85.0 [") and variants["HIR as in Table 2"][0] == "10"
    averages = [value.split()[0] for value in variants["HIR as in Table 2"][5:]]
    assert averages == ["74.5", "–", "10.0", "75.0", "15.0"]  # deduction obeys in 60 %
    assert variants["sub-outputs: none"][2] == f"{cell(0.65)} (1 of 3 runs)"
    wrong = rows_of(directory, "Under the wrong instruction", labels=2)
    shares = [wrong[LD3, share][5].split()[0] for share in ("right", "obeyed", "malformed")]
    assert shares == ["10.0", "60.0", "30.0"] and wrong[LD3, "right"][1].startswith("90.0 [")
    default = rows_of(directory, "The default runs")
    assert [value.split()[0] for value in default[LD3]] == ["40.0", "75.0", "40.0", "5.0", *"––––"]
    assert default[TRACKING][0] == "–"
    reused = rows_of(directory, "Data efficiency", labels=2)
    assert reused["HIR", "4"] == ["–", "65.0", "90.0", "–", "10"] and reused["HIR", "1"][1] == "–"
    assert rows_of(directory, "The leak in Date Understanding")["official order"][1].startswith("30.0 [")
    assert rows_of(directory, "The search", labels=2)["HIR", f"`{search.trials('hir')[0]}`"] == ["50.0", "70.0", "10.0"]
    for name in ("methods", "methods_seconds", "efficiency", "wrong_instruction", "curve"):
        assert (directory / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_explained_variance_is_that_from_the_third_iteration_on():
    def run(*explained):
        shares = {TRACKING: {"n": 4, "correct": 0.5}}
        lines = [{"tasks": shares, "losses": {}, "explained_variance": value} for value in explained]
        return results.Result({}, lines)

    found = {report.name_of(TRACKING, "ppo", 0): run(None, 0.9, 0.9, 0.1, 0.2)}
    found[report.name_of(TRACKING, "ppo", 1)] = run(None, 0.9, 0.9, 0.3, 0.6)
    *_, header, rows = report.critic_table(found)
    (row,) = (row for row in rows if row[0] == TRACKING)
    assert header[1] == "explained variance" and row[1] == "0.30" and str(row[2]).endswith("(2 of 3 runs)")


def test_results_from_different_models_are_refused(tmp_path, capsys):
    write_result(tmp_path, report.name_of(LD3, "hir"), 0.8)
    write_result(tmp_path, report.name_of(LD3, "ppo"), 0.8, before=0.7)
    assert report.main(["--results", str(tmp_path)]) == 2 and "different models" in capsys.readouterr().err


def test_results_with_other_settings_are_marked(tmp_path, capsys):
    other, older = (write_result(tmp_path, report.name_of(LD3, "hir", seed), 0.8) for seed in range(2))
    other.write_text(re.sub('"alpha": [0-9.]+', '"alpha": 7.0', other.read_text()))
    older.write_text(re.sub('"replay": "[a-z]+", ', "", older.read_text()))
    assert report.main(["--results", str(tmp_path), "--only", "*three_objects-hir-t5-mini-seed*"]) == 0
    said = capsys.readouterr().out
    assert f"{other.stem} (--alpha 7.0, not " in said and older.stem not in said
    assert "5 runs to make" in said  # the two that differ, and three of the other task
    assert rows_of(tmp_path, "Table 2: all tasks")[LD3][6].startswith(f"{cell(0.8)} †")


def test_missing_runs_are_made_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search, "BUDGET", "--iterations 1 --questions 4 --online-samples 2 --test-size 4")
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    arguments = ["--run", "--only", "geometric_shapes-farl-*seed0", *folders]
    assert report.main(arguments) == 0
    stored = tmp_path / "results" / "runs" / f"{report.name_of('geometric_shapes', 'farl')}.jsonl"
    result = results.read_result(stored)
    assert result.config["run"]["method"] == "farl" and [line["iteration"] for line in result.lines] == [0, 1]
    for asked, key in (("correct", "correct"), ("wrong", "wrong")):
        letters = read_lines(stored)[-1]["verdicts"]["geometric_shapes"][asked]
        assert len(letters) == 4 and letters.count("r") / 4 == result.value(key)
    assert rows_of(tmp_path / "results", "Table 2: all tasks")["geometric_shapes"][3] != "–"
    monkeypatch.setattr(search.subprocess, "run", lambda *_, **__: pytest.fail("a finished run was made again"))
    capsys.readouterr()
    assert report.main(arguments) == 0 and "0 runs to make" in capsys.readouterr().out


def test_ones_own_runs_are_compared(tmp_path, capsys):
    first = write_result(tmp_path, report.name_of(LD3, "hir"), 0.8, wrong=0.1, obeyed=0.6)
    second = write_result(tmp_path, "logical_deduction-default-seed0", 0.6)
    assert report.main([str(first), "--over", "seconds"]) == 0
    header, row, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["before", "after", "right", "obeyed", "malformed", "samples", "sampled", "seconds"]
    assert row.split() == [LD3, "40.0", "80.0", "10.0", "60.0", "30.0", "80.0", "800", "120"]
    assert (tmp_path / "runs" / "curves.png").exists()
    assert report.main([str(first), str(second), "--picture", str(tmp_path / "both.png")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[1:4]] == [LD3, first.stem, second.stem]
    assert ["all", "tasks"] in lines and lines[3][1:6] == ["40.0", "60.0", "50.0", "-", "-"]
    assert (tmp_path / "both.png").exists()
    assert report.main([str(tmp_path)]) == 2 and "holds no run" in capsys.readouterr().err

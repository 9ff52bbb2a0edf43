"""The README names things that exist: files, functions, flags, settings."""

import importlib
import re
from dataclasses import fields, replace
from pathlib import Path

import torch

import hir
import train
from experiments.bench_systems import SHAPES
from model_t5 import T5

HERE = Path(__file__).resolve().parents[1]
README = (HERE / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)[1]


def test_map_from_the_paper_names_what_exists():
    spans = re.findall(r"`(\w+)\.(\w+)`", section("From the paper to the code"))
    modules = {path.stem for path in HERE.glob("*.py")}
    places = [(module, name) for module, name in spans if module in modules and name != "py"]
    assert len(places) > 25
    for module, name in places:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
    for equation, function in ((3, "supervised_loss"), (4, "contrastive_loss"), (5, "entropy_loss"), (6, "hir_loss")):
        assert f"Eq. {equation}" in getattr(hir, function).__doc__, function
        assert any(f"Eq. {equation}" in row and f"`hir.{function}`" in row for row in README.splitlines())


def test_list_of_files_is_whole():
    cells = re.findall(r"^\| (`.*?) \|", section("What lives where"), re.MULTILINE)
    listed = {name for cell in cells for name in re.findall(r"`(.*?)`", cell)}
    there = {path.name for path in HERE.glob("*.py") if not path.name.startswith("test_")}
    assert there <= listed, f"not in the README's list of files: {there - listed}"
    for name in listed:
        assert list(HERE.glob(name.rstrip("/"))), f"the README lists {name}, which is not there"


def test_flags_exist():
    known = {f"--{f.name.replace('_', '-')}" for cls in (train.Run, hir.Settings) for f in fields(cls)}
    for command in re.findall(r"^(?:python|torchrun).*?train\.py (.*?)$(?<!\\)", README.replace("\\\n", " "), re.M):
        for flag in re.findall(r"--[\w-]+", command):
            assert flag in known or flag.replace("--no-", "--") in known, flag


def test_memory_is_the_arithmetic_that_the_text_says():
    rows = re.findall(r"^\| flan-t5-(\w+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE)
    assert [name for name, *_ in rows] == ["small", "base", "large", "xl", "xxl"]
    shapes = SHAPES | {
        "xl": replace(SHAPES["large"], d_model=2048, d_ff=5120, num_heads=32),
        "xxl": replace(SHAPES["large"], d_model=4096, d_ff=10240, num_heads=64),
    }
    for name, parameters, training, sampling in rows:
        with torch.device("meta"):
            count = sum(p.numel() for p in T5(shapes[name]).parameters())
        assert count == int(parameters.replace(",", "")), name
        assert (f"{18 * count / 2**30:.1f}", f"{6 * count / 2**30:.1f}") == (training, sampling), name


def test_results_are_those_of_the_tables():
    """The rows with intervals in the section of results stand in results/tables.md, which report.py draws."""
    tables = (HERE / "results" / "tables.md").read_text(encoding="utf-8").splitlines()
    rows = [row for row in section("Results").splitlines() if re.match(r"\| .*\| [\d.]+ \[", row)]
    assert len(rows) > 30
    assert [row for row in rows if row not in tables] == []


def test_solution_fits_the_code():
    """The diff at the end of the exercises: each hunk's old lines stand in the file, one after another."""
    text = (HERE / "EXERCISES.md").read_text(encoding="utf-8")
    diff = re.search(r"^```diff\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[1]
    hunks = re.findall(r"^@@.*?\n((?:[ +-].*\n|\n)+)", diff, re.MULTILINE)
    names = re.findall(r"^\+\+\+ b/(.*)$", diff, re.MULTILINE)
    files = "".join((HERE / name).read_text(encoding="utf-8") for name in names)
    assert len(hunks) >= 4
    for hunk in hunks:
        old = "".join(line[1:] + "\n" for line in hunk.split("\n")[:-1] if line[:1] != "+")
        old = re.sub(r"diff --git.*", "", old, flags=re.DOTALL)
        assert old in files, old

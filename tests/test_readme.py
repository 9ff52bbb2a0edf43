"""README and docs/ name things that exist: files, functions, flags, settings, figures."""

import importlib
import re
from dataclasses import fields

import pytest
import torch

import hir
import train
from model_t5 import T5, T5Config
from support import REPOSITORY as HERE

README = (HERE / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in [HERE / "README.md", *sorted(HERE.glob("docs/*.md"))]}
PROGRAMS = "".join(path.read_text(encoding="utf-8") for path in HERE.glob("experiments/*.py"))
MODULES = {path.stem for path in HERE.glob("*.py")} | {"baselines", "support", "experiments"}
KNOWN_FLAGS = {
    f"--{field.name.replace('_', '-')}" for group in fields(train.AllSettings) for field in fields(group.type)
}
PYTEST = re.findall(r"^def (test_\w+)", "".join(p.read_text("utf-8") for p in HERE.rglob("test_*.py")), re.MULTILINE)
# v1.1 shapes: d_model, d_kv, d_ff, layers, heads
FLAN_T5 = {
    "small": (512, 64, 1024, 8, 6),
    "base": (768, 64, 2048, 12, 12),
    "large": (1024, 64, 2816, 24, 16),
    "xl": (2048, 64, 5120, 24, 32),
    "xxl": (4096, 64, 10240, 24, 64),
}


def page(name: str) -> str:
    return PAGES[HERE / "docs" / name]


def resolve(path: str) -> object:
    """`baselines.ppo.PPO.values` -> the function."""
    names = path.split(".")
    for end in range(len(names), 0, -1):
        try:
            found = importlib.import_module(".".join(names[:end]))
        except ModuleNotFoundError:
            continue
        for name in names[end:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(path)


def anchor(heading: str) -> str:
    """The fragment that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_readme_is_short_and_leads_to_every_page():
    assert len(README.encode()) <= 12_288
    linked = set(re.findall(r"\]\((docs/\w+\.md)", README))
    assert linked == {f"docs/{path.name}" for path in PAGES if path.parent == HERE / "docs"}


@pytest.mark.parametrize("path", [*PAGES, *HERE.glob("checkpoints/*/README.md")], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)):
        file, _, fragment = target.partition("#")
        if not target.startswith("http"):
            there = path.parent / file if file else path
            assert there.exists(), target
            headings = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.MULTILINE) if fragment else []
            assert not fragment or fragment in map(anchor, headings), target


def test_names_in_the_text_exist():
    text = "".join(PAGES.values())
    names = re.findall(r"`((?:\w+\.)+\w+)`", text)
    names = {name for name in names if name.split(".")[0] in MODULES and not name.endswith((".py", ".md"))}
    assert len(names) > 30
    for name in names:
        resolve(name)
    for file in re.findall(r"`((?:baselines|support|experiments|tests|docs|results)/[\w./-]+)`", text):
        assert (HERE / file).exists(), file


def test_equations_are_where_the_map_says():
    functions = {3: "supervised_loss", 4: "contrastive_loss", 5: "entropy_loss", 6: "final_loss"}
    for equation, function in functions.items():
        assert f"Eq. {equation}" in getattr(hir, function).__doc__, function
        assert any(f"Eq. {equation} |" in row and f"`hir.{function}`" in row for row in README.splitlines())


def test_flags_exist():
    for text in PAGES.values():
        for command in re.findall(r"^(?:python|torchrun).*?train\.py (.*)$", text.replace("\\\n", " "), re.MULTILINE):
            flags = re.findall(r"--[\w-]+", command.partition("#")[0])
            assert set(flags) <= KNOWN_FLAGS | {"--help"}, command
        for flag in re.findall(r"`(--[\w-]+)", text):
            assert flag in KNOWN_FLAGS or f'"{flag}"' in PROGRAMS, flag


def test_hyperparameters_are_those_of_the_code():
    rows = re.findall(r"^\| `--([\w-]+)`[^|]*\| ([\w.-]+)[^|]*\| ([\w.-]+)", page("hardware.md"), re.MULTILINE)
    of_the_paper = {f.name: f.default for cls in (train.RunConfig, hir.Settings) for f in fields(cls)}
    assert {name for name, *_ in rows} == {n.replace("_", "-") for n in train.SMALL_MODEL if n in of_the_paper}
    for flag, paper, bundled in rows:
        name = flag.replace("-", "_")
        kind = type(of_the_paper[name])
        assert (kind(paper), kind(bundled)) == (of_the_paper[name], train.SMALL_MODEL[name]), flag


def test_memory_is_the_arithmetic_that_the_text_says():
    rows = re.findall(r"^\| flan-t5-(\w+) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", page("hardware.md"), re.MULTILINE)
    assert [name for name, *_ in rows] == list(FLAN_T5)
    for name, parameters, training, sampling in rows:
        d_model, d_kv, d_ff, layers, heads = FLAN_T5[name]
        with torch.device("meta"):
            config = T5Config(
                vocab_size=32128, d_model=d_model, d_kv=d_kv, d_ff=d_ff, num_layers=layers, num_decoder_layers=layers,
                num_heads=heads, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
            )  # fmt: skip
            count = sum(p.numel() for p in T5(config).parameters())
        assert count == int(parameters.replace(",", "")), name
        assert (f"{18 * count / 2**30:.1f}", f"{6 * count / 2**30:.1f}") == (training, sampling), name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_rows_of_a_table_are_equally_long(path):
    tables = re.findall(r"(?:^\|.*\|\n)+", re.sub(r"`[^`\n]*`", "", path.read_text("utf-8")), re.MULTILINE)
    for table in tables:
        assert len({row.count("|") for row in table.splitlines()}) == 1, table


def test_results_are_those_of_the_tables():
    """The rows with intervals in docs/results.md stand in results/tables.md, which experiments.report writes."""
    tables = (HERE / "results" / "tables.md").read_text(encoding="utf-8").splitlines()
    rows = [row for row in page("results.md").splitlines() if re.match(r"\| .*\| [\d.]+ \[", row)]
    assert len(rows) > 30
    assert [row for row in rows if row not in tables] == []


def test_promises_of_reliability_are_tested():
    for expression in re.findall(r"\| `([a-z_ ]+)` \|$", page("reliability.md"), re.MULTILINE):
        for part in expression.split(" or "):
            assert any(part in name for name in PYTEST), part


def test_solution_fits_the_code():
    """The diff at the end of the exercises: each hunk's old lines stand in the file, one after another."""
    diff = re.search(r"^```diff\n(.*?)^```", page("exercises.md"), re.DOTALL | re.MULTILINE)[1]
    assert len(re.findall(r"^@@", diff, re.MULTILINE)) >= 4
    for part in re.split(r"^diff --git ", diff, flags=re.MULTILINE)[1:]:
        file = HERE / re.search(r"^\+\+\+ b/(.*)$", part, re.MULTILINE)[1]
        for hunk in re.split(r"^@@.*\n", part, flags=re.MULTILINE)[1:]:
            old = "".join(f"{line[1:]}\n" for line in hunk.splitlines() if line[:1] != "+")
            assert old in file.read_text(encoding="utf-8"), old

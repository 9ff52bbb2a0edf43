"""docs/hir.ipynb runs from top to bottom, defines nothing of the method, and is stored with the outputs of its code."""

import ast
import copy
import itertools
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "docs" / "hir.ipynb"
STORED = nbformat.read(PATH, as_version=4)
SMALL = {"--iterations 4": "--iterations 1", "--questions 100": "--questions 8", "--test-size 100": "--test-size 4",
         "DRAWS = 400": "DRAWS = 8"}  # fmt: skip
TYPED_BY_READERS = ("exercise1", "exercise2", "exercise3")
STALE = (
    "docs/hir.ipynb is stored with the outputs of other code or another model: jupyter execute --inplace docs/hir.ipynb"
)


def code(notebook: nbformat.NotebookNode) -> dict[str, nbformat.NotebookNode]:
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def text(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def kinds(cell: nbformat.NotebookNode) -> list[list[str]]:
    """What a cell shows: text, which may come in several pieces, and other outputs with their formats."""
    found = [[output.output_type, *sorted(output.get("data", ()))] for output in cell.outputs]
    return [kind for kind, _ in itertools.groupby(found)]


@pytest.fixture(scope="module")
def executed() -> nbformat.NotebookNode:
    """The notebook with fewer questions and draws, and with the code of its solutions at the end; no cell may raise."""
    notebook = copy.deepcopy(STORED)
    [parameters] = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    for stored, small in SMALL.items():
        assert parameters.source.count(stored) == 1, stored
        parameters.source = parameters.source.replace(stored, small)
    written = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    solutions = re.findall(r"^```python\n(.*?)^```", written, re.DOTALL | re.MULTILINE)
    assert len(solutions) == 2
    notebook.cells += [nbformat.v4.new_code_cell(source, id=f"code{i}") for i, source in enumerate(solutions)]
    return NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(PATH.parent)}}).execute()


def test_it_runs_as_it_is_stored(executed):
    cells = code(executed)
    for name, stored in code(STORED).items():
        assert cells[name].source == stored.source or name == "parameters"
        assert kinds(cells[name]) == kinds(stored), name
    for name in ("question", "sample", "relabel"):  # what they show does not depend on the parameters
        assert text(cells[name]) == text(code(STORED)[name]), STALE
    solution = text(cells["code0"]), text(cells["code1"])
    assert float(re.search(r"0\.\d+", solution[0])[0]) == pytest.approx(0.1, abs=0.001)
    assert all(name in solution[1] for name in ("with Eq. 4", "without"))


def test_stored_outputs_are_those_of_one_run_from_top_to_bottom():
    cells = code(STORED)
    assert [cell.execution_count for cell in cells.values()] == list(range(1, len(cells) + 1)), STALE
    for name, cell in cells.items():
        assert all(output.output_type != "error" and output.get("name") != "stderr" for output in cell.outputs), name
    pictures = [output for cell in cells.values() for output in cell.outputs if "image/png" in output.get("data", ())]
    assert len(pictures) == 5
    assert {"right", "wrong"} == set(re.findall(r"^\d\. (\w+)", text(cells["sample"]), re.MULTILINE))
    assert PATH.stat().st_size < 400_000


@pytest.mark.parametrize("name", [name for name in code(STORED) if name not in TYPED_BY_READERS])
def test_cells_are_short_and_define_no_function(name):
    source = re.sub(r"^%.*$", "", code(STORED)[name].source, flags=re.MULTILINE)
    tree = ast.parse(source)
    for node in ast.walk(tree):
        assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        assert not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) - len(imports) <= 12


@pytest.mark.parametrize("where", ["docs", "elsewhere"])
def test_the_first_cell_finds_the_repository_or_clones_it(where, tmp_path, monkeypatch):
    """In a checkout nothing is installed; elsewhere the repository is cloned, and its requirements are installed."""
    commands = []

    def run(command, check):
        commands.append(list(map(str, command)))
        if command[0] == "git":
            Path(command[-1]).symlink_to(ROOT)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(PATH.parent if where == "docs" else tmp_path)
    for _ in range(2):  # the second time, the clone is there
        variables: dict = {}
        exec(next(iter(code(STORED).values())).source, variables)
        assert variables["root"].samefile(ROOT) and sys.path[0] == str(variables["root"])
    assert [command[0] for command in commands] == ([] if where == "docs" else ["git", sys.executable])
    if commands:
        assert variables["URL"] in commands[0] and str(variables["root"] / "requirements.txt") in commands[1]

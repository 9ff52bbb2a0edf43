"""Where the tests find the official task files and T5's vocabulary, and where the long ones write what they measure.

The files are in the directory that HIR_SHARED names, else in ../shared, else in the cache, downloaded once with their
sums checked. Tests that need them are skipped where they are missing, and fail under CI. HIR_THOROUGH=1 makes the tests
of reliability long; only then are results written.
"""

import json
import os
from pathlib import Path

import pytest

from support import downloads, task_files
from support.checkpoint_files import T5_SPIECE_SHA256
from support.errors import InputError
from support.files import read_lines, write_lines

ROOT = Path(__file__).resolve().parents[1]
SPIECE = ROOT / "checkpoints" / "t5-mini" / "spiece.model"  # a vocabulary of 2,048 tokens without sentinels
T5_SPIECE_URL = "https://huggingface.co/google-t5/t5-small/resolve/main/spiece.model"
THOROUGH = "HIR_THOROUGH" in os.environ
MISSING = "needs the official task files and T5's vocabulary"


def find_shared() -> Path:
    """A directory with bigbench/ (laid out like BIG-bench's benchmark_tasks) and t5/spiece.model."""
    beside = Path(os.environ.get("HIR_SHARED") or ROOT.parent / "shared")
    if (beside / "bigbench").is_dir():
        return beside
    for task in task_files.DIRECTORY:
        cached = task_files.official(task)
    shared = next(parent.parent for parent in cached.parents if parent.name == "bigbench")
    spiece = shared / "t5" / "spiece.model"
    if not spiece.exists() and not downloads.download(T5_SPIECE_URL, spiece, T5_SPIECE_SHA256):
        raise InputError(f"{T5_SPIECE_URL} does not exist; put T5's vocabulary into {spiece.parent}")
    return shared


try:
    SHARED, reason = find_shared(), ""
except ValueError as error:
    SHARED, reason = None, str(error)
    if os.environ.get("CI"):
        raise RuntimeError(
            f"CI is set, so no test may be skipped, but the official files are missing: {error}"
        ) from error

BIGBENCH, T5_SPIECE = SHARED and SHARED / "bigbench", SHARED and SHARED / "t5" / "spiece.model"
needs_official_files = pytest.mark.skipif(SHARED is None, reason=MISSING)


def pytest_terminal_summary(terminalreporter):
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if MISSING in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(
            f"Skipped {len(skipped)} tests that {MISSING.replace('needs', 'need')}. Get the files by running the tests once "
            f"with a network, or name a directory that holds them in HIR_SHARED. ({reason})"
        )


def write(path: Path, content: object) -> Path:
    """Write bytes as they are, and anything else as JSON; makes the directory. Returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def record(what: str, **measured) -> None:
    """Write a line of results/reliability.jsonl, in place of an earlier one about the same."""
    if THOROUGH:
        path = ROOT / "results" / "reliability.jsonl"
        lines = [line for line in read_lines(path) if line["what"] != what]
        write_lines(path, [*lines, {"what": what, **measured}])

"""Where the tests find the official task files and T5's vocabulary.

In the directory that HIR_SHARED names, else in ../shared, else in the cache, downloaded once with their sums checked.
"""

import hashlib
import os
from pathlib import Path

import bigbench_tasks
import checkpoints_io

SPIECE_SHA256 = "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"


def find_shared() -> Path:
    """A directory with bigbench/ (laid out like BIG-bench's benchmark_tasks) and t5/spiece.model."""
    beside = Path(os.environ.get("HIR_SHARED") or Path(__file__).resolve().parent.parent / "shared")
    if (beside / "bigbench").is_dir():
        return beside
    for task in bigbench_tasks.TASKS:
        cached = bigbench_tasks.official_file(task)
    shared = next(parent.parent for parent in cached.parents if parent.name == "bigbench")
    spiece = shared / "t5" / "spiece.model"
    spiece.parent.mkdir(exist_ok=True)
    checkpoints_io.download("google-t5/t5-small", "spiece.model", spiece.parent)
    if hashlib.sha256(spiece.read_bytes()).hexdigest() != SPIECE_SHA256:
        spiece.unlink()
        raise checkpoints_io.CheckpointError(f"{spiece} is not T5's vocabulary (SHA-256); try again.")
    return shared


SHARED = find_shared()

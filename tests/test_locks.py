"""Locks, and the command on a system that has none."""

import os
import subprocess
import sys

from support.files import lock, write_file
from tests.conftest import ROOT

WITHOUT_FCNTL = """
import sys
sys.modules["fcntl"] = None  # importing it fails, as it does where there is no POSIX
import train
from support.files import lock
assert lock(open(train.__file__)) is None
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_lock_is_held_by_one_and_ends_with_the_file(tmp_path):
    path = tmp_path / "lock"
    with path.open("w") as first, path.open() as second:
        assert lock(first) is True and lock(second) is False
    with path.open() as third:
        assert lock(third) is True


def test_what_another_process_writes_is_left_alone(tmp_path):
    abandoned, in_use = (tmp_path / f".state.pt.{name}" for name in ("abcdefgh", "ijklmnop"))
    abandoned.touch()
    with in_use.open("w") as file:
        lock(file)
        write_file(tmp_path / "state.pt", b"written")
    assert {path.name for path in tmp_path.iterdir()} == {"state.pt", in_use.name}


def test_the_command_runs_without_locks(tmp_path):
    flags = "--task object_counting --iterations 1 --questions 4 --test-size 4 --max-new-tokens 4 --out run"
    command = [sys.executable, "-c", WITHOUT_FCNTL, *flags.split()]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()

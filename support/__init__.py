"""The infrastructure of a run, which a reader of the paper can skip."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

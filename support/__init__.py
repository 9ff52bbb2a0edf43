"""What a run needs and a reader of the paper does not."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

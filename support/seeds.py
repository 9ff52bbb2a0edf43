"""A seed of its own for each use, so that a resumed run draws what the uninterrupted one would have drawn."""

import random

import torch


def derived_seed(*parts: object) -> int:
    """A number that depends on the parts alone."""
    return random.Random("/".join(map(str, parts))).getrandbits(62)


def seeds(seed: int, iteration: int) -> tuple[random.Random, torch.Generator]:
    """What an iteration draws from: for cuts and batches, and for the tokens of its samples."""
    rng = random.Random(derived_seed(seed, iteration, "batches"))
    return rng, torch.Generator().manual_seed(derived_seed(seed, iteration, "samples"))

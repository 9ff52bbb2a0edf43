"""A separate seed for each use, so that a resumed run draws what an uninterrupted one would have drawn."""

import random

import torch


def derived_seed(*parts: object) -> int:
    """A number that depends only on the parts."""
    return random.Random("/".join(map(str, parts))).getrandbits(62)


def seeds(seed: int, iteration: int) -> tuple[random.Random, torch.Generator]:
    """An iteration's random generators: one for cuts and batches, one for the tokens of its samples."""
    rng = random.Random(derived_seed(seed, iteration, "batches"))
    return rng, torch.Generator().manual_seed(derived_seed(seed, iteration, "samples"))

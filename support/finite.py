"""Losses and gradients that are not finite: a step that meets one is left out and shown; ten in an iteration end the run."""

import sys

import torch
from torch import Tensor
from tqdm import tqdm

from support import processes
from support.batches import Pair

MAX_LEFT_OUT = 10  # gradient steps of an iteration


def show(parts: list[tuple[list[list[Pair]], Tensor]], groups: list[list[Pair]]) -> None:
    """Print the outputs of a step that is left out.

    parts: what this process has computed, groups of pairs with the terms of their loss. If all of these are finite, in all
    processes, it is the gradient that is not, and nothing narrower than the whole batch can be named.
    """
    suspects = [group for part, terms in parts if not terms.isfinite().all() for group in part]
    suspects = processes.gather(suspects) or groups
    if processes.rank() == 0:
        lines = [f"    {pair}" for group in suspects for pair in group]
        tqdm.write("\n".join(["Step left out, a loss or gradient is not finite:", *lines]), file=sys.stderr)


def check_weights(optimizer: torch.optim.Optimizer) -> None:
    """Raise FloatingPointError unless all weights, and all that the optimizer keeps, are finite."""
    kept = [p for group in optimizer.param_groups for p in group["params"]]
    kept += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    finite = all(processes.local(tensor).isfinite().all() for tensor in kept)
    if not all(processes.gather([finite])):
        raise FloatingPointError("weights or what the optimizer keeps are not finite: try a smaller --learning-rate")


def check_steps(steps: list[dict[str, float] | None], planned: int, optimizer: torch.optim.Optimizer) -> None:
    """After each step: raise FloatingPointError if MAX_LEFT_OUT or all that are planned were left out, or weights are lost.

    A step that was left out is None.
    """
    if steps[-1] is not None:
        return
    check_weights(optimizer)
    left_out = steps.count(None)
    if left_out == min(MAX_LEFT_OUT, planned):
        raise FloatingPointError(f"{left_out} gradients were not finite: try --dtype float32, or other values")


def mean(steps: list[dict[str, float] | None]) -> dict[str, float]:
    """The mean of each term over the steps; how many were left out, if any were."""
    taken = [terms for terms in steps if terms is not None]
    means = {name: sum(terms[name] for terms in taken) / len(taken) for name in (taken[0] if taken else ())}
    return means | ({"steps_left_out": len(steps) - len(taken)} if len(taken) < len(steps) else {})

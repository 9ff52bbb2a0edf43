"""The replay set: what was sampled since the start, kept within bounds."""

import random
from collections.abc import Callable, Iterable
from typing import Any

from support.batches import group_by


class ReplaySet:
    """D_online of Algorithm 1. Each draw takes as many questions, each with its samples, as the last iteration answered.

    which: "all" keeps every sample, up to `limit` (the oldest are dropped first); "last" keeps the last iteration's.
    rebuild: makes a sample, a dataclass of plain values and an `example`, from the dictionary of its fields.
    """

    def __init__(self, which: str, limit: int, rebuild: Callable[[dict], Any]):
        self.which, self.limit, self.rebuild = which, limit, rebuild
        self.groups: list[list[Any]] = []  # the samples of a question in an iteration, the oldest first
        self.num_latest = 0  # how many of these groups are from the last iteration; set by `append`

    def append(self, samples: Iterable[Any]) -> None:
        """Add the samples of an iteration."""
        latest = group_by(samples, key=lambda sample: sample.example.question)
        self.groups = [*self.groups, *latest] if self.which == "all" else latest
        self.num_latest = len(latest)
        total, surplus = sum(map(len, self.groups)), 0
        while total > self.limit and surplus < len(self.groups) - self.num_latest:
            total -= len(self.groups[surplus])
            surplus += 1
        del self.groups[:surplus]

    def draw(self, rng: random.Random) -> list[Any]:
        """The samples of as many questions as the last iteration answered, at random from all that are kept."""
        return [sample for group in rng.sample(self.groups, self.num_latest) for sample in group]

    def state_dict(self) -> dict:
        """Plain values, which can be unpickled without running code."""
        fields = [[vars(sample) | {"example": vars(sample.example)} for sample in group] for group in self.groups]
        return {"groups": fields}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.groups = [[self.rebuild(fields) for fields in group] for group in state["groups"]]

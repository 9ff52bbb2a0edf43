"""What is trained on, and how it is cut into batches: pairs, groups of pairs with one question, rows of token ids."""

import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """An output, or a part of one, with the instruction that it fulfils: learn `tokens[start:]` given `tokens[:start]`."""

    instruction: str
    question: str
    tokens: tuple[int, ...]
    start: int = 0


def make_batches(groups: list[list[Pair]], batch_size: int, rng: random.Random) -> Iterator[list[list[Pair]]]:
    """Groups in random order, in batches of about `batch_size` pairs, of similar length so that little is padded."""
    if not groups:
        return
    groups = rng.sample(groups, len(groups))
    window = 16 * batch_size
    groups = [g for chunk in chunks(groups, window) for g in sorted(chunk, key=lambda group: len(group[0].question))]
    batches: list[list[list[Pair]]] = [[]]
    for group in groups:
        if batches[-1] and sizes([*batches[-1], group])[1] > batch_size:
            batches.append([])
        batches[-1].append(group)
    yield from rng.sample(batches, len(batches))


def group_by(pairs: Iterable[Pair], key: Callable[[Pair], Hashable]) -> list[list[Pair]]:
    """Pairs of one key together; groups in the order in which their keys first come."""
    groups: dict[Hashable, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(key(pair), []).append(pair)
    return list(groups.values())


def sizes(groups: list[list[Pair]]) -> tuple[int, int]:
    """How many tokens these pairs teach, and how many pairs there are."""
    return sum(len(p.tokens) - p.start for group in groups for p in group), sum(map(len, groups))


def chunks(items: list, size: int) -> Iterator[list]:
    """The items, `size` at a time."""
    return (items[i : i + size] for i in range(0, len(items), size))


def pad_rows(rows: list[Sequence[int]], filler: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of ids, filled up to one length, and the mask that tells ids from filler: (B, S) and (B, S)."""
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])
    mask = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
    return ids.to(device), mask.to(device)


def until(last: int, tokens: list[int]) -> tuple[int, ...]:
    """The tokens up to and including the first that equals `last`; all of them if none does."""
    return tuple(tokens[: tokens.index(last) + 1] if last in tokens else tokens)

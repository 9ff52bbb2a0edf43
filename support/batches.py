"""Training examples, how they are cut into batches, and how a batch is laid out in memory.

Letters in shapes: G groups, K contexts of a group, R outputs (rows of the decoder), S source length, T output length,
P examples, M tokens to be learned, C tokens compared by Eq. 4.
"""

import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from support import processes


@dataclass(frozen=True)
class TrainingExample:
    """An output, or a part of one, with the instruction that it fulfills.

    `output[start:]` is learned given instruction, question and `output[:start]`. Eq. 4 compares `output[compared:]`, by
    default the same tokens. `encoder_prefix` holds tokens that the encoder reads after the question.
    """

    instruction: str
    question: str
    output: tuple[int, ...]
    start: int = 0
    compared: int = -1
    encoder_prefix: tuple[int, ...] = ()

    def __post_init__(self):
        if self.compared < 0:
            object.__setattr__(self, "compared", self.start)

    @property
    def context(self) -> tuple[str, str, tuple[int, ...]]:
        """What the encoder reads: see `encode_source`."""
        return self.instruction, self.question, self.encoder_prefix


Group = list[TrainingExample]  # with the same question and encoder prefix, which are encoded once for all


# --- Batches ----------------------------------------------------------------------------------------------------------


def make_batches(examples: list[TrainingExample], batch_size: int, rng: random.Random) -> Iterable[list[Group]]:
    """Groups in random order, in batches of about `batch_size` examples: an epoch, with a progress bar.

    Only the groups of a few batches at a time are sorted by shape: little is padded, and every epoch mixes its questions
    differently.
    """
    groups = make_groups(examples)
    batches: list[list[Group]] = []
    for window in cut(rng.sample(groups, len(groups)), len, 4 * batch_size):
        batches += cut(sorted(window, key=shape), len, batch_size)
    return tqdm(rng.sample(batches, len(batches)), "training", unit=" steps", leave=False, disable=silent())


def make_groups(examples: Iterable[TrainingExample]) -> list[Group]:
    """The examples by question and encoder prefix."""
    return group_by(examples, key=attrgetter("question", "encoder_prefix"))


def shape(group: Group) -> tuple[int, int]:
    """What the groups of a batch should have in common: the number of outputs, then the approximate source length."""
    return len(longest_outputs(group)), len(group[0].question) + len(group[0].encoder_prefix)


def cut(items: Iterable[Any], size: Callable[[Any], int], most: int) -> list[list[Any]]:
    """Runs of consecutive items whose sizes add up to at most `most`; a larger item is a run by itself."""
    runs: list[list[Any]] = []
    total = most
    for item in items:
        if not runs or total + size(item) > most:
            runs.append([])
            total = 0
        runs[-1].append(item)
        total += size(item)
    return runs


def group_by(items: Iterable[Any], key: Callable[[Any], Hashable]) -> list[list[Any]]:
    """Items with the same key together; groups in the order in which their keys first occur."""
    groups: dict[Hashable, list[Any]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def count(groups: list[Group]) -> tuple[int, int]:
    """How many tokens these examples teach, and how many examples there are."""
    return sum(len(e.output) - e.start for group in groups for e in group), sum(map(len, groups))


def pad(rows: list[Sequence[int]], filler: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of ids, padded to one length, and the mask, True at ids and False at padding: (B, S) and (B, S)."""
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])
    mask = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
    return ids.to(device), mask.to(device)


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """The model without dropout and, if it is split over processes, gathered in each of them."""
    was_training = model.training
    model.eval()
    try:
        with processes.unsharded(model), model.autocast():
            yield
    finally:
        model.train(was_training)


def in_batches(model: Any, function: Callable[[list[int]], list], lengths: list[int], batch_size: int) -> list:
    """Call `function` on batches of indices, those of similar length together; results in the order of the indices.

    The model is in evaluation mode meanwhile. Each process takes its share of the indices; all get all results.
    """
    mine = processes.shard(sorted(range(len(lengths)), key=lengths.__getitem__))
    results: list[tuple[int, Any]] = []
    with evaluation_mode(model), tqdm(total=len(mine), desc="sampling", leave=False, disable=silent()) as bar:
        for i in range(0, len(mine), batch_size):
            batch = mine[i : i + batch_size]
            results += zip(batch, function(batch), strict=True)
            bar.update(len(batch))
    by_index = dict(processes.gather(results))
    return [by_index[i] for i in range(len(lengths))]


def silent() -> bool | None:
    """For tqdm's `disable`: True in all processes but the first; None shows a bar if there is a terminal."""
    return True if processes.rank() > 0 else None


# --- A batch in memory ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Outputs, the contexts (sources) under which they are scored, and which of their tokens count in which term.

    The outputs of a group are scored under the same K contexts, and a context is encoded once. The decoder reads from
    left to right, so equal examples, and parts of one output, share a pass through it. Logits are computed for M tokens,
    each under its example's own context, then for those that Eq. 4 compares under the other contexts.
    """

    input_ids: Tensor  # (K G, S): the first context of every group, then the second of every group, ...
    attention_mask: Tensor  # (K G, S)
    decoder_input_ids: Tensor  # (K R, T)
    position: Tensor  # (M + ...,), where in the flattened (K R T,) decoder states each token is predicted
    labels: Tensor  # (M + ...,), the tokens
    num_learned: int  # M
    compared: Tensor  # (C,), the indices of the tokens that Eq. 4 compares
    cell: Tensor  # (C,), the flattened (E, K) cell to which each of them belongs
    own: Tensor  # (E,), the index of an example's own context among the K
    num_contexts: int  # K

    def pair_log_probs(self, log_probs: Tensor) -> Tensor:
        """Eq. 4's P_ik, the mean over each example's compared tokens under each context: (M + ..., V) -> (E, K)."""
        values = log_probs.gather(-1, self.labels[:, None]).squeeze(-1)[self.compared]  # (C,)
        num_cells = len(self.own) * self.num_contexts
        total = values.new_zeros(num_cells).index_add(0, self.cell, values)
        return (total / torch.bincount(self.cell, minlength=num_cells)).view(-1, self.num_contexts)


def forward_tokens(
    model: Any, tokenizer: Any, prompt: Callable[[str, str], str], groups: list[Group], compare: Sequence[str] | str
) -> tuple[Batch, Tensor]:
    """Lay out a batch and pass it through encoder and decoder once.

    prompt: instruction and question -> source text. compare: see `lay_out`. Returns the batch and the hidden states
    (M + ..., D) that predict its tokens.
    """
    batch = lay_out(model, tokenizer, prompt, groups, compare)
    encoder_hidden_states = model.encode(batch.input_ids, batch.attention_mask)  # (K G, S, D)
    hidden = model.decode(batch.decoder_input_ids, encoder_hidden_states, batch.attention_mask)  # (K R, T, D)
    return batch, hidden.flatten(0, 1)[batch.position]


def encode_source(
    tokenizer: Any, prompt: Callable[[str, str], str], instruction: str, question: str, prefix: tuple[int, ...] = ()
) -> list[int]:
    """The encoder's input: instruction and question and, before the end, the tokens that precede a sub-output."""
    *tokens, end = tokenizer.encode(prompt(instruction, question))
    return [*tokens, *prefix, end]


def lay_out(
    model: Any, tokenizer: Any, prompt: Callable[[str, str], str], groups: list[Group], compare: Sequence[str] | str
) -> Batch:
    """Lay out examples, grouped by source, as tensors.

    compare: the instructions under which every output is scored; or "batch": under all contexts of the batch; or "none":
    each under its own context only.
    """
    groups, contexts = _contexts(groups, compare)  # K rows of G contexts
    outputs, filler, device = [longest_outputs(group) for group in groups], tokenizer.pad_token_id, model.device
    num_outputs = max(map(len, outputs))
    # Groups are padded to one size with empty outputs.
    rows = [output for group in outputs for output in group + [()] * (num_outputs - len(group))]
    decoder_input_ids = model.shift_right(pad(rows, filler, device)[0]).repeat(len(contexts), 1)  # (K R, T)
    states = torch.arange(decoder_input_ids.numel()).view(len(contexts), len(groups), num_outputs, -1)
    learned, others, own = _targets(groups, contexts, outputs, states.tolist())
    position, labels, cell = torch.tensor(learned + others, device=device).view(-1, 3).unbind(1)
    compared = (cell >= 0).nonzero().flatten()
    targets = (position, labels, len(learned), compared, cell[compared], torch.tensor(own, device=device))
    sources = [encode_source(tokenizer, prompt, *context) for row in contexts for context in row]
    return Batch(*pad(sources, filler, device), decoder_input_ids, *targets, len(contexts))


def _targets(
    groups: list[Group], contexts: list[list[tuple]], outputs: list[list[tuple[int, ...]]], states: list
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]], list[int]]:
    """The tokens to be learned, those that Eq. 4 compares in other contexts, and each example's own context.

    A token is (position, label, cell), with cell -1 where Eq. 4 does not compare. states: the position of each decoder
    state, by context, group, output and time.
    """
    learned, others, own = [], [], []
    for g, group in enumerate(groups):
        columns = [row[g] for row in contexts]
        for e in group:
            n = next(n for n, output in enumerate(outputs[g]) if output[: len(e.output)] == e.output)
            own.append(columns.index(e.context))
            for k in range(len(columns)):
                at, cell = states[k][g][n], (len(own) - 1) * len(columns) + k
                tokens = [(at[t], e.output[t], cell) for t in range(e.compared, len(e.output))]
                if k == own[-1]:
                    learned += [(at[t], e.output[t], -1) for t in range(e.start, e.compared)] + tokens
                else:
                    others += tokens
    return learned, others, own


def _contexts(groups: list[Group], compare: Sequence[str] | str) -> tuple[list[Group], list[list[tuple]]]:
    """The groups as they are to be scored, and for each k the k-th context (instruction, question, prefix) of every group."""
    examples = [example for group in groups for example in group]
    if compare == "none":
        groups = group_by(examples, key=attrgetter("context"))
        return groups, [[group[0].context for group in groups]]
    if compare == "batch":
        return [examples], [[context] for context in dict.fromkeys(example.context for example in examples)]
    return groups, [[(p, *group[0].context[1:]) for group in groups] for p in compare]


def longest_outputs(examples: Group) -> list[tuple[int, ...]]:
    """The distinct outputs that are not a prefix of another."""
    longest: list[tuple[int, ...]] = []
    for output in sorted(dict.fromkeys(e.output for e in examples), key=len, reverse=True):
        if all(output != longer[: len(output)] for longer in longest):
            longest.append(output)
    return longest


def up_to(last: int, tokens: list[int]) -> tuple[int, ...]:
    """The tokens up to and including the first that equals `last`; all of them if none does."""
    return tuple(tokens[: tokens.index(last) + 1] if last in tokens else tokens)

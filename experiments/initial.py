"""The initial weights of the bundled models: a T5 with hand-made attention, which can look things up from the first step.

The tasks' answers are found by looking up: who "has a red ball", what "is the leftmost". From T5's own initialization,
such a small model stays at chance for thousands of steps, because it must learn all at once that equal words match, that
the word to fetch is a little behind a match, and how to write down what was fetched. So all three are built in, in random
directions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model_t5 import T5, Attention, T5Config

SIZES = {
    "mini": {"d_model": 128, "d_kv": 16, "num_heads": 12, "d_ff": 384, "num_layers": 5, "num_decoder_layers": 3},
    "nano": {"d_model": 64, "d_kv": 8, "num_heads": 12, "d_ff": 192, "num_layers": 4, "num_decoder_layers": 3},
}
# The distances of the words that each slot records, as T5's buckets: 1 is the word before, 17 the word after it and, in a
# decoder, which has none after it, 0 the word itself.
SLOTS = {"encoder": ((1,), (2, 3), (4, 5), (17,)), "decoder": ((1,), (2, 3), (4, 5), (0,))}
# What each of the other heads looks for: a slot by its number, an equal word, an equal context.
TARGETS = {
    "SelfAttention": (0, 1, 2, "context", "context", "context", "word", "before"),
    "EncDecAttention": (0, 0, 0, 0, 1, 1, 2, 2, "word", "word", "word", "word"),
}
NEAR_SCORE, MATCH_SCORE = 6.0, 10.0  # scores, before the softmax, of a recorded distance and of an equal word


def initial_model(size: str, vocab_size: int, seed: int) -> T5:
    """A T5 of this size, with gated GELU and tied embeddings.

    The first half of a hidden state is the word itself; the second half has four slots, in which the first four heads of
    every layer record the words around it (SLOTS). The other heads (TARGETS) compare the current word with a slot of
    other positions, and so attend to what is a little behind an equal word; or with the word there; or with that word in
    its context; or they compare the preceding word with the word there. What a head fetches is added as the word that it
    was. All weights are then trained as usual.
    """
    torch.manual_seed(seed)
    how = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": True, "dropout_rate": 0.0}
    config = T5Config(vocab_size=vocab_size, **how, **SIZES[size])
    model, half = T5(config), config.d_model // 2
    slots = F.pad(torch.eye(half), (half, 0)).split(config.d_kv)  # four, each (d_kv, D)
    recorded = [random_projection(config.d_kv, half) for _ in slots]
    fetched = random_projection(half, half).split(config.d_kv)
    sharpness = (MATCH_SCORE / (2 * config.d_kv)) ** 0.5  # the word half of a normalized state has a mean square of 2
    with torch.no_grad():
        model.shared.weight[:, half:] *= 0.05
        for name, attention in model.named_modules():
            if not isinstance(attention, Attention):
                continue
            stack, *_, kind = name.split(".")
            heads = []  # of queries, keys, values and output, each (d_kv, D)
            if kind == "SelfAttention":
                heads = [(0 * slot, 0 * slot, word, slot) for word, slot in zip(recorded, slots, strict=True)]
            for i, target in enumerate(TARGETS[kind]):
                query, key = query_and_key(target, recorded, slots)
                heads.append((sharpness * query, sharpness * key, fetched[i % 4], fetched[i % 4]))
            q, k, v, o = (torch.cat(part) for part in zip(*heads, strict=True))
            for linear, weight in ((attention.q, q), (attention.k, k), (attention.v, v), (attention.o, o.T)):
                linear.weight.copy_(weight + 0.02 * torch.randn_like(weight))
            if hasattr(attention, "relative_attention_bias"):
                attention.relative_attention_bias.weight.copy_(position_scores(stack, config))
    return model


def random_projection(rows: int, half: int) -> Tensor:
    """Random orthonormal directions in the word half of a hidden state: (rows, D)."""
    return F.pad(torch.nn.init.orthogonal_(torch.empty(rows, half)), (0, half))


def query_and_key(target: int | str, recorded: list[Tensor], slots: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The query and key projections, each (d_kv, D), of a head that looks for this target."""
    if target == "before":  # the word that the first slot of the current position records
        return slots[0], recorded[0]
    if target not in ("word", "context"):
        return recorded[target], slots[target]
    d_kv, width = slots[0].shape
    equal = random_projection(d_kv, width // 2)
    if target == "context":
        turned = [torch.nn.init.orthogonal_(torch.empty(d_kv, d_kv)) @ slot for slot in slots[:3]]
        equal = 0.7 * sum(turned, equal)
    return equal, equal


def position_scores(stack: str, config: T5Config) -> Tensor:
    """The relative position biases (buckets, heads): recording heads see their distances, matching heads not themselves."""
    scores = torch.zeros(config.relative_attention_num_buckets, config.num_heads)
    for head, distances in enumerate(SLOTS[stack]):
        scores[list(distances), head] = NEAR_SCORE
    for head, target in enumerate(TARGETS["SelfAttention"], start=len(SLOTS[stack])):
        if stack == "encoder" and target in ("word", "context"):
            scores[0, head] = -MATCH_SCORE
    return scores

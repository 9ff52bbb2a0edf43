"""T5 (Raffel et al., JMLR 2020) in plain PyTorch: configuration, layers, key/value cache, model, checkpoints.

It covers the original T5 (ReLU, one matrix for embedding and output) and v1.1, which is FLAN-T5's (gated GELU, two).
Parameters have the names of the Hugging Face hub's files, so that loading is copying.
Letters in shapes: B batch, S source length, T target length, D model width, H heads, d width of a head, V vocabulary;
N targets per source, and R = B N rows of targets.
"""

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from support import checkpoint_files
from support.checkpoint_files import CheckpointError
from support.tokenizer_t5 import Tokenizer

# Added to the score of what must not be seen. Finite, within the range of bfloat16: a row with nothing to see gets a
# uniform mixture instead of NaN.
MASKED = -1e30


# -------------------------------------------------------------------------------------------------------- configuration


@dataclass
class T5Config:
    """The architecture, with the names of a Hugging Face `config.json`; the defaults are T5-small."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = None  # as many as num_layers
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"  # or "gated-gelu"
    tie_word_embeddings: bool = True  # one matrix for embedding and output
    scale_decoder_outputs: bool = None  # by 1/sqrt(D); as tie_word_embeddings, which in older files stands for both
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0

    def __post_init__(self):
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        if self.scale_decoder_outputs is None:
            self.scale_decoder_outputs = self.tie_word_embeddings
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), field.type
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f"{field.name} is {value!r}, not of type {kind.__name__}")
            may_be_zero, limit = field.name.endswith(("_id", "_rate")), 1e3 if "layers" in field.name else 1e6
            if kind in (int, float) and not (0 < value < limit or (may_be_zero and value == 0)):
                raise ValueError(f"{field.name} is {value!r}, out of range")
        if self.feed_forward_proj not in ("relu", "gated-gelu"):
            raise ValueError(f"feed_forward_proj is {self.feed_forward_proj!r}, not 'relu' or 'gated-gelu'")
        for name, limit in (("decoder_start_token_id", self.vocab_size), ("dropout_rate", 1)):
            if not getattr(self, name) < limit:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not below {limit}")
        if not 4 <= self.relative_attention_num_buckets < 2 * self.relative_attention_max_distance:
            raise ValueError("relative_attention_num_buckets is not between 4 and 2 relative_attention_max_distance")


# --------------------------------------------------------------------------------------------------------------- layers


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2)) * weight: layer normalisation without mean and bias."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.epsilon = config.layer_norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        variance = x.float().square().mean(-1, keepdim=True)  # squares and their sum would lose too much in bfloat16
        return self.weight * (x * torch.rsqrt(variance + self.epsilon)).to(self.weight.dtype)


def position_bucket(distance: Tensor, bidirectional: bool, num_buckets: int, max_distance: int) -> Tensor:
    """Sort distances (key position - query position) into buckets: one each for the near ones, then ever wider ones.

    The first half of the buckets hold one distance each, the others grow logarithmically up to max_distance, and the
    last takes all beyond. An encoder looks both ways, with half of the buckets for each side; a decoder looks back.
    """
    side = 0
    if bidirectional:
        num_buckets //= 2
        side = (distance > 0).long() * num_buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    near = num_buckets // 2
    # from 0 at `near` to 1 at max_distance
    growth = torch.log(distance.clamp(min=1).float() / near) / math.log(max_distance / near)
    far = (near + (growth * (num_buckets - near)).long()).clamp(max=num_buckets - 1)
    return side + torch.where(distance < near, distance, far)


class Dropout(nn.Dropout):
    """nn.Dropout; on a CPU each 64 random bits decide about four values, which takes a third to half of the time."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)"""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = bits[: x.numel()].view(x.shape) >= int(self.p * 2**16) - 2**15
        return x * (keep / (1 - self.p)).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention. Nothing divides the scores by sqrt(d): T5 starts with queries that much smaller."""

    def __init__(self, config: T5Config, has_position_bias: bool = False):
        super().__init__()
        width = config.num_heads * config.d_kv
        self.q = nn.Linear(config.d_model, width, bias=False)
        self.k = nn.Linear(config.d_model, width, bias=False)
        self.v = nn.Linear(config.d_model, width, bias=False)
        self.o = nn.Linear(width, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout_rate)
        self.d_kv = config.d_kv
        if has_position_bias:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, H d) -> (B, H, T, d)"""
        return x.unflatten(-1, (-1, self.d_kv)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What can be looked at: x (B, S, D) -> keys and values, each (B, H, S, d)."""
        return self.split_heads(self.k(x)), self.split_heads(self.v(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """x (B, T, D) looks at keys and values (B, H, S, d); bias broadcasts to (B, H, T, S) -> (B, T, D).

        While the bias learns it is written out, as scaled_dot_product_attention has no fast path for that: on a CPU it
        takes twice as long in bfloat16, and 1.2 times in float32.
        """
        queries = self.split_heads(self.q(x))  # (B, H, T, d)
        bias = bias.to(queries.dtype)
        if torch.is_grad_enabled():
            weights = torch.softmax(queries @ keys.transpose(-1, -2) + bias, dim=-1)  # (B, H, T, S)
            mixed = self.dropout(weights) @ values
        else:
            dropout = self.dropout.p * self.training
            mixed = F.scaled_dot_product_attention(queries, keys, values, bias, dropout, scale=1.0)
        return self.o(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """wo(relu(wi x)), or gated: wo(gelu(wi_0 x) * wi_1 x)."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.gated = config.feed_forward_proj == "gated-gelu"
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            setattr(self, name, nn.Linear(config.d_model, config.d_ff, bias=False))
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        hidden = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x) if self.gated else F.relu(self.wi(x))
        return self.wo(self.dropout(hidden))


class Block(nn.Module):
    """Self-attention, in a decoder cross-attention, feed-forward: each x + dropout(f(norm(x)))."""

    def __init__(self, config: T5Config, is_decoder: bool, has_position_bias: bool):
        super().__init__()
        parts = [("SelfAttention", Attention(config, has_position_bias))]
        if is_decoder:
            parts.append(("EncDecAttention", Attention(config)))
        parts.append(("DenseReluDense", FeedForward(config)))
        self.layer = nn.ModuleList(nn.ModuleDict({name: part, "layer_norm": RMSNorm(config)}) for name, part in parts)
        self.dropout = Dropout(config.dropout_rate)

    def forward(self, x, bias, memory=None, memory_bias=None, cache=None, position=0) -> Tensor:
        """x (R, T, D) -> (R, T, D). A decoder reads memory (B, S, D) or, given its LayerCache, what is stored there."""
        layer = self.layer[0]
        attention, h = layer["SelfAttention"], layer["layer_norm"](x)
        keys, values = attention.keys_values(h)
        if cache is not None:
            keys, values = cache.append(keys, values, position)
        x = x + self.dropout(attention(h, keys, values, bias))

        if len(self.layer) == 3:
            layer = self.layer[1]
            attention, h = layer["EncDecAttention"], layer["layer_norm"](x)
            keys, values = attention.keys_values(memory) if cache is None else (cache.cross_keys, cache.cross_values)
            # The N targets of a source look at the same keys, as one long target would: (R, T, D) as (B, N T, D).
            queries = h.reshape(keys.size(0), -1, h.size(-1))
            x = x + self.dropout(attention(queries, keys, values, memory_bias).view_as(h))

        layer = self.layer[-1]
        return x + self.dropout(layer["DenseReluDense"](layer["layer_norm"](x)))


class Stack(nn.Module):
    """The encoder, or the decoder. The first block's table of position biases serves all blocks."""

    def __init__(self, config: T5Config, is_decoder: bool):
        super().__init__()
        self.config, self.is_decoder = config, is_decoder
        depth = config.num_decoder_layers if is_decoder else config.num_layers
        self.block = nn.ModuleList(Block(config, is_decoder, has_position_bias=i == 0) for i in range(depth))
        self.final_layer_norm = RMSNorm(config)
        self.dropout = Dropout(config.dropout_rate)

    def position_bias(self, length: int) -> Tensor:
        """(1, H, length, length); in a decoder the future is masked."""
        table = self.block[0].layer[0]["SelfAttention"].relative_attention_bias
        position = torch.arange(length, device=table.weight.device)
        distance = position[None, :] - position[:, None]  # of a key (column) from a query (row)
        config = self.config
        bucket = position_bucket(
            distance, not self.is_decoder, config.relative_attention_num_buckets, config.relative_attention_max_distance
        )
        bias = table(bucket).permute(2, 0, 1)[None].contiguous()
        return bias.masked_fill(distance > 0, MASKED) if self.is_decoder else bias

    def forward(self, x, bias, memory=None, memory_bias=None, caches=None, position=0, recompute=False) -> Tensor:
        """Embeddings x (R, T, D) -> hidden states (R, T, D). `recompute` is gradient checkpointing, block by block."""
        x = self.dropout(x)
        if torch.is_autocast_enabled(x.device.type):  # once, not in every block
            bias = bias.to(torch.get_autocast_dtype(x.device.type))
        for i, block in enumerate(self.block):
            if recompute:
                x = checkpoint(block, x, bias, memory, memory_bias, use_reentrant=False)
            else:
                x = block(x, bias, memory, memory_bias, caches and caches[i], position)
        return self.dropout(self.final_layer_norm(x))


# ---------------------------------------------------------------------------------------------------------------- cache


@dataclass
class LayerCache:
    """One decoder block's keys and values: of the targets so far, in room for all of them, and of the sources."""

    keys: Tensor  # (R, H, L, d), written in place
    values: Tensor  # (R, H, L, d), written in place
    cross_keys: Tensor  # (B, H, S, d)
    cross_values: Tensor  # (B, H, S, d)

    def append(self, keys: Tensor, values: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Store the keys and values (R, H, 1, d) of one position; return all up to there."""
        end = position + 1
        self.keys[:, :, position:end] = keys
        self.values[:, :, position:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass
class Cache:
    """The state of one generation: what `T5.step` must know of the tokens before. Row r continues source r // N."""

    layers: list[LayerCache]
    self_bias: Tensor  # (1, H, L, L), of which a step takes one row
    cross_bias: Tensor  # (B, 1, 1, S)
    num_samples: int  # N
    position: int = 0  # of the next token

    def rows(self, memory_rows: Tensor) -> Tensor:
        """The rows of all samples of some sources: (K,) -> (K N,)."""
        samples = torch.arange(self.num_samples, device=memory_rows.device)
        return (memory_rows[:, None] * self.num_samples + samples).flatten()

    def keep(self, memory_rows: Tensor) -> "Cache":
        """A cache of these sources (K,) alone, each with all its samples, so that finished ones cost nothing."""
        some, rows = memory_rows, self.rows(memory_rows)
        layers = [
            LayerCache(c.keys[rows], c.values[rows], c.cross_keys[some], c.cross_values[some]) for c in self.layers
        ]
        return dataclasses.replace(self, layers=layers, cross_bias=self.cross_bias[some])


# ---------------------------------------------------------------------------------------------------------------- model


class T5(nn.Module):
    """Encoder, decoder and output layer.

    Set `gradient_checkpointing` to trade a second forward pass through each block for its activations' memory, and
    `compute_dtype` to torch.bfloat16 for mixed precision where `autocast` is entered; the parameters stay as they are.
    """

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.compute_dtype = torch.float32
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config, is_decoder=False)
        self.decoder = Stack(config, is_decoder=True)
        self.lm_head = None if config.tie_word_embeddings else nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.reset_parameters()

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.shared.weight.device

    def autocast(self) -> torch.autocast:
        """The context of one sampling loop or forward pass. It copies weights, so leave it before an optimizer step."""
        return torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """T5's initialisation: normal, with deviations that keep the scale of activations; norms are identities."""
        c = self.config
        deviation = dict.fromkeys(("k", "v", "wi", "wi_0", "wi_1", "relative_attention_bias"), c.d_model**-0.5)
        deviation |= {"q": (c.d_model * c.d_kv) ** -0.5, "o": (c.num_heads * c.d_kv) ** -0.5, "wo": c.d_ff**-0.5}
        deviation |= {"shared": 1.0, "lm_head": 1.0}
        for name, parameter in self.named_parameters():
            layer = name.split(".")[-2]
            if layer in deviation:
                parameter.normal_(std=c.initializer_factor * deviation[layer])
            else:
                parameter.fill_(c.initializer_factor)

    @staticmethod
    def padding_bias(attention_mask: Tensor) -> Tensor:
        """attention_mask (B, S), 0 at padding -> (B, 1, 1, S)"""
        return torch.where(attention_mask == 0, MASKED, 0.0)[:, None, None, :]

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, S), (B, S) -> memory (B, S, D)"""
        # Once for all blocks: (B, H, S, S)
        bias = self.encoder.position_bias(input_ids.size(1)) + self.padding_bias(attention_mask)
        return self.encoder(self.shared(input_ids), bias, recompute=self.gradient_checkpointing and self.training)

    def decode(self, decoder_input_ids: Tensor, memory: Tensor, attention_mask: Tensor) -> Tensor:
        """(R, T), (B, S, D), (B, S) -> hidden states (R, T, D) for `logits`; row r belongs to memory row r // N.

        The N targets of a source share its keys and values, which are computed once and never copied.
        """
        return self.decoder(
            self.shared(decoder_input_ids),
            self.decoder.position_bias(decoder_input_ids.size(1)),
            memory,
            self.padding_bias(attention_mask),
            recompute=self.gradient_checkpointing and self.training,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)"""
        if self.config.scale_decoder_outputs:
            hidden = hidden * self.config.d_model**-0.5
        return F.linear(hidden, self.shared.weight if self.lm_head is None else self.lm_head.weight)

    def shift_right(self, labels: Tensor) -> Tensor:
        """Labels (R, T) -> decoder inputs (R, T): the start token, then labels up to the last; -100 is padding."""
        shifted = labels.roll(1, dims=-1)
        shifted[..., 0] = self.config.decoder_start_token_id
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """(B, S), (B, S), (R, T) with R a multiple of B -> logits (R, T, V): at each position, of the label there."""
        memory = self.encode(input_ids, attention_mask)
        return self.logits(self.decode(self.shift_right(labels), memory, attention_mask))

    def start_cache(self, memory: Tensor, attention_mask: Tensor, num_samples: int, max_length: int) -> Cache:
        """Prepare to generate num_samples targets of up to max_length tokens for each row of memory (B, S, D)."""
        layers = []
        for block in self.decoder.block:
            attention = block.layer[1]["EncDecAttention"]
            # Every step reads them, which is faster if the rows of a head lie together.
            cross_keys, cross_values = (x.contiguous() for x in attention.keys_values(memory))
            batch, heads, _, width = cross_keys.shape
            room = (batch * num_samples, heads, max_length, width)
            layers.append(LayerCache(cross_keys.new_empty(room), cross_keys.new_empty(room), cross_keys, cross_values))
        return Cache(layers, self.decoder.position_bias(max_length), self.padding_bias(attention_mask), num_samples)

    def step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """The next token of each row (R,), the first being the start token -> logits (R, V) of the one after."""
        position = cache.position
        if position >= cache.self_bias.size(-1):
            raise IndexError(f"the cache has room for {position} tokens")
        bias = cache.self_bias[:, :, position : position + 1, : position + 1]
        hidden = self.decoder(self.shared(tokens[:, None]), bias, None, cache.cross_bias, cache.layers, position)
        cache.position = position + 1
        return self.logits(hidden[:, 0])


# ---------------------------------------------------------------------------------------------------------- checkpoints


def load_checkpoint(path_or_name: str | os.PathLike) -> tuple[T5, Tokenizer]:
    """A float32 model in evaluation mode and its tokenizer, from a directory or by the model's name on the hub."""
    directory = checkpoint_files.find_checkpoint(path_or_name)
    config = _read_config(directory / "config.json")
    tokenizer = Tokenizer.load(directory)
    tokenizer.check_fit(config, directory)
    tensors = checkpoint_files.read_tensors(directory)
    _drop_copies(tensors, config, directory)
    with torch.device("meta"):  # shapes alone: no memory is taken on the word of config.json
        model = T5(config)
    checkpoint_files.check_fit(tensors, dict(model.named_parameters()), directory)
    model.to_empty(device="cpu")
    checkpoint_files.copy_tensors(tensors, dict(model.named_parameters()), directory)
    return model.eval(), tokenizer


def _read_config(path: Path) -> T5Config:
    values = checkpoint_files.read_json(path)
    for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"):
        if values.get(name) is None:
            raise CheckpointError(f"{path}: {name} is missing; a T5 checkpoint has it.")
    known = {field.name: values.get(field.name) for field in dataclasses.fields(T5Config)}
    try:
        return T5Config(**{name: value for name, value in known.items() if value is not None})
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}.") from error


def _drop_copies(tensors: dict[str, Tensor], config: T5Config, directory: Path) -> None:
    """Leave each weight once: files may repeat the embedding under the names of those who use it."""
    tensors.pop("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", None)  # in old files

    def same(a: Tensor, b: Tensor) -> bool:
        return a.dtype == b.dtype and torch.equal(a, b)

    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        if name in tensors and not same(copy := tensors.pop(name), tensors.setdefault("shared.weight", copy)):
            raise CheckpointError(f"{directory}: {name} differs from shared.weight, but T5 has a single embedding.")
    if config.tie_word_embeddings and "lm_head.weight" in tensors:
        # transformers 5 writes "tied" for FLAN-T5 too; only the weights show that the output has a matrix of its own.
        if "shared.weight" in tensors and same(tensors["lm_head.weight"], tensors["shared.weight"]):
            del tensors["lm_head.weight"]
        else:
            config.tie_word_embeddings = False


def save_checkpoint(directory: str | os.PathLike, model: T5, tokenizer: Tokenizer, state: dict | None = None) -> None:
    """Write what `load_checkpoint` and transformers read. Each file appears whole or not at all, config.json last.

    state: the model's state_dict, where the model itself has only a share of it.
    """
    (directory := Path(directory)).mkdir(parents=True, exist_ok=True)
    checkpoint_files.write_safetensors(directory / "model.safetensors", state or model.state_dict())
    tokenizer.save(directory)
    kind = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
    checkpoint_files.write_json(directory / "config.json", kind | dataclasses.asdict(model.config))

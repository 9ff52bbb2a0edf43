"""T5 (Raffel et al., JMLR 2020) in plain PyTorch: configuration, layers, model, generation, tokenizer, checkpoints.

It covers the original T5 (ReLU, one matrix for embedding and output) and v1.1, FLAN-T5's architecture (gated GELU, two
matrices). Parameters have the names used in the Hugging Face hub's files, so that loading is copying.
Letters in shapes: B batch, S source length, T target length, D model width, H heads, d width of a head, V vocabulary;
N targets per source, and R = B N rows of targets.
"""

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from support import checkpoint_files, files, hub
from support.fast_dropout import Dropout  # nn.Dropout, faster on a CPU

# Added to the scores of positions that must not be attended to. Finite, within the range of bfloat16: a row with all
# positions masked gets a uniform mixture instead of NaN.
MASKED = -1e30


# --- Configuration ----------------------------------------------------------------------------------------------------


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
    scale_decoder_outputs: bool = None  # by 1/sqrt(D); defaults to tie_word_embeddings, which means both in older files
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0

    def __post_init__(self):
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        if self.scale_decoder_outputs is None:
            self.scale_decoder_outputs = self.tie_word_embeddings


# --- Layers -----------------------------------------------------------------------------------------------------------


def position_bucket(distance: Tensor, bidirectional: bool, config: T5Config) -> Tensor:
    """Sort distances (key position - query position) into buckets: one each for the near ones, then ever wider ones.

    The first half of the buckets hold one distance each, the others grow logarithmically up to the maximal distance, and
    the last takes all beyond. An encoder attends both ways, with half of the buckets for each side; a decoder only backwards.
    """
    num_buckets, max_distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
    if bidirectional:
        num_buckets //= 2
        side, distance = (distance > 0).long() * num_buckets, distance.abs()
    else:
        side, distance = 0, (-distance).clamp(min=0)
    near = num_buckets // 2
    # from 0 at `near` to 1 at max_distance
    growth = torch.log(distance.clamp(min=1).float() / near) / math.log(max_distance / near)
    far = (near + (growth * (num_buckets - near)).long()).clamp(max=num_buckets - 1)
    return side + torch.where(distance < near, distance, far)


class Attention(nn.Module):
    """Multi-head attention: softmax(Q K^T + bias) V. No scaling by 1/sqrt(d): T5 initializes Q that much smaller."""

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
        """What is attended to: (B, S, D) -> keys and values, each (B, H, S, d)."""
        return self.split_heads(self.k(x)), self.split_heads(self.v(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """x (B, T, D) attends to keys and values (B, H, S, d); bias broadcasts to (B, H, T, S) -> (B, T, D).

        Written out: on a CPU, F.scaled_dot_product_attention takes up to twice as long while the bias is trained,
        and is within a few per cent otherwise.
        """
        scores = self.split_heads(self.q(x)) @ keys.transpose(-1, -2)  # (B, H, T, S)
        scores += bias  # in place, which saves a copy
        mixed = self.dropout(scores.softmax(-1)) @ values  # (B, H, T, d)
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
        sublayers = {"SelfAttention": Attention(config, has_position_bias)}
        if is_decoder:
            sublayers["EncDecAttention"] = Attention(config)
        sublayers["DenseReluDense"] = FeedForward(config)
        self.layer = nn.ModuleList(
            nn.ModuleDict({name: sublayer, "layer_norm": nn.RMSNorm(config.d_model, config.layer_norm_epsilon)})
            for name, sublayer in sublayers.items()
        )
        self.dropout = Dropout(config.dropout_rate)

    def forward(self, x, bias, encoder_hidden_states=None, cross_bias=None, cache=None, position=0) -> Tensor:
        """x (R, T, D) -> (R, T, D). A decoder attends to encoder_hidden_states (B, S, D), or to their keys in its cache."""
        layer = self.layer[0]
        attention, h = layer["SelfAttention"], layer["layer_norm"](x)
        keys, values = attention.keys_values(h)
        if cache:
            keys, values = cache.append(keys, values, position)
        x = x + self.dropout(attention(h, keys, values, bias))

        if len(self.layer) == 3:
            layer = self.layer[1]
            attention, h = layer["EncDecAttention"], layer["layer_norm"](x)
            keys, values = cache.cross if cache else attention.keys_values(encoder_hidden_states)
            # The N targets of a source attend to the same keys, as one long target would: (R, T, D) as (B, N T, D).
            queries = h.reshape(keys.size(0), -1, h.size(-1))
            x = x + self.dropout(attention(queries, keys, values, cross_bias).view_as(h))

        layer = self.layer[-1]
        return x + self.dropout(layer["DenseReluDense"](layer["layer_norm"](x)))


class Stack(nn.Module):
    """The encoder, or the decoder. The first block's table of position biases serves all blocks."""

    def __init__(self, config: T5Config, is_decoder: bool):
        super().__init__()
        self.config, self.is_decoder = config, is_decoder
        depth = config.num_decoder_layers if is_decoder else config.num_layers
        self.block = nn.ModuleList(Block(config, is_decoder, has_position_bias=i == 0) for i in range(depth))
        self.final_layer_norm = nn.RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout_rate)

    def position_bias(self, length: int) -> Tensor:
        """(1, H, length, length); in a decoder the future is masked."""
        table = self.block[0].layer[0]["SelfAttention"].relative_attention_bias
        position = torch.arange(length, device=table.weight.device)
        distance = position[None, :] - position[:, None]  # of a key (column) from a query (row)
        bias = table(position_bucket(distance, not self.is_decoder, self.config)).permute(2, 0, 1)[None].contiguous()
        return bias.masked_fill(distance > 0, MASKED) if self.is_decoder else bias

    def forward(self, x, bias, encoder_hidden_states=None, cross_bias=None, caches=None, position=0, recompute=False):
        """Embeddings x (R, T, D) -> hidden states (R, T, D). `recompute` is gradient checkpointing, block by block."""
        x = self.dropout(x)
        if torch.is_autocast_enabled(x.device.type):  # once, not in every block
            bias = bias.to(torch.get_autocast_dtype(x.device.type))
        for i, block in enumerate(self.block):
            if recompute and self.training:
                x = checkpoint(block, x, bias, encoder_hidden_states, cross_bias, use_reentrant=False)
            else:
                x = block(x, bias, encoder_hidden_states, cross_bias, caches and caches[i], position)
        return self.dropout(self.final_layer_norm(x))


# --- Model ------------------------------------------------------------------------------------------------------------


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

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """T5's initialization: normal, with deviations that keep the scale of activations; norms are identities."""
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

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.shared.weight.device

    def autocast(self) -> torch.autocast:
        """The context of one sampling loop or forward pass. It copies weights, so leave it before an optimizer step."""
        return torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32)

    @staticmethod
    def padding_bias(attention_mask: Tensor) -> Tensor:
        """attention_mask (B, S), 0 at padding -> (B, 1, 1, S)"""
        return torch.where(attention_mask == 0, MASKED, 0.0)[:, None, None, :]

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, S), (B, S) -> the encoder's hidden states (B, S, D)"""
        # Once for all blocks: (B, H, S, S)
        bias = self.encoder.position_bias(input_ids.size(1)) + self.padding_bias(attention_mask)
        return self.encoder(self.shared(input_ids), bias, recompute=self.gradient_checkpointing)

    def decode(self, decoder_input_ids: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """(R, T), (B, S, D), (B, S) -> the decoder's hidden states (R, T, D); row r is a target of source r // N.

        The N targets of a source share its keys and values, which are computed once and never copied.
        """
        x, bias = self.shared(decoder_input_ids), self.decoder.position_bias(decoder_input_ids.size(1))
        cross_bias = self.padding_bias(attention_mask)
        return self.decoder(x, bias, encoder_hidden_states, cross_bias, recompute=self.gradient_checkpointing)

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
        encoder_hidden_states = self.encode(input_ids, attention_mask)
        return self.logits(self.decode(self.shift_right(labels), encoder_hidden_states, attention_mask))

    def start_cache(self, encoder_hidden_states: Tensor, attention_mask: Tensor, num_samples: int, max_length: int):
        """(B, S, D), (B, S) -> the Cache in which num_samples targets per source grow to max_length tokens."""
        layers = []
        for block in self.decoder.block:
            keys, values = block.layer[1]["EncDecAttention"].keys_values(encoder_hidden_states)
            cross = (keys.contiguous(), values.contiguous())  # read in every step: faster if a head's rows lie together
            room = (keys.size(0) * num_samples, keys.size(1), max_length, keys.size(3))
            layers.append(LayerCache(keys.new_empty(room), values.new_empty(room), cross))
        return Cache(layers, self.decoder.position_bias(max_length), self.padding_bias(attention_mask), num_samples)

    def step(self, tokens: Tensor, cache: "Cache") -> Tensor:
        """The latest token of each row (R,), at first the start token -> logits (R, V) of the next."""
        position = cache.position
        if position >= cache.self_bias.size(-1):
            raise IndexError(f"the cache is full: it has room for {position} tokens")
        bias = cache.self_bias[:, :, position : position + 1, : position + 1]
        hidden = self.decoder(self.shared(tokens[:, None]), bias, None, cache.cross_bias, cache.layers, position)
        cache.position = position + 1
        return self.logits(hidden[:, 0])


# --- Key/value cache --------------------------------------------------------------------------------------------------


@dataclass
class LayerCache:
    """One decoder block's keys and values: of the targets so far, with room for T tokens, and of the sources."""

    keys: Tensor  # (R, H, T, d), written in place
    values: Tensor  # (R, H, T, d), written in place
    cross: tuple[Tensor, Tensor]  # each (B, H, S, d)

    def append(self, keys: Tensor, values: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Store the keys and values (R, H, 1, d) of one position; return all up to there."""
        end = position + 1
        self.keys[:, :, position:end] = keys
        self.values[:, :, position:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass
class Cache:
    """The state of one generation: all that `T5.step` needs of the preceding tokens. Row r continues source r // N."""

    layers: list[LayerCache]
    self_bias: Tensor  # (1, H, T, T), of which a step takes one row
    cross_bias: Tensor  # (B, 1, 1, S)
    num_samples: int  # N
    position: int = 0  # of the next token

    def rows(self, sources: Tensor) -> Tensor:
        """The rows of all samples of some sources: (K,) -> (K N,)."""
        samples = torch.arange(self.num_samples, device=sources.device)
        return (sources[:, None] * self.num_samples + samples).flatten()

    def keep(self, sources: Tensor) -> "Cache":
        """A cache of only these sources (K,), each with all its samples, so that finished ones cost nothing."""
        rows = self.rows(sources)
        layers = [LayerCache(c.keys[rows], c.values[rows], tuple(x[sources] for x in c.cross)) for c in self.layers]
        return dataclasses.replace(self, layers=layers, cross_bias=self.cross_bias[sources])


# --- Tokenizer --------------------------------------------------------------------------------------------------------


class Tokenizer:
    """T5's SentencePiece vocabulary, followed by the sentinels `<extra_id_99>` ... `<extra_id_0>`.

    The ids are those of T5Tokenizer in transformers 5: a special token written in the text becomes that token, and white
    space around it is dropped. (Only look-alikes such as `＜pad＞` differ: text here, a token there.)
    """

    def __init__(self, spiece_path: str | os.PathLike, extra_ids: int | None = None):
        """extra_ids: the number of sentinels; None: what tokenizer_config.json beside the vocabulary says, else 100."""
        self.pieces = checkpoint_files.read_spiece(Path(spiece_path))
        self.extra_ids = checkpoint_files.read_extra_ids(Path(spiece_path).parent) if extra_ids is None else extra_ids
        # The output layer of published models is padded to a few more entries.
        self.vocab_size = self.pieces.get_piece_size() + self.extra_ids
        self.pad_token_id, self.eos_token_id = self.pieces.pad_id(), self.pieces.eos_id()
        self.without_text = {self.pad_token_id, self.eos_token_id, self.pieces.unk_id()}
        self.special = {self.pieces.id_to_piece(i): i for i in self.without_text}
        self.special |= {f"<extra_id_{i}>": self.vocab_size - 1 - i for i in range(self.extra_ids)}
        self.special_pattern = re.compile(f"({'|'.join(map(re.escape, self.special))})")

    def encode(self, text: str) -> list[int]:
        """Token ids, ending in `</s>`."""
        ids = []
        for i, part in enumerate(self.special_pattern.split(text)):  # special tokens are at the odd places
            # U+0085 is white space to transformers, and the only such character that SentencePiece takes for text.
            ids += [self.special[part]] if i % 2 else self.pieces.encode(part.replace("\x85", " "))
        return [*ids, self.eos_token_id]

    def decode(self, ids: list[int]) -> str:
        """The text of any ids; special tokens and ids beyond the vocabulary have none."""
        ids, size = map(int, ids), self.pieces.get_piece_size()
        return self.pieces.decode([i for i in ids if 0 <= i < size and i not in self.without_text])


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def load_checkpoint(path_or_name: str | os.PathLike, tokenizer: str | Path | None = None) -> tuple[T5, Tokenizer]:
    """A float32 model in evaluation mode and its tokenizer, from a directory or by the model's name on the hub.

    tokenizer: the directory or hub name that has the vocabulary, if the checkpoint does not (see `hub.find_vocabulary`).
    Raises InputError, a sentence that names the file and the fault, if anything is wrong with the files.
    """
    directory = hub.find_checkpoint(path_or_name, hub.CHECKPOINT if tokenizer is None else hub.MODEL)
    config = checkpoint_files.read_config(directory / "config.json", T5Config)
    spiece = hub.find_vocabulary(directory, tokenizer)
    tokenizer = Tokenizer(spiece, checkpoint_files.read_extra_ids(directory) if tokenizer is None else None)
    checkpoint_files.check_tokenizer(tokenizer, config, directory)
    tensors = checkpoint_files.read_tensors(directory)
    config.tie_word_embeddings = checkpoint_files.drop_copies(tensors, config.tie_word_embeddings, directory)
    with checkpoint_files.shapes_alone():  # config.json alone must not make us allocate memory
        model = T5(config)
    checkpoint_files.fill(model, tensors, directory)
    return model.eval(), tokenizer


def save_checkpoint(directory: str | os.PathLike, model: T5, tokenizer: Tokenizer, state: dict | None = None) -> None:
    """Write what `load_checkpoint` and transformers read. Each file appears complete or not at all, config.json last.

    state: the model's state_dict, if the model itself holds only a shard of it.
    """
    (directory := Path(directory)).mkdir(parents=True, exist_ok=True)
    checkpoint_files.write_safetensors(directory / "model.safetensors", state or model.state_dict())
    files.write_file(directory / "spiece.model", tokenizer.pieces.serialized_model_proto())
    options = {"tokenizer_class": "T5Tokenizer", "extra_ids": tokenizer.extra_ids}
    files.write_json(directory / "tokenizer_config.json", options)
    kind = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
    files.write_json(directory / "config.json", kind | dataclasses.asdict(model.config))

"""The files of a checkpoint, as the Hugging Face hub serves them: weights, configuration, vocabulary.

A checkpoint is a directory with `config.json`, `spiece.model` and weights in one of four forms (`WEIGHTS`). Files come
from strangers, so each is checked before it is trusted, and any fault becomes an `InputError`. Safetensors files are read
by hand, as the package would be one more to install and checks less: 8 bytes with the size of the header, the header in
JSON, the data.
"""

import dataclasses
import hashlib
import json
import math
import mmap
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from support.errors import InputError, input_errors
from support.files import MAX_TEXT, parse_object, read_file, read_json, write_file

# In order of preference. An index lists the files over which a large checkpoint is split.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_COPIES = 8  # a pickle's tensors may take so many times the size of its file; published ones repeat the embedding
# Of the vocabulary that all original T5 and FLAN-T5 models share: its pieces with their scores, and its spiece.model.
T5_PIECES_SHA256 = "f0413802bca05cd88fc9ead5701a7f2fb8df6cc5b13017f854b29279bee113b6"
T5_SPIECE_SHA256 = "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"
MAX_SPARE = 1000  # rows of the embedding beyond the vocabulary; published models have up to 127

# --- Weights: reading -------------------------------------------------------------------------------------------------


def find_weights(directory: Path) -> Path | None:
    """The file that holds a checkpoint's weights, or the index of those that do; None if there is none."""
    return next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, in the dtypes of the files.

    They are views of memory-mapped files where the format allows: memory is allocated only when they are copied.
    """
    path = find_weights(directory)
    if path is None:
        raise InputError(f"{directory}: holds no weights; one of {', '.join(WEIGHTS)} is needed.")
    if path.suffix != ".json":
        return _read_weights(path)
    weight_map, tensors = read_index(path), {}
    for name in sorted(set(weight_map.values())):
        tensors |= (part := _read_weights(directory / name))
        if stray := sorted({key for key, file in weight_map.items() if file == name} ^ part.keys()):
            where = f"{directory / name} and {path.name}"
            raise InputError(f"{where}: only one of them has the tensor {stray[0]}; fetch both files again.")
    return tensors


def read_index(path: Path) -> dict[str, str]:
    """tensor name -> file name. Only plain names of files beside the index: it must not point outside its directory."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: weight_map is missing or not an object; fetch the file again.")
    for key, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*\.(safetensors|bin)", name):
            raise InputError(f"{path}: {key} is listed under {name!r}, which is no plain name of a weights file.")
    return weight_map


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"{path}: does not exist, though the index lists it; fetch it again.")
    read = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
    with input_errors(f"{path}: is damaged", "fetch the file again.", Exception):  # as damaged files can raise anything
        return read(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Header {name: {dtype, shape, data_offsets}}; the tensors must cover the data from end to end, each byte once."""
    with path.open("rb") as file:
        # Copy-on-write: torch wants writable memory, the file must stay as it is.
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    start = 8 + int.from_bytes(data[:8], "little")
    if start > min(len(data), MAX_TEXT):
        raise ValueError(f"the header has {start - 8} bytes, of {len(data)} in the file")
    header = parse_object(bytes(data[8:start]), path)
    header.pop("__metadata__", None)
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name} is of dtype {entry['dtype']}, not of {', '.join(DTYPES)}")
        (begin, stop), shape, dtype = entry["data_offsets"], entry["shape"], DTYPES[entry["dtype"]]
        count = math.prod(shape)
        if len(shape) > 8 or begin != end or not 0 < count * dtype.itemsize == stop - begin:
            place = f"at {begin} to {stop} of the data, where the next tensor begins at {end}"
            raise ValueError(f"{name} has the shape {shape} {place}")
        tensors[name] = torch.frombuffer(data, dtype=dtype, count=count, offset=start + begin).view(shape)
        end = stop
    if start + end != len(data):
        raise ValueError(f"there are {len(data) - start} bytes of data, of which the tensors take {end}")
    return tensors


def load_pickle(path: Path, check_sums: bool = False) -> Any:
    """What torch.save wrote. weights_only keeps the pickle from running code; but a damaged one can raise any exception."""
    # Files from before torch 1.6 are not zip archives, and cannot be mapped.
    if is_zip := zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:  # torch never compresses
                raise ValueError("its contents are larger than the file")
            if check_sums and (damaged := archive.testzip()):
                raise ValueError(f"the checksum of {damaged} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """A `.bin` file: a pickled dictionary."""
    tensors = load_pickle(path)
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise ValueError("it holds no dictionary of named tensors")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype not in DTYPES.values():
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise ValueError(f"{name} is {kind}, not a dense tensor of {', '.join(DTYPES)}")
    if (total := sum(tensor.nbytes for tensor in tensors.values())) > MAX_COPIES * path.stat().st_size:
        raise ValueError(f"its tensors claim {total} bytes, more than {MAX_COPIES} times the file's")
    return tensors


# --- Weights: from the files to the model -----------------------------------------------------------------------------


def drop_copies(tensors: dict[str, Tensor], tied: bool, directory: Path) -> bool:
    """Keep each weight once: files may repeat the embedding under the names of the modules that use it.

    tied: whether config.json says that the output layer shares the embedding. Returns whether it does.
    """
    tensors.pop("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", None)  # in old files

    def repeats_embedding(name: str) -> bool:
        a, b = tensors[name], tensors.setdefault("shared.weight", tensors[name])
        return a.dtype == b.dtype and torch.equal(a, b)

    for name in tensors.keys() & {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}:
        if not repeats_embedding(name):
            raise InputError(f"{directory}: {name} differs from shared.weight, but T5 has a single embedding.")
        del tensors[name]
    # transformers 5 writes "tied" for FLAN-T5 too; only the weights show that the output has a matrix of its own.
    if tied and "lm_head.weight" in tensors:
        if not repeats_embedding("lm_head.weight"):
            return False
        del tensors["lm_head.weight"]
    return tied


class _ValuesLeftOut(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function in (Tensor.normal_, torch.nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@contextmanager
def shapes_alone() -> Iterator[None]:
    """The parameters of models made in the block have shapes, but no memory and no values.

    To draw values on the meta device, torch would import its compiler, which takes more than a second.
    """
    with torch.device("meta"), _ValuesLeftOut():
        yield


@torch.no_grad()
def fill(model: torch.nn.Module, tensors: dict[str, Tensor], directory: Path) -> None:
    """Give a model on the meta device memory and weights. Checks names and shapes, and that all numbers are finite."""
    shapes = [{name: list(t.shape) for name, t in found} for found in (model.named_parameters(), tensors.items())]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        expected, shape = (found.get(name, "not there") for found in shapes)
        if shape != expected:
            found = f"{name} is {shape} in the weights and {expected} in a model of this config.json"
            raise InputError(f"{directory}: {found}; they belong to different models.")
    model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])
        if not parameter.isfinite().all():
            raise InputError(f"{directory}: {name} holds numbers that are not finite; the weights are damaged.")


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as float32."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligned data can be mapped without a copy
    arrays = (tensor.detach().float().cpu().contiguous().numpy().data.cast("B") for tensor in tensors.values())
    write_file(path, len(text).to_bytes(8, "little"), text, *arrays)


# --- Configuration and vocabulary -------------------------------------------------------------------------------------


def read_config(path: Path, kind: type) -> Any:
    """config.json as an instance of `kind`, which is T5Config; other entries are ignored."""
    values = read_json(path)
    for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"):
        if values.get(name) is None:
            raise InputError(f"{path}: {name} is missing; a T5 checkpoint has it.")
    given = {field.name: values[field.name] for field in dataclasses.fields(kind) if values.get(field.name) is not None}
    config = kind(**given)
    with input_errors(f"{path}: has a bad setting", "fetch the file again, or use another model.", ValueError):
        _check_config(config)
    return config


def _check_config(config: Any) -> None:
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), field.type
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{field.name} is {value!r}, not of type {kind.__name__}")
        may_be_zero, limit = field.name.endswith(("_id", "_rate")), 1e3 if "layers" in field.name else 1e6
        if kind in (int, float) and not (0 < value < limit or (may_be_zero and value == 0)):
            raise ValueError(f"{field.name} is {value!r}, out of range")
    if config.feed_forward_proj not in ("relu", "gated-gelu"):
        raise ValueError(f"feed_forward_proj is {config.feed_forward_proj!r}, not 'relu' or 'gated-gelu'")
    if not (config.dropout_rate < 1 and config.decoder_start_token_id < config.vocab_size):
        raise ValueError("dropout_rate is not below 1, or decoder_start_token_id not below vocab_size")
    if not 4 <= config.relative_attention_num_buckets < 2 * config.relative_attention_max_distance:
        raise ValueError("relative_attention_num_buckets is not between 4 and 2 relative_attention_max_distance")


def read_spiece(path: Path) -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model with the special pieces of T5."""
    data = read_file(path)
    with suppress(RuntimeError, UnicodeDecodeError):
        if data:
            pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
            pieces.id_to_piece(list(range(pieces.get_piece_size())))  # each piece must be text
            if min(pieces.pad_id(), pieces.eos_id(), pieces.unk_id()) >= 0:
                return pieces
    raise InputError(f"{path}: is not a SentencePiece model with <pad>, </s> and <unk>; fetch it again.")


def has_t5_pieces(path: Path) -> bool:
    """Is this a tokenizer.json with exactly T5's own pieces?"""
    tokenizer = read_json(path) if path.is_file() else {}
    with suppress(LookupError, TypeError, ValueError, RecursionError):  # a tokenizer of another kind
        pieces = tokenizer["model"]["vocab"]
        text = "".join(f"{piece} {score:.6f}\n" for piece, score in pieces[:32_000])  # the sentinels follow
        added = any(token["id"] >= len(pieces) for token in tokenizer["added_tokens"])
        return hashlib.sha256(text.encode()).hexdigest() == T5_PIECES_SHA256 and not added
    return False


def read_extra_ids(directory: Path) -> int:
    """How many sentinels a checkpoint's tokenizer has."""
    path = directory / "tokenizer_config.json"  # which the oldest checkpoints lack
    extra_ids = read_json(path).get("extra_ids", 100) if path.is_file() else 100
    if type(extra_ids) is not int or not 0 <= extra_ids <= 10_000:
        raise InputError(f"{path}: extra_ids is {extra_ids!r}, not a number between 0 and 10,000.")
    return extra_ids


def check_tokenizer(tokenizer: Any, config: Any, directory: Path) -> None:
    """Raise InputError unless a Tokenizer and a T5Config agree on token ids."""
    if not 0 <= config.vocab_size - tokenizer.vocab_size <= MAX_SPARE:
        found = f"{tokenizer.vocab_size} tokens, where vocab_size in config.json is {config.vocab_size}"
        raise InputError(f"{directory}: spiece.model and extra_ids make {found}; the two belong to different models.")
    for name in ("pad_token_id", "eos_token_id"):
        ours, theirs = getattr(tokenizer, name), getattr(config, name)
        if ours != theirs:
            raise InputError(f"{directory}: {name} is {ours} in spiece.model and {theirs} in config.json.")

"""The files of a checkpoint, as the Hugging Face hub serves them: finding, downloading, reading, writing.

A checkpoint is a directory with `config.json`, `spiece.model` and weights in one of four forms (`WEIGHTS`). What the
tensors mean is not known here. Files come from strangers, so each is checked before it is believed, and what is wrong
with one becomes a `CheckpointError`: a single sentence with the file, the fault and, where it helps, the remedy.
"""

import fcntl
import hashlib
import json
import math
import mmap
import os
import re
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

# In order of preference. An index lists the files over which a large checkpoint is split.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_TEXT = 20_000_000  # bytes of a header, a configuration or a vocabulary; the largest T5 needs a twentieth
MAX_COPIES = 8  # times the size of its file that a pickle's tensors may take; published ones repeat the embedding


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one sentence that says which file, why, and what to do."""


# -------------------------------------------------------------------------------------------------------------- reading


def read_json(path: Path) -> dict:
    """The JSON object in a file. A key given twice is an error: two readers could take different values."""
    return _parse_object(read_file(path), path)


def read_file(path: Path) -> bytes:
    """The bytes of a small file."""
    try:
        if (size := path.stat().st_size) <= MAX_TEXT:
            return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    raise CheckpointError(f"{path}: has {size} bytes, too many for such a file; fetch it again.")


def _parse_object(data: bytes, path: Path) -> dict:
    def unique(pairs: list) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key appears twice")
        return found

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error}); fetch the file again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__} where an object is expected.")
    return value


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, in the dtypes of the files.

    They are views of memory-mapped files wherever the format allows: memory is taken only as they are copied.
    """
    path = next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{directory}: holds no weights; one of {', '.join(WEIGHTS)} is needed.")
    if path.suffix != ".json":
        return _read_weights(path)
    weight_map = _read_index(path)
    tensors = {}
    for name in sorted(set(weight_map.values())):
        part = _read_weights(directory / name)
        listed = {key for key, file in weight_map.items() if file == name}
        if stray := sorted(listed ^ part.keys()):
            where = "lacks" if stray[0] in listed else f"is not listed in {path.name} as holding"
            raise CheckpointError(f"{directory / name}: {where} the tensor {stray[0]}.")
        tensors |= part
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    """tensor name -> file name. Only plain names of files beside the index: it must not lead out of its directory."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map is missing or no object.")
    for key, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*\.(safetensors|bin)", name):
            raise CheckpointError(f"{path}: {key} is said to be in {name!r}, which is no plain name of a weights file.")
    return weight_map


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: does not exist, though the index lists it; fetch it again.")
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Header size (8 bytes, little endian), JSON header {name: {dtype, shape, data_offsets}}, data.

    The tensors must cover the data from end to end, each byte once.
    """

    def check(holds: bool, problem: str) -> None:
        if not holds:
            raise CheckpointError(f"{path}: {problem}; the file is damaged, fetch it again.")

    size = path.stat().st_size
    check(size >= 8, f"is {size} bytes long, too short for a safetensors file")
    with path.open("rb") as file:
        # Copy-on-write: torch wants writable memory, the file must stay as it is.
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    start = 8 + int.from_bytes(data[:8], "little")
    check(start - 8 <= MAX_TEXT and start <= size, f"says its header has {start - 8} bytes, of {size} in the file")
    header = _parse_object(bytes(data[8:start]), path)
    header.pop("__metadata__", None)

    tensors, end = {}, 0
    try:
        entries = [(*entry["data_offsets"], name, entry["dtype"], entry["shape"]) for name, entry in header.items()]
        entries.sort(key=lambda entry: entry[:2])
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: its header does not describe tensors ({error!r}); fetch it again.") from error
    for entry in entries:
        check(len(entry) == 5, f"{entry[-3]} has no pair of data_offsets")
        begin, stop, name, dtype, shape = entry
        check(isinstance(dtype, str) and dtype in DTYPES, f"{name} has dtype {dtype}, not one of {', '.join(DTYPES)}")
        check(
            isinstance(shape, list)
            and len(shape) <= 8
            and all(type(n) is int and n >= 0 for n in (begin, stop, *shape))
            and 0 not in shape,
            f"{name} has the shape {shape} at the offsets {begin}, {stop}",
        )
        check(begin == end, f"{name} starts at byte {begin} of the data, where {end} is expected")
        check(start + stop <= size, f"{name} ends at byte {stop} of the data, which has {size - start}")
        count = math.prod(shape)
        check(stop - begin == count * DTYPES[dtype].itemsize, f"{name} has {stop - begin} bytes, not those of {shape}")
        tensors[name] = torch.frombuffer(data, dtype=DTYPES[dtype], count=count, offset=start + begin).view(shape)
        end = stop
    check(start + end == size, f"has {size - start} bytes of data, of which its tensors take {end}")
    return tensors


def load_pickle(path: Path, check_sums: bool = False) -> Any:
    """What torch.save wrote. weights_only keeps the pickle from running code; but a damaged one can raise any exception."""
    # Files from before torch 1.6 are no zip archives, and cannot be mapped.
    if is_zip := zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:  # torch never compresses
                raise ValueError("it is larger inside than outside")
            if check_sums and (damaged := archive.testzip()):
                raise ValueError(f"the sum of {damaged} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """A `.bin` file: a pickled dictionary."""
    size = path.stat().st_size
    try:
        tensors = load_pickle(path)
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path}: is damaged or holds more than tensors ({reason}); fetch it again.") from error
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise CheckpointError(f"{path}: holds no dictionary of named tensors.")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype not in DTYPES.values():
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise CheckpointError(f"{path}: {name} is {kind}, not a dense tensor of {', '.join(DTYPES)}.")
    if (total := sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())) > MAX_COPIES * size:
        raise CheckpointError(f"{path}: its tensors claim {total} bytes, and the file has {size}; fetch it again.")
    return tensors


def check_fit(tensors: dict[str, Tensor], parameters: dict[str, Tensor], directory: Path) -> None:
    """Each parameter must have a tensor of its name and shape, and no tensor be left over."""
    for name in sorted(parameters.keys() ^ tensors.keys()):
        problem = "is missing from the weights" if name in parameters else "in the weights has no place in the model"
        raise CheckpointError(f"{directory}: {name} {problem}; weights and config.json belong to different models.")
    for name, parameter in parameters.items():
        shape, expected = list(tensors[name].shape), list(parameter.shape)
        if shape != expected:
            raise CheckpointError(f"{directory}: {name} has the shape {shape}, where config.json asks for {expected}.")


@torch.no_grad()
def copy_tensors(tensors: dict[str, Tensor], parameters: dict[str, Tensor], directory: Path) -> None:
    """Fill each parameter from the tensor of its name. Numbers must be finite."""
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
        if not parameter.isfinite().all():
            raise CheckpointError(f"{directory}: {name} holds numbers that are not finite; the weights are damaged.")


# -------------------------------------------------------------------------------------------------------------- writing


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` when the block ends well, and vanishes when it does not.

    Whenever the machine stops, `path` is the old file or the new one, whole. What a killed process has left beside it
    is cleared away by the next one that writes there.
    """
    for left in path.parent.glob(f".{path.name}.????????"):
        with suppress(OSError), left.open("rb") as file:  # OSError: it is gone, or still being written
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(beside, 0o666 & ~mask)  # temporary files are private, this one is as readable as any
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the new name itself must reach the disk
    finally:
        os.close(directory)


def write_file(path: Path, *chunks: bytes | memoryview) -> None:
    """Write a file in one rename."""
    with replacing(path) as file:
        for chunk in chunks:
            file.write(chunk)


def write_json(path: Path, value: dict) -> None:
    """Write a JSON object, indented, in one rename."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


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


# -------------------------------------------------------------------------------------------------------------- finding


def find_checkpoint(path_or_name: str | os.PathLike) -> Path:
    """The directory of a checkpoint: the one given, or the cached or now downloaded files of that name on the hub."""
    directory = Path(path_or_name)
    if directory.is_dir():
        return directory
    name = os.fspath(path_or_name)
    beside = "/" in name and directory.parent.is_dir()  # then a path was meant
    if beside or not isinstance(path_or_name, str) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise CheckpointError(f"{name}: there is no such directory, and it is not the name of a model on the hub.")
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
    reference = cache / "refs" / "main"
    snapshots = sorted(cache.glob("snapshots/*"))
    if reference.is_file():
        snapshots.insert(0, cache / "snapshots" / reference.read_text().strip())
    for snapshot in snapshots:
        if _is_whole(snapshot):
            return snapshot
    snapshot = cache / "snapshots" / "main"
    try:
        snapshot.mkdir(parents=True, exist_ok=True)
        _download_checkpoint(name, snapshot)
        if not reference.exists():
            reference.parent.mkdir(exist_ok=True)
            write_file(reference, b"main")
    except OSError as error:
        raise CheckpointError(f"{cache}: cannot be written ({error.strerror}); set HF_HOME elsewhere.") from error
    return snapshot


def _is_whole(directory: Path) -> bool:
    if not all((directory / name).is_file() for name in ("config.json", "spiece.model")):
        return False
    weights = next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)
    if weights is None or weights.suffix != ".json":
        return weights is not None
    return all((directory / part).is_file() for part in _read_index(weights).values())


def _download_checkpoint(name: str, directory: Path) -> None:
    for required in ("config.json", "spiece.model"):
        if not download(name, required, directory):
            raise CheckpointError(f"{name}: there is no such directory, and the hub has no {required} of that name.")
    download(name, "tokenizer_config.json", directory)
    weights = next((weights for weights in WEIGHTS if download(name, weights, directory)), None)
    if weights is None:
        raise CheckpointError(f"{name}: the hub has none of {', '.join(WEIGHTS)} for it.")
    if weights.endswith(".json"):
        for part in sorted(set(_read_index(directory / weights).values())):
            if not download(name, part, directory):
                raise CheckpointError(f"{name}: the hub lacks {part}, which {weights} lists.")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections. With the one to a large file the hub states the file's SHA-256 as X-Linked-ETag."""

    sha256 = None

    def redirect_request(self, request, response, code, message, headers, url):
        etag = headers.get("X-Linked-ETag", "").strip('"')
        self.sha256 = etag if re.fullmatch("[0-9a-f]{64}", etag) else self.sha256
        return super().redirect_request(request, response, code, message, headers, url)


def download(name: str, file: str, directory: Path) -> bool:
    """Fetch one file of a model into a directory, unless it is there. False: the hub has no such file."""
    path = directory / file
    if path.is_file():
        return True
    url = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/{name}/resolve/main/{file}"
    redirects, digest = _Redirects(), hashlib.sha256()
    try:
        with urllib.request.build_opener(redirects).open(url, timeout=60) as response, replacing(path) as output:
            length = response.headers["Content-Length"]
            with tqdm(desc=file, total=length and int(length), unit="B", unit_scale=True, leave=False) as bar:
                while block := response.read(1 << 20):
                    digest.update(block)
                    bar.update(output.write(block))
            if length and output.tell() != int(length):
                raise OSError(f"the connection ended after {output.tell()} of {length} bytes")
            if redirects.sha256 not in (None, digest.hexdigest()):
                raise OSError("what came does not have the SHA-256 that the hub states")
        return True
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return False
        problem = error
    except (OSError, HTTPException) as error:
        problem = getattr(error, "reason", error)
    raise CheckpointError(
        f"{name}: there is no such directory, and {url} could not be fetched ({problem}); try again with a network, "
        f"or give a directory that holds the files."
    )

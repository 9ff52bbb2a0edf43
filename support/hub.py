"""Checkpoints by their name on the Hugging Face hub, downloaded once into the Hugging Face cache."""

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from support import REPOSITORY
from support.checkpoint_files import T5_SPIECE_SHA256, WEIGHTS, find_weights, has_t5_pieces, read_index
from support.downloads import download
from support.errors import InputError
from support.files import read_json, write_file
from support.tables import say

# What a directory must have: one file of each group.
MODEL = (("config.json",), WEIGHTS)
VOCABULARY = (("spiece.model",),)
CHECKPOINT = (("config.json",), ("spiece.model", "tokenizer.json"), WEIGHTS)
T5 = "google/flan-t5-small"  # the smallest model with the vocabulary of all T5 and FLAN-T5 models


def local_directory(path_or_name: str | os.PathLike) -> Path | None:
    """The directory of a local checkpoint: the one given, or `model` in the directory of a run; None if there is none.

    A relative path starts at the working directory, or else at this repository, so that it works from anywhere.
    """
    for directory in (Path(path_or_name), REPOSITORY / path_or_name):
        if (directory / "model" / "config.json").is_file():
            return directory / "model"
        if directory.is_dir():
            return directory
    return None


def find_checkpoint(path_or_name: str | os.PathLike, wanted: tuple[tuple[str, ...], ...] = CHECKPOINT) -> Path:
    """The directory of a checkpoint: the one given, or the files of that name on the hub, cached or downloaded."""
    if directory := local_directory(path_or_name):
        return directory
    name = os.fspath(path_or_name)
    beside = "/" in name and Path(name).parent.is_dir()  # then a path was meant
    if beside or not isinstance(path_or_name, str) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise InputError(f"{name}: there is no such directory, and it is not the name of a model on the hub.")
    cache = _cache() / f"models--{name.replace('/', '--')}"
    reference = cache / "refs" / "main"
    newest = [cache / "snapshots" / reference.read_text().strip()] if reference.is_file() else []
    for snapshot in (*newest, *sorted(cache.glob("snapshots/*"))):
        if not _lacking(snapshot, wanted, lambda file, snapshot=snapshot: (snapshot / file).is_file()):
            return snapshot
    snapshot, server = cache / "snapshots" / "main", os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")

    def fetch(file: str) -> bool:
        path = snapshot / file
        return path.is_file() or download(f"{server}/{name}/resolve/main/{file}", path)

    try:
        fetch("tokenizer_config.json")  # which the oldest checkpoints lack
        if missing := _lacking(snapshot, wanted, fetch):
            raise InputError(f"the hub has no {missing} of that name.")
        if not reference.exists():
            reference.parent.mkdir(exist_ok=True)
            write_file(reference, b"main")
    except (OSError, InputError) as error:
        raise InputError(f"{name}: there is no such directory, and {error}") from error
    return snapshot


def find_vocabulary(directory: Path, tokenizer: str | os.PathLike | None = None) -> Path:
    """The spiece.model of a checkpoint, or of `tokenizer`, a directory or a name on the hub.

    transformers 5 writes only a tokenizer.json. If that has T5's own pieces, T5's spiece.model is used instead: from the
    cache or, if there is none, from the hub.
    """
    directory = directory if tokenizer is None else find_checkpoint(tokenizer, VOCABULARY)
    spiece = directory / "spiece.model"
    if spiece.is_file():
        return spiece
    remedy = "name a directory or a hub model that has the vocabulary with --tokenizer"
    if not has_t5_pieces(directory / "tokenizer.json"):
        raise InputError(f"{directory}: holds neither spiece.model nor T5's own pieces in tokenizer.json; {remedy}.")
    cached = [path for path in sorted(_cache().glob("models--*/snapshots/*/spiece.model")) if path.is_file()]
    same = (path for path in cached if hashlib.sha256(path.read_bytes()).hexdigest() == T5_SPIECE_SHA256)
    try:
        spiece = next(same, None) or find_checkpoint(T5, VOCABULARY) / "spiece.model"
    except InputError as error:
        raise InputError(f"{directory}: holds T5's own pieces, but no spiece.model; {remedy} ({error})") from error
    say(f"{directory} holds T5's own pieces, but no spiece.model: using {spiece}")
    return spiece


def _cache() -> Path:
    """Where the Hugging Face library keeps its downloads."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def _lacking(directory: Path, wanted: tuple[tuple[str, ...], ...], fetch: Callable[[str], bool]) -> str:
    """What is wanted in a directory and cannot be fetched into it, one file of each group; empty if nothing is."""
    if missing := next((group for group in wanted if not any(map(fetch, group))), None):
        return " or ".join(missing)
    weights = find_weights(directory) if WEIGHTS in wanted else None
    parts = sorted(set(read_index(weights).values())) if weights and weights.suffix == ".json" else []
    return next((part for part in parts if not fetch(part)), "")


def model_width(checkpoint: str) -> int | None:
    """`d_model` of a checkpoint on this machine. None if it is elsewhere or damaged: `load_checkpoint` says which.

    Of a list with commas (`--ask`) the first one counts.
    """
    directory = local_directory(checkpoint) or local_directory(checkpoint.split(",")[0])
    with suppress(InputError, KeyError):
        width = directory and read_json(directory / "config.json")["d_model"]
        return width if isinstance(width, int) else None
    return None

"""Checkpoints by their name on the Hugging Face hub, downloaded once into that library's own cache."""

import os
import re
from contextlib import suppress
from pathlib import Path

from support import REPOSITORY
from support.checkpoint_files import WEIGHTS, find_weights, read_index
from support.downloads import download
from support.errors import InputError
from support.files import read_json, write_file


def local_directory(path_or_name: str | os.PathLike) -> Path | None:
    """The directory of a checkpoint that is here: the one given, or `model` in the directory of a run; None if neither is.

    A relative path starts at the working directory or else at this repository, so that it works from anywhere.
    """
    for directory in (Path(path_or_name), REPOSITORY / path_or_name):
        if (directory / "model" / "config.json").is_file():
            return directory / "model"
        if directory.is_dir():
            return directory
    return None


def find_checkpoint(path_or_name: str | os.PathLike) -> Path:
    """The directory of a checkpoint: the one given, or the cached or now downloaded files of that name on the hub."""
    if directory := local_directory(path_or_name):
        return directory
    name = os.fspath(path_or_name)
    beside = "/" in name and Path(name).parent.is_dir()  # then a path was meant
    if beside or not isinstance(path_or_name, str) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise InputError(f"{name}: there is no such directory, and it is not the name of a model on the hub.")
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
    reference = cache / "refs" / "main"
    newest = [cache / "snapshots" / reference.read_text().strip()] if reference.is_file() else []
    for snapshot in (*newest, *sorted(cache.glob("snapshots/*"))):
        if _is_complete(snapshot):
            return snapshot
    snapshot = cache / "snapshots" / "main"
    try:
        _download_checkpoint(name, snapshot)
        if not reference.exists():
            reference.parent.mkdir(exist_ok=True)
            write_file(reference, b"main")
    except (OSError, InputError) as error:
        raise InputError(f"{name}: there is no such directory, and {error}") from error
    return snapshot


def _is_complete(directory: Path) -> bool:
    weights = find_weights(directory)
    names = ["config.json", "spiece.model"]
    names += read_index(weights).values() if weights and weights.suffix == ".json" else []
    return weights is not None and all((directory / name).is_file() for name in names)


def _download_checkpoint(name: str, directory: Path) -> None:
    server = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")

    def fetch(file: str) -> bool:
        path = directory / file
        return path.is_file() or download(f"{server}/{name}/resolve/main/{file}", path)

    for any_of in (("config.json",), ("spiece.model",), WEIGHTS):
        if not any(map(fetch, any_of)):
            raise InputError(f"the hub has no {' or '.join(any_of)} of that name.")
    fetch("tokenizer_config.json")
    weights = find_weights(directory)
    for part in sorted(set(read_index(weights).values())) if weights.suffix == ".json" else ():
        if not fetch(part):
            raise InputError(f"the hub lacks {part}, which {weights.name} lists.")


def model_width(checkpoint: str) -> int | None:
    """`d_model` of a checkpoint on this machine. None if it is elsewhere or damaged: `load_checkpoint` says which."""
    directory = local_directory(checkpoint)
    with suppress(InputError, KeyError):
        width = directory and read_json(directory / "config.json")["d_model"]
        return width if isinstance(width, int) else None
    return None

"""Downloads: files from a URL, and checkpoints by their name on the Hugging Face hub, in that library's own cache."""

import hashlib
import os
import re
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from support.checkpoint_files import WEIGHTS, find_weights, read_index
from support.errors import InputError
from support.files import replacing, write_file


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections. With the one to a large file the hub states the file's SHA-256 as X-Linked-ETag."""

    sha256 = None

    def redirect_request(self, request, response, code, message, headers, url):
        etag = headers.get("X-Linked-ETag", "").strip('"')
        self.sha256 = etag if re.fullmatch("[0-9a-f]{64}", etag) else self.sha256
        return super().redirect_request(request, response, code, message, headers, url)


def download(url: str, path: Path, sha256: str | None = None) -> bool:
    """Fetch a file, which appears complete or not at all. False: the server has no such file.

    Its length, and its SHA-256 where one is given or the server states it, are checked. (The downloader of torch.hub
    takes half a file for a file, and cannot see the sums that the hub states.)
    """
    redirects, digest = _Redirects(), hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.build_opener(redirects).open(url, timeout=60) as response, replacing(path) as output:
            length = response.headers["Content-Length"]
            with tqdm(desc=path.name, total=length and int(length), unit="B", unit_scale=True, leave=False) as bar:
                while block := response.read(1 << 20):
                    digest.update(block)
                    bar.update(output.write(block))
            if length and output.tell() != int(length):
                raise OSError(f"the connection ended after {output.tell()} of {length} bytes")
            if (sha256 or redirects.sha256 or digest.hexdigest()) != digest.hexdigest():
                raise OSError("what came has another SHA-256 than the file should have")
        return True
    except (OSError, ValueError, HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 404:
            return False
        problem = getattr(error, "reason", error)
        raise InputError(
            f"{url} could not be fetched into {path.parent} ({problem}); try again with a network and a disk to write to, "
            "or give a directory that holds the files."
        ) from error


def find_checkpoint(path_or_name: str | os.PathLike) -> Path:
    """The directory of a checkpoint: the one given, or the cached or now downloaded files of that name on the hub."""
    directory, name = Path(path_or_name), os.fspath(path_or_name)
    if directory.is_dir():
        return directory
    beside = "/" in name and directory.parent.is_dir()  # then a path was meant
    if beside or not isinstance(path_or_name, str) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise InputError(f"{name}: there is no such directory, and it is not the name of a model on the hub.")
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
    reference = cache / "refs" / "main"
    snapshots = sorted(cache.glob("snapshots/*"))
    if reference.is_file():
        snapshots.insert(0, cache / "snapshots" / reference.read_text().strip())
    for snapshot in snapshots:
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

    for required in ("config.json", "spiece.model"):
        if not fetch(required):
            raise InputError(f"the hub has no {required} of that name.")
    fetch("tokenizer_config.json")
    weights = next((weights for weights in WEIGHTS if fetch(weights)), None)
    if weights is None:
        raise InputError(f"the hub has none of {', '.join(WEIGHTS)} of that name.")
    if weights.endswith(".json"):
        for part in sorted(set(read_index(directory / weights).values())):
            if not fetch(part):
                raise InputError(f"the hub lacks {part}, which {weights} lists.")

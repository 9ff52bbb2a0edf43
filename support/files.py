"""Small files, read at once, and files of any size that appear complete or not at all."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from support.errors import InputError, input_errors

with suppress(ImportError):  # only POSIX has it
    import fcntl

MAX_TEXT = 20_000_000  # bytes of a header, a configuration or a vocabulary; the largest T5 needs a twentieth


def read_file(path: Path) -> bytes:
    """The bytes of a small file."""
    with input_errors(f"{path}: cannot be read", "fetch it again.", OSError):
        if (size := path.stat().st_size) <= MAX_TEXT:
            return path.read_bytes()
    raise InputError(f"{path}: has {size} bytes, too many for such a file; fetch it again.")


def read_json(path: Path) -> dict:
    """The JSON object in a file. A key given twice is an error: two readers could take different values."""
    return parse_object(read_file(path), path)


def parse_object(data: bytes, path: Path) -> dict:
    """The JSON object in these bytes of a file."""

    def unique(pairs: list) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key appears twice")
        return found

    with input_errors(f"{path}: is not a valid JSON object", "fetch the file again.", ValueError, RecursionError):
        value = json.loads(data.decode(), object_pairs_hook=unique)
        if not isinstance(value, dict):
            raise ValueError(f"it is a {type(value).__name__}")
    return value


def lock(file: IO) -> bool | None:
    """Lock an open file until it is closed or the process ends. False: another process has it. None: no locks here."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, NameError):  # a file system or an operating system without locks
        return None
    return True


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` if the block succeeds, and is deleted otherwise.

    Whenever the machine stops, `path` is the old file or the new one, complete. What a killed process has left beside it
    is removed by the next one that writes there.
    """
    for left in path.parent.glob(f".{path.name}.????????"):
        with suppress(OSError), left.open("rb") as file:  # OSError: it is gone
            if lock(file):  # nobody is writing it
                left.unlink()
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # where directories cannot be opened
        directory = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):
            os.fsync(directory)  # the new name itself must reach the disk
        os.close(directory)


def write_file(path: Path, *chunks: bytes | memoryview) -> None:
    """Write a file atomically."""
    with replacing(path) as file:
        for chunk in chunks:
            file.write(chunk)


def write_json(path: Path, value: dict) -> None:
    """Write an indented JSON object atomically."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def read_lines(path: Path) -> list[dict]:
    """The JSON objects in a file that has one per line; none if there is no such file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def write_lines(path: Path, values: list[dict]) -> None:
    """Write a JSON object per line, atomically."""
    write_file(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode())

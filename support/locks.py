"""Locks on files, where the operating system has them. A lock ends with the process that holds it, however that ends."""

from contextlib import suppress
from typing import IO

with suppress(ImportError):  # only POSIX has it
    import fcntl


def lock(file: IO) -> bool | None:
    """Lock an open file until it is closed. False: another process has it. None: there are no locks here."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, NameError):  # a file system or an operating system without locks
        return None
    return True

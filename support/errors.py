"""The exception for bad input."""


class InputError(ValueError):
    """Bad input: the message is one sentence that names the file or setting, what is wrong with it, and the remedy."""

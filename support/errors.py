"""What is raised when the input is at fault."""


class InputError(ValueError):
    """Bad input: a file, a setting, a directory. The message is one sentence that names it, and the remedy."""

"""Settings as dataclasses: each field is a command-line flag with its default, its meaning and its range."""

import argparse
import math
import re
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, field, fields
from typing import Any, NoReturn

from support.errors import InputError, did_you_mean

LARGEST_INTEGER = 2**63 - 1  # that fits into a tensor


def setting(
    default: Any, help: str, choices: tuple[str, ...] | None = None, least: float = 0, most: float = math.inf
) -> Any:
    """A field of a settings dataclass. Numbers must lie between `least` and `most`."""
    return field(default=default, metadata={"help": help, "choices": choices, "range": (least, most)})


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


class FlagParser(argparse.ArgumentParser):
    """A flag for each field of settings dataclasses. Errors are one sentence, without the usage."""

    def __init__(self, groups: dict[str, type], **how: Any):
        """groups: the classes by the title of their section. The result has only the flags that are given."""
        # Wrapped here, as argparse would break flags at their hyphens, which then cannot be copied.
        how |= {name: textwrap.fill(how[name], 79, break_on_hyphens=False) for name in ("description", "epilog")}
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **how)
        for title, cls in groups.items():
            section = self.add_argument_group(title)
            for f in fields(cls):
                default = "none" if f.default == "" else f.default
                text = f"{f.metadata['help']} (default: {default})".replace("%", "%%")
                value = {"type": f.type, "choices": f.metadata["choices"]}
                kind = {"action": argparse.BooleanOptionalAction} if f.type is bool else value
                section.add_argument(flag(f.name), default=argparse.SUPPRESS, help=text, **kind)

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        if unknown := re.match(r"unrecognized arguments: ([^\s=]+)", message):
            known = self._option_string_actions if unknown[1].startswith("-") else ()
            wanted = did_you_mean("--" + unknown[1].lstrip("-").replace("_", "-"), known)
            hint = "; settings are written as in --task a,b, and --help lists them"
            message = f"there is no {unknown[1]}{wanted or hint}"
        raise InputError(message)


def as_flags(values: dict[str, Any]) -> list[str]:
    """The arguments that give these values."""
    switches = {name: flag(name if value else f"no_{name}") for name, value in values.items()}
    return [switches[name] if isinstance(value, bool) else f"{flag(name)}={value}" for name, value in values.items()]


def build(classes: Iterable[type], values: dict[str, Any]) -> list[Any]:
    """An instance of each class from values for all of them. Raises InputError for a number out of range."""
    settings = [cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values}) for cls in classes]
    for instance in settings:
        for f in fields(instance):
            value, (least, most) = getattr(instance, f.name), f.metadata["range"]
            most = min(most, LARGEST_INTEGER) if f.type is int else most
            if f.type in (int, float) and not (least <= value <= most and value < math.inf):
                bounded = most < LARGEST_INTEGER or value > most
                limit = f"from {least:g} to {most}" if bounded else f"of at least {least:g}"
                raise InputError(f"{flag(f.name)} is {value}; it must be a number {limit}")
    return settings


def as_values(*settings: Any) -> dict[str, Any]:
    """All fields of some settings by name."""
    return {name: value for instance in settings for name, value in asdict(instance).items()}

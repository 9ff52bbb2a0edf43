"""Settings as dataclasses: each field is a command-line flag with its default, its meaning and its range."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, field, fields
from typing import Any


def setting(
    default: Any, help: str, choices: tuple[str, ...] | None = None, least: float = 0, most: float = math.inf
) -> Any:
    """A field of a settings dataclass. Numbers must lie between `least` and `most`."""
    return field(default=default, metadata={"help": help, "choices": choices, "range": (least, most)})


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser, title: str, cls: type) -> None:
    """A flag for each field of a settings dataclass. Only those given become attributes of what is parsed."""
    section = parser.add_argument_group(title)
    for f in fields(cls):
        default = "none" if f.default == "" else f.default
        text = f"{f.metadata['help']} (default: {default})".replace("%", "%%")
        how = {"default": argparse.SUPPRESS, "help": text}
        if f.type is bool:
            section.add_argument(flag(f.name), action=argparse.BooleanOptionalAction, **how)
        else:
            section.add_argument(flag(f.name), type=f.type, choices=f.metadata["choices"], **how)


def build(classes: Sequence[type], values: dict[str, Any]) -> list[Any]:
    """An instance of each class from the values of all. Raises ValueError for a number out of its range."""
    settings = [cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values}) for cls in classes]
    for instance in settings:
        for f in fields(instance):
            value, (least, most) = getattr(instance, f.name), f.metadata["range"]
            if f.type in (int, float) and not (math.isfinite(value) and least <= value <= most):
                limit = f"from {least:g} to {most:g}" if most < math.inf else f"of at least {least:g}"
                raise ValueError(f"{flag(f.name)} is {value}; it must be a number {limit}")
    return settings


def as_values(*settings: Any) -> dict[str, Any]:
    """All fields of some settings by name."""
    return {name: value for instance in settings for name, value in asdict(instance).items()}

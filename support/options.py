"""The options of a question: their letters, how to find them in its text, and which of them a target names."""

import re

MAX_OPTIONS = 1000
TITLE = r"(?:answer )?(?:options|choices):"
DASH = re.compile(r"[-*•] (?P<text>.*)")
LETTER = re.compile(r"\(?(?P<letter>[A-Za-z]{1,2})[).] *(?P<text>.*)")


def option_letter(index: int) -> str:
    """(A) to (Z), then (AA), (AB) and so on. (The authors' chr(65 + index) gives "[" and so on beyond Z.)"""
    name = ""
    while index >= 0:
        index, rest = divmod(index, 26)
        name = chr(ord("A") + rest) + name
        index -= 1
    return f"({name})"


def options_in(text: str) -> tuple[str, list[str]]:
    """A question without the options at its end, and their texts; the unchanged question and [] if there are none.

    Options are lines with letters, `(A) red` or `A. red`, or, below a line `Options:`, lines with dashes. They may also
    be on one line, `Options: (A) red (B) blue`.
    """
    lines = text.rstrip().split("\n")
    if in_one_line := re.fullmatch(rf"(?i)(.*\b)?({TITLE})\s*(\(A\) .*)", lines[-1]):
        question, title, options = in_one_line.groups()
        lines[-1:] = [question or "", title, *re.split(r"(?<!\s)\s+(?=\([A-Z]{1,2}\) )", options)]
    for start in range(max(1, len(lines) - MAX_OPTIONS), len(lines)):
        titled = re.fullmatch(rf"(?i)\s*{TITLE}\s*", lines[start - 1]) is not None
        options = without_letters(lines[start:]) or (_texts(DASH, lines[start:]) if titled else [])
        if len(options) >= (1 if titled else 2) and any(map(str.strip, lines[: start - titled])):
            return "\n".join(lines[: start - titled]).rstrip(), options
    return text, []


def without_letters(lines: list[str]) -> list[str]:
    """The texts of lines that begin with the letters A, B, C and so on; [] unless all do."""
    found = (LETTER.match(line.strip()) for line in lines)
    in_order = all(match and f"({match['letter'].upper()})" == option_letter(i) for i, match in enumerate(found))
    return _texts(LETTER, lines) if in_order else []


def meant(target: str, options: list[str]) -> list[str]:
    """The options that a target names: by their text, by a letter such as `(B)` or `b`, or by both."""
    if by_text := [option for option in options if _plain(option) == _plain(target)]:
        return by_text
    match = re.fullmatch(r"\(?(?P<letter>[A-Za-z]{1,2})(?:[).]+ *(?P<text>.*))?", target.strip())
    letter = f"({match['letter'].upper()})" if match else ""
    by_letter = [option for i, option in enumerate(options) if option_letter(i) == letter]
    return [option for option in by_letter if _plain(match["text"] or option) == _plain(option)]


def _texts(form: re.Pattern, lines: list[str]) -> list[str]:
    """The texts of lines of this form; [] unless all lines have it and none is empty."""
    texts = [match["text"].strip() if (match := form.match(line.strip())) else "" for line in lines]
    return texts if all(texts) else []


def _plain(text: str) -> str:
    """Text without what makes no difference: case, spaces, a full stop at the end."""
    return " ".join(text.lower().split()).rstrip(".")

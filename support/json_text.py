"""JSON written by hand: where it goes wrong, what is there, and what to write instead."""

import json
import re
from pathlib import Path

from support.errors import InputError

SHAPE = '{"examples": [{"input": "...", "target": "..."}, ...]}'
WORD = r"[A-Za-z_]"
FOREIGN = (  # what may be where JSON goes wrong, what to call it, and the remedy
    (r"//|/\*|#", "a comment", "JSON has none, so delete it"),
    (r"'", "a single quote", 'write double quotes: "..."'),
    (r"[“”„«»‘’]", "a typographic quotation mark", 'write the straight one: "'),
    (r"(True|False|None)\b", "a word of Python", "write true, false or null"),
    (WORD, "a word without quotes", 'put texts and names into double quotes: "..."'),
)
BY_MESSAGE = {  # of Python's decoder
    "Invalid control character": (
        "a line break or a tab within a text",
        r"write \n or \t for it, or close the text with " + '"',
    ),
    "Invalid \\": ("a backslash that begins no escape sequence", r"write \\ for a backslash"),
    "Unterminated string": ("a text that does not end", 'close it with "'),
    "Expecting ',' delimiter": ("no comma", r"write a comma before it, or \" for a quotation mark within a text"),
    "Expecting ':' delimiter": ("no colon", 'write "name": value'),
    "Expecting value": ("no value", "write a text, a number, a list or an object here"),
    "Extra data": ("something after the end", "delete it"),
}


def parse(data: bytes, path: Path) -> object:
    """The JSON value in these bytes of a file; a byte order mark is fine."""
    try:
        text = data.decode(json.detect_encoding(data))
        return json.loads(text)
    except json.JSONDecodeError as error:
        if not text.strip():
            raise InputError(f"{path}: the file is empty; write {SHAPE}") from error
        position, found, remedy = _diagnosis(text, error)
        line, column = text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)
        raise InputError(f"{path}: line {line}, column {column}: {found}; {remedy}") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, or lists in lists
        raise InputError(f"{path}: not JSON ({error}); write {SHAPE}") from error


def _diagnosis(text: str, error: json.JSONDecodeError) -> tuple[int, str, str]:
    """Where JSON goes wrong, what is there, and the remedy."""
    kind = next((kind for kind in BY_MESSAGE if error.msg.startswith(kind)), "")
    start = error.pos + (len(text[error.pos :]) - len(text[error.pos :].lstrip()) if "control" not in kind else 0)
    before, here = text[:start].rstrip(), text[start : start + 20]
    if re.match(r",?\s*[\]}]", here) and (here[0] == "," or before.endswith(",")):
        return start if here[0] == "," else len(before) - 1, "a comma after the last item", "delete it"
    if error.msg == "Extra data" and here[0] in "{[":
        found = "a second object begins here, after the end of the first"
        return start, found, f"put all examples into one list: {SHAPE}"
    for form, found, remedy in () if kind.startswith(("Invalid", "Unterminated")) else FOREIGN:
        if re.match(form, here) and not (form == WORD and kind.startswith("Expecting ','")):
            return start, f"there is {found}", remedy
    if not here:
        return start, "the file ends in the middle", "close what is open, with ] or }"
    found, remedy = BY_MESSAGE.get(kind, (f"{error.msg[0].lower()}{error.msg[1:]}", "write a JSON value here"))
    here = here.splitlines()[0]
    return start, f"{found} at {here!r}" if here else found, remedy

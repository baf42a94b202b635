"""Merge configs as one line of text, for the command line, tables and plots: `r=8`, `method=mame,threshold=0.8`."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

from . import MergeConfig

GRAMMAR = (
    "key=value,key=value, as in r=8, r=[0,8,8], r=(16,-1.0), method=mame,threshold=0.8,layers=0-7, "
    "or a path to a merge_config.json"
)

_WORDS = {"true": True, "false": False, "none": None, "null": None}
_COMMAS_OUTSIDE_BRACKETS = re.compile(r",(?![^\[(]*[\])])")


def parse_config(text: str) -> MergeConfig:
    """Build a config from text: fields in the grammar of `GRAMMAR`, or the path of a JSON file or its folder.

    Raises:
        ValueError: the text is neither, or names an unknown field or a value out of range.
    """
    path = Path(text)
    if "=" not in text or path.is_file():
        if not path.exists():
            raise ValueError(f"Config {text!r} is neither a file nor fields; it takes {GRAMMAR}.")
        return MergeConfig.from_pretrained(path)
    fields: dict[str, Any] = {}
    for part in _COMMAS_OUTSIDE_BRACKETS.split(text):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key or not value.strip():
            raise ValueError(f"Config {text!r}: {part!r} is not key=value; it takes {GRAMMAR}.")
        if key in fields:
            raise ValueError(f"Config {text!r} sets {key!r} twice; leave one out.")
        try:
            fields[key] = _parse_value(value.strip())
        except ValueError as error:
            raise ValueError(f"Config {text!r}: {error}") from error
    try:
        return MergeConfig.from_dict(fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Config {text!r}: {error}") from error


def format_config(config: MergeConfig) -> str:
    """Return the text that `parse_config` reads back: what differs from the defaults, and what names the method."""
    named = {"r"} if config.method != "mame" else {"method"} | ({"threshold"} if config.keep_ratio is None else set())
    if config.method not in ("tome", "mame"):
        named.add("method")
    names = ["method", *(field.name for field in dataclasses.fields(config) if field.name != "method")]
    default = MergeConfig()
    parts = [
        f"{name}={_format_value(name, getattr(config, name))}"
        for name in names
        if name in named or getattr(config, name) != getattr(default, name)
    ]
    return ",".join(parts)


def short_name(text: str) -> str:
    """Return what `format_config` gave without the words that a reader can do without: `mame 0.8`, `kmeans r=8`."""
    method, comma, rest = text.removeprefix("method=").replace("threshold=", "").partition(",")
    return f"{method} {rest}" if comma and text.startswith("method=") else text


def is_unmerged(config: MergeConfig) -> bool:
    """Tell whether the config merges nothing in any model."""
    numbers = config.r if isinstance(config.r, list) else [config.r[0] if isinstance(config.r, tuple) else config.r]
    return config.layers == () or (config.method != "mame" and not any(numbers))


def parse_span(text: str) -> list[int]:
    """Return the numbers of `0-7`, both ends included, or the one of `4`.

    Raises:
        ValueError: it is neither, or runs backwards.
    """
    first, dash, last = text.partition("-")
    numbers = list(range(int(first), int(last if dash else first) + 1))
    if not numbers:
        raise ValueError(f"{text} runs backwards; write {last}-{first}.")
    return numbers


def _parse_value(value: str) -> Any:
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if re.fullmatch(r"\d+-\d+", value):
        return parse_span(value)
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _format_value(name: str, value: Any) -> str:
    if name == "layers" and value and len(value) > 1 and value == tuple(range(value[0], value[-1] + 1)):
        return f"{value[0]}-{value[-1]}"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, (list, tuple)) and not (name == "r" and isinstance(value, tuple)):
        return "[" + ",".join(map(str, value)) + "]"
    return str(value).replace(" ", "")

"""Merge configs as one line of text, for the command line, tables and plots: `r=8`, `method=mame,threshold=0.8`."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..merging.methods import METHODS, get_method
from .applicable import set_fields
from .merge_config import MergeConfig
from .validation import MAX_LAYERS, PerBlock, shown

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
    if _is_path(text):
        path = Path(text).expanduser()
        if not _exists(path):
            raise ValueError(f"Config {shown(text)} is neither a file nor fields; it takes {GRAMMAR}.")
        return MergeConfig.from_pretrained(path)
    fields: dict[str, Any] = {}
    for part in _COMMAS_OUTSIDE_BRACKETS.split(text):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key or not value.strip():
            raise ValueError(f"Config {shown(text)}: {shown(part)} is not key=value; it takes {GRAMMAR}.")
        if key in fields:
            raise ValueError(f"Config {shown(text)} sets {key!r} twice; leave one out.")
        try:
            fields[key] = _parse_value(value.strip())
        except ValueError as error:
            raise ValueError(f"Config {shown(text)}: {error}") from error
    try:
        return MergeConfig.from_dict(fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Config {shown(text)}: {error}") from error


def configs_from(configs: Any) -> list[MergeConfig]:
    """Return merge configs from one or several, each a `MergeConfig`, its fields, or the text of `--config`.

    Raises:
        TypeError: one is something else.
        ValueError: one is no merge config.
    """
    several = [configs] if isinstance(configs, (MergeConfig, str, Mapping)) else configs
    if not isinstance(several, Iterable):
        raise TypeError(f"`configs` is {shown(configs)}; it takes MergeConfigs, as in [MergeConfig(r=8)].")
    return [_config_from(config) for config in several]


def _config_from(config: Any) -> MergeConfig:
    if isinstance(config, str):
        return parse_config(config)
    if isinstance(config, Mapping):
        return MergeConfig.from_dict(dict(config))
    if not isinstance(config, MergeConfig):
        raise TypeError(f"{shown(config)} is no merge config; `configs` takes MergeConfigs, as in [MergeConfig(r=8)].")
    return config


def format_config(config: MergeConfig) -> str:
    """Return the text that `parse_config` reads back: what differs from the defaults, and what names the method."""
    method = get_method(config.method)
    named = {method.search_field} if config.ratio is None and config.keep_ratio is None else set()
    if config.method != MergeConfig.method:
        named.add("method")
    names = ["method", *(field.name for field in dataclasses.fields(config) if field.name != "method")]
    named |= set(set_fields(config))
    parts = [f"{name}={_format_value(name, getattr(config, name))}" for name in names if name in named]
    return ",".join(parts)


def short_name(text: str) -> str:
    """Return what `format_config` gave without the words that a reader can do without: `mame 0.8`, `kmeans r=8`."""
    name, comma, rest = text.removeprefix("method=").partition(",")
    if not comma or not text.startswith("method="):
        return text
    if name in METHODS and not METHODS[name].takes_r:  # what it is searched over goes without saying
        rest = rest.removeprefix(f"{METHODS[name].search_field}=")
    return f"{name} {rest}"


def is_unmerged(config: MergeConfig) -> bool:
    """Tell whether the config merges nothing in any model."""
    if config.layers == ():
        return True
    takes_r, r = get_method(config.method).takes_r, config.r
    if config.where == "cache":
        return config.keep_ratio == 1 or (config.keep_ratio is None and takes_r)
    if not takes_r or config.ratio is not None:
        return config.ratio == 0
    return not any(r if isinstance(r, PerBlock) else r[:1] if isinstance(r, tuple) else [r])


def parse_span(text: str) -> list[int]:
    """Return the numbers of `0-7`, both ends included, or the one of `4`.

    Raises:
        ValueError: it is neither, or runs backwards.
    """
    first, dash, last = text.partition("-")
    begin, end = int(first), int(last if dash else first)
    if end >= MAX_LAYERS:
        raise ValueError(f"{shown(text)} names blocks beyond {MAX_LAYERS - 1}; models have fewer.")
    numbers = list(range(begin, end + 1))
    if not numbers:
        raise ValueError(f"{text} runs backwards; write {last}-{first}.")
    return numbers


def _is_path(text: str) -> bool:
    """Tell whether the text means a file or a folder: a name may hold `=`, values hold no separator."""
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return "=" not in text or any(separator in text for separator in separators) or _exists(Path(text), is_file=True)


def _exists(path: Path, is_file: bool = False) -> bool:
    try:
        return path.is_file() if is_file else path.exists()
    except (OSError, ValueError):  # too long for a file's name, or a null byte
        return False


def _parse_value(value: str) -> Any:
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if re.fullmatch(r"\d+-\d+", value):
        return parse_span(value)
    if names := re.fullmatch(r"\[([a-zA-Z_][\w.]*(?:,[a-zA-Z_][\w.]*)*)\]", value):
        return names[1].split(",")
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def _format_value(name: str, value: Any) -> str:
    if name == "layers" and value and len(value) > 1 and value == tuple(range(value[0], value[-1] + 1)):
        return f"{value[0]}-{value[-1]}"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, tuple) and (name != "r" or isinstance(value, PerBlock)):
        return "[" + ",".join(map(str, value)) + "]"
    return str(value).replace(" ", "")

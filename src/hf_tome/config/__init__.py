"""What to merge, where and how: inert data, its validation, and its one-line text form."""

from .merge_config import MergeConfig
from .text import format_config, parse_config

__all__ = ["MergeConfig", "format_config", "parse_config"]

"""`MergeConfig`: what to merge, where and how. Inert data, validated when it is made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HFValidationError

from ..merging.base import COMBINE_MODES
from ..merging.mame import BATCHINGS
from ..merging.partition import PARTITIONS
from ..merging.similarity import DISTANCES
from .validation import check_choice, index, normalise_layers, normalise_r, number

CONFIG_NAME = "merge_config.json"
FORMAT_VERSION = 1
"""Raised when an older `hf_tome` could no longer read what a newer one writes."""

METRICS = ("x_pre", "x", "k", "q", "v")
HEAD_AGGREGATIONS = ("mean", "concat")
PLACES = ("tower", "projected")

_COMMON = {"method", "layers", "proportional_attention", "trace"}
_FEATURE = {"metric", "head_aggregation", "restore", "where"}

METHOD_FIELDS: dict[str, set[str]] = {
    "tome": _COMMON | _FEATURE | {"r", "distance", "combine", "partition", "seed"},
    "mame": _COMMON
    | _FEATURE
    | {"threshold", "adaptive_pruning", "keep_ratio", "batching", "distance", "partition", "seed"},
    "random_prune": _COMMON | {"r", "seed", "where"},
    "attention_prune": _COMMON | {"r"},
    "kmeans": _COMMON | _FEATURE | {"r", "kmeans_iterations", "combine", "seed"},
    "greedy": _COMMON | _FEATURE | {"r", "distance", "combine"},
}
"""The fields that mean something to each method; setting another one is an error."""

IN_BLOCKS = ("layers", "proportional_attention", "metric", "head_aggregation", "restore", "batching")
"""The fields that say something of a tower's blocks, and mean nothing where projected image tokens merge."""

METHOD_DEFAULTS: dict[str, dict[str, str]] = {
    "mame": {"metric": "x", "distance": "cosine", "head_aggregation": "concat", "partition": "alternating"},
}
_PAPER_DEFAULTS = {
    "metric": "k",
    "distance": "cosine",
    "head_aggregation": "mean",
    "combine": "weighted_mean",
    "partition": "alternating",
}


@dataclass(frozen=True)
class MergeConfig:
    """How tokens are merged: the method, how many or how similar, and in which blocks.

    Args:
        r (`int`, `tuple[int, float]` or `list[int]`, *optional*, defaults to 0):
            Tokens merged in each block (ToMe, section 3): a constant, a schedule `(r, inflection)` (-1 falls from
            `2r` to 0, 0 is constant, +1 rises; equations 2 and 3), or one number per block, filled up with 0.
        method (`str`, *optional*, defaults to `"tome"`):
            `"tome"`, `"mame"`, or a baseline of ToMe's table 2: `"random_prune"`, `"attention_prune"`, `"kmeans"`,
            `"greedy"`.
        threshold (`float`, *optional*, defaults to 0.8):
            MaMe's similarity threshold tau, in [-1, 1] (MaMe, equation 3).
        adaptive_pruning (`bool`, *optional*, defaults to `True`):
            MaMe's adaptive weight pruning (MaMe, equations 5 to 8).
        keep_ratio (`float`, *optional*):
            MaMe with a fixed number of tokens: the share of the tokens that a merging block keeps, in [0.5, 1].
        batching (`str`, *optional*, defaults to `"pad"`):
            MaMe in a batch: `"pad"` gives each image what it would get alone, `"union"` is the paper's rule.
        layers (`Iterable[int]`, *optional*):
            The blocks that merge, counted from 0. By default all for the methods with `r`, the first two thirds for
            MaMe.
        proportional_attention (`bool` or `"auto"`, *optional*, defaults to `"auto"`):
            Add log(size) to the attention logits (ToMe, equation 1). `"auto"`: off for MaMe, for models that are
            usually off-the-shelf MAE models, and for audio; on elsewhere.
        metric (`str`, *optional*):
            What similarity is measured on: `"x_pre"`, `"x"`, `"k"`, `"q"` or `"v"` (ToMe, table 1a; MaMe, figure 2a).
        distance (`str`, *optional*):
            `"cosine"`, `"euclidean"`, `"dot"` or `"softmax"` (ToMe, table 1b; MaMe, figure 2b).
        head_aggregation (`str`, *optional*):
            `"mean"` or `"concat"` over the attention heads of `k`, `q` and `v` (ToMe, table 1c).
        combine (`str`, *optional*):
            `"weighted_mean"`, `"mean"`, `"max"` or `"keep_one"` (ToMe, table 1d).
        partition (`str`, *optional*):
            `"alternating"`, `"sequential"` or `"random"` (ToMe, table 1e; MaMe, figure 2c).
        kmeans_iterations (`int`, *optional*, defaults to 2):
            Iterations of the `"kmeans"` baseline (ToMe, table 2).
        trace (`bool`, *optional*, defaults to `False`):
            Keep which input token went where; read it with `hf_tome.trace(model)`.
        restore (`bool`, *optional*, defaults to `False`):
            Give the full grid of tokens back after the last block.
        seed (`int`, *optional*, defaults to 0):
            For what is random: `partition="random"`, `"random_prune"` and the first centroids of `"kmeans"`.
        where (`str`, *optional*, defaults to `"tower"`):
            `"tower"` merges in the blocks of the encoder. `"projected"` merges the image tokens of a vision-language
            model once, between its projector and its language model: `r` of each image, or whatever is similar enough.

    Raises:
        ValueError: a field is out of range, or does not apply to the method. The message names the field, what it
            got and what it takes.
    """

    r: int | tuple[int, float] | list[int] = 0
    method: str = "tome"
    threshold: float = 0.8
    adaptive_pruning: bool = True
    keep_ratio: float | None = None
    batching: str = "pad"
    layers: Sequence[int] | None = None
    proportional_attention: bool | str = "auto"
    metric: str | None = None
    distance: str | None = None
    head_aggregation: str | None = None
    combine: str | None = None
    partition: str | None = None
    kmeans_iterations: int = 2
    trace: bool = False
    restore: bool = False
    seed: int = 0
    where: str = "tower"

    def __post_init__(self):
        check_choice("method", self.method, tuple(METHOD_FIELDS))
        object.__setattr__(self, "r", normalise_r(self.r))
        object.__setattr__(self, "layers", normalise_layers(self.layers))
        object.__setattr__(self, "threshold", number("threshold", self.threshold, -1.0, 1.0))
        for name in ("adaptive_pruning", "trace", "restore"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; it takes True or False.")
        if self.keep_ratio is not None:
            object.__setattr__(self, "keep_ratio", number("keep_ratio", self.keep_ratio, 0.5, 1.0, "None, or "))
        if self.proportional_attention != "auto" and not isinstance(self.proportional_attention, bool):
            raise ValueError(
                f"`proportional_attention` is {self.proportional_attention!r}; it takes True, False or 'auto'."
            )
        check_choice("batching", self.batching, BATCHINGS)
        check_choice("where", self.where, PLACES)
        for name, choices in _CHOICES.items():
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), choices, "None, or ")
        object.__setattr__(self, "seed", index("seed", self.seed))
        object.__setattr__(self, "kmeans_iterations", index("kmeans_iterations", self.kmeans_iterations, minimum=1))
        self._check_applicable()

    def _check_applicable(self) -> None:
        for field in dataclasses.fields(self):
            if field.name in METHOD_FIELDS[self.method] or getattr(self, field.name) == field.default:
                continue
            users = [m for m, fields in METHOD_FIELDS.items() if field.name in fields]
            raise ValueError(
                f"`{field.name}` is {getattr(self, field.name)!r}, but method {self.method!r} does not use it; it "
                f"applies to {', '.join(map(repr, users))}. Leave it out, or change `method`."
            )
        if self.keep_ratio is not None and self.batching == "union":
            raise ValueError(
                "`batching` is 'union', but with `keep_ratio` every image keeps the same number of tokens, so there "
                "is nothing to unite. Leave one of them out."
            )
        if self.where == "projected":
            self._check_projected()

    def _check_projected(self) -> None:
        for field in dataclasses.fields(self):
            if field.name in IN_BLOCKS and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"`{field.name}` is {getattr(self, field.name)!r}, but with `where='projected'` no block merges: "
                    "each image's projected tokens do, once, on their own similarity. Leave it out."
                )
        if not isinstance(self.r, int):
            raise ValueError(
                f"`r` is {self.r!r}; with `where='projected'` tokens merge once, so it takes one integer, the tokens "
                "to merge of each image."
            )

    def __hash__(self) -> int:
        return hash(tuple(tuple(value) if isinstance(value, list) else value for value in vars(self).values()))

    def choice(self, field: str) -> str:
        """Return an ablation field (`metric`, `distance`, ...), the paper's value where it was left at `None`.

        Raises:
            ValueError: `field` is not one of these.
        """
        if field not in _CHOICES:
            raise ValueError(f"{field!r} is no ablation; those are {', '.join(map(repr, _CHOICES))}.")
        value = getattr(self, field)
        return value if value is not None else METHOD_DEFAULTS.get(self.method, {}).get(field, _PAPER_DEFAULTS[field])

    def merging_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the blocks of a model of `num_layers` blocks that merge.

        Raises:
            ValueError: `layers` names a block that the model does not have.
        """
        if self.layers is None:
            return tuple(range(2 * num_layers // 3 if self.method == "mame" else num_layers))
        beyond = [layer for layer in self.layers if layer >= num_layers]
        if beyond:
            raise ValueError(f"`layers` names blocks {beyond}, but the model has blocks 0 to {num_layers - 1}.")
        return tuple(self.layers)

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        """Return the tokens that each of `num_layers` blocks is asked to merge; all 0 for MaMe, where images decide.

        Raises:
            ValueError: a list of `r` or `layers` is longer than the model.
        """
        r = self.r
        if isinstance(r, int):
            numbers = [r] * num_layers
        elif isinstance(r, tuple):
            numbers = _inflected(r[0], r[1], num_layers)
        else:
            if len(r) > num_layers:
                raise ValueError(f"`r` lists {len(r)} blocks, but the model has {num_layers}; shorten the list.")
            numbers = list(r) + [0] * (num_layers - len(r))
        layers = set(self.merging_layers(num_layers))
        return tuple(number if layer in layers else 0 for layer, number in enumerate(numbers))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        values = dataclasses.asdict(self)
        values["r"] = list(self.r) if isinstance(self.r, (tuple, list)) else self.r
        values["layers"] = None if self.layers is None else list(self.layers)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MergeConfig:
        """Build a config from what `to_dict` or a JSON file gave.

        Raises:
            ValueError: an unknown field, a file of a newer format, or a value out of range.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"A merge config is a JSON object; got {type(values).__name__}.")
        values = dict(values)
        version = values.pop("format_version", FORMAT_VERSION)
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise ValueError(f"The merge config has format_version {version!r}; it takes an integer of at least 1.")
        if version > FORMAT_VERSION:
            raise ValueError(
                f"The merge config has format_version {version!r}; this hf_tome reads up to {FORMAT_VERSION}. "
                "Update it with `pip install -U hf_tome`."
            )
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known), key=str)
        if unknown:
            raise ValueError(f"Unknown merge config fields {unknown}; known are {known}.")
        r = values.get("r")
        if isinstance(r, list) and len(r) == 2 and (isinstance(r[1], float) or r[1] == -1):
            values["r"] = tuple(r)  # JSON has no tuples; only a schedule's second number is a float, or below 0
        return cls(**values)

    def save_pretrained(self, save_directory: str | Path) -> Path:
        """Write `merge_config.json` into a folder, made if need be, and return its path."""
        path = Path(save_directory) / CONFIG_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._to_json())
        return path

    @classmethod
    def from_pretrained(cls, id_or_dir: str | Path, **hub_kwargs: Any) -> MergeConfig:
        """Read `merge_config.json` from a folder, a file or a Hub repository.

        Args:
            id_or_dir: folder, file or Hub id.
            hub_kwargs: for `hf_hub_download`, as `revision` or `token`; of these `subfolder` applies to a folder too.

        Raises:
            ValueError: the file is not valid JSON or not a merge config.
            OSError: there is no such file.
        """
        path = _find_file(Path(id_or_dir), id_or_dir, hub_kwargs)
        try:
            return cls.from_dict(json.loads(path.read_bytes()))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}.") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def push_to_hub(self, repo_id: str, *, commit_message: str = "Add the merge config", **hub_kwargs: Any) -> Any:
        """Upload `merge_config.json` to a Hub repository that exists (`hub_kwargs` go to `HfApi.upload_file`)."""
        return HfApi().upload_file(
            path_or_fileobj=self._to_json(),
            path_in_repo=CONFIG_NAME,
            repo_id=repo_id,
            commit_message=commit_message,
            **hub_kwargs,
        )

    def _to_json(self) -> bytes:
        text = json.dumps({"format_version": FORMAT_VERSION, **self.to_dict()}, indent=2)
        return f"{text}\n".encode()


_CHOICES: dict[str, tuple[str, ...]] = {
    "metric": METRICS,
    "distance": tuple(DISTANCES),
    "head_aggregation": HEAD_AGGREGATIONS,
    "combine": COMBINE_MODES,
    "partition": PARTITIONS,
}


def _inflected(r: int, inflection: float, num_layers: int) -> list[int]:
    # A line from `first` to `2r - first`, so that every inflection removes r * num_layers tokens (up to truncation).
    first = int(r * (1 - inflection))
    step = (2 * r - 2 * first) / (num_layers - 1) if num_layers > 1 else 0.0
    return [int(first + step * layer) for layer in range(num_layers)]


def _find_file(path: Path, id_or_dir: str | Path, hub_kwargs: dict[str, Any]) -> Path:
    if path.is_file():
        return path
    if path.is_dir():
        path = path / (hub_kwargs.get("subfolder") or "") / CONFIG_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"No {CONFIG_NAME} in {path.parent}; write one with `MergeConfig.save_pretrained`."
            )
        return path
    try:
        return Path(hf_hub_download(str(id_or_dir), CONFIG_NAME, **hub_kwargs))
    except HFValidationError:
        raise FileNotFoundError(f"{str(id_or_dir)!r} is neither a folder, a file nor a Hub id.") from None

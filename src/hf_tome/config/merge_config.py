"""`MergeConfig`: what to merge, where and how. Inert data, validated when it is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ..files import write_whole
from ..merging.mame.matching import BATCHINGS
from ..merging.method import CHOICES, Fields, Method
from ..merging.methods import get_method
from .applicable import check_applicable, check_together, set_fields
from .json_file import CONFIG_NAME, FORMAT_VERSION, check_version, find_config_file, read_json, to_json
from .places import PLACES
from .schedule import numbers_per_block
from .validation import PerBlock, check_choice, check_flag, normalised, shown

MODULES = ("auto", "attention", "block", "kv")
DESTINATIONS = ("alternating", "keydiff")
SIZES = ("count", "fitted")


@dataclass(frozen=True, repr=False)
class MergeConfig:
    """How tokens are merged: the method, how many or how similar, and in which blocks.

    Args:
        r (`int`, `tuple[int, float]` or `list[int]`, *optional*, defaults to 0):
            Tokens merged in each block (ToMe, section 3): a constant, a schedule `(r, inflection)` (-1 falls from
            `2r` to 0, 0 is constant, +1 rises; equations 2 and 3), or one number per block, filled up with 0.
        method (`str`, *optional*, defaults to `"tome"`):
            `"tome"`, `"mame"`, a baseline of ToMe's table 2 (`"random_prune"`, `"attention_prune"`, `"kmeans"`,
            `"greedy"`), or one that `hf_tome.register_method` added.
        threshold (`float`, *optional*, defaults to 0.8):
            MaMe's similarity threshold tau, in [-1, 1] (MaMe, equation 3).
        adaptive_pruning (`bool`, *optional*, defaults to `True`):
            MaMe's adaptive weight pruning (MaMe, equations 5 to 8).
        keep_ratio (`float`, *optional*):
            MaMe with a fixed number of tokens: the share of the tokens that a merging block keeps, in [0.5, 1]. With
            `where="cache"`, for every method: the share of a cache's entries that stay, above 0.
        batching (`str`, *optional*, defaults to `"pad"`):
            MaMe in a batch: `"pad"` gives each image what it would get alone, `"union"` is the paper's rule.
        layers (`Iterable[int]`, *optional*):
            The blocks that merge, counted from 0. By default all for the methods with `r`, the first two thirds for
            MaMe.
        proportional_attention (`bool` or `"auto"`, *optional*, defaults to `"auto"`):
            Add log(size) to the attention logits (ToMe, equation 1). `"auto"`: off for MaMe, for models that are
            usually off-the-shelf MAE models, and for audio; on elsewhere. In a denoiser it is on for both.
        metric (`str`, *optional*):
            What similarity is measured on: `"x_pre"`, `"x"`, `"k"`, `"q"` or `"v"` (ToMe, table 1a; MaMe, figure 2a).
        distance (`str`, *optional*):
            `"cosine"`, `"euclidean"`, `"dot"` or `"softmax"` (ToMe, table 1b; MaMe, figure 2b).
        head_aggregation (`str`, *optional*):
            `"mean"` or `"concat"` over the attention heads of `k`, `q` and `v` (ToMe, table 1c).
        combine (`str`, *optional*):
            `"weighted_mean"`, `"mean"`, `"max"` or `"keep_one"` (ToMe, table 1d), or `"keep_norm"`, the weighted mean
            brought to the weighted mean of its members' norms. In the blocks of an encoder the attention's value of
            such a token is then multiplied by its coherence (`hf_tome.merging.HardMerge.merge_keeping_norm`).
        partition (`str`, *optional*):
            `"alternating"`, `"sequential"` or `"random"` (ToMe, table 1e; MaMe, figure 2c).
        protect_attended (`float`, *optional*, defaults to 0.0):
            How much later tokens merge that the class token attends to: the distance of a pair, 1 minus its cosine, is
            multiplied by 1 and so many times the attention that it pays to both tokens (a multiple of the mean, 5 at
            most). In a model without a class token it is the attention of the mean query. 1 to 4 are common.
        kmeans_iterations (`int`, *optional*, defaults to 2):
            Iterations of the `"kmeans"` baseline (ToMe, table 2).
        trace (`bool`, *optional*, defaults to `False`):
            Keep which input token went where; read it with `hf_tome.trace(model)`.
        restore (`bool`, *optional*, defaults to `False`):
            Unmerge after the last block, so that every token of the grid comes out.
        exact_last_block (`bool`, *optional*, defaults to `True`):
            Where the head reads special tokens alone, run the last block's queries, output projection and MLP on those
            alone: the same output up to rounding, for fewer multiply-adds. It is done only where something merges, and
            never where hidden states or attentions are asked for, or with `trace` or `restore`. The output's
            `last_hidden_state`, where there is one, then holds the special tokens.
        seed (`int`, *optional*, defaults to 0):
            For what is random: `partition="random"`, `"random_prune"` and the first centroids of `"kmeans"`.
        where (`str`, *optional*, defaults to `"auto"`):
            `"tower"` merges in the blocks of an encoder. `"projected"` merges the image tokens of a vision-language
            model once, between its projector and its language model: `r` of each image, or whatever is similar enough.
            `"groups"` does both in towers that pack the patches of all images (Qwen-VL, GLM-V): whole groups of
            patches merge in the blocks and stay merged to the language model, which gets one token for each; `r`
            counts groups.
            `"denoiser"` merges in a diffusion model and unmerges after each block, `"cache"` in the key-value cache
            of a language model. `"auto"` is the tower or the denoiser that the model has, never the cache.
        towers (`str` or `list[str]`, *optional*):
            Of a model with several encoders or denoisers, those that merge; the others are left alone. Each is named
            by its path in the model, as `hf_tome.report` prints it, or by a part of that: `"vision_model"`. By default
            all merge.
        ratio (`float`, *optional*):
            Instead of `r`: the share of the tokens that may merge which each merging block takes away, in [0, 1); more
            than half of them never merge in one block of an encoder.
        modules (`str`, *optional*, defaults to `"auto"`):
            Denoiser: merge around self-`"attention"`, around the whole `"block"`, or in the self-attention's keys and
            values alone, `"kv"`. `"auto"` is around attention where the denoiser's blocks allow it, else the block.
        every (`int`, *optional*, defaults to 1):
            Denoiser: merge in the first of every so many blocks; 2 is every second block.
        min_tokens (`int`, *optional*, defaults to 1024):
            Denoiser: blocks of fewer tokens do not merge.
        tile (`int`, *optional*, defaults to 16):
            Denoiser: tokens are matched within square tiles of this side; `None` for the whole image.
        stride (`tuple[int, int]`, *optional*, defaults to `(2, 2)`):
            Denoiser: one destination in each cell of so many rows and columns.
        steps (`tuple[float, float]`, *optional*):
            Denoiser: the steps that merge, as shares of the way from noise to image; `(0.5, 1.0)` is the second half.
        protect (`tuple[int, int]`, *optional*, defaults to `(4, 32)`):
            Cache: the first and the last entries that never merge.
        causal (`bool`, *optional*, defaults to `False`):
            Cache: entries merge into later ones alone.
        destinations (`str`, *optional*, defaults to `"alternating"`):
            Cache: the entries that others merge into: `"alternating"` ones, or the most distinctive keys, `"keydiff"`.
        size (`str`, *optional*, defaults to `"count"`):
            Cache: what an entry weighs in attention: the `"count"` of its members, or `"fitted"` to queries.

    Raises:
        ValueError: a field is out of range, or does not apply to the method or the place. The message names the
            field, what it got and what it takes.
    """

    r: int | tuple[int, float] | Sequence[int] = 0
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
    protect_attended: float = 0.0
    kmeans_iterations: int = 2
    trace: bool = False
    restore: bool = False
    exact_last_block: bool = True
    seed: int = 0
    where: str = "auto"
    towers: str | Sequence[str] | None = None
    ratio: float | None = None
    modules: str = "auto"
    every: int = 1
    min_tokens: int = 1024
    tile: int | None = 16
    stride: tuple[int, int] = (2, 2)
    steps: tuple[float, float] | None = None
    protect: tuple[int, int] = (4, 32)
    causal: bool = False
    destinations: str = "alternating"
    size: str = "count"

    def __post_init__(self):
        get_method(self.method)
        check_choice("where", self.where, PLACES)
        for name, value in normalised(self).items():
            object.__setattr__(self, name, value)
        for name in ("adaptive_pruning", "trace", "restore", "exact_last_block", "causal"):
            check_flag(name, getattr(self, name))
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name, choices in CHOICES.items():
            if getattr(self, name) is not None:
                check_choice(name, getattr(self, name), choices, "None, or ")
        if self.proportional_attention != "auto" and not isinstance(self.proportional_attention, bool):
            raise ValueError(
                f"`proportional_attention` is {shown(self.proportional_attention)}; it takes True, False or 'auto'."
            )
        check_applicable(self)
        check_together(self)

    def __repr__(self) -> str:
        names = sorted(set_fields(self), key=lambda name: name != "method")  # the method first, if it is named
        return f"MergeConfig({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def choice(self, field: str) -> str:
        """Return an ablation field (`metric`, `distance`, ...), the method's own value where it was left at `None`.

        Raises:
            ValueError: `field` is not one of these.
        """
        if field not in CHOICES:
            raise ValueError(f"{field!r} is no ablation; those are {', '.join(map(repr, CHOICES))}.")
        value = getattr(self, field)
        return value if value is not None else get_method(self.method).default(field)

    def match_fields(self, method: Method | None = None) -> Fields:
        """Return the fields that the method is handed (`MatchInputs.fields`), by name."""
        method = get_method(self.method) if method is None else method
        return {
            name: method.default(name) if value is None and name in CHOICES else value
            for name in method.fields
            for value in (getattr(self, name),)
        }

    def at(self, place: str) -> MergeConfig:
        """Return this config for the place that `"auto"` turned out to be.

        Raises:
            ValueError: a field is set that means nothing there, or the config asks for another place.
        """
        if self.where not in ("auto", place):
            raise ValueError(
                f"`where` is {self.where!r}, but in this model tokens merge with `where={place!r}`: "
                f"{PLACES[place].merges}. Change `where`, or leave it out."
            )
        return dataclasses.replace(self, where=place)

    def merging_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the blocks of a model of `num_layers` blocks that merge.

        Raises:
            ValueError: `layers` names a block that the model does not have.
        """
        if self.layers is None:
            return tuple(get_method(self.method).layers(num_layers))
        beyond = [layer for layer in self.layers if layer >= num_layers]
        if beyond:
            raise ValueError(f"`layers` names blocks {beyond}, but the model has blocks 0 to {num_layers - 1}.")
        return tuple(self.layers)

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        """Return the tokens that each of `num_layers` blocks is asked to merge; 0 where `r` does not say (`ratio`).

        Raises:
            ValueError: a list of `r` or `layers` is longer than the model.
        """
        numbers = numbers_per_block(self.r, num_layers)
        layers = set(self.merging_layers(num_layers))
        return tuple(number if layer in layers else 0 for layer, number in enumerate(numbers))

    def merging_blocks(self, num_layers: int) -> tuple[bool, ...]:
        """Return whether each of `num_layers` blocks merges.

        Raises:
            ValueError: as `schedule`.
        """
        if get_method(self.method).takes_r and not self.ratio:
            return tuple(r > 0 for r in self.schedule(num_layers))
        layers = set(self.merging_layers(num_layers))
        return tuple(layer in layers for layer in range(num_layers))

    def weighs_attention(self, by_default: bool) -> bool:
        """Return whether log(size) is added to attention logits; `by_default` is what `"auto"` means there."""
        chosen = self.proportional_attention
        return by_default if chosen == "auto" else bool(chosen)

    def tokens_to_merge(self, scheduled: int, num_mergeable: int) -> int:
        """Return how many of `num_mergeable` tokens a merging block merges, half of them at most.

        Args:
            scheduled: the block's entry of `schedule`, which `ratio` takes the place of.
            num_mergeable: its tokens but for the protected ones.
        """
        return min(self.requested_tokens(scheduled, num_mergeable), num_mergeable // 2)

    def requested_tokens(self, scheduled: int, num_mergeable: int) -> int:
        """Return how many of `num_mergeable` tokens are asked for, by `ratio` or else as `scheduled`."""
        # A product such as 0.29 * 100 may fall short of the integer that it stands for.
        return scheduled if self.ratio is None else int(self.ratio * num_mergeable + 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values; a schedule of `r` as `{"r": 16, "inflection": -1.0}`."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values[field.name] = list(value) if isinstance(value, tuple) else value
        if isinstance(self.r, tuple) and not isinstance(self.r, PerBlock):
            values["r"] = {"r": self.r[0], "inflection": self.r[1]}
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
        check_version(values.pop("format_version", FORMAT_VERSION))
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(names), key=str)
        if unknown:
            raise ValueError(f"Unknown merge config fields {shown(unknown)}; known are {names}.")
        r = values.get("r")
        if isinstance(r, Mapping):
            if set(r) != {"r", "inflection"}:
                raise ValueError(f"`r` is {shown(r)}; a schedule is {{'r': 16, 'inflection': -1.0}}.")
            values["r"] = (r["r"], r["inflection"])
        return cls(**values)

    def save_pretrained(self, save_directory: str | Path) -> Path:
        """Write `merge_config.json` into a folder, made if need be, and return its path."""
        path = Path(save_directory) / CONFIG_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_json(self.to_dict()))
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
        path = find_config_file(id_or_dir, hub_kwargs)
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def push_to_hub(self, repo_id: str, *, commit_message: str = "Add the merge config", **hub_kwargs: Any) -> Any:
        """Upload `merge_config.json` to a Hub repository that exists (`hub_kwargs` go to `HfApi.upload_file`)."""
        return HfApi().upload_file(
            path_or_fileobj=to_json(self.to_dict()),
            path_in_repo=CONFIG_NAME,
            repo_id=repo_id,
            commit_message=commit_message,
            **hub_kwargs,
        )


_CHOICES: dict[str, tuple[str, ...]] = {
    "batching": BATCHINGS,
    "modules": MODULES,
    "destinations": DESTINATIONS,
    "size": SIZES,
}

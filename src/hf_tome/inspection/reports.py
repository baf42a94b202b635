"""What merging does to a model, tower by tower: in words, and as plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from ..api import targets
from ..config import MergeConfig
from ..merging.methods import get_method
from ..patching.plans import CachedEntries, Description, Level, Target
from ..patching.unwrap import unwrap
from .flops import EncoderShape, count_flops, merged_flops, planned_tokens


@dataclass(frozen=True)
class TowerReport:
    """What merging does to one tower.

    Attributes:
        path: the tower's name in the model, empty for the model itself.
        tower: class of the tower.
        method: as in the config.
        config: the config's plain values.
        backend: the attention implementation.
        proportional_attention: whether log(size) is added to the attention logits.
        num_prefix_tokens: leading tokens that are never merged.
        heads: what is done with the tokens after the last block, in words.
        measured: whether the numbers below are those of the last forward pass; else they follow from the config.
        tokens: tokens into and out of each block, means over the images, padding left out; `None` where only a
            forward pass can tell.
        computed: the same with the padding that a batch of unequal images is computed with.
        gflops, gflops_unmerged: 1e9 multiply-adds (half of what most counters call FLOPs) an image, those of padding
            included where it is computed with.
        notes: what the user should know, e.g. that nothing merges.
        levels: in denoisers, whose blocks unmerge all tokens: blocks and their tokens in the last pass; else `None`.
        cached: where the entries of a cache merge: what that of each layer holds, by number of the layer; else `None`.
        group_size: how many tokens merge as one, and make one token of the language model (`where="groups"`); else 1.
    """

    path: str
    tower: str
    method: str
    config: dict[str, Any]
    backend: str
    proportional_attention: bool
    num_prefix_tokens: int
    heads: tuple[str, ...]
    measured: bool
    tokens: tuple[tuple[float, float], ...] | None
    computed: tuple[tuple[float, float], ...] | None
    gflops: float | None
    gflops_unmerged: float | None
    notes: tuple[str, ...]
    levels: tuple[Level, ...] | None = None
    cached: dict[int, CachedEntries] | None = None
    group_size: int = 1

    @property
    def tokens_out(self) -> float | None:
        """Tokens after the last block, the mean over the images."""
        return self.tokens[-1][1] if self.tokens else None

    @property
    def is_projected(self) -> bool:
        """Whether projected image tokens merge, rather than those of a tower's blocks."""
        return self.config["where"] == "projected"

    def __str__(self) -> str:
        name = f"{self.path} ({self.tower})" if self.path else self.tower
        if self.cached is not None:
            return "\n".join([*self._cache_lines(name), *(f"  note: {note}" for note in self.notes)])
        in_blocks = [
            f"{name}: {self.method}, attention {self.backend}, "
            f"proportional attention {'on' if self.proportional_attention else 'off'}",
            f"  protected: {self.num_prefix_tokens} leading tokens",
        ]
        lines = in_blocks
        if self.is_projected:
            lines = [f"{name}: {self.method}, behind the projector"]
        elif self.levels is not None:
            lines = [f"{name}: {self.method}, proportional attention {'on' if self.proportional_attention else 'off'}"]
        lines += [f"  head: {says}" for says in self.heads]
        if self.tokens:  # none where every block unmerges its tokens; `levels` tells what those do
            path = " -> ".join(f"{count:.4g}" for count in (self.tokens[0][0], *(after for _, after in self.tokens)))
            lines.append(f"  tokens{'' if self.measured else ' (planned)'}: {path}")
        for level in self.levels or ():
            change = f"-> {level.after:,} -> {level.before:,}" if level.after < level.before else "(do not merge)"
            lines.append(f"  {level.num_blocks} blocks of {level.before:,} tokens {change}")
        if self.gflops is not None and self.gflops_unmerged is not None:
            share = self.gflops / self.gflops_unmerged
            lines.append(
                f"  GFLOPs an image (multiply-adds): {self.gflops_unmerged:.4g} -> {self.gflops:.4g} ({share:.0%})"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _cache_lines(self, name: str) -> list[str]:
        """Return what there is to say of a cache; layers that hold as many entries share a line."""
        sizes = "on" if self.proportional_attention else "off"
        lines = [f"{name}: {self.method} in the cache, attention {self.backend}, sizes in attention {sizes}"]
        cached = self.cached or {}
        for entries in dict.fromkeys(cached.values()):
            layers = sum(other == entries for other in cached.values())
            lines.append(
                f"  {layers} layers: {entries.seen:,} -> {entries.stored:,} entries, "
                f"{_mebibytes(entries.bytes_seen)} -> {_mebibytes(entries.bytes_stored)} each"
            )
        if cached:
            seen, stored = (
                sum(getattr(entries, name) for entries in cached.values()) for name in ("bytes_seen", "bytes_stored")
            )
            lines.append(f"  together: {_mebibytes(seen)} -> {_mebibytes(stored)} ({stored / seen:.0%})")
        return lines


@dataclass(frozen=True)
class Report:
    """What merging does to a model; print it, or read `towers`."""

    model: str
    towers: tuple[TowerReport, ...]

    @property
    def gflops(self) -> float | None:
        """1e9 multiply-adds an image of all towers, `None` where those of one are not known."""
        return _total(tower.gflops for tower in self.towers)

    @property
    def gflops_unmerged(self) -> float | None:
        """The same of the unmerged model."""
        return _total(tower.gflops_unmerged for tower in self.towers)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.towers:
            return f"{self.model}: no tokens are merged; call `hf_tome.apply(model, MergeConfig(r=16))`."
        return "\n".join([self.model, *map(str, self.towers)])


def _total(counts: Iterable[float | None]) -> float | None:
    """Return the sum, `None` where there is nothing or a part is not known."""
    counts = list(counts)
    known_counts = [count for count in counts if count is not None]
    return sum(known_counts) if known_counts and len(known_counts) == len(counts) else None


def report(model: object) -> Report:
    """Report what merging does to a model: measured in the last forward pass, or planned where there was none."""
    root = unwrap(model)
    paths = {id(module): path for path, module in root.named_modules()}
    reports = [_report_target(target, paths.get(id(target.module), target.path)) for target in targets(root)]
    return Report(type(root).__name__, tuple(reports))


def _report_target(target: Target, path: str) -> TowerReport:
    description, summary, shape = target.describe(), target.recorder.summary, target.plan.shape(target.module)
    num_run = description.blocks_run
    tokens: list[tuple[float, float]] | None = None
    computed: list[tuple[float, float]] | None = None
    if summary is not None:
        counts: list[float] = [*summary.tokens]
        computed = list(pairwise(counts))[:num_run]
        tokens = list(pairwise(summary.mean_tokens()))[:num_run]
    elif shape is not None and not depends_on_images(target):
        computed = [*planned_tokens(shape, target.config)[:num_run]]
        tokens = computed
    gflops = target.plan.gflops(target.module, summary)
    if gflops is None and shape is not None and computed:
        gflops = _gflops(_at_length(shape, int(computed[0][0])), computed, target, description)
    return TowerReport(
        path=path,
        tower=description.tower,
        method=target.config.method,
        config=target.config.to_dict(),
        backend=description.backend,
        proportional_attention=description.proportional_attention,
        num_prefix_tokens=description.num_prefix_tokens,
        heads=description.outputs,
        measured=summary is not None,
        tokens=None if tokens is None else tuple(tokens),
        computed=None if computed is None else tuple(computed),
        gflops=None if gflops is None else gflops[0],
        gflops_unmerged=None if gflops is None else gflops[1],
        notes=(*_notes(target, description, computed), *_last_block_notes(shape, description, computed)),
        levels=description.levels,
        cached=None if description.cached is None else dict(description.cached),
        group_size=description.group_size,
    )


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.3g} MiB"


def _gflops(shape: EncoderShape, computed: list, target: Target, description: Description) -> tuple[float, float]:
    """Return the GFLOPs of an image with merging and without."""
    full = (shape.num_tokens, shape.num_tokens)
    behind = [full if description.unmerged else (0, 0)] * (shape.num_layers - len(computed))
    tokens = [*computed, *behind]
    packed, attended = list(tokens), [before**2 for before, _ in tokens]
    summary = target.recorder.summary
    if summary is not None:
        packed[: len(computed)] = list(pairwise(run for run, _ in summary.computed))[: len(computed)]
        attended[: len(computed)] = [pairs for _, pairs in summary.computed[: len(computed)]]
    unmerged = merged_flops(shape, [full] * shape.num_layers, MergeConfig())
    last = description.last_queries
    merged = merged_flops(shape, tokens, target.config, packed=packed, attended=attended, last_queries=last)
    return merged.gflops, unmerged.gflops


def _notes(target: Target, description: Description, computed: list[tuple[float, float]] | None) -> list[str]:
    notes = [*description.notes]
    if description.levels is not None or description.cached is not None:
        return notes
    if not any(description.merging):
        notes.append(
            "nothing merges: the config asks for no token in any block; the output is the unmerged model's, bit by bit"
        )
    elif computed is None:
        notes.append("how many tokens merge depends on the images; run the model on some, and report again")
    elif all(before == after for before, after in computed):
        method = get_method(target.config.method)
        more = "raise `r` or `ratio`" if method.takes_r else f"lower `{method.search_field}`"
        union = ", or use batching='pad' instead of 'union'" if target.config.batching == "union" else ""
        notes.append(f"nothing merged in the last forward pass; {more}{union}")
    if target.config.ratio is not None and target.config.ratio > 0.5 and target.config.where != "projected":
        notes.append(f"a block merges half of its tokens at most, not the ratio={target.config.ratio:g} asked for")
    size, name = description.group_size, "tokens" if description.group_size == 1 else "groups"
    for block, (r, counts) in enumerate(zip(description.schedule, computed or ())):
        before, after = (count // size for count in counts)
        if r > before - after:
            start = "" if target.config.where == "projected" else f"from block {block} on "
            notes.append(f"{start}fewer than the r={r} asked for can merge: {before - after} of {before} {name} did")
            break
    if description.unmerged:
        notes.append(f"all tokens are unmerged after block {len(description.merging) - 1}")
    if description.blocks_run < len(description.merging):
        notes.append(f"blocks {description.blocks_run} and later are skipped: no later hidden state is used")
    return notes


def _last_block_notes(shape: EncoderShape | None, description: Description, computed: list | None) -> list[str]:
    """Return what the last block saves, and that the unmerged model could save it too."""
    queries = description.last_queries
    if queries is None:
        return []
    note = f"the last block computes its {queries} special tokens alone, as nothing reads the others"
    if shape is None or not computed:
        return [f"{note} (exact_last_block)"]
    shape = _at_length(shape, computed[0][0])
    full = [(shape.num_tokens, shape.num_tokens)] * shape.num_layers
    plain = count_flops(shape, full, None).gflops
    exact = count_flops(shape, full, None, last_queries=queries).gflops
    return [f"{note} (exact_last_block); alone it takes {plain:.4g} GFLOPs to {exact:.4g} ({exact / plain:.1%})"]


def depends_on_images(target: Target) -> bool:
    """Return whether the number of tokens that merge depends on the images, as with MaMe's threshold."""
    method, config = get_method(target.config.method), target.config
    return any(target.describe().merging) and method.planned_tokens(2, 0, 1, config.match_fields(method)) is None


def _at_length(shape: EncoderShape, num_tokens: int) -> EncoderShape:
    """Return the shape for inputs of another size than the config's: patches cost in proportion."""
    patches, now = shape.num_tokens - shape.num_prefix_tokens, num_tokens - shape.num_prefix_tokens
    patch_flops = round(shape.patch_flops * now / patches) if patches else shape.patch_flops
    return replace(shape, num_tokens=num_tokens, patch_flops=patch_flops)

"""What merging does to a model, tower by tower: in words, and as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from operator import attrgetter
from typing import Any

from ..adapters.encoders.attention import backend_of
from ..adapters.encoders.dims import family_shape, timm_shape
from ..adapters.encoders.plan import unwrap
from ..api import towers
from ..config import MergeConfig
from ..patching.recorder import ForwardState, Tower
from .flops import EncoderShape, merged_flops, planned_tokens


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
        num_special: leading tokens that are never merged.
        heads: what is done with the tokens after the last block, in words.
        measured: whether the numbers below are those of the last forward pass; else they follow from the config.
        tokens: tokens into and out of each block, means over the images, padding left out; `None` where only a
            forward pass can tell.
        computed: the same with the padding that a batch of unequal images is computed with.
        gflops, gflops_unmerged: 1e9 multiply-adds (half of what most counters call FLOPs) an image, those of padding
            included where it is computed with.
        notes: what the user should know, e.g. that nothing merges.
    """

    path: str
    tower: str
    method: str
    config: dict[str, Any]
    backend: str
    proportional_attention: bool
    num_special: int
    heads: tuple[str, ...]
    measured: bool
    tokens: tuple[tuple[float, float], ...] | None
    computed: tuple[tuple[float, float], ...] | None
    gflops: float | None
    gflops_unmerged: float | None
    notes: tuple[str, ...]

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
        in_blocks = [
            f"{name}: {self.method}, attention {self.backend}, "
            f"proportional attention {'on' if self.proportional_attention else 'off'}",
            f"  protected: {self.num_special} leading tokens",
        ]
        lines = [f"{name}: {self.method}, behind the projector"] if self.is_projected else in_blocks
        lines += [f"  head: {says}" for says in self.heads]
        if self.tokens is not None:
            path = " -> ".join(f"{count:.4g}" for count in (self.tokens[0][0], *(after for _, after in self.tokens)))
            lines.append(f"  tokens{'' if self.measured else ' (planned)'}: {path}")
        if self.gflops is not None and self.gflops_unmerged is not None:
            share = self.gflops / self.gflops_unmerged
            lines.append(
                f"  GFLOPs an image (multiply-adds): {self.gflops_unmerged:.4g} -> {self.gflops:.4g} ({share:.0%})"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Report:
    """What merging does to a model; print it, or read `towers`."""

    model: str
    towers: tuple[TowerReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.towers:
            return f"{self.model}: no tokens are merged; call `hf_tome.apply(model, MergeConfig(r=16))`."
        return "\n".join([self.model, *map(str, self.towers)])


def report(model: object) -> Report:
    """Report what merging does to a model: measured in the last forward pass, or planned where there was none."""
    root = unwrap(model)
    return Report(type(root).__name__, tuple(_report_tower(root, tower) for tower in towers(model)))


def _report_tower(root: Any, tower: Tower) -> TowerReport:
    module = attrgetter(tower.path)(root) if tower.path else root
    shape = _shape(module, tower)
    state = tower.last
    num_run = _blocks_run(tower, state)
    tokens: list | None = None
    computed: list | None = None
    if state is not None:
        computed = list(pairwise(state.tokens))[:num_run]
        tokens = _mean_counts(state)[:num_run]
    elif shape is not None and not depends_on_images(tower):
        tokens = computed = planned_tokens(shape, tower.config)[:num_run]
    counts: tuple[float | None, float | None] = (None, None)
    if shape is not None and computed:
        counts = _gflops(_at_length(shape, computed[0][0]), computed, tower, state)
    return TowerReport(
        path=tower.path,
        tower=tower.family.tower,
        method=tower.config.method,
        config=tower.config.to_dict(),
        backend=backend_of(module),
        proportional_attention=tower.proportional,
        num_special=tower.num_special,
        heads=tuple(dict.fromkeys(head.says for head in tower.heads if head.says)),
        measured=state is not None,
        tokens=tuple(tokens) if tokens is not None else None,
        computed=tuple(computed) if computed is not None else None,
        gflops=counts[0],
        gflops_unmerged=counts[1],
        notes=tuple(_notes(tower, computed, num_run)),
    )


def _blocks_run(tower: Tower, state: ForwardState | None) -> int:
    """Return the number of blocks with merged tokens that run: those after the hidden states that are read do not."""
    reads = tower.reads if state is None else state.reads
    return tower.num_layers if tower.restore or not reads else min(max(reads), tower.num_layers)


def _gflops(shape: EncoderShape, computed: list, tower: Tower, state: ForwardState | None) -> tuple[float, float]:
    """Return the GFLOPs of an image with merging and without."""
    full = (shape.num_tokens, shape.num_tokens)
    behind = [full if tower.restore else (0, 0)] * (shape.num_layers - len(computed))
    tokens = [*computed, *behind]
    packed, attended = list(tokens), [before**2 for before, _ in tokens]
    for block in range(len(computed) if state is not None else 0):
        ends = [_tokens_run(state, index) for index in (block, block + 1)]  # type: ignore[arg-type]
        packed[block], attended[block] = (ends[0][0], ends[1][0]), ends[0][1]
    unmerged = merged_flops(shape, [full] * shape.num_layers, MergeConfig())
    merged = merged_flops(shape, tokens, tower.config, packed=packed, attended=attended)
    return merged.gflops, unmerged.gflops


def _tokens_run(state: ForwardState, index: int) -> tuple[float, float]:
    """Return the tokens an image that block `index` is computed with, and the pairs that its attention takes."""
    packing, count = state.packing[index], state.tokens[index]
    if packing.lengths is None:
        return count, count**2
    images = len(packing.lengths)
    pairs = sum(length**2 for length in packing.lengths) / images if packing.alone else count**2
    return sum(packing.lengths) / images, pairs


def _notes(tower: Tower, computed: list[tuple[int, int]] | None, num_run: int) -> list[str]:
    notes = []
    if not any(tower.merging):
        notes.append(
            "nothing merges: the config asks for no token in any block; the output is the unmerged model's, bit by bit"
        )
    elif computed is None:
        notes.append("how many tokens merge depends on the images; run the model on some, and report again")
    elif all(before == after for before, after in computed):
        union = ", or use batching='pad' instead of 'union'" if tower.config.batching == "union" else ""
        notes.append(f"nothing merged in the last forward pass; lower `threshold`{union}")
    for block, (r, (before, after)) in enumerate(zip(tower.schedule, computed or ())):
        if r > before - after and tower.config.where == "projected":
            notes.append(f"fewer than the r={r} asked for can merge: {before - after} of {before} tokens did")
            break
        if r > before - after:
            notes.append(
                f"from block {block} on fewer than the r={r} asked for can merge: {before - after} of {before} tokens "
                f"did"
            )
            break
    if tower.restore:
        notes.append(f"the full grid of tokens is given back after block {tower.num_layers - 1}")
    if num_run < tower.num_layers:
        notes.append(f"the blocks from {num_run} on are not run, as nobody reads them")
    return notes


def _mean_counts(state: ForwardState) -> list[tuple[float, float]]:
    counts = [
        float((size[..., 0] > 0).sum(dim=1).float().mean()) if padded and size is not None else float(count)
        for size, padded, count in zip(state.size, state.padded, state.tokens)
    ]
    return list(pairwise(counts))


def depends_on_images(tower: Tower) -> bool:
    """Return whether the number of tokens that a tower merges depends on the images, as with MaMe's threshold."""
    method, fields = tower.method, tower.config.match_fields(tower.method)
    return any(tower.merging) and method.planned_tokens(2, 0, 1, fields) is None


def _shape(module: Any, tower: Tower) -> EncoderShape | None:
    if tower.config.where == "projected":
        return None  # the tower runs as ever, and what the language model saves goes by the prompt
    try:
        shape = timm_shape(module) if tower.family.library == "timm" else family_shape(tower.family, module.config)
    except ValueError:
        return None  # a config whose sizes are not known costs the report its GFLOPs, nothing else
    return replace(shape, num_special=tower.num_special)


def _at_length(shape: EncoderShape, num_tokens: int) -> EncoderShape:
    """Return the shape for inputs of another size than the config's: patches cost in proportion."""
    patches, now = shape.num_tokens - shape.num_special, num_tokens - shape.num_special
    patch_flops = round(shape.patch_flops * now / patches) if patches else shape.patch_flops
    return replace(shape, num_tokens=num_tokens, patch_flops=patch_flops)

"""What else was tried for whole blocks of the digits DiT, every block half merged, beside the shipped way.

Each trial changes one thing of `MergeConfig(ratio=0.5, modules="block", tile=8)`: where destinations are, what is
compared, or how many tokens merge in which step and block, at the same number of tokens on average. Ratios by step and
block come from a calibration on `--calibration` other pictures: what merging in that step or block alone costs.
Compared with the unmerged picture of the same noise; the interval is that of the mean PSNR (95 %, normal).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from common import Row, run
from diffusion_quality import DIGIT_COLUMNS, compare_digits
from torch import Tensor

import hf_tome
from hf_tome import MergeConfig, register_method
from hf_tome.demo.digits_dit import STEPS, load_digits_dit
from hf_tome.demo.digits_pictures import draw_digits
from hf_tome.merging import tiles
from hf_tome.merging.method import GridInputs, Method
from hf_tome.merging.tiles import tile_layout, tiled_matching

BATCH = 20
MOST = 0.75
"""The largest ratio with one destination in a cell of 2x2."""
FLOOR = 0.25


@dataclass
class Pass:
    """Where a pass is, and what earlier ones left: a trial's matching reads it.

    Attributes:
        step, block: numbers of the step and the block that runs.
        ratios: (steps, blocks), the share of the tokens that merge.
        changes: of each block, the change of its tokens in the step before.
        compare: from the tokens of a block to what is compared.
        importance: from the tokens of a block to a score of each (B, N); the highest of a cell is its destination.
        seed: of the block in this step.
    """

    step: int = -1
    block: int = 0
    ratios: Tensor | None = None
    changes: dict[int, Tensor] = field(default_factory=dict)
    compare: Callable[[Pass, Tensor], Tensor] = lambda state, tokens: tokens
    importance: Callable[[Pass, Tensor], Tensor] | None = None
    seed: int = 0


STATE = Pass()


def match(inputs: GridInputs) -> Any:
    """Match as the trial in `STATE` says."""
    tokens = inputs.metric
    count = tokens.shape[1]
    r = inputs.r if STATE.ratios is None else int(float(STATE.ratios[STATE.step % STEPS, STATE.block]) * count)
    seed: Any = inputs.seed
    options = {"tile": inputs.tile, "stride": inputs.stride, "combine": "weighted_mean"}
    STATE.seed = int(seed)
    metric = STATE.compare(STATE, tokens)
    if STATE.importance is None:
        return tiled_matching(metric, r, inputs.shape, seed=seed, **options)
    scores = STATE.importance(STATE, tokens).mean(dim=0)  # (N,): destinations are those of the whole batch
    with choosing(scores):
        return tiled_matching(metric, r, inputs.shape, seed=seed, **options)


class choosing:
    """Let each cell's destination be the token with the highest score, within."""

    def __init__(self, scores: Tensor):
        self.scores = scores

    def __enter__(self) -> None:
        self.own = tiles.tile_layout
        tiles.tile_layout = self._layout  # type: ignore[assignment]

    def __exit__(self, *error: object) -> None:
        tiles.tile_layout = self.own  # type: ignore[assignment]

    def _layout(self, *args: Any) -> Any:
        layout = tile_layout(*args)
        tiles_, cells = layout.destinations.shape
        others = layout.sources.view(tiles_, cells, -1)
        members = torch.cat([layout.destinations[..., None], others], dim=-1)  # (G, T, 4)
        best = self.scores[members].argmax(dim=-1, keepdim=True)
        rest = torch.arange(members.shape[-1]) != best
        destinations = members.gather(-1, best)[..., 0]
        sources = members[rest].view(tiles_, -1)
        by_cell = torch.empty_like(layout.by_cell).scatter(0, layout.cells.flatten(), destinations.flatten())
        return replace(layout, destinations=destinations, sources=sources, by_cell=by_cell)


METHOD = Method("trial", lambda inputs: None, match_grid=match, fields=("r",), grid_proportional=True)


def watch(model: Any) -> Any:
    """Let `STATE` follow the model's passes: step, block, and each block's change of its tokens."""

    def begin(module: Any, args: Any) -> None:
        STATE.step += 1

    def enter(module: Any, args: Any, number: int) -> None:
        STATE.block = number

    def leave(module: Any, args: Any, out: Tensor, number: int) -> None:
        STATE.changes[number] = out - args[0]

    model.register_forward_pre_hook(begin)
    for number, block in enumerate(model.transformer_blocks):
        block.register_forward_pre_hook(lambda module, args, number=number: enter(module, args, number))
        block.register_forward_hook(lambda module, args, out, number=number: leave(module, args, out, number))
    return model


def last_change(state: Pass, tokens: Tensor) -> Tensor:
    """Return the change of the step before; in the first step the tokens."""
    change = state.changes.get(state.block)
    return tokens if change is None or state.step % STEPS == 0 else change


def with_change(state: Pass, tokens: Tensor) -> Tensor:
    """Return tokens and the change of the step before, each of length 1, side by side."""
    parts = (tokens, last_change(state, tokens))
    return torch.cat([torch.nn.functional.normalize(part, dim=-1) for part in parts], dim=-1)


def drawn_by_change(state: Pass, tokens: Tensor) -> Tensor:
    """Return scores whose highest of a cell is drawn in proportion to the change of the step before."""
    change = last_change(state, tokens).norm(dim=-1).mean(dim=0)
    uniform = torch.rand(change.shape, generator=torch.Generator().manual_seed(state.seed))
    return (change.log() - (-uniform.log()).log()).expand(len(tokens), -1)  # Gumbel's trick


def spread(tokens: Tensor) -> Tensor:
    """Return how far each token is from the mean of all."""
    return (tokens - tokens.mean(dim=1, keepdim=True)).norm(dim=-1)


TRIALS: dict[str, dict[str, Any]] = {
    "the shipped way": {},
    "destinations: longest token of the cell": {"importance": lambda state, tokens: tokens.norm(dim=-1)},
    "destinations: farthest from the mean": {"importance": lambda state, tokens: spread(tokens)},
    "destinations: nearest to the mean": {"importance": lambda state, tokens: -spread(tokens)},
    "destinations: largest change of the last step": {
        "importance": lambda state, tokens: last_change(state, tokens).norm(dim=-1)
    },
    "destinations: drawn in proportion to the change of the last step": {"importance": drawn_by_change},
    "compared: change of the last step": {"compare": last_change},
    "compared: tokens and change of the last step": {"compare": with_change},
    "compared: tokens without their mean": {
        "compare": lambda state, tokens: tokens - tokens.mean(dim=1, keepdim=True)
    },
}


def draw(labels: Tensor, seed: int, trial: dict[str, Any] | None, **fields: Any) -> Tensor:
    """Draw digits with whole blocks merged as a trial says; `None` merges nothing."""
    model = watch(load_digits_dit())
    values = {"step": -1, "block": 0, "ratios": None, "changes": {}, "compare": lambda state, tokens: tokens}
    for name, value in {**values, "importance": None, **(trial or {})}.items():
        setattr(STATE, name, value)
    if trial is not None:
        common = {"ratio": 0.5, "modules": "block", "min_tokens": 0, "tile": 8}
        hf_tome.apply(model, MergeConfig(method="trial", **{**common, **fields}))
    return draw_digits(model, labels, seed=seed, batch_size=BATCH)


def calibrate(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return what merging half in one step alone, and in one block alone, costs in squared error."""
    unmerged = draw(labels, seed, None)
    blocks = len(load_digits_dit().transformer_blocks)

    def cost(ratios: Tensor) -> float:
        return (draw(labels, seed, {"ratios": ratios}) - unmerged).square().mean().item()

    by_step = [cost(0.5 * (torch.arange(STEPS) == step).float()[:, None].expand(-1, blocks)) for step in range(STEPS)]
    by_block = [cost(0.5 * (torch.arange(blocks) == block).float().expand(STEPS, -1)) for block in range(blocks)]
    return torch.tensor(by_step), torch.tensor(by_block)


def allot(costs: Tensor) -> Tensor:
    """Return ratios of 0.5 on average, from FLOOR to MOST, larger where merging costs less.

    The error of merging a share p is taken to grow with p^2, of which the least sum for a mean is at p ~ 1 / cost.
    """
    low, high = 0.0, 1e9
    for _ in range(200):
        scale = (low + high) / 2
        mean = (scale / costs).clamp(FLOOR, MOST).mean()
        low, high = (scale, high) if mean < 0.5 else (low, scale)
    return (low / costs).clamp(FLOOR, MOST)


def measure(options: argparse.Namespace) -> list[Row]:
    register_method(METHOD)
    count, calibration = (2, 2) if options.quick else (options.pictures, options.calibration)
    labels = torch.arange(count) % 10
    unmerged = draw(labels, 0, None)
    by_step, by_block = calibrate(torch.arange(calibration) % 10, seed=100_000)
    print("costs by step", by_step, "by block", by_block, file=sys.stderr)
    ones_step, ones_block = torch.ones(STEPS)[:, None], torch.ones(len(by_block))[None]
    trials = {
        **TRIALS,
        "ratio by step, calibrated": {"ratios": allot(by_step)[:, None] * ones_block},
        "ratio by block, calibrated": {"ratios": allot(by_block)[None] * ones_step},
        "ratio by step and block, calibrated": {"ratios": allot(by_step[:, None] * by_block[None])},
    }
    rows: list[Row] = []
    for name, trial in trials.items():
        drawn = draw(labels, 0, trial)
        ratios = trial.get("ratios")
        ratio = 0.5 if ratios is None else ratios.mean().item()
        rows.append({"name": name, **compare_digits(drawn, unmerged, labels), "ratio": ratio})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        {"name": "every block half merged", **DIGIT_COLUMNS, "ratio": "merged, mean"},
        target="more than the shipped way",
        add_options=lambda parser: (
            parser.add_argument("--pictures", type=int, default=200),
            parser.add_argument("--calibration", type=int, default=20, help="pictures of the calibration"),
        ),
    )

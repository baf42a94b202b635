"""Methods and rates of other papers on DeiT-Tiny at half of the GFLOPs, beside ToMe's constant schedule and `tune`'s.

Rates and thresholds come from 96 photographs without labels, the ones that `tune` chooses by; the figures are those of
the others: mean Jensen-Shannon divergence from the unmerged model in bits, its difference from the choice of `tune` in
pairs with the standard error, and how often the class stays the unmerged one's. PiToMe's energy is that of its paper
(arXiv 2405.16148), rates are learned by gradient as in DiffRate (arXiv 2305.17997), MaMe has one threshold a block.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from common import MEASURED, SHARED_DATA, Row, run
from torch import Tensor
from tune_runs.methods import MAME, PITOME, THRESHOLDS, calibrate
from tune_runs.rates import learn_rates

import hf_tome
from hf_tome import MergeConfig, register_method
from hf_tome.config import parse_config
from hf_tome.evaluation.options import JobOptions
from hf_tome.evaluation.running.batches import prepare
from hf_tome.evaluation.search.budget.front import CONSTANT
from hf_tome.evaluation.search.budget.front import MAME as MAME_SETTINGS
from hf_tome.evaluation.search.budget.objective import divergence
from hf_tome.evaluation.search.budget.samples import split_samples
from hf_tome.evaluation.search.budget.spaces.costs import Costs
from hf_tome.evaluation.search.budget.spaces.schedules import fit
from hf_tome.evaluation.search.budget.spaces.space import Space
from hf_tome.evaluation.tasks.registry import build_job

BATCH = 16
BUDGET = 0.5
CLOSE = 0.005
"""Thresholds are calibrated until the GFLOPs are this near to the budget, as a share of the unmerged model's."""
CORRECTIONS = 4


@dataclass
class Photographs:
    """Some photographs, ready for the model, in half precision, and what the unmerged model makes of them."""

    batches: list[Tensor]
    targets: list[Tensor]


@dataclass
class Lab:
    """The model, the photographs to choose by and the others, and what configs cost."""

    model: Any
    choosing: Photographs
    confirming: Photographs
    costs: Costs

    def outputs(self, config: MergeConfig, photographs: Photographs) -> tuple[list[Tensor], float]:
        """Return the probabilities (B, classes) of each batch, and the GFLOPs as a share of the unmerged model's."""
        outputs, gflops = [], []
        with torch.inference_mode(), hf_tome.merged(self.model, config):
            for pixels in photographs.batches:
                outputs.append(self.model(pixel_values=pixels.float()).logits.double().softmax(dim=-1))
                gflops.append((hf_tome.report(self.model).towers[0].gflops or 0.0) * len(pixels))
        count = sum(len(pixels) for pixels in photographs.batches)
        return outputs, sum(gflops) / count / self.costs.unmerged

    def measure(self, name: str, config: MergeConfig) -> tuple[Row, np.ndarray]:
        """Return the row of a config, and its divergence on each of the confirming photographs."""
        chosen_by, _ = self.outputs(config, self.choosing)
        outputs, share = self.outputs(config, self.confirming)
        divergences = compare(self.confirming, outputs)
        same = [
            output.argmax(dim=-1) == target.argmax(dim=-1) for output, target in zip(outputs, self.confirming.targets)
        ]
        row = {
            "name": name,
            "config": str(config.r if config.r else config.keep_ratio),
            "choosing": float(compare(self.choosing, chosen_by).mean()),
            "confirming": float(divergences.mean()),
            "same": 100 * float(torch.cat(same).double().mean()),
            "share": share,
        }
        return row, divergences

    def scheduled(self, weights: Sequence[float], **fields: Any) -> MergeConfig:
        """Return the mildest schedule with these weights within the budget."""
        limit = BUDGET * self.costs.unmerged
        num_tokens = self.costs.shape.num_tokens
        r = fit(weights, lambda r: self.costs.gflops(MergeConfig(r=r, **fields)), limit, num_tokens)
        if r is None:
            raise ValueError(f"Weights {list(weights)} are within no budget of {BUDGET}.")
        return MergeConfig(r=r, **fields)

    def thresholds(self, weights: Sequence[float]) -> MergeConfig:
        """Calibrate MaMe's thresholds by block for merged tokens with these weights at the budget."""
        config, scale = MergeConfig(method="mame_by_block", threshold=0.5), 1.0
        start = sum(self.scheduled(weights).r)  # type: ignore[arg-type]
        for _ in range(CORRECTIONS):
            schedule = [scale * start * weight / sum(weights) for weight in weights]
            calibrate(schedule, lambda: self.outputs(config, self.choosing))
            _, share = self.outputs(config, self.choosing)
            if abs(share - BUDGET) < CLOSE:
                break
            scale *= (1 - BUDGET) / (1 - share)
        return config


def compare(photographs: Photographs, outputs: Sequence[Tensor]) -> np.ndarray:
    """Return the divergence of each photograph from the unmerged model."""
    pairs = zip(photographs.targets, outputs)
    return torch.cat([divergence(target, output, "logits") for target, output in pairs]).numpy()


def make_lab(options: argparse.Namespace) -> Lab:
    """Load the model and the photographs, split as `tune` does with seed 0."""
    choose, confirm = (8, 8) if options.quick else (options.choose, options.confirm)
    folder = SHARED_DATA / "imagenet_sample"
    job = build_job("image-classification", JobOptions(str(SHARED_DATA / "deit-tiny-patch16-224"), str(folder)))
    parts = []
    for samples in split_samples(job.data, choose, confirm, 0):
        entries, batches, targets = iter(samples), [], []
        while some := list(islice(entries, BATCH)):
            batch, _ = prepare(job, some)
            assert batch is not None
            batches.append(batch.inputs["pixel_values"].half())
        with torch.inference_mode():
            targets = [job.model(pixel_values=pixels.float()).logits.double().softmax(dim=-1) for pixels in batches]
        parts.append(Photographs(batches, targets))
    costs = Costs.of(job.model)
    assert costs is not None
    return Lab(job.model, *parts, costs)


def learned(lab: Lab, fields: dict[str, Any], epochs: int) -> MergeConfig:
    """Return the schedule that is learned by gradient, on mirrored photographs too."""
    limit = BUDGET * lab.costs.unmerged
    batches = [pixels.float() for pixels in lab.choosing.batches]
    mirrored = [pixels.flip(-1) for pixels in batches]
    with torch.inference_mode():
        targets = [lab.model(pixel_values=pixels).logits.double().softmax(dim=-1) for pixels in mirrored]
    rates = learn_rates(
        lab.model,
        [*batches, *mirrored],
        [target.clone() for target in (*lab.choosing.targets, *targets)],
        lambda r: lab.costs.gflops(MergeConfig(r=r, **fields)),
        limit,
        epochs,
        fields.get("protect_attended", 0.0),
    )
    return lab.scheduled(rates, **fields)


def measure(options: argparse.Namespace) -> list[Row]:
    register_method(PITOME)
    register_method(MAME)
    lab = make_lab(options)
    tuned = json.loads((MEASURED / "tune.json").read_text())["half"]["run"]["tuned"]["config"]
    choice = parse_config(tuned)
    fields = {name: getattr(choice, name) for name in ("metric", "combine", "protect_attended")}
    weights, num_layers = [float(r) for r in choice.r], lab.costs.shape.num_layers  # type: ignore[union-attr]
    constant, space = [1.0] * num_layers, Space(lab.costs)
    tome, mame = (space.variant(settings, BUDGET) for settings in (CONSTANT, MAME_SETTINGS))
    assert tome is not None
    assert mame is not None
    trials = {
        "tune's choice": lambda: choice,
        "constant r, with the fields of the choice": lambda: lab.scheduled(constant, **fields),
        "rates learned by gradient, with the fields of the choice": lambda: learned(
            lab, fields, 1 if options.quick else options.epochs
        ),
        "constant ToMe": lambda: tome.config,
        "PiToMe, keys, constant r": lambda: lab.scheduled(constant, method="pitome"),
        "PiToMe, tokens, schedule and norm of the choice": lambda: lab.scheduled(
            weights, method="pitome", metric="x", combine="keep_norm"
        ),
        "the choice without protection": lambda: lab.scheduled(weights, **{**fields, "protect_attended": 0.0}),
        "MaMe, keep_ratio": lambda: mame.config,
        "MaMe, thresholds by block, as many in each": lambda: lab.thresholds(constant),
        "MaMe, thresholds by block, schedule of the choice": lambda: lab.thresholds(weights),
    }
    rows: list[Row] = []
    reference: np.ndarray | None = None
    for name, make in trials.items():
        config = make()
        row, divergences = lab.measure(name, config)
        if config.method == "mame_by_block":
            row["config"] = ", ".join(f"{value:.3f}" for value in THRESHOLDS.values or ())
        reference = divergences if reference is None else reference
        difference = divergences - reference
        row["difference"], row["error"] = (
            float(difference.mean()),
            float(difference.std(ddof=1) / len(difference) ** 0.5),
        )
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    run(
        __doc__,
        measure,
        {
            "name": "half of the GFLOPs",
            "choosing": "divergence, choosing",
            "confirming": "divergence, others",
            "difference": "more than tune's",
            "error": "+-",
            "same": "same class %",
            "share": "GFLOPs, of unmerged",
        },
        target="less than tune's choice",
        reached=lambda row: None if row["name"] == "tune's choice" else row["difference"] < 0,
        add_options=lambda parser: (
            parser.add_argument("--choose", type=int, default=96),
            parser.add_argument("--confirm", type=int, default=None, help="of the other photographs; all by default"),
            parser.add_argument("--epochs", type=int, default=3, help="of the rates that are learned"),
        ),
    )

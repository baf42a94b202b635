"""The image sizes that a model takes, and the tokens of each."""

from __future__ import annotations

import torch

from .....api import apply, remove
from .....config import MergeConfig
from .....inspection.reports import report
from ....job import Job
from ....running.batches import Batch
from ....variants import Variant
from .costs import Costs
from .space import Size


@torch.inference_mode()
def num_tokens_of(job: Job, batch: Batch) -> int:
    """Return the tokens of an image as the job prepares it, which need not have the config's size."""
    apply(job.model, MergeConfig())
    try:
        forward = getattr(job.run, "logits", job.run)
        forward(job.model, {name: value[:1] for name, value in batch.inputs.items()})
        tokens = report(job.model).towers[0].tokens
        return int(tokens[0][0]) if tokens else 0
    finally:
        remove(job.model)


def smaller_sizes(job: Job, batch: Batch, costs: Costs) -> tuple[dict[Size, int], str | None]:
    """Return the tokens of an image at each smaller size, and why there are none."""
    pixels = batch.inputs.get("pixel_values")
    config = getattr(job.model.config, "vision_config", job.model.config)
    patch = getattr(config, "patch_size", None)
    if pixels is None or pixels.ndim != 4 or not isinstance(patch, int):
        return {}, "no smaller images: the inputs are not images cut into square patches"
    height, width = pixels.shape[-2:]
    grid = (height // patch) * (width // patch)
    rest = costs.shape.num_tokens - grid
    sizes = {}
    for rows in range(max(1, height // patch // 3), height // patch):
        columns = max(1, round(rows * width / height))
        sizes[rows * patch, columns * patch] = rest + rows * columns
    if not sizes:
        return {}, "no smaller images: these are of few patches"
    single = {name: value[:1] for name, value in batch.inputs.items()}
    try:
        with torch.inference_mode():
            getattr(job.run, "logits", job.run)(job.model, Variant("", image_size=next(iter(sizes))).view(single))
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return {}, f"no smaller images: {type(job.model).__name__} takes no other image size ({reason})"
    return sizes, None

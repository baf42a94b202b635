"""Samples to a model's inputs; one that the job cannot take is left out of its batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedModel

from ..data.samples import Sample, Skipped, first_line
from ..data.splits import DataError
from ..job import Inputs, Job

logger = logging.getLogger(__name__)

GLOBAL_ERRORS = (ImportError, MemoryError, torch.OutOfMemoryError, DataError)
"""Errors not caused by a single sample; re-raised."""


@dataclass(frozen=True)
class Batch:
    """Samples and the model's inputs made of them, one row a sample, on its device."""

    samples: list[Sample]
    inputs: Inputs


def prepare(job: Job, samples: Sequence[Sample]) -> tuple[Batch | None, list[Skipped]]:
    """Return a batch, `None` if it would be empty, and the samples that the job cannot make inputs of.

    Raises:
        DataError: each sample can be prepared alone, but they cannot be together.
    """
    try:
        return _batch(job, samples), []
    except GLOBAL_ERRORS:
        raise
    except Exception:  # a processor is free to raise anything
        logger.debug("a batch cannot be prepared", exc_info=True)
    refused = [skipped for sample in samples if (skipped := _refusal(job, sample)) is not None]
    without = {skipped.position for skipped in refused}
    left = [sample for sample in samples if sample.position not in without]
    return (_together(job, left) if left else None), refused


def first_batch(job: Job, size: int) -> Batch:
    """Return the first samples that the job can make inputs of.

    Raises:
        DataError: there are none.
    """
    samples = iter(job.data)
    while some := list(islice(samples, size)):
        batch, _ = prepare(job, some)
        if batch is not None:
            return batch
    raise DataError(f"No sample in split {job.data.split!r} of {job.data.name} could be read.")


def to_model(inputs: Inputs, model: PreTrainedModel) -> Inputs:
    """Move inputs to the model's device, floating-point ones in its dtype; tensors in lists too, flags as they are.

    Raises:
        DataError: an input is neither tensors nor a flag.
    """
    return {name: _move(name, value, model) for name, value in inputs.items()}


def rows_are_samples(inputs: Inputs, count: int) -> bool:
    """Tell whether a batch of `count` samples can be divided: all inputs are tensors with one row a sample."""
    values = [value for value in inputs.values() if not _is_flag(value)]
    return all(isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == count for value in values)


def shapes(inputs: Inputs) -> tuple[object, ...]:
    """Return the shapes of what a tower sees of a batch, and in how many rows where these are not all samples."""
    tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    rows = {len(value) for value in tensors}
    seen = tuple(value.shape[1:] for value in tensors if value.is_floating_point())
    return seen if len(rows) == 1 else (*seen, *(len(value) for value in tensors))


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _move(name: str, value: Any, model: PreTrainedModel) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
    if _is_flag(value):
        return value
    if isinstance(value, Mapping):
        return {key: _move(f"{name}[{key!r}]", part, model) for key, part in value.items()}
    if isinstance(value, (list, tuple)) and all(isinstance(part, (torch.Tensor, list, tuple)) for part in value):
        return type(value)(_move(f"{name}[{index}]", part, model) for index, part in enumerate(value))
    raise DataError(
        f"The model input {name!r} is of type {type(value).__name__}; it takes tensors. Let the job's `prepare` "
        "return tensors, as a processor does with return_tensors='pt'."
    )


def _batch(job: Job, samples: Sequence[Sample]) -> Batch:
    return Batch(list(samples), to_model(job.prepare(samples), job.model))


def _together(job: Job, samples: Sequence[Sample]) -> Batch:
    try:
        return _batch(job, samples)
    except GLOBAL_ERRORS:
        raise
    except Exception as error:
        raise DataError(
            f"Samples can be prepared alone, but not in one batch ({type(error).__name__}: {first_line(error)}) Use "
            "--batch-size 1."
        ) from error


def _refusal(job: Job, sample: Sample) -> Skipped | None:
    try:
        job.prepare([sample])
    except GLOBAL_ERRORS:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        logger.warning("Skipped %s: %s", sample.name, reason)
        return Skipped(sample.name, reason, sample.position)
    return None

"""Images without labels: the model's own unmerged outputs are what merging is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, PreTrainedModel

from ...hub.sources import public_name
from ..data import splits
from ..data.columns import content_columns
from ..data.files.folders import SUFFIXES
from ..data.memory import in_memory, open_memory
from ..data.samples import Sample, Samples
from ..data.split_names import DataError
from ..job import Inputs, Job
from ..loading import load_processor, load_task_model
from ..metrics.bootstrap import mean_drop
from ..options import JobOptions
from ..store.fingerprint import processor_settings
from ..store.record import Record
from ..store.record_checks import Check, is_index, is_number, list_of
from .classification.labelled import prepare_images

TASK_NAME = "image-classification"
CLASSIFIER = "ForImageClassification"
"""What the names of classes that give logits of an image end in."""
EMBEDDINGS = ("pooler_output", "image_embeds", "last_hidden_state")
"""What stands for an image where a model gives no logits, the first that it has."""


@dataclass
class UnlabelledImages(Samples):
    """Images alone."""

    decode: Callable[[Any], Any]

    def content_and_label(self, row: Any) -> tuple[Any, None]:
        """Return the decoded image."""
        return self.decode(self.stored(row)), None

    def label_and_prompt(self, row: Any) -> tuple[None, None]:
        """Return nothing."""
        return None, None


@dataclass(frozen=True)
class AgreementScorer:
    """Compares outputs with those of the unmerged model: the class, or the direction of embeddings.

    Attributes:
        embeds: whether the outputs are embeddings; the agreement is then 100 times their mean cosine.
    """

    embeds: bool = False

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the outputs of the whole batch."""
        return torch.cat(list(parts)).float().cpu()

    def records(self, samples: Sequence[Sample], output: torch.Tensor) -> list[Record]:
        """Keep the class ranked first, or the embedding."""
        if self.embeds:
            return [{"embedding": row} for row in torch.nn.functional.normalize(output, dim=-1).tolist()]
        return [{"ranked": [best]} for best in output.argmax(dim=-1).tolist()]

    def fields(self) -> dict[str, Check]:
        """Return the check of each field that `metrics` reads."""
        return {"embedding": list_of(is_number)} if self.embeds else {"ranked": list_of(is_index)}

    def metrics(self, done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
        """Return the agreement in percent, and what is lost of it with its interval."""
        same = self.by_sample(done, unmerged)["agreement"]
        return {"agreement": float(same.mean()), **mean_drop(same, np.full(len(same), 100.0))}

    def by_sample(self, done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, np.ndarray]:
        """Return what each sample (samples,) adds to the agreement."""
        pairs = zip(done, unmerged)
        if self.embeds:
            same = [np.dot(record["embedding"], other["embedding"]) for record, other in pairs]
        else:
            same = [record["ranked"] == other["ranked"] for record, other in pairs]
        return {"agreement": 100 * np.array(same, dtype=float)}


def unlabelled_images(options: JobOptions) -> Job:
    """Load a model and images, in whatever folders they lie, or those of a data set in memory.

    Raises:
        DataError: there are no images.
        OSError: there is no such model.
    """
    if options.loaded is not None:
        names = [cls.__name__ for cls in type(options.loaded).__mro__]
    else:
        names = AutoConfig.from_pretrained(options.model, trust_remote_code=False).architectures or []
    classifies = any(CLASSIFIER in name for name in names)
    auto_class = AutoModelForImageClassification if classifies else AutoModel
    model = options.loaded or load_task_model(auto_class, options, "embed images")
    processor = load_processor(AutoImageProcessor, options)
    return unlabelled_job(model, processor, _images_of(options), public_name(options.model))


def unlabelled_job(model: PreTrainedModel, processor: Any, samples: Samples, name: str) -> Job:
    """Return the job of comparing a model's outputs on images with those of the unmerged model."""
    embeds = not any(CLASSIFIER in cls.__name__ for cls in type(model).__mro__)
    return Job(
        TASK_NAME,
        name,
        model,
        samples,
        prepare_images(processor),
        embeddings if embeds else logits,
        AgreementScorer(embeds),
        settings={"notes": ["agreement: 100 times the mean cosine of the embeddings"]} if embeds else {},
        depends_on={"processor": processor_settings(processor)},
        outputs="embeddings" if embeds else "logits",
    )


def logits(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Return the logits (B, classes) of a classifier."""
    return model(**inputs).logits


def embeddings(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Return what a model makes of images, (B, D)."""
    if hasattr(model, "get_image_features"):
        features = model.get_image_features(**inputs)  # type: ignore[operator]
        return features if isinstance(features, torch.Tensor) else features.pooler_output
    out = model(**inputs)
    name = next(name for name in EMBEDDINGS if out.get(name) is not None)
    return out[name][:, 0] if name == "last_hidden_state" else out[name]


def _images_of(options: JobOptions) -> UnlabelledImages:
    decode, name = partial(splits.open_image, limits=options.media_limits), public_name(options.data)
    rows = in_memory(options)
    if rows is not None:
        opened = open_memory(rows, options, "Image")
        column = content_columns(opened.rows, "Image")[0]
        rows = splits.draw_rows(opened.rows, options.limit, options.seed)
        return UnlabelledImages(name, opened.name, rows, column, decode)
    root = Path(options.data).expanduser().absolute()
    paths = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in SUFFIXES["Image"] and path.is_file()]
    if not paths:
        raise DataError(f"{options.data} holds no images; give a folder of them, in whatever folders they lie.")
    if options.limit is not None:
        paths = [paths[index] for index in splits.drawn(len(paths), options.limit, options.seed)]
    rows = [{"image": {"path": str(path), "bytes": None}} for path in paths]
    return UnlabelledImages(name, "unlabelled", rows, "image", decode, roots=(root,), folder=root)

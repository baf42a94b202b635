"""The task `image-to-text`: captions from any image-text-to-text model, scored by BLEU, ROUGE-L and CIDEr-D.

A sample has an image and one caption or several. In a JSON or JSONL file beside the images (in a CSV several captions
stand with semicolons between), or COCO's own file of captions; see `generation_data`:

    {"image": "dog.jpg", "captions": ["A dog on a lawn.", "A small dog outside."]}

A data set has the same columns, or others of the names below. In memory, `captioning_job` takes a list of such
dictionaries whose `image` is a PIL image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from ...media.limits import DEFAULT_LIMITS, MediaLimits
from ..data.image_text import ImageTexts, data_name, find_column, first_texts, open_rows
from ..data.samples import SkipSample
from ..job import Job
from ..metrics.bootstrap import mean_drop
from ..metrics.classification import compute
from ..metrics.text_metrics import CaptionScores, cider_scores
from ..options import JobOptions
from ..store.record import Record
from .generation import from_files, generation_job, job_arguments, load_generator

TASK = "image-to-text"
PROMPT = "Provide a one-sentence caption for the provided image."
"""With which LLaVA-1.5 was trained for captions."""
MAX_NEW_TOKENS = 64
CAPTION_COLUMNS = ("captions", "caption", "sentences", "sentences_raw", "answer", "answers", "text", "texts")


def image_to_text(options: JobOptions) -> Job:
    """Load a model and the images that it is to caption.

    Raises:
        ValueError: the data cannot be opened or hold no captions, or the model generates no text from images.
        OSError: there is no such model.
    """
    data = open_rows(options)
    find_column(data.columns, CAPTION_COLUMNS, "captions", data_name(options))
    model, processor = load_generator(options)
    job = captioning_job(model, processor, data.opened.rows, **job_arguments(options, data))
    return from_files(job, data)


def captioning_job(
    model: PreTrainedModel,
    processor: Any,
    rows: Any,
    *,
    name: str = "model",
    data_name: str = "in memory",
    split: str = "test",
    image_column: str = "image",
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    media_limits: MediaLimits = DEFAULT_LIMITS,
) -> Job:
    """Return the job of captioning rows: a data set, or a list of dictionaries with an image and captions."""
    asked = prompt or PROMPT

    def read_row(row: Mapping[str, Any]) -> tuple[str, list[str]]:
        captions = first_texts(row, CAPTION_COLUMNS, "raw")
        if not captions:
            raise SkipSample("it has no caption")
        return asked, captions

    samples = ImageTexts(data_name, split, rows, image_column, read_row, media_limits)
    return generation_job(
        TASK, name, model, processor, samples, score_captions, max_new_tokens or MAX_NEW_TOKENS, prompt=asked
    )


def score_captions(done: Sequence[Record], unmerged: Sequence[Record]) -> dict[str, float]:
    """Return BLEU, ROUGE-L, CIDEr-D, and the points of CIDEr-D lost with their interval."""
    said, right = [one["text"] for one in done], [one["right"] for one in done]
    before = [one["text"] for one in unmerged]
    values = compute((CaptionScores,), {"predictions": said, "references": right})
    return values | mean_drop(cider_scores(said, right), cider_scores(before, right))

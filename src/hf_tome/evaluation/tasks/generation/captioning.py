"""The task `image-to-text`: captions from any image-text-to-text model, scored by BLEU, ROUGE-L and CIDEr-D.

A sample has an image and one caption or several. In a JSON or JSONL file beside the images (in a CSV several captions
are separated by semicolons), or COCO's own file of captions; see `data.image_text`:

    {"image": "dog.jpg", "captions": ["A dog on a lawn.", "A small dog outside."]}

A data set has the same columns, or others of `CAPTION_COLUMNS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from ...data.image_text import data_name, find_column, first_texts, open_rows
from ...data.samples import SkipSample
from ...job import Job
from ...metrics.texts import score_captions
from ...options import JobOptions
from ..task import GENERATED_WORDS, GENERATING, Task
from .generation import generation_job, load_generator, source_arguments

PROMPT = "Provide a one-sentence caption for the provided image."  # with which LLaVA-1.5 was trained for captions
MAX_NEW_TOKENS = 64
CAPTION_COLUMNS = ("captions", "caption", "sentences", "sentences_raw", "answer", "answers", "text", "texts")


def image_to_text(options: JobOptions) -> Job:
    """Load a model and the images that it is to caption; raises `ValueError` for data or a model that do not fit."""
    data = open_rows(options)
    find_column(data.columns, CAPTION_COLUMNS, "captions", data_name(options))
    model, processor = load_generator(options)
    return captioning_job(model, processor, data.opened.rows, **source_arguments(options, data))


def captioning_job(model: PreTrainedModel, processor: Any, rows: Any, **source: Any) -> Job:
    """Return the job of captioning a data set or a list of dictionaries; for `source` see `generation_job`."""
    asked = source.pop("prompt", None) or PROMPT
    length = source.pop("max_new_tokens", None) or MAX_NEW_TOKENS

    def read_row(row: Mapping[str, Any]) -> tuple[str, list[str]]:
        captions = first_texts(row, CAPTION_COLUMNS, "raw")
        if not captions:
            raise SkipSample("it has no caption")
        return asked, captions

    how: dict[str, Any] = {"max_new_tokens": length, "settings": {"prompt": asked}}
    return generation_job(TASK.name, model, processor, rows, read_row, score_captions, **how, **source)


TASK = Task("image-to-text", image_to_text, GENERATING, GENERATED_WORDS)

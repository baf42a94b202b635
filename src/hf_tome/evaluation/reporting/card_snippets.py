"""The lines of Python on a model card that load the merged model with its processor and run it."""

from __future__ import annotations

import json

CALLS = {
    "image-classification": ("image-classification", '"image.jpg"'),
    "zero-shot-image-classification": (
        "zero-shot-image-classification",
        '"image.jpg", candidate_labels=["a cat", "a dog"]',
    ),
    "video-classification": ("video-classification", '"clip.mp4"'),
    "audio-classification": ("audio-classification", '"recording.wav"'),
    "semantic-segmentation": ("image-segmentation", '"image.jpg"'),
    "depth-estimation": ("depth-estimation", '"image.jpg"'),
    "object-detection": ("object-detection", '"image.jpg"'),
    "zero-shot-object-detection": (
        "zero-shot-object-detection",
        '"image.jpg", candidate_labels=["a cat", "a dog"]',
    ),
    "automatic-speech-recognition": ("automatic-speech-recognition", '"recording.wav"'),
    "image-to-text": ("image-text-to-text", '"image.jpg", text="<image> a photo of"'),
    "visual-question-answering": ("image-text-to-text", '"image.jpg", text="<image> What is this?"'),
}
"""By task, the pipeline that runs it (also the Hub's `pipeline_tag`) and the arguments of a call."""

_PIPELINE = """\
import hf_tome

config = hf_tome.MergeConfig.from_pretrained({repository})
model = hf_tome.pipeline({task}, {base_model}, merge_config=config)
print(model({call}))"""
_MODEL = """\
import hf_tome

config = hf_tome.MergeConfig.from_pretrained({repository})
model = hf_tome.from_pretrained({base_model}, merge_config=config)"""


def pipeline_tag(task: str) -> str | None:
    """Return the Hub's name for a task; `None` for one that was registered by somebody else."""
    return CALLS[task][0] if task in CALLS else None


def snippet(task: str, base_model: str, repository: str) -> str:
    """Return Python that runs: a pipeline, which loads the processor too, or the model of a task without one."""
    names = {"base_model": json.dumps(base_model, ensure_ascii=False)}
    names["repository"] = json.dumps(repository, ensure_ascii=False)
    if task not in CALLS:
        return _MODEL.format(**names)
    name, call = CALLS[task]
    return _PIPELINE.format(task=json.dumps(name), call=call, **names)

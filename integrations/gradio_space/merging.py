"""What the page does, without the page: load a model, merge its tokens on one input, and put the results in words."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from space_models import embedded_models, model_folder
from transformers import AutoTokenizer

import hf_tome
from hf_tome import MergeConfig
from hf_tome.demo.digits_scenes import NAMES
from hf_tome.evaluation.data.digits import TEMPLATES
from hf_tome.evaluation.tasks.classification.zero_shot_classes import class_embeddings, image_scores
from hf_tome.media.limits import parse_limits
from hf_tome.merging.methods import get_method
from hf_tome.visualize import compare_sheet, input_kind, process_input, trace_input
from hf_tome.visualize.inputs import load_model, open_input

if TYPE_CHECKING:
    from PIL import Image

BOTH = "both, side by side"
METHODS = ("ToMe", "MaMe", BOTH)
SCHEDULES = {"the same in every block": 0.0, "falling: early blocks merge most": -1.0, "rising: late blocks": 1.0}
UNMERGED = "unmerged"
ROUNDS = 5
BATCH_SIZE = 8
MEASURED_SECONDS = 20
"""After these no further round begins, so that a large model keeps nobody waiting for long."""
TOP = 5
MEDIA_LIMITS = parse_limits("file_bytes=100000000," + os.environ.get("HF_TOME_MEDIA_LIMITS", ""))
"""Of what visitors drop; as on the command line, except for the size of an upload."""
USUAL_TOKENS, USUAL_BLOCKS = 196, 12  # a ViT-B at 224 pixels, where a model's config does not say

_lock = threading.Lock()  # merging is switched on and off in a model that all visitors share


@dataclass(frozen=True)
class Loaded:
    """A model and what the page has to know of it: what it takes, and the range of r that makes sense for it.

    `scores` gives an embedded CLIP's or SigLIP's probabilities of the digits, in words, for an image.
    """

    model: Any
    processor: Any
    kind: str
    tokens: int
    blocks: int
    scores: Callable[[Any, Any], torch.Tensor] | None = None

    @property
    def largest_r(self) -> int:
        """As many as would leave nothing after two thirds of the blocks."""
        return max(1, -(-3 * self.tokens // (2 * self.blocks)))

    @property
    def usual_r(self) -> int:
        """Half of the tokens, over all blocks."""
        return max(1, self.tokens // (2 * self.blocks))


@dataclass(frozen=True)
class Outcome:
    """What one run of the page found, by the name of the method; the unmerged model comes first."""

    picture: Image.Image
    tokens: dict[str, list[float]]
    gflops: dict[str, float | None]
    milliseconds: dict[str, float]
    top: dict[str, dict[str, float]] = field(default_factory=dict)

    def table(self) -> list[list[str]]:
        """Return a row for each method: name, tokens left, GFLOPs of one input, milliseconds of a batch, speed-up."""
        base = self.milliseconds[UNMERGED]
        return [
            [
                name,
                f"{self.tokens[name][-1]:.0f} of {self.tokens[name][0]:.0f}",
                "unknown" if self.gflops[name] is None else f"{self.gflops[name]:.3g}",
                f"{taken:.1f}",
                f"{base / taken:.2f}x",
            ]
            for name, taken in self.milliseconds.items()
        ]


COLUMNS = ["", "tokens", "GFLOPs", f"ms, batch of {BATCH_SIZE}", "speed-up"]


@lru_cache(maxsize=2)
def load(name: str) -> Loaded:
    """Load an embedded model by its name, else one by its Hub id.

    Raises:
        ValueError: there is no such model, or tokens cannot be merged in it; the message says why.
    """
    if not name or not name.strip():
        raise ValueError("Pick a model, or type a Hub id such as facebook/deit-tiny-patch16-224.")
    folder = model_folder(name.strip())
    try:
        model, processor = load_model(folder, "cpu")
    except (ValueError, OSError) as error:
        raise ValueError(str(error).replace(folder, name)) from error  # visitors know no folders of the server
    hf_tome.apply(model, MergeConfig())
    planned = hf_tome.report(model).towers[0].tokens  # unknown for a family without a row of sizes
    hf_tome.remove(model)
    tokens, blocks = (int(planned[0][0]), len(planned)) if planned else (USUAL_TOKENS, USUAL_BLOCKS)
    return Loaded(model, processor, input_kind(model), tokens, blocks, _digit_scores(name, model))


def _digit_scores(name: str, model: Any) -> Callable[[Any, Any], torch.Tensor] | None:
    """Return the scores of the ten digits for a model that matches images with texts, if it is one of digits."""
    folder = embedded_models().get(name)
    if folder is None or not hasattr(model, "get_text_features"):
        return None
    with torch.inference_mode():
        return image_scores(
            class_embeddings(model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False), NAMES, TEMPLATES)
        )


def configs(method: str, r: float, schedule: str, threshold: float) -> dict[str, MergeConfig]:
    """Return the merge configs that the controls say, by name.

    Raises:
        ValueError: a control has a value that it does not offer.
    """
    if method not in METHODS or schedule not in SCHEDULES:
        raise ValueError(f"Unknown method or schedule: {method!r}, {schedule!r}.")
    inflection = SCHEDULES[schedule]
    tome = MergeConfig(r=(int(r), inflection) if inflection else int(r))
    made = {"ToMe": tome, "MaMe": MergeConfig(method="mame", threshold=threshold)}
    return {name: config for name, config in made.items() if method in (name, BOTH)}


def merge(
    model_name: str, path: str | None, method: str, r: float, schedule: str, threshold: float, dark: bool = False
) -> Outcome:
    """Run a model on one file, unmerged and merged.

    Args:
        model_name: as `load` takes it.
        path: the image, clip or recording.
        method: one of `METHODS`; `r`, `schedule` and `threshold` are the controls' values.
        dark: the picture is for a dark page.

    Raises:
        ValueError, OSError: something does not fit; the message says what.
    """
    if not path:
        raise ValueError("Drop an image, a clip or a sound first, or pick an example.")
    chosen = configs(method, r, schedule, threshold)
    loaded = load(model_name)
    content = _open(Path(path), loaded)  # before others have to wait
    with _lock, torch.inference_mode():
        traced = [trace_input(loaded.model, loaded.processor, content, config) for config in chosen.values()]
        picture = compare_sheet(traced, [_config_label(config) for config in chosen.values()], dark=dark)
        return _measure(loaded, content, {UNMERGED: MergeConfig(), **chosen}, picture)


def _open(path: Path, loaded: Loaded) -> Any:
    try:
        return open_input(path, loaded.model, loaded.processor, MEDIA_LIMITS)
    except (ValueError, OSError) as error:
        raise ValueError(str(error).replace(str(path), path.name)) from error  # visitors know no folders of the server


def _measure(loaded: Loaded, content: Any, chosen: dict[str, MergeConfig], picture: Image.Image) -> Outcome:
    """Run one input for what comes out, then batches of it for the time.

    The configs are interleaved, so that what else the machine does slows all of them; times are medians.
    """
    inputs = process_input(loaded.kind, loaded.processor, content)
    batch = {name: torch.cat([values] * BATCH_SIZE) for name, values in inputs.items()}  # (1, ...) -> (B, ...)
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    outcome = Outcome(picture, {}, {}, {})
    try:
        for name, config in chosen.items():
            hf_tome.apply(loaded.model, config)
            _record(outcome, name, loaded, _run(loaded, inputs))
        end = time.perf_counter() + MEASURED_SECONDS
        for measured in range(ROUNDS):
            if measured and time.perf_counter() > end:
                break
            for name, config in chosen.items():
                hf_tome.apply(loaded.model, config)
                start = time.perf_counter()
                _run(loaded, batch)
                seconds[name].append(time.perf_counter() - start)
    finally:
        hf_tome.remove(loaded.model)
    outcome.milliseconds.update({name: 1000 * statistics.median(taken) for name, taken in seconds.items()})
    return outcome


def _run(loaded: Loaded, inputs: Any) -> Any:
    if loaded.scores is not None:
        return loaded.scores(loaded.model, inputs)
    if hasattr(loaded.model, "get_image_features"):  # CLIP and its like want text too when called as a whole
        return loaded.model.get_image_features(**inputs)
    return loaded.model(**inputs)


def _record(outcome: Outcome, name: str, loaded: Loaded, outputs: Any) -> None:
    tower = hf_tome.report(loaded.model).towers[0]
    outcome.tokens[name] = [tower.tokens[0][0], *(after for _, after in tower.tokens)]
    outcome.gflops[name] = tower.gflops
    if loaded.scores is not None:
        outcome.top[name] = _best(outputs[0], dict(enumerate(NAMES)))
        return
    logits = getattr(outputs, "logits", None)
    if logits is not None and logits.dim() == 2:
        outcome.top[name] = _best(logits[0].float().softmax(dim=-1), loaded.model.config.id2label)


def _best(probabilities: torch.Tensor, labels: Mapping[int, str]) -> dict[str, float]:
    scores, classes = probabilities.topk(min(TOP, len(probabilities)))
    return {labels.get(index, str(index)): score for score, index in zip(scores.tolist(), classes.tolist())}


def _config_label(config: MergeConfig) -> str:
    method = get_method(config.method)
    if method.takes_r:
        return f"{method.label}, r={config.r}"
    return f"{method.label}, {method.search_field} {getattr(config, method.search_field):g}"


def in_words(error: Exception) -> str:
    """Return an error as one line for the page: the message where it was written for a reader, else its kind too."""
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, OSError, ImportError)) and text:
        return text
    return f"{type(error).__name__}: {text}"

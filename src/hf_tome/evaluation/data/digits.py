"""The handwritten digits that ship with scikit-learn: real images for the demo and the tests, without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...hub.shipped import MODELS

if TYPE_CHECKING:
    import datasets

MODEL_DIR = MODELS / "digits-vit"
"""The small ViT that `scripts/training/train_digits_model.py` trained on the train split."""

DATA_NAME = "digits"
"""What `--data` and `hf_tome.evaluate` call these digits, unless there is a local folder of that name."""

TEMPLATES = (
    "a photo of the digit {}.",
    "a photo of a {}.",
    "This is a photo of {}.",
    "a handwritten {}.",
    "the number {}",
)
"""Sentences about a picture of a digit; its name goes into the place."""

SCENE_SEED = 1
"""For the scenes of held-out digits that models are evaluated on."""

SPLITS = ("train", "test")
TEST_SHARE = 0.3
SPLIT_SEED = 0
LARGEST_PIXEL = 16.0


def load_digits(split: str = "test") -> datasets.Dataset:
    """Return the digits of one split, as `image` (8x8 RGB) and `label` (a `ClassLabel`, `"0"` to `"9"`).

    The split is stratified and fixed: 1,257 digits to train on, 540 held out.

    Raises:
        ValueError: `split` is not `"train"` or `"test"`.
    """
    import datasets
    from PIL import Image

    if split not in SPLITS:
        raise ValueError(f"The digits have no split {split!r}; they have {', '.join(map(repr, SPLITS))}.")
    pixels, labels = _split_arrays(split)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    images = [Image.fromarray(digit).convert("RGB") for digit in pixels]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def _split_arrays(split: str) -> tuple[np.ndarray, list[int]]:
    from sklearn.datasets import load_digits as load_bundled
    from sklearn.model_selection import train_test_split

    bunch = load_bundled()
    pixels = np.rint(bunch.images * (255 / LARGEST_PIXEL)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(pixels)), test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=bunch.target
    )
    chosen = np.sort(train if split == "train" else test)  # in the order of the file, whatever the split's shuffle
    return pixels[chosen], bunch.target[chosen].tolist()

"""The supported families, one row each. A new row brings its tests and its line in `docs/models.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..cross_attention import ENCODER_MEMORY
from ..rows.image_text import IMAGE_TEXT
from ..rows.images import IMAGES
from ..rows.video_audio import VIDEO_AUDIO
from ..rows.vision_language import VISION_LANGUAGE_TOWERS
from .family import CLASS_TOKEN, TOKENS, Family, OutputAdapter

FAMILIES: tuple[Family, ...] = (*IMAGES, *VIDEO_AUDIO, *IMAGE_TEXT, *VISION_LANGUAGE_TOWERS)

TOWERS: dict[str, Family] = {family.tower: family for family in FAMILIES}
"""The rows by the class name of the module that owns the blocks."""

WRAPPERS: dict[str, tuple[OutputAdapter, ...] | str] = {
    "VisionEncoderDecoderModel": (TOKENS, *ENCODER_MEMORY),
    "VisionTextDualEncoderModel": (CLASS_TOKEN,),
}
"""Models of transformers that hold any tower, and take any number of tokens from it."""


def register_family(family: Family, *, exist_ok: bool = False) -> Family:
    """Add a family of encoders, so that `apply`, reports, counts and pictures know its towers.

    Args:
        family (`Family`): the row; start from one that is near, as in `dataclasses.replace(VIT, ...)`.
        exist_ok (`bool`, *optional*, defaults to `False`): replace a registered row of the same tower, as when a
            notebook's cell runs again. The library's own rows are never replaced.

    Returns:
        The row.

    Raises:
        TypeError: it is not a `Family`.
        ValueError: there is a row of its tower or model type, or an entry of it is not what it takes.
    """
    if not isinstance(family, Family):
        raise TypeError(f"`family` is a {type(family).__name__}; it takes a `hf_tome.adapters.encoders.Family`.")
    family.check()
    for row in TOWERS.values():
        shared = set(row.model_types) & set(family.model_types)
        is_other = row.tower != family.tower
        if (is_other and shared) or (not is_other and (row in FAMILIES or not exist_ok)):
            duplicate = f"the model types {sorted(shared)}" if is_other else f"the tower {family.tower!r}"
            raise ValueError(
                f"There is a row for {duplicate} already; name the tower's own class and model type, or pass "
                "`exist_ok=True` to replace a row that you registered."
            )
    TOWERS[family.tower] = family
    return family


def registered_family(tower: str) -> Family:
    """Return the row of a tower's class, as pickled models name it.

    Raises:
        ValueError: there is none.
    """
    if tower not in TOWERS:
        raise ValueError(
            f"There is no row for the tower {tower!r}; call `hf_tome.register_family` before a model is unpickled."
        )
    return TOWERS[tower]


def tower_config(config: Any) -> Any:
    """Return the config of the tower of a model that holds one (a CLIP, a UPerNet); else the config as it is."""
    while (inner := inner_config(config)) is not None:
        config = inner
    return config


def inner_config(config: Any) -> Any:
    """Return the config of the tower that a model's config holds, or `None`."""
    inner = getattr(config, "vision_config", None)
    return getattr(config, "backbone_config", None) if inner is None else inner


def family_of(config: Any, towers: Mapping[str, Family] = TOWERS) -> Family | None:
    """Return the row of a tower's config, of those in `towers`, or `None` where no row has its model type."""
    return next((family for family in towers.values() if config.model_type in family.model_types), None)

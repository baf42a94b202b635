"""Where a family's config keeps the sizes of its blocks, and what its head costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

# --- heads: (multiply-adds, multiply-adds for each token left) -----------------------------------------------------


def no_head(config: Any) -> tuple[int, int]:
    """Nothing."""
    return 0, 0


def classifier(config: Any) -> tuple[int, int]:
    """One linear layer over one vector."""
    return config.hidden_size * config.num_labels, 0


def class_and_mean_classifier(config: Any) -> tuple[int, int]:
    """One linear layer over the class token beside the mean of the patches."""
    return 2 * config.hidden_size * config.num_labels, 0


def deit_classifier(config: Any) -> tuple[int, int]:
    """One linear layer, and a second one for the distillation token of models with a teacher."""
    teacher = any("Teacher" in name for name in config.architectures or ())
    return (2 if teacher else 1) * config.hidden_size * config.num_labels, 0


def projection(config: Any) -> tuple[int, int]:
    """A projection to the width that images and texts share."""
    return config.hidden_size * config.projection_dim, 0


def attention_pool(config: Any) -> tuple[int, int]:
    """An attention pool with an MLP behind it (SigLIP)."""
    if not config.vision_use_head:
        return 0, 0
    width = config.hidden_size
    fixed = 2 * width**2 + 2 * width * config.intermediate_size  # query, output, MLP
    return fixed, 2 * width**2 + 2 * width  # key, value; the two products of attention


def query_pool(config: Any) -> tuple[int, int]:
    """An attention pool whose query is a parameter (AIMv2)."""
    width = config.hidden_size
    return (width**2, 2 * width**2 + 2 * width) if config.use_head else (0, 0)  # output; key, value, two products


# --- MLPs ----------------------------------------------------------------------------------------------------------


def intermediate_size(config: Any) -> int:
    """The MLP's width as the config says it."""
    return config.intermediate_size


def mlp_ratio(config: Any) -> int:
    """The MLP's width as a multiple of the tokens'; SwiGLU keeps two thirds of it."""
    hidden = int(config.hidden_size * config.mlp_ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu(config) else hidden  # a multiple of 8 (Dinov2SwiGLUFFN)


def swiglu(config: Any) -> bool:
    """SwiGLU where the config says so."""
    return getattr(config, "use_swiglu_ffn", False)


def never_gated(config: Any) -> bool:
    """A plain MLP."""
    return False


# --- patches -------------------------------------------------------------------------------------------------------


def all_patches(config: Any, patches: int) -> int:
    """Every patch."""
    return patches


def unmasked_patches(config: Any, patches: int) -> int:
    """The patches that a masked autoencoder does not mask."""
    return int(patches * (1 - config.mask_ratio))


def always_gated(config: Any) -> bool:
    """Every MLP has three projections."""
    return True


def gated_by_config(config: Any) -> bool:
    """The MLPs have three projections where the config says so."""
    return config.use_gated_mlp


@dataclass(frozen=True)
class Sizes:
    """Sizes of an encoder that its cost depends on, each read from the tower's config.

    Attributes:
        head: multiply-adds of what follows the encoder, and those of them that are spent for each token left.
        intermediate: width of the MLP.
        gated: whether the MLP has three projections (SwiGLU) rather than two.
        visible: number of patches that the blocks see, from the config and the number of patches of an input.
    """

    head: Callable[[Any], tuple[int, int]] = classifier
    intermediate: Callable[[Any], int] = intermediate_size
    gated: Callable[[Any], bool] = never_gated
    visible: Callable[[Any, int], int] = all_patches


PLAIN = Sizes()
"""A plain ViT with a linear classifier."""
NO_HEAD = Sizes(head=no_head)
DEIT = Sizes(head=deit_classifier)
MASKED = Sizes(head=no_head, visible=unmasked_patches)
DINOV2 = Sizes(head=class_and_mean_classifier, intermediate=mlp_ratio, gated=swiglu)
DINOV2_TOWER = replace(DINOV2, head=no_head)
RATIO_TOWER = Sizes(head=no_head, intermediate=mlp_ratio)
PROJECTION = Sizes(head=projection)
ATTENTION_POOL = Sizes(head=attention_pool)
QUERY_POOL = Sizes(head=query_pool)

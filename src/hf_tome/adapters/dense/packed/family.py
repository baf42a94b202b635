"""A row of a packed tower: what its blocks call their parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...encoders.families.inputs import InputFormat, TokenGrid


def _no_grid(config: Any, inputs: Mapping[str, Tensor]) -> TokenGrid:
    raise ValueError(
        "Patches of this tower are ordered by 2 x 2 groups, or by windows, and pictures of those are not drawn yet; "
        "`hf_tome.trace` tells where tokens went."
    )


def _no_patches(config: Any) -> tuple[int, int]:
    raise ValueError("This tower takes images of any size, so that its config does not tell how many patches it has.")


PACKED_IMAGES = InputFormat("image", None, _no_patches, _no_grid)


@dataclass(frozen=True)
class PackedFamily:
    """One family of packed towers. Paths are dotted names from the block, or from the attention where said so.

    Attributes:
        model_types: `config.model_type` of the models with this tower.
        tower: class name of the module that owns the blocks.
        layers: path from the tower to its list of blocks.
        norm1, attention, norm2, mlp: paths in the block.
        scale1, scale2: parameters that scale what attention and MLP give, where there are any.
        qkv: one projection to queries, keys and values, from the attention module; `None` where there are three.
        query, key, value, out: projections, from the attention module.
        query_norm, key_norm: norms of each head, where there are any.
        rotary: name of the function in the tower's Python module that turns queries and keys; `None` for none.
        scaling, dropout: the attention's attributes of these meanings.
        gives_weights: whether the attention gives a tuple of its output and weights.
        readers: path from the tower to modules that read tokens between the blocks.
        windows: whether some blocks attend in windows.
        merger: path from the tower to the last module that takes its groups of patches, and gives out one token for
            each; `None` where that is behind the tower.
        no_groups: why whole groups cannot stay merged; `None` where they can.
        num_prefix_tokens: tokens in front of each image's patches, which are never merged.
        proportional: what `proportional_attention="auto"` means for ToMe here.
    """

    model_types: tuple[str, ...]
    tower: str
    layers: str = "blocks"
    norm1: str = "norm1"
    attention: str = "attn"
    norm2: str = "norm2"
    mlp: str = "mlp"
    scale1: str | None = None
    scale2: str | None = None
    qkv: str | None = "qkv"
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    out: str = "proj"
    query_norm: str | None = None
    key_norm: str | None = None
    rotary: str | None = "apply_rotary_pos_emb_vision"
    scaling: str = "scaling"
    dropout: str = "attention_dropout"
    gives_weights: bool = False
    readers: str | None = None
    windows: bool = False
    merger: str | None = "merger"
    no_groups: str | None = None
    num_prefix_tokens: int = 0
    proportional: bool = True
    library: str = "transformers"
    inputs: InputFormat = PACKED_IMAGES

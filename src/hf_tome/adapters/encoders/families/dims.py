"""The sizes of an encoder, read from its config: blocks, widths, tokens, and the cost of what is around the blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .registry import TOWERS, family_of, tower_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from .family import Family


@dataclass(frozen=True)
class EncoderShape:
    """The sizes of an encoder that its cost depends on.

    Args:
        num_tokens (`int`): tokens into the first block, the special ones among them.
        num_prefix_tokens (`int`): leading tokens that never merge.
        patch_flops (`int`): multiply-adds of the patch embedding.
        head_flops (`int`): multiply-adds of what follows the encoder.
        gated_mlp (`bool`): the MLP has three projections (SwiGLU) rather than two.
        head_token_flops (`int`): multiply-adds of the head for each token left, as in an attention pool.
        num_windows (`int`): windows of an image, where tokens, and what is above, are those of one of them.
        joined_blocks (`tuple[int, ...]`): the blocks that attend over all windows of an image.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    num_tokens: int
    num_prefix_tokens: int
    patch_flops: int
    head_flops: int
    gated_mlp: bool = False
    head_token_flops: int = 0
    num_windows: int = 1
    joined_blocks: tuple[int, ...] = ()

    @property
    def head_dim(self) -> int:
        """Return the width of one attention head."""
        return self.hidden_size // self.num_heads


def encoder_shape(config: PreTrainedConfig) -> EncoderShape:
    """Read the shape of a vision or audio encoder from a transformers config, a whole CLIP's or VLM's as well.

    Raises:
        ValueError: no family has this model type.
    """
    config = tower_config(config)
    family = family_of(config)
    if family is None:
        supported = ", ".join(family.model_types[0] for family in TOWERS.values())
        raise ValueError(
            f"Cannot read the sizes of an encoder from the config of model type {config.model_type!r}; known are "
            f"{supported}. Build an `hf_tome.inspection.flops.EncoderShape` by hand."
        )
    return family_shape(family, config)


def family_shape(family: Family, config: PreTrainedConfig) -> EncoderShape:
    """Read the shape of a family's tower from the tower's config."""
    sizes = family.sizes
    patches, values = family.inputs.patches(config)
    head, head_per_token = sizes.head(config)
    return EncoderShape(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        intermediate_size=sizes.intermediate(config),
        num_tokens=family.num_prefix_tokens(config) + sizes.visible(config, patches),
        num_prefix_tokens=family.num_protected(config),
        patch_flops=patches * values * config.hidden_size,
        head_flops=head,
        gated_mlp=sizes.gated(config),
        head_token_flops=head_per_token,
        num_windows=1 if family.num_windows is None else family.num_windows(config),
        joined_blocks=() if family.joined_blocks is None else family.joined_blocks(config),
    )


def timm_shape(module: Any) -> EncoderShape:
    """Read the shape of timm's `VisionTransformer` from its modules, as it has no config.

    Raises:
        ValueError: something other than one convolution makes the patches (hybrids), whose cost is not known here.
    """
    block, patch = module.blocks[0], module.patch_embed
    if type(patch).__name__ != "PatchEmbed":
        raise ValueError(f"Cannot count the multiply-adds of timm's {type(patch).__name__}.")
    values = patch.proj.weight[0].numel()
    return EncoderShape(
        num_layers=len(module.blocks),
        hidden_size=module.embed_dim,
        num_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc2.in_features,
        num_tokens=patch.num_patches + module.num_prefix_tokens,
        num_prefix_tokens=module.num_prefix_tokens,
        patch_flops=patch.num_patches * values * module.embed_dim,
        head_flops=module.embed_dim * module.num_classes,
        gated_mlp=hasattr(block.mlp, "fc1_g") or block.mlp.fc1.out_features > block.mlp.fc2.in_features,
    )

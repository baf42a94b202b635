"""The sizes of an encoder, read from its config: blocks, widths, tokens, and the cost of what is around the blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class EncoderShape:
    """The sizes of an encoder that its cost depends on.

    Args:
        num_tokens (`int`): tokens into the first block, the special ones among them.
        num_special (`int`): leading tokens that never merge.
        patch_flops (`int`): multiply-adds of the patch embedding.
        head_flops (`int`): multiply-adds of what follows the encoder.
        gated_mlp (`bool`): the MLP has three projections (SwiGLU) rather than two.
        head_token_flops (`int`): multiply-adds of the head for each token left, as in an attention pool.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    num_tokens: int
    num_special: int
    patch_flops: int
    head_flops: int
    gated_mlp: bool = False
    head_token_flops: int = 0

    @property
    def head_dim(self) -> int:
        """Return the width of one attention head."""
        return self.hidden_size // self.num_heads


def encoder_shape(config: PreTrainedConfig) -> EncoderShape:
    """Read the shape of a vision or audio encoder from a transformers config, a whole CLIP's or VLM's as well.

    Raises:
        ValueError: the model type is not known here.
    """
    row = ROWS.get(config.model_type)
    if row is None and getattr(config, "vision_config", None) is not None:
        return encoder_shape(config.vision_config)
    if row is None:
        raise ValueError(
            f"Cannot read the sizes of an encoder from the config of model type {config.model_type!r}; known are "
            f"{', '.join(ROWS)}. Build an `hf_tome.inspection.flops.EncoderShape` by hand."
        )
    patches, values = row.patches(config)
    special, (head, head_per_token) = row.special(config), row.head(config)
    protected = row.special if row.protected is None else row.protected
    return EncoderShape(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        intermediate_size=row.intermediate(config),
        num_tokens=special + row.visible(config, patches),
        num_special=protected(config),
        patch_flops=patches * values * config.hidden_size,
        head_flops=head,
        gated_mlp=row.gated(config),
        head_token_flops=head_per_token,
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
        num_special=module.num_prefix_tokens,
        patch_flops=patch.num_patches * values * module.embed_dim,
        head_flops=module.embed_dim * module.num_classes,
        gated_mlp=hasattr(block.mlp, "fc1_g") or block.mlp.fc1.out_features > block.mlp.fc2.in_features,
    )


# --- patches: (how many, values in each) ---------------------------------------------------------------------------


def _image(config: Any) -> tuple[int, int]:
    (height, width), (p, q) = _pair(config.image_size), _pair(config.patch_size)
    return (height // p) * (width // q), p * q * config.num_channels


def _padded_image(config: Any) -> tuple[int, int]:
    p, q = _pair(config.patch_size)
    return config.num_patches, p * q * config.num_channels  # NaFlex: the processor pads to a fixed number


def _tubelets(config: Any) -> tuple[int, int]:
    patches, values = _image(config)
    return config.num_frames // config.tubelet_size * patches, config.tubelet_size * values


def _vivit_tubelets(config: Any) -> tuple[int, int]:
    (height, width), (t, p, q) = _pair(config.image_size), config.tubelet_size
    return (config.num_frames // t) * (height // p) * (width // q), t * p * q * config.num_channels


def _spectrogram(config: Any) -> tuple[int, int]:
    bins = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    steps = (config.max_length - config.patch_size) // config.time_stride + 1
    return bins * steps, config.patch_size**2


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


# --- heads: (multiply-adds, multiply-adds for each token left) -----------------------------------------------------


def _no_head(config: Any) -> tuple[int, int]:
    return 0, 0


def _classifier(config: Any) -> tuple[int, int]:
    return config.hidden_size * config.num_labels, 0


def _class_and_mean_classifier(config: Any) -> tuple[int, int]:
    return 2 * config.hidden_size * config.num_labels, 0  # the class token beside the mean of the patches


def _deit_classifier(config: Any) -> tuple[int, int]:
    teacher = any("Teacher" in name for name in config.architectures or ())
    return (2 if teacher else 1) * config.hidden_size * config.num_labels, 0


def _projection(config: Any) -> tuple[int, int]:
    return config.hidden_size * config.projection_dim, 0


def _attention_pool(config: Any) -> tuple[int, int]:
    if not config.vision_use_head:
        return 0, 0
    width = config.hidden_size
    fixed = 2 * width**2 + 2 * width * config.intermediate_size  # query, output, MLP
    return fixed, 2 * width**2 + 2 * width  # key, value; the two products of attention


def _query_pool(config: Any) -> tuple[int, int]:
    width = config.hidden_size
    return (width**2, 2 * width**2 + 2 * width) if config.use_head else (0, 0)  # output; key, value, two products


# --- MLPs ----------------------------------------------------------------------------------------------------------


def _ratio(config: Any) -> int:
    hidden = int(config.hidden_size * config.mlp_ratio)
    # SwiGLU keeps two thirds of the width, rounded up to a multiple of 8 (Dinov2SwiGLUFFN).
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if _swiglu(config) else hidden


@dataclass(frozen=True)
class _Row:
    """Where a family's config keeps what `EncoderShape` asks for."""

    patches: Callable[[Any], tuple[int, int]] = _image
    special: Callable[[Any], int] = lambda config: 1
    head: Callable[[Any], tuple[int, int]] = _classifier
    intermediate: Callable[[Any], int] = lambda config: config.intermediate_size
    gated: Callable[[Any], bool] = lambda config: False
    visible: Callable[[Any, int], int] = lambda config, patches: patches
    protected: Callable[[Any], int] | None = None  # leading tokens that never merge, if others than the special ones


def _none(config: Any) -> int:
    return 0


def _two(config: Any) -> int:
    return 2


def _registers(config: Any) -> int:
    return 1 + config.num_register_tokens


def _swiglu(config: Any) -> bool:
    return getattr(config, "use_swiglu_ffn", False)


_DINOV2 = _Row(head=_class_and_mean_classifier, intermediate=_ratio, gated=_swiglu)

ROWS: dict[str, _Row] = {
    "vit": _Row(),
    "deit": _Row(special=_two, head=_deit_classifier),
    "vit_msn": _Row(),
    "vit_mae": _Row(head=_no_head, visible=lambda config, patches: int(patches * (1 - config.mask_ratio))),
    "beit": _Row(),
    "data2vec-vision": _Row(),
    "dinov2": _DINOV2,
    "dinov2_with_registers": replace(_DINOV2, special=_registers),
    "dinov3_vit": _Row(special=_registers, head=_no_head, gated=lambda config: config.use_gated_mlp),
    "tipsv2_vision_model": replace(_DINOV2, special=_registers, head=_no_head),
    "pixio": replace(_DINOV2, special=lambda config: config.n_cls_tokens, head=_no_head),
    "ijepa": _Row(special=_none),
    "videomae": _Row(patches=_tubelets, special=_none, protected=lambda config: int(not config.use_mean_pooling)),
    "vivit": _Row(patches=_vivit_tubelets),
    "clip_vision_model": _Row(head=_projection),
    "metaclip_2_vision_model": _Row(head=_projection),
    "altclip_vision_model": _Row(head=_projection),
    "chinese_clip_vision_model": _Row(head=_projection),
    "clipseg_vision_model": _Row(head=_no_head),
    "kosmos_2_vision_model": _Row(head=_no_head),
    "janus_vision_model": _Row(special=_none, head=_no_head, intermediate=_ratio, protected=lambda config: 1),
    "aimv2_vision_model": _Row(special=_none, head=_query_pool, gated=lambda config: True),
    "siglip_vision_model": _Row(special=_none, head=_attention_pool),
    "internvl_vision": _Row(head=_no_head),
    "idefics3_vision": _Row(special=_none, head=_no_head),
    "smolvlm_vision": _Row(special=_none, head=_no_head),
    "siglip2_vision_model": _Row(patches=_padded_image, special=_none, head=_attention_pool),
    "audio-spectrogram-transformer": _Row(patches=_spectrogram, special=_two),
}
"""The families whose sizes are known, by `config.model_type`."""

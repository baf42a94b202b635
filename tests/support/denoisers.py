"""Small random denoisers of diffusers, one a row of the adapter, with inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Denoiser:
    """A small model of one row.

    Attributes:
        row: name of the row.
        sizes: what its config is made of.
        inputs: makes its arguments, for a batch.
        tokens: of its largest grid.
    """

    row: str
    sizes: dict[str, Any]
    inputs: Callable[[int], dict[str, Any]]
    tokens: int = 64
    batch_size: int = 2

    def make(self) -> nn.Module:
        """Build it, with weights of which none is zero: gates of zero would hide errors."""
        import diffusers

        torch.manual_seed(0)
        model = getattr(diffusers, self.row)(**self.sizes).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.std(correction=0) == 0:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return model

    def run(self, model: nn.Module, batch_size: int | None = None) -> Tensor:
        """Run it on the same inputs as ever."""
        torch.manual_seed(1)
        with torch.no_grad():
            outputs = model(**self.inputs(batch_size or self.batch_size), return_dict=False)
        if isinstance(outputs[0], (list, tuple)):  # lists of images, or residuals of ControlNets by kind of block
            parts = [part for entry in outputs for part in (entry if isinstance(entry, (list, tuple)) else [entry])]
            return torch.cat([part.flatten() for part in parts if part is not None])
        return outputs[0]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape)


def ids(height: int, width: int, columns: int = 3) -> Tensor:
    grid = torch.zeros(height, width, columns)
    grid[..., 1] = torch.arange(height)[:, None]
    grid[..., 2] = torch.arange(width)[None]
    return grid.flatten(0, 1)


def _unet(batch: int) -> dict[str, Any]:
    return {"sample": randn(batch, 4, 8, 8), "timestep": 500, "encoder_hidden_states": randn(batch, 5, 16)}


UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}


def _flux(batch: int, columns: int = 3, pooled: bool = True) -> dict[str, Any]:
    inputs = {
        "hidden_states": randn(batch, 64, 4),
        "encoder_hidden_states": randn(batch, 6, 16),
        "timestep": torch.tensor([0.5] * batch),
        "img_ids": ids(8, 8, columns),
        "txt_ids": torch.zeros(6, columns),
    }
    return {**inputs, "pooled_projections": randn(batch, 8)} if pooled else inputs


FLUX = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 4, 8),
}


def _text(batch: int, length: int = 6, width: int = 16, **more: Any) -> dict[str, Any]:
    return {"encoder_hidden_states": randn(batch, length, width), **more}


DENOISERS = (
    Denoiser("UNet2DConditionModel", UNET, _unet),
    Denoiser(
        "ControlNetModel",
        {
            "in_channels": 4,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
            "norm_num_groups": 8,
            "conditioning_embedding_out_channels": (8, 16),
        },
        lambda batch: {**_unet(batch), "controlnet_cond": randn(batch, 3, 16, 16)},
    ),
    Denoiser(
        "DiTTransformer2DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "norm_num_groups": 4,
            "sample_size": 16,
            "patch_size": 2,
            "num_embeds_ada_norm": 10,
        },
        lambda batch: {
            "hidden_states": randn(batch, 4, 16, 16),
            "timestep": torch.tensor([500] * batch),
            "class_labels": torch.arange(batch),
        },
    ),
    Denoiser(
        "PixArtTransformer2DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "norm_num_groups": 4,
            "cross_attention_dim": 16,
            "sample_size": 16,
            "caption_channels": 16,
            "use_additional_conditions": False,
        },
        lambda batch: {
            **_text(batch),
            "hidden_states": randn(batch, 4, 16, 16),
            "timestep": torch.tensor([500] * batch),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    Denoiser(
        "LatteTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 1,
            "cross_attention_dim": 16,
            "sample_size": 16,
            "patch_size": 2,
            "caption_channels": 16,
            "video_length": 2,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "num_embeds_ada_norm": 10,
        },
        lambda batch: {
            **_text(batch),
            "hidden_states": randn(batch, 4, 2, 16, 16),
            "timestep": torch.tensor([500] * batch),
        },
    ),
    Denoiser(
        "SD3Transformer2DModel",
        {
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 8,
            "out_channels": 4,
            "pos_embed_max_size": 16,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        lambda batch: {
            **_text(batch),
            "hidden_states": randn(batch, 4, 16, 16),
            "pooled_projections": randn(batch, 8),
            "timestep": torch.tensor([500] * batch),
        },
    ),
    Denoiser("FluxTransformer2DModel", {**FLUX, "pooled_projection_dim": 8}, _flux),
    Denoiser("BriaTransformer2DModel", {**FLUX, "pooled_projection_dim": None}, lambda batch: _flux(batch, 3, False)),
    Denoiser(
        "Flux2Transformer2DModel",
        {**FLUX, "axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 16},
        lambda batch: {**_flux(batch, 4, False), "guidance": torch.tensor([1.0] * batch)},
    ),
    Denoiser(
        "ChromaTransformer2DModel",
        {**FLUX, "approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1},
        lambda batch: {**_flux(batch, 3, False), "attention_mask": torch.ones(batch, 70)},
    ),
    Denoiser(
        "QwenImageTransformer2DModel",
        {
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (8, 4, 4),
        },
        lambda batch: {
            **_text(batch),
            "hidden_states": randn(batch, 64, 16),
            "encoder_hidden_states_mask": torch.ones(batch, 6, dtype=torch.long),
            "timestep": torch.tensor([0.5] * batch),
            "img_shapes": [[(1, 8, 8)]] * batch,
        },
    ),
    Denoiser(
        "ZImageTransformer2DModel",
        {
            "all_patch_size": (2,),
            "all_f_patch_size": (1,),
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "qk_norm": True,
            "cap_feat_dim": 16,
            "rope_theta": 256.0,
            "t_scale": 1000.0,
            "axes_dims": [8, 4, 4],
            "axes_lens": [256, 32, 32],
        },
        lambda batch: {
            "x": [randn(4, 1, 16, 16) for _ in range(batch)],
            "t": torch.tensor([0.5] * batch),
            "cap_feats": [randn(6, 16) for _ in range(batch)],
        },
    ),
    Denoiser(
        "Lumina2Transformer2DModel",
        {
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "norm_eps": 1e-5,
            "scaling_factor": 1.0,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (128, 128, 128),
            "cap_feat_dim": 16,
        },
        lambda batch: {
            **_text(batch),
            "hidden_states": randn(batch, 4, 16, 16),
            "timestep": torch.tensor([0.5] * batch),
            "encoder_attention_mask": torch.ones(batch, 6, dtype=torch.bool),
        },
    ),
    Denoiser(
        "AuraFlowTransformer2DModel",
        {
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "caption_projection_dim": 16,
            "out_channels": 4,
            "pos_embed_max_size": 64,
        },
        lambda batch: {
            **_text(batch),
            "hidden_states": randn(batch, 4, 16, 16),
            "timestep": torch.tensor([0.5] * batch),
        },
    ),
    Denoiser(
        "CogVideoXTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 16,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 9,
            "patch_size": 2,
            "temporal_compression_ratio": 4,
            "max_text_seq_length": 6,
            "use_rotary_positional_embeddings": True,
        },
        lambda batch: {
            **_text(batch),
            "hidden_states": randn(batch, 3, 4, 8, 8),
            "timestep": torch.tensor([500] * batch),
            "image_rotary_emb": (randn(48, 16), randn(48, 16)),
        },
        tokens=48,
    ),
    Denoiser(
        "CogView4Transformer2DModel",
        {
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "out_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "condition_dim": 4,
        },
        lambda batch: {
            **_text(batch),
            "hidden_states": randn(batch, 4, 16, 16),
            "timestep": torch.tensor([500] * batch),
            **{name: torch.tensor([[16, 16]] * batch) for name in ("original_size", "target_size")},
            "crop_coords": torch.tensor([[0, 0]] * batch),
        },
    ),
    Denoiser(
        "LTXVideoTransformer3DModel",
        {
            "in_channels": 8,
            "out_channels": 8,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "cross_attention_dim": 24,
            "num_layers": 2,
            "caption_channels": 16,
        },
        lambda batch: {
            **_text(batch),
            "hidden_states": randn(batch, 64, 8),
            "timestep": torch.tensor([500] * batch),
            "encoder_attention_mask": torch.ones(batch, 6),
            "num_frames": 2,
            "height": 4,
            "width": 8,
        },
    ),
    Denoiser(
        "WanTransformer3DModel",
        {
            "patch_size": (1, 2, 2),
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 2,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "rope_max_seq_len": 32,
        },
        lambda batch: {
            **_text(batch),
            "hidden_states": randn(batch, 4, 2, 8, 16),
            "timestep": torch.tensor([500] * batch),
        },
    ),
    Denoiser(
        "HunyuanVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "patch_size": 2,
            "patch_size_t": 1,
            "guidance_embeds": True,
            "text_embed_dim": 16,
            "pooled_projection_dim": 8,
            "rope_axes_dim": (2, 4, 4),
        },
        lambda batch: {
            **_text(batch),
            "hidden_states": randn(batch, 4, 2, 8, 16),
            "timestep": torch.tensor([500] * batch),
            "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]] * batch),
            "pooled_projections": randn(batch, 8),
            "guidance": torch.tensor([1000.0] * batch),
        },
    ),
    Denoiser(
        "MochiTransformer3DModel",
        {
            "patch_size": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "time_embed_dim": 4,
            "text_embed_dim": 16,
            "max_sequence_length": 6,
        },
        lambda batch: {
            **_text(batch),
            "hidden_states": randn(batch, 4, 2, 8, 16),
            "timestep": torch.tensor([500] * batch),
            "encoder_attention_mask": torch.ones(batch, 6, dtype=torch.bool),
        },
    ),
    Denoiser(
        "HunyuanDiT2DModel",
        {
            "sample_size": 16,
            "num_layers": 2,
            "patch_size": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 3,
            "cross_attention_dim": 16,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 4,
            "hidden_size": 24,
            "in_channels": 4,
            "activation_fn": "gelu-approximate",
            "text_len": 4,
            "text_len_t5": 4,
        },
        lambda batch: {
            **_text(batch, 4),
            "hidden_states": randn(batch, 4, 16, 16),
            "timestep": torch.tensor([500.0] * batch),
            "text_embedding_mask": torch.ones(batch, 4),
            "encoder_hidden_states_t5": randn(batch, 4, 16),
            "text_embedding_mask_t5": torch.ones(batch, 4),
            "image_meta_size": torch.tensor([[1024, 1024, 1024, 1024, 0, 0]] * batch),
            "style": torch.zeros(batch, dtype=torch.long),
            "image_rotary_emb": (randn(64, 8), randn(64, 8)),
        },
    ),
)


def _derived(
    row: str, of: str, sizes: dict[str, Any], inputs: Callable[[int], dict[str, Any]] = lambda batch: {}
) -> Denoiser:
    """Return a denoiser that is built and called as another one, but for some sizes and inputs."""
    base = BY_ROW[of]
    kept = {name: value for name, value in {**base.sizes, **sizes}.items() if value is not LEFT_OUT}

    def make_inputs(batch: int) -> dict[str, Any]:
        return {**base.inputs(batch), **inputs(batch)}

    return Denoiser(row, kept, make_inputs, base.tokens, base.batch_size)


LEFT_OUT = object()
BY_ROW = {denoiser.row: denoiser for denoiser in DENOISERS}
DENOISERS += (
    _derived(
        "ControlNetUnionModel",
        "ControlNetModel",
        {
            "addition_time_embed_dim": 8,
            "num_control_type": 2,
            "num_trans_channel": 16,
            "num_trans_head": 2,
            "num_proj_channel": 16,
        },
        lambda batch: {
            "controlnet_cond": [randn(batch, 3, 16, 16)],
            "control_type": torch.tensor([[1.0, 0.0]] * batch),
            "control_type_idx": [0],
        },
    ),
    _derived(
        "SD3ControlNetModel", "SD3Transformer2DModel", {}, lambda batch: {"controlnet_cond": randn(batch, 4, 16, 16)}
    ),
    _derived(
        "FluxControlNetModel", "FluxTransformer2DModel", {}, lambda batch: {"controlnet_cond": randn(batch, 64, 4)}
    ),
    _derived(
        "QwenImageControlNetModel",
        "QwenImageTransformer2DModel",
        {},
        lambda batch: {"controlnet_cond": randn(batch, 64, 16)},
    ),
    _derived(
        "OvisImageTransformer2DModel",
        "BriaTransformer2DModel",
        {"pooled_projection_dim": LEFT_OUT, "out_channels": 4},
    ),
    _derived("LongCatImageTransformer2DModel", "BriaTransformer2DModel", {"pooled_projection_dim": 16}),
    _derived(
        "CogView3PlusTransformer2DModel",
        "CogView4Transformer2DModel",
        {"pos_embed_max_size": 16, "sample_size": 16},
    ),
    _derived("ConsisIDTransformer3DModel", "CogVideoXTransformer3DModel", {}),
    _derived("ChronoEditTransformer3DModel", "WanTransformer3DModel", {"rope_temporal_skip_len": 1}),
)
BY_ROW = {denoiser.row: denoiser for denoiser in DENOISERS}

"""Small random models, built from configs: one or more for every row of the tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as tf
from torch import Tensor, nn

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
IMAGE = {"image_size": 32, "patch_size": 4}  # 64 patches
LABELS = {"num_labels": 5}


@dataclass(frozen=True)
class Zoo:
    """A model of a family: how to build it, what to feed it, and what to look at in its output."""

    name: str
    tower: str
    build: Callable[[str], nn.Module]
    inputs: Callable[[int], dict[str, Tensor]]
    output: str = "logits"
    by_tokens: bool = False  # the output has one row a token, so merging changes its length
    restores: bool = False
    backends: tuple[str, ...] = ("sdpa", "eager")

    def make(self, backend: str = "sdpa", seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        model = self.build(backend).eval()
        # Freshly built models are nearly linear; larger weights make a wrong merge show.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2 and parameter.std() == 0:
                    parameter.normal_(std=0.3)  # BEiT's position biases start at zero
                elif parameter.ndim >= 2 and parameter.std() < 0.06:
                    parameter.mul_(4)
                elif "bias" in name or "lambda" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return model

    def run(self, model: nn.Module, batch_size: int = 2, inputs: dict[str, Tensor] | None = None) -> Tensor:
        out = model(**(self.inputs(batch_size) if inputs is None else inputs))
        return out[self.output] if self.output in out else out[0]


def pixels(*shape: int) -> Callable[[int], dict[str, Tensor]]:
    def inputs(batch_size: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        return {"pixel_values": torch.randn(batch_size, *shape, generator=generator)}

    return inputs


def unshuffled(batch_size: int) -> dict[str, Tensor]:
    # ViTMAE shuffles patches by this noise, drawn anew each time where it is not given.
    return {**pixels(3, 32, 32)(batch_size), "noise": torch.arange(64.0).expand(batch_size, -1) / 64}


def spectrogram(batch_size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"input_values": torch.randn(batch_size, 40, 32, generator=generator)}


def naflex(batch_size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = torch.tensor([[8, 8], [6, 9], [4, 12], [7, 7]])[:batch_size]
    mask = torch.zeros(batch_size, 64, dtype=torch.long)
    for row, (height, width) in enumerate(shapes.tolist()):
        mask[row, : height * width] = 1
    values = torch.randn(batch_size, 64, 48, generator=generator)
    return {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def dual(inputs: Callable[[int], dict[str, Tensor]]) -> Callable[[int], dict[str, Tensor]]:
    def both(batch_size: int) -> dict[str, Tensor]:
        return {**inputs(batch_size), "input_ids": torch.tensor([[3, 5, 7, 98], [4, 6, 2, 98]])}  # two sentences

    return both


def build(cls: str, config: str, **options) -> Callable[[str], nn.Module]:
    def make(backend: str) -> nn.Module:
        built = getattr(tf, config)(**options)
        built._attn_implementation = backend
        return getattr(tf, cls)._from_config(built, attn_implementation=backend)

    return make


def build_kosmos_2(backend: str) -> nn.Module:
    text = {"vocab_size": 99, "embed_dim": 32, "layers": 2, "ffn_dim": 48, "attention_heads": 2}
    vision = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, **IMAGE}
    return build("Kosmos2Model", "Kosmos2Config", text_config=text, vision_config=vision, latent_query_num=4)(backend)


def with_latents(batch_size: int) -> dict[str, Tensor]:
    """Images, and prompts in which four places are for the latents that read them."""
    ids = torch.tensor([[5, 6, 6, 6, 6, 7]]).expand(batch_size, -1)
    return {**IMG(batch_size), "input_ids": ids, "image_embeds_position_mask": (ids == 6).long()}


def build_dual(cls: str, config: str, vision: dict, **text) -> Callable[[str], nn.Module]:
    text_config = {**SMALL, "vocab_size": 99, "max_position_embeddings": 8, "eos_token_id": 98, **text}
    extra = {} if "Siglip" in cls else {"projection_dim": 16}
    return build(cls, config, vision_config=vision, text_config=text_config, **extra)


IMG = pixels(3, 32, 32)
CLIP_VISION = {**SMALL, **IMAGE}
DINO = {**SMALL, **IMAGE, "layerscale_value": 0.7, "mlp_ratio": 2, "drop_path_rate": 0.1}
DINOV3 = {**SMALL, **IMAGE, "num_register_tokens": 3, "layerscale_value": 0.7, "drop_path_rate": 0.1}
NAFLEX = {**SMALL, "num_patches": 64, "patch_size": 4}
VIDEO = {**SMALL, "image_size": 16, "patch_size": 4, "num_frames": 8, "tubelet_size": 2}
AUDIO = {**SMALL, "num_mel_bins": 32, "max_length": 40, "patch_size": 8, "frequency_stride": 4, "time_stride": 4}
BEIT = {**SMALL, **IMAGE, "layer_scale_init_value": 0.6, "drop_path_rate": 0.1}
LAST, POOLED = "last_hidden_state", "pooler_output"

ZOO: tuple[Zoo, ...] = (
    Zoo("vit", "ViTModel", build("ViTForImageClassification", "ViTConfig", **SMALL, **IMAGE, **LABELS), IMG),
    Zoo("vit-tower", "ViTModel", build("ViTModel", "ViTConfig", **SMALL, **IMAGE), IMG, LAST, by_tokens=True),
    Zoo(
        "vit-masked",
        "ViTModel",
        build("ViTForMaskedImageModeling", "ViTConfig", **SMALL, **IMAGE, encoder_stride=4),
        IMG,
        "reconstruction",
        restores=True,
    ),
    Zoo(
        "deit",
        "DeiTModel",
        build("DeiTForImageClassificationWithTeacher", "DeiTConfig", **SMALL, **IMAGE, **LABELS),
        IMG,
    ),
    Zoo("deit-cls", "DeiTModel", build("DeiTForImageClassification", "DeiTConfig", **SMALL, **IMAGE, **LABELS), IMG),
    Zoo(
        "vit_msn",
        "ViTMSNModel",
        build("ViTMSNForImageClassification", "ViTMSNConfig", **SMALL, **IMAGE, **LABELS),
        IMG,
    ),
    Zoo(
        "vit_mae",
        "ViTMAEModel",
        build("ViTMAEModel", "ViTMAEConfig", **SMALL, **IMAGE, mask_ratio=0.0),
        unshuffled,
        LAST,
        by_tokens=True,
    ),
    Zoo("ijepa", "IJepaModel", build("IJepaForImageClassification", "IJepaConfig", **SMALL, **IMAGE, **LABELS), IMG),
    Zoo(
        "beit",
        "BeitModel",
        build("BeitForImageClassification", "BeitConfig", **BEIT, **LABELS, use_relative_position_bias=True),
        IMG,
    ),
    Zoo(
        "beit-shared",
        "BeitModel",
        build(
            "BeitForImageClassification",
            "BeitConfig",
            **BEIT,
            **LABELS,
            use_shared_relative_position_bias=True,
            use_mean_pooling=False,
        ),
        IMG,
    ),
    Zoo(
        "data2vec-vision",
        "Data2VecVisionModel",
        build(
            "Data2VecVisionForImageClassification",
            "Data2VecVisionConfig",
            **BEIT,
            **LABELS,
            use_relative_position_bias=True,
        ),
        IMG,
    ),
    Zoo(
        "data2vec-vision-shared",
        "Data2VecVisionModel",
        build(
            "Data2VecVisionForImageClassification",
            "Data2VecVisionConfig",
            **{**BEIT, "layer_scale_init_value": 0.0},
            **LABELS,
            use_shared_relative_position_bias=True,
            use_mean_pooling=False,
        ),
        IMG,
    ),
    Zoo("dinov2", "Dinov2Model", build("Dinov2ForImageClassification", "Dinov2Config", **DINO, **LABELS), IMG),
    Zoo(
        "dinov2-swiglu",
        "Dinov2Model",
        build("Dinov2Model", "Dinov2Config", **DINO, use_swiglu_ffn=True),
        IMG,
        POOLED,
    ),
    Zoo(
        "dinov2-registers",
        "Dinov2WithRegistersModel",
        build(
            "Dinov2WithRegistersForImageClassification",
            "Dinov2WithRegistersConfig",
            **DINO,
            **LABELS,
            num_register_tokens=3,
        ),
        IMG,
    ),
    Zoo("dinov3", "DINOv3ViTModel", build("DINOv3ViTModel", "DINOv3ViTConfig", **DINOV3), IMG, POOLED),
    Zoo(
        "videomae",
        "VideoMAEModel",
        build("VideoMAEForVideoClassification", "VideoMAEConfig", **VIDEO, **LABELS),
        pixels(8, 3, 16, 16),
    ),
    Zoo(
        "vivit",
        "VivitModel",
        build("VivitForVideoClassification", "VivitConfig", **{**VIDEO, "tubelet_size": [2, 4, 4]}, **LABELS),
        pixels(8, 3, 16, 16),
    ),
    Zoo(
        "clip-projection",
        "CLIPVisionModel",
        build("CLIPVisionModelWithProjection", "CLIPVisionConfig", **CLIP_VISION, projection_dim=16),
        IMG,
        "image_embeds",
    ),
    Zoo("clip", "CLIPVisionModel", build_dual("CLIPModel", "CLIPConfig", CLIP_VISION), dual(IMG), "logits_per_image"),
    Zoo(
        "clip-classifier",
        "CLIPVisionModel",
        build("CLIPForImageClassification", "CLIPConfig", vision_config=CLIP_VISION, **LABELS),
        IMG,
    ),
    Zoo(
        "metaclip_2",
        "MetaClip2VisionModel",
        build_dual("MetaClip2Model", "MetaClip2Config", CLIP_VISION),
        dual(IMG),
        "logits_per_image",
    ),
    Zoo(
        "siglip",
        "SiglipVisionModel",
        build_dual("SiglipModel", "SiglipConfig", CLIP_VISION),
        dual(IMG),
        "logits_per_image",
    ),
    Zoo(
        "siglip-classifier",
        "SiglipVisionModel",
        build("SiglipForImageClassification", "SiglipConfig", vision_config=CLIP_VISION, **LABELS),
        IMG,
    ),
    Zoo(
        "siglip2",
        "Siglip2VisionModel",
        build("Siglip2VisionModel", "Siglip2VisionConfig", **NAFLEX),
        naflex,
        POOLED,
    ),
    Zoo(
        "siglip2-classifier",
        "Siglip2VisionModel",
        build("Siglip2ForImageClassification", "Siglip2Config", vision_config=NAFLEX, **LABELS),
        naflex,
        restores=True,
    ),
    Zoo(
        "altclip", "AltCLIPVisionModel", build("AltCLIPVisionModel", "AltCLIPVisionConfig", **CLIP_VISION), IMG, POOLED
    ),
    Zoo(
        "chinese_clip",
        "ChineseCLIPVisionModel",
        build("ChineseCLIPVisionModel", "ChineseCLIPVisionConfig", **CLIP_VISION),
        IMG,
        POOLED,
    ),
    Zoo(
        "clipseg", "CLIPSegVisionModel", build("CLIPSegVisionModel", "CLIPSegVisionConfig", **CLIP_VISION), IMG, POOLED
    ),
    Zoo(
        "aimv2",
        "Aimv2VisionModel",
        build("Aimv2VisionModel", "Aimv2VisionConfig", **CLIP_VISION, is_native=False, use_head=True),
        IMG,
        POOLED,
    ),
    Zoo("pixio", "PixioModel", build("PixioModel", "PixioConfig", **SMALL, **IMAGE, n_cls_tokens=3), IMG, POOLED),
    Zoo("tipsv2", "Tipsv2VisionModel", build("Tipsv2VisionModel", "Tipsv2VisionConfig", **DINOV3), IMG, POOLED),
    Zoo(
        "internvl",
        "InternVLVisionModel",
        build(
            "InternVLVisionModel",
            "InternVLVisionConfig",
            **SMALL,
            **IMAGE,
            use_qk_norm=True,
            layer_scale_init_value=0.7,
        ),
        IMG,
        LAST,
        by_tokens=True,
    ),
    Zoo(
        "idefics3",
        "Idefics3VisionTransformer",
        build("Idefics3VisionTransformer", "Idefics3VisionConfig", **SMALL, **IMAGE),
        IMG,
        LAST,
        by_tokens=True,
    ),
    Zoo(
        "smolvlm",
        "SmolVLMVisionTransformer",
        build("SmolVLMVisionTransformer", "SmolVLMVisionConfig", **SMALL, **IMAGE),
        IMG,
        LAST,
        by_tokens=True,
    ),
    Zoo(
        "janus",
        "JanusVisionModel",
        build("JanusVisionModel", "JanusVisionConfig", **SMALL, **IMAGE, mlp_ratio=2),
        IMG,
        LAST,
        by_tokens=True,
    ),
    Zoo("kosmos-2", "Kosmos2VisionTransformer", build_kosmos_2, with_latents, "image_embeds"),
    Zoo("ast", "ASTModel", build("ASTForAudioClassification", "ASTConfig", **AUDIO, **LABELS), spectrogram),
)

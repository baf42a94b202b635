"""The supported families, one row each. A new row brings its tests and its line in `docs/models.md`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..vision_language.models import VISION_LANGUAGE
from .family import (
    CLASS_TOKEN,
    POOLS,
    RESTORE,
    TOKENS,
    Family,
    Head,
    attention_pool,
    class_and_registers,
    class_tokens,
    mean_of,
    one,
    two,
    zero,
)

BACKBONE = "a backbone reads the grid of tokens after several blocks, and merged tokens have no grid"
SEGMENTATION = "its segmentation head reads the grid of tokens after several blocks, and merged tokens have no grid"
PIXEL_DECODER = "its decoder puts masked patches back by position among the encoder's tokens, which merging reorders"


LATENTS = Head("latent_pool", "image_to_text_projection.x_attn", POOLS)


def _first_if_pooled(tower: Any) -> int:
    # I-JEPA has no class token; its optional pooler reads the first patch, which must then stay what it is.
    return int(tower.pooler is not None)


def _first_unless_mean(tower: Any) -> int:
    # VideoMAE has no class token; without mean pooling its classifier reads the first patch.
    return int(not tower.config.use_mean_pooling)


VIT = Family(
    model_types=("vit",),
    tower="ViTModel",
    num_special=one,
    heads={
        "ViTModel": (CLASS_TOKEN, TOKENS),
        "ViTForImageClassification": (CLASS_TOKEN,),
        "ViTForMaskedImageModeling": (RESTORE,),
    },
)

DINOV2 = Family(
    model_types=("dinov2",),
    tower="Dinov2Model",
    num_special=one,
    heads={
        "Dinov2Model": (CLASS_TOKEN, TOKENS),
        "Dinov2ForImageClassification": (CLASS_TOKEN, mean_of("dinov2.layernorm")),
        "Dinov2Backbone": BACKBONE,
    },
    layers="encoder.layer",
    norm1="norm1",
    after_attention=("layer_scale1", "drop_path"),
    norm2="norm2",
    mlp=("mlp", "layer_scale2", "drop_path"),
)

CLIP = Family(
    model_types=("clip_vision_model", "clip"),
    tower="CLIPVisionModel",
    num_special=one,
    residual_first=True,
    heads={
        "CLIPVisionModel": (CLASS_TOKEN, TOKENS),
        "CLIPVisionModelWithProjection": (CLASS_TOKEN,),
        "CLIPModel": (CLASS_TOKEN,),
        "CLIPForImageClassification": (mean_of("vision_model.encoder"),),
    },
    layers="encoder.layers",
    norm1="layer_norm1",
    attention="self_attn",
    after_attention=(),
    norm2="layer_norm2",
    mlp=("mlp",),
    out="out_proj",
    scaling="scale",
    dropout="dropout",
)

SIGLIP = replace(
    CLIP,
    model_types=("siglip_vision_model", "siglip"),
    tower="SiglipVisionModel",
    num_special=zero,
    heads={
        "SiglipVisionModel": (attention_pool("head.attention"), TOKENS),
        "SiglipModel": (),
        "SiglipForImageClassification": (mean_of("vision_model.post_layernorm"),),
    },
)

FAMILIES: tuple[Family, ...] = (
    VIT,
    replace(
        VIT,
        model_types=("deit",),
        tower="DeiTModel",
        num_special=two,
        heads={
            "DeiTModel": (CLASS_TOKEN, TOKENS),
            "DeiTForImageClassification": (CLASS_TOKEN,),
            "DeiTForImageClassificationWithTeacher": (CLASS_TOKEN,),
            "DeiTForMaskedImageModeling": (RESTORE,),
        },
    ),
    replace(
        VIT,
        model_types=("vit_msn",),
        tower="ViTMSNModel",
        heads={"ViTMSNModel": (CLASS_TOKEN, TOKENS), "ViTMSNForImageClassification": (CLASS_TOKEN,)},
    ),
    replace(
        VIT,
        model_types=("vit_mae",),
        tower="ViTMAEModel",
        heads={"ViTMAEModel": (CLASS_TOKEN, TOKENS), "ViTMAEForPreTraining": PIXEL_DECODER},
        proportional=False,
    ),
    replace(
        VIT,
        model_types=("pixio",),
        tower="PixioModel",
        num_special=class_tokens,
        heads={"PixioModel": (CLASS_TOKEN, TOKENS), "PixioBackbone": BACKBONE},
        after_attention=("dropout", "drop_path"),
        mlp=("mlp", "dropout", "drop_path"),
    ),
    replace(
        VIT,
        model_types=("ijepa",),
        tower="IJepaModel",
        num_special=_first_if_pooled,
        heads={"IJepaModel": (TOKENS,), "IJepaForImageClassification": (mean_of("ijepa.layernorm"),)},
    ),
    replace(
        VIT,
        model_types=("beit",),
        tower="BeitModel",
        heads={
            "BeitModel": (CLASS_TOKEN, mean_of("pooler", "input"), TOKENS),
            "BeitForImageClassification": (),
            "BeitForMaskedImageModeling": (RESTORE,),
            "BeitForSemanticSegmentation": SEGMENTATION,
            "BeitBackbone": BACKBONE,
        },
        after_attention=("dropout", "lambda_1", "drop_path"),
        mlp=("mlp", "dropout", "lambda_2", "drop_path"),
        position_bias="relative_position_bias",
    ),
    DINOV2,
    replace(
        DINOV2,
        model_types=("dinov2_with_registers",),
        tower="Dinov2WithRegistersModel",
        num_special=class_and_registers,
        heads={
            "Dinov2WithRegistersModel": (CLASS_TOKEN, TOKENS),
            "Dinov2WithRegistersForImageClassification": (CLASS_TOKEN, mean_of("dinov2_with_registers.layernorm")),
            "Dinov2WithRegistersBackbone": BACKBONE,
        },
    ),
    replace(
        DINOV2,
        model_types=("dinov3_vit",),
        tower="DINOv3ViTModel",
        num_special=class_and_registers,
        heads={"DINOv3ViTModel": (CLASS_TOKEN, TOKENS), "DINOv3ViTBackbone": BACKBONE},
        layers="model.layer",
        dropout="dropout",
        rotary="apply_rotary_pos_emb",
    ),
    replace(
        VIT,
        model_types=("videomae",),
        tower="VideoMAEModel",
        num_special=_first_unless_mean,
        heads={
            "VideoMAEModel": (TOKENS,),
            "VideoMAEForVideoClassification": (mean_of("videomae.encoder"),),
            "VideoMAEForPreTraining": PIXEL_DECODER,
        },
        layers="encoder.layer",
        attention="attention.attention",
        after_attention=("attention.output.dense", "attention.output.dropout"),
        mlp=("intermediate", "output.dense", "output.dropout"),
        query="query",
        key="key",
        value="value",
        out=None,
        head_dim="attention_head_size",
        dropout="dropout_prob",
        proportional=False,
    ),
    replace(
        VIT,
        model_types=("vivit",),
        tower="VivitModel",
        heads={"VivitModel": (CLASS_TOKEN, TOKENS), "VivitForVideoClassification": (CLASS_TOKEN,)},
    ),
    CLIP,
    replace(
        CLIP,
        model_types=("metaclip_2_vision_model", "metaclip_2"),
        tower="MetaClip2VisionModel",
        heads={
            "MetaClip2VisionModel": (CLASS_TOKEN, TOKENS),
            "MetaClip2VisionModelWithProjection": (CLASS_TOKEN,),
            "MetaClip2Model": (CLASS_TOKEN,),
            "MetaClip2ForImageClassification": (mean_of("vision_model.encoder"),),
        },
    ),
    replace(
        CLIP,
        model_types=("altclip_vision_model", "altclip"),
        tower="AltCLIPVisionModel",
        heads={"AltCLIPVisionModel": (CLASS_TOKEN, TOKENS), "AltCLIPModel": (CLASS_TOKEN,)},
    ),
    replace(
        CLIP,
        model_types=("chinese_clip_vision_model", "chinese_clip"),
        tower="ChineseCLIPVisionModel",
        heads={"ChineseCLIPVisionModel": (CLASS_TOKEN, TOKENS), "ChineseCLIPModel": (CLASS_TOKEN,)},
    ),
    replace(
        CLIP,
        model_types=("clipseg_vision_model", "clipseg"),
        tower="CLIPSegVisionModel",
        heads={
            "CLIPSegVisionModel": (CLASS_TOKEN, TOKENS),
            "CLIPSegModel": (CLASS_TOKEN,),
            "CLIPSegForImageSegmentation": SEGMENTATION,
        },
    ),
    replace(
        CLIP,
        model_types=("aimv2_vision_model", "aimv2"),
        tower="Aimv2VisionModel",
        num_special=zero,
        heads={"Aimv2VisionModel": (Head("functional_pool", "head", POOLS), TOKENS), "Aimv2Model": ()},
        norm1="rms_norm1",
        attention="attention",
        norm2="rms_norm2",
        mlp=("ffn",),
    ),
    replace(
        DINOV2,
        model_types=("tipsv2_vision_model", "tipsv2"),
        tower="Tipsv2VisionModel",
        num_special=class_and_registers,
        heads={
            "Tipsv2VisionModel": (CLASS_TOKEN, TOKENS),
            "Tipsv2Model": (CLASS_TOKEN,),
            "Tipsv2VisionBackbone": BACKBONE,
        },
    ),
    SIGLIP,
    replace(
        SIGLIP,
        model_types=("siglip2_vision_model", "siglip2"),
        tower="Siglip2VisionModel",
        heads={
            "Siglip2VisionModel": (Head("drop_mask", "head"), attention_pool("head.attention"), TOKENS),
            "Siglip2Model": (),
            # Its masked mean is taken in the model's own forward, over as many tokens as the mask has.
            "Siglip2ForImageClassification": (RESTORE,),
        },
    ),
    replace(
        VIT,
        model_types=("internvl_vision",),
        tower="InternVLVisionModel",
        heads={"InternVLVisionModel": (TOKENS,)},
        layers="encoder.layer",
        after_attention=("attention.projection_layer", "attention.projection_dropout", "lambda_1"),
        mlp=("mlp", "dropout", "lambda_2"),
        out=None,
        query_norm="q_norm",
        key_norm="k_norm",
        scaling="scale",
    ),
    replace(
        SIGLIP,
        model_types=("idefics3_vision",),
        tower="Idefics3VisionTransformer",
        heads={"Idefics3VisionTransformer": (TOKENS,)},
    ),
    replace(
        SIGLIP,
        model_types=("smolvlm_vision",),
        tower="SmolVLMVisionTransformer",
        heads={"SmolVLMVisionTransformer": (TOKENS,)},
    ),
    replace(
        SIGLIP,
        model_types=("janus_vision_model",),
        tower="JanusVisionModel",
        num_special=one,  # no class token, but its pooler reads the first patch
        heads={"JanusVisionModel": (CLASS_TOKEN, TOKENS)},
        after_attention=("self_attn.projection_layer", "self_attn.projection_dropout"),
        out=None,
        dropout="attention_dropout",
    ),
    replace(
        CLIP,
        model_types=("kosmos_2_vision_model", "kosmos-2"),
        tower="Kosmos2VisionTransformer",
        heads={
            "Kosmos2VisionTransformer": (CLASS_TOKEN, TOKENS),
            "Kosmos2VisionModel": (CLASS_TOKEN, TOKENS),
            "Kosmos2Model": (LATENTS,),
            "Kosmos2ForConditionalGeneration": (LATENTS,),
        },
    ),
    replace(
        VIT,
        model_types=("audio-spectrogram-transformer",),
        tower="ASTModel",
        num_special=two,
        heads={"ASTModel": (CLASS_TOKEN, TOKENS), "ASTForAudioClassification": (CLASS_TOKEN,)},
        proportional=False,
    ),
)

MEMORY = (Head("zero_padding", "encoder"), Head("zeros_stay", "enc_to_dec_proj"), Head("masked_memory", "decoder"))

TOWERS: dict[str, Family] = {family.tower: family for family in FAMILIES}
"""The rows by the class name of the module that owns the blocks."""

WRAPPERS: dict[str, tuple[Head, ...]] = {
    "VisionEncoderDecoderModel": (TOKENS, *MEMORY),
    "VisionTextDualEncoderModel": (CLASS_TOKEN,),
    **VISION_LANGUAGE,
}
"""Models of transformers that hold any tower, and take any number of tokens from it or have the grid restored."""

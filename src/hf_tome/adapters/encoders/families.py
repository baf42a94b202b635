"""The supported families, one row each. A new row brings its tests and its line in `docs/models.md`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from . import sizes
from .cross_attention import ENCODER_MEMORY
from .family import (
    CLASS_TOKEN,
    TOKENS,
    UNMERGE,
    Family,
    OutputAdapter,
    class_and_registers,
    class_tokens,
    first_patch,
    first_patch_if_pooled,
    first_patch_unless_mean,
    one,
    two,
    zero,
)
from .inputs import PADDED_IMAGE, SPECTROGRAM, VIDEO
from .outputs import POOLS, DropMask, FunctionalPool, LatentPool, MeanInput, attention_pool, mean_of

BACKBONE = "a backbone reads the grid of tokens after several blocks, and merged tokens have no grid"
SEGMENTATION = "its segmentation head reads the grid of tokens after several blocks, and merged tokens have no grid"
PIXEL_DECODER = "its decoder puts masked patches back by position among the encoder's tokens, which merging reorders"
LATENTS = OutputAdapter(LatentPool, "image_to_text_projection.x_attn", POOLS)


VIT = Family(
    model_types=("vit",),
    tower="ViTModel",
    num_special=one,
    heads={
        "ViTModel": (CLASS_TOKEN, TOKENS),
        "ViTForImageClassification": (CLASS_TOKEN,),
        "ViTForMaskedImageModeling": (UNMERGE,),
    },
)

DINOV2 = Family(
    model_types=("dinov2",),
    tower="Dinov2Model",
    sizes=sizes.DINOV2,
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
    sizes=sizes.PROJECTION,
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
    sizes=sizes.ATTENTION_POOL,
    num_special=zero,
    heads={
        "SiglipVisionModel": (attention_pool("head.attention"), TOKENS),
        "SiglipModel": (),
        "SiglipForImageClassification": (mean_of("vision_model.post_layernorm", averages_prefix=True),),
    },
)

FAMILIES: tuple[Family, ...] = (
    VIT,
    replace(
        VIT,
        model_types=("deit",),
        tower="DeiTModel",
        sizes=sizes.DEIT,
        num_special=two,
        heads={
            "DeiTModel": (CLASS_TOKEN, TOKENS),
            "DeiTForImageClassification": (CLASS_TOKEN,),
            "DeiTForImageClassificationWithTeacher": (CLASS_TOKEN,),
            "DeiTForMaskedImageModeling": (UNMERGE,),
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
        sizes=sizes.MASKED,
        heads={"ViTMAEModel": (CLASS_TOKEN, TOKENS), "ViTMAEForPreTraining": PIXEL_DECODER},
        proportional=False,
    ),
    replace(
        VIT,
        model_types=("pixio",),
        tower="PixioModel",
        sizes=sizes.DINOV2_TOWER,
        num_special=class_tokens,
        heads={"PixioModel": (CLASS_TOKEN, TOKENS), "PixioBackbone": BACKBONE},
        after_attention=("dropout", "drop_path"),
        mlp=("mlp", "dropout", "drop_path"),
    ),
    replace(
        VIT,
        model_types=("ijepa",),
        tower="IJepaModel",
        protected=first_patch_if_pooled,
        num_special=zero,
        heads={
            "IJepaModel": (TOKENS,),
            "IJepaForImageClassification": (mean_of("ijepa.layernorm", averages_prefix=True),),
        },
    ),
    replace(
        VIT,
        model_types=("beit",),
        tower="BeitModel",
        heads={
            "BeitModel": (CLASS_TOKEN, mean_of("pooler", MeanInput), TOKENS),
            "BeitForImageClassification": (),
            "BeitForMaskedImageModeling": (UNMERGE,),
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
        sizes=replace(sizes.NO_HEAD, gated=sizes.gated_by_config),
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
        protected=first_patch_unless_mean,
        inputs=VIDEO,
        num_special=zero,
        heads={
            "VideoMAEModel": (TOKENS,),
            "VideoMAEForVideoClassification": (mean_of("videomae.encoder", averages_prefix=True),),
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
        inputs=VIDEO,
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
        sizes=sizes.NO_HEAD,
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
        sizes=replace(sizes.QUERY_POOL, gated=sizes.always_gated),
        num_special=zero,
        heads={"Aimv2VisionModel": (OutputAdapter(FunctionalPool, "head", POOLS), TOKENS), "Aimv2Model": ()},
        norm1="rms_norm1",
        attention="attention",
        norm2="rms_norm2",
        mlp=("ffn",),
    ),
    replace(
        DINOV2,
        model_types=("tipsv2_vision_model", "tipsv2"),
        tower="Tipsv2VisionModel",
        sizes=sizes.DINOV2_TOWER,
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
        inputs=PADDED_IMAGE,
        heads={
            "Siglip2VisionModel": (OutputAdapter(DropMask, "head"), attention_pool("head.attention"), TOKENS),
            "Siglip2Model": (),
            # Its masked mean is taken in the model's own forward, over as many tokens as the mask has.
            "Siglip2ForImageClassification": (UNMERGE,),
        },
    ),
    replace(
        VIT,
        model_types=("internvl_vision",),
        tower="InternVLVisionModel",
        sizes=sizes.NO_HEAD,
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
        sizes=sizes.NO_HEAD,
        heads={"Idefics3VisionTransformer": (TOKENS,)},
    ),
    replace(
        SIGLIP,
        model_types=("smolvlm_vision",),
        tower="SmolVLMVisionTransformer",
        sizes=sizes.NO_HEAD,
        heads={"SmolVLMVisionTransformer": (TOKENS,)},
    ),
    replace(
        SIGLIP,
        model_types=("janus_vision_model",),
        tower="JanusVisionModel",
        protected=first_patch,
        sizes=sizes.RATIO_TOWER,
        heads={"JanusVisionModel": (CLASS_TOKEN, TOKENS)},
        after_attention=("self_attn.projection_layer", "self_attn.projection_dropout"),
        out=None,
        dropout="attention_dropout",
    ),
    replace(
        CLIP,
        model_types=("kosmos_2_vision_model", "kosmos-2"),
        tower="Kosmos2VisionTransformer",
        sizes=sizes.NO_HEAD,
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
        inputs=SPECTROGRAM,
        num_special=two,
        heads={"ASTModel": (CLASS_TOKEN, TOKENS), "ASTForAudioClassification": (CLASS_TOKEN,)},
        proportional=False,
    ),
)

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
            what = f"the model types {sorted(shared)}" if is_other else f"the tower {family.tower!r}"
            raise ValueError(
                f"There is a row for {what} already; name the tower's own class and model type, or pass "
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
    """Return the config of the vision tower of a model that holds one (a CLIP, a LLaVA); else the config as it is."""
    while getattr(config, "vision_config", None) is not None:
        config = config.vision_config
    return config


def family_of(config: Any) -> Family | None:
    """Return the row of a tower's config, or `None` where no row has its model type."""
    return next((family for family in TOWERS.values() if config.model_type in family.model_types), None)

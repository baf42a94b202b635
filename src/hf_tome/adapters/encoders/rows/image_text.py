"""Vision towers of image-text models: CLIP, SigLIP and others built like them."""

from __future__ import annotations

from dataclasses import replace

from ..families import sizes
from ..families.family import (
    CLASS_TOKEN,
    TOKENS,
    UNMERGE,
    Family,
    OutputAdapter,
    class_and_registers,
    first_token,
    one,
    zero,
)
from ..families.inputs import PADDED_IMAGE
from ..outputs import POOLS, DropMask, FunctionalPool, attention_pool, mean_of
from .images import DINOV2

CLIP = Family(
    model_types=("clip_vision_model", "clip"),
    tower="CLIPVisionModel",
    sizes=sizes.PROJECTION,
    num_prefix_tokens=one,
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
    num_prefix_tokens=zero,
    heads={
        "SiglipVisionModel": (attention_pool("head.attention"), TOKENS),
        "SiglipModel": (),
        "SiglipForImageClassification": (mean_of("vision_model.post_layernorm", averages_prefix=True),),
    },
)

IMAGE_TEXT: tuple[Family, ...] = (
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
        },
    ),
    replace(
        CLIP,
        model_types=("aimv2_vision_model", "aimv2"),
        tower="Aimv2VisionModel",
        sizes=replace(sizes.QUERY_POOL, gated=sizes.always_gated),
        num_prefix_tokens=zero,
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
        num_prefix_tokens=class_and_registers,
        class_tokens=first_token,
        heads={
            "Tipsv2VisionModel": (CLASS_TOKEN, TOKENS),
            "Tipsv2Model": (CLASS_TOKEN,),
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
)

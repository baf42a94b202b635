"""Encoders of images: ViT, DeiT, BEiT, DINO and others built like them."""

from __future__ import annotations

from dataclasses import replace

from ..data2vec import Data2VecAttention, Data2VecBlock, SharedBias
from ..families import sizes
from ..families.family import (
    CLASS_TOKEN,
    PIXEL_DECODER,
    TOKENS,
    UNMERGE,
    Family,
    OutputAdapter,
    class_and_registers,
    class_tokens,
    first_patch_if_pooled,
    first_token,
    one,
    two,
    zero,
)
from ..outputs import MeanInput, mean_of

VIT = Family(
    model_types=("vit",),
    tower="ViTModel",
    num_prefix_tokens=one,
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
    num_prefix_tokens=one,
    heads={
        "Dinov2Model": (CLASS_TOKEN, TOKENS),
        "Dinov2ForImageClassification": (CLASS_TOKEN, mean_of("dinov2.layernorm")),
    },
    layers="encoder.layer",
    norm1="norm1",
    after_attention=("layer_scale1", "drop_path"),
    norm2="norm2",
    mlp=("mlp", "layer_scale2", "drop_path"),
)

BEIT = replace(
    VIT,
    model_types=("beit",),
    tower="BeitModel",
    heads={
        "BeitModel": (CLASS_TOKEN, mean_of("pooler", MeanInput), TOKENS),
        "BeitForImageClassification": (),
        "BeitForMaskedImageModeling": (UNMERGE,),
    },
    after_attention=("dropout", "lambda_1", "drop_path"),
    mlp=("mlp", "dropout", "lambda_2", "drop_path"),
    position_bias="relative_position_bias",
)

IMAGES: tuple[Family, ...] = (
    VIT,
    replace(
        VIT,
        model_types=("deit",),
        tower="DeiTModel",
        sizes=sizes.DEIT,
        num_prefix_tokens=two,
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
        num_prefix_tokens=class_tokens,
        heads={"PixioModel": (CLASS_TOKEN, TOKENS)},
        after_attention=("dropout", "drop_path"),
        mlp=("mlp", "dropout", "drop_path"),
    ),
    replace(
        VIT,
        model_types=("ijepa",),
        tower="IJepaModel",
        protected=first_patch_if_pooled,
        num_prefix_tokens=zero,
        heads={
            "IJepaModel": (TOKENS,),
            "IJepaForImageClassification": (mean_of("ijepa.layernorm", averages_prefix=True),),
        },
    ),
    BEIT,
    replace(
        BEIT,
        model_types=("data2vec-vision",),
        tower="Data2VecVisionModel",
        heads={
            "Data2VecVisionModel": (
                CLASS_TOKEN,
                mean_of("pooler", MeanInput),
                OutputAdapter(SharedBias, "encoder.relative_position_bias", when_unmerged=True),
                TOKENS,
            ),
            "Data2VecVisionForImageClassification": (),
        },
        layers="encoder.layer",
        attention="attention.attention",
        after_attention=("attention.output.dense", "attention.output.dropout", "lambda_1", "drop_path"),
        mlp=("intermediate", "output.dense", "output.dropout", "lambda_2", "drop_path"),
        query="query",
        key="key",
        value="value",
        out=None,
        head_dim="attention_head_size",
        attention_mixin=Data2VecAttention,
        block_mixin=Data2VecBlock,
    ),
    DINOV2,
    replace(
        DINOV2,
        model_types=("dinov2_with_registers",),
        tower="Dinov2WithRegistersModel",
        num_prefix_tokens=class_and_registers,
        class_tokens=first_token,
        heads={
            "Dinov2WithRegistersModel": (CLASS_TOKEN, TOKENS),
            "Dinov2WithRegistersForImageClassification": (CLASS_TOKEN, mean_of("dinov2_with_registers.layernorm")),
        },
    ),
    replace(
        DINOV2,
        model_types=("dinov3_vit",),
        tower="DINOv3ViTModel",
        sizes=replace(sizes.NO_HEAD, gated=sizes.gated_by_config),
        num_prefix_tokens=class_and_registers,
        class_tokens=first_token,
        heads={"DINOv3ViTModel": (CLASS_TOKEN, TOKENS)},
        layers="model.layer",
        dropout="dropout",
        rotary="apply_rotary_pos_emb",
    ),
)

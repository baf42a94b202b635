"""Small random dense models: one or more for every row of `hf_tome.adapters.dense`."""

import copy

import torch
import transformers as tf
from zoo import IMAGE, IMG, LABELS, SMALL, Zoo, build, pixels

FOUR = {**SMALL, "num_hidden_layers": 4}
DINO = {**FOUR, **IMAGE, "layerscale_value": 0.7, "mlp_ratio": 2}
BEIT = {**FOUR, **IMAGE, "layer_scale_init_value": 0.6, "use_relative_position_bias": True}
READS = {"out_indices": [1, 2, 3, 4]}
DPT_NECK = {
    "patch_size": 4,
    "reassemble_hidden_size": 32,
    "neck_hidden_sizes": [8, 8, 8, 8],
    "fusion_hidden_size": 8,
    "head_hidden_size": 4,
}
UPER = {"hidden_size": 16, "use_auxiliary_head": False, "pool_scales": [1, 2]}
MAPS, DEPTH = "feature_maps", "predicted_depth"


def backbone(cls: str, config: str, **options):
    return build(cls, config, **{**READS, **options})


def around(cls: str, config: str, inner: object, **options):
    """Build a model around a backbone of this config."""

    def make(backend: str):
        model = getattr(tf, cls)(getattr(tf, config)(backbone_config=copy.deepcopy(inner), **options))
        model.backbone.set_attn_implementation(backend)
        return model

    return make


def dinov2(**options) -> tf.Dinov2Config:
    return tf.Dinov2Config(**{**DINO, **READS, "reshape_hidden_states": False, **options})


def build_clipseg(backend: str):
    vision = {**FOUR, **IMAGE}
    text = {**SMALL, "vocab_size": 99, "max_position_embeddings": 8, "eos_token_id": 98, "bos_token_id": 97}
    options = {
        "extract_layers": [0, 1, 2],
        "projection_dim": 16,
        "reduce_dim": 16,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 24,
    }
    config = tf.CLIPSegConfig(vision_config=vision, text_config=text, **options)
    return tf.CLIPSegForImageSegmentation._from_config(config, attn_implementation=backend)


def with_prompts(batch_size: int):
    return {**IMG(batch_size), "input_ids": torch.tensor([[3, 5, 7, 98], [4, 6, 2, 98]])[:batch_size]}


def build_depth_pro(backend: str):
    inner = {**DINO, "model_type": "dinov2", "image_size": 32}
    config = tf.DepthProConfig(
        patch_size=32,
        fusion_hidden_size=8,
        intermediate_hook_ids=[3, 1],
        intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.25],
        scaled_images_feature_dims=[8, 8],
        merge_padding_value=1,
        num_fov_head_layers=1,
        use_fov_model=True,
        image_model_config=inner,
        patch_model_config=inner,
        fov_model_config=inner,
    )
    model = tf.DepthProForDepthEstimation._from_config(config, attn_implementation=backend)
    model.set_attn_implementation(backend)
    return model


def build_owl(prefix: str):
    text = {**SMALL, "vocab_size": 99, "max_position_embeddings": 8}

    def make(backend: str):
        config = getattr(tf, f"{prefix}Config")(vision_config={**FOUR, **IMAGE}, text_config=text, projection_dim=32)
        return getattr(tf, f"{prefix}ForObjectDetection")._from_config(config, attn_implementation=backend)

    return make


def with_queries(batch_size: int):
    """Pictures, and two sentences for each."""
    ids = torch.tensor([[3, 5, 7, 98], [4, 6, 2, 98]]).repeat(batch_size, 1)
    return {**IMG(batch_size), "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def build_vitpose(backend: str):
    inner = tf.VitPoseBackboneConfig(
        **{**FOUR, "image_size": [64, 48], "patch_size": [8, 8], "mlp_ratio": 2}, out_indices=[4]
    )
    model = tf.VitPoseForPoseEstimation(tf.VitPoseConfig(backbone_config=inner, num_labels=5))
    model.backbone.set_attn_implementation(backend)
    return model


WINDOWED = {**FOUR, **IMAGE, "mlp_ratio": 2}
RF_DETR = {**WINDOWED, "num_windows": 2, "out_indices": [1, 3], "layerscale_value": 0.7}
LW_DETR = {
    **WINDOWED,
    "num_windows": 4,
    "window_block_indices": [0, 2],
    "out_indices": [2, 4],
    "pretrain_image_size": 32,
    "cae_init_values": 0.7,
}
DETR = {
    "d_model": 32,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "num_queries": 5,
    "c2f_num_blocks": 1,
}


def detr(prefix: str, inner: object, **options):
    """Build a whole detector around a backbone of this config."""

    def make(backend: str):
        config = getattr(tf, f"{prefix}Config")(backbone_config=copy.deepcopy(inner), **DETR, **options)
        model = getattr(tf, f"{prefix}ForObjectDetection")(config)
        model.model.backbone.backbone.set_attn_implementation(backend)
        return model

    return make


def for_poses(batch_size: int):
    return {**pixels(3, 64, 48)(batch_size), "dataset_index": torch.zeros(batch_size, dtype=torch.long)}


DPT = {
    "neck_hidden_sizes": [8, 8, 8, 8],
    "fusion_hidden_size": 8,
    "backbone_out_indices": [0, 1, 2, 3],
    "readout_type": "project",
}
SAPIENS = {
    **FOUR,
    **IMAGE,
    "num_register_tokens": 3,
    "layerscale_value": 0.7,
    "num_key_value_attention_heads": 1,
    "num_first_full_attention_layers": 1,
    "num_last_full_attention_layers": 1,
}
SAPIENS_HEAD = tf.Sapiens2HeadConfig(
    upsample_out_channels=[8], upsample_kernel_sizes=[4], conv_out_channels=[8], conv_kernel_sizes=[1]
)


def build_eomt(prefix: str):
    def make(backend: str):
        options = {**FOUR, **IMAGE, "num_register_tokens": 2, "num_queries": 5, "num_blocks": 1, "num_labels": 3}
        config = getattr(tf, f"{prefix}Config")(**options, layerscale_value=0.7, mlp_ratio=2, num_upscale_blocks=1)
        model = getattr(tf, f"{prefix}ForUniversalSegmentation")._from_config(config, attn_implementation=backend)
        model.attn_mask_probs.zero_()  # as trained models have it: queries see every patch
        return model

    return make


def one_frame(batch_size: int):
    return {"pixel_values_videos": IMG(batch_size)["pixel_values"][:, None]}


class DenseZoo(Zoo):
    """A model with a head of convolutions, which are built with weights so small that nothing shows behind them."""

    def make(self, backend: str = "sdpa", seed: int = 0):
        model = super().make(backend, seed)
        with torch.no_grad():
            for name, module in model.named_modules():
                if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d) and "embeddings" not in name:
                    module.weight.normal_(std=module.weight[0].numel() ** -0.5)
        return model


class Maps(Zoo):
    """A backbone: all of its maps in one tensor."""

    def run(self, model, batch_size=2, inputs=None):
        out = model(**(self.inputs(batch_size) if inputs is None else inputs))
        return torch.cat([x.flatten(1) for x in out.feature_maps], dim=1)


REGISTERS = {"num_register_tokens": 3}
DINOV3 = {**FOUR, **IMAGE, **REGISTERS, "layerscale_value": 0.7}
TIPS = {**DINOV3, "mlp_ratio": 2}
UPERNET_HEAD = {**UPER, **LABELS}
SEGMENTING = {**LABELS, **READS, "use_auxiliary_head": False, "pool_scales": [1, 2]}

DENSE_ZOO: tuple[Zoo, ...] = (
    Maps("dinov2", "Dinov2Backbone", backbone("Dinov2Backbone", "Dinov2Config", **DINO), IMG, restores=True),
    Maps(
        "dinov2-registers",
        "Dinov2WithRegistersBackbone",
        backbone("Dinov2WithRegistersBackbone", "Dinov2WithRegistersConfig", **DINO, **REGISTERS),
        IMG,
        restores=True,
    ),
    Maps(
        "dinov3",
        "DINOv3ViTBackbone",
        backbone("DINOv3ViTBackbone", "DINOv3ViTConfig", **DINOV3, out_indices=[1, 3]),
        IMG,
        restores=True,
    ),
    Maps(
        "tipsv2",
        "Tipsv2VisionBackbone",
        backbone("Tipsv2VisionBackbone", "Tipsv2VisionConfig", **TIPS),
        IMG,
        restores=True,
    ),
    Maps("beit", "BeitModel", backbone("BeitBackbone", "BeitConfig", **BEIT), IMG, restores=True),
    Maps(
        "pixio",
        "PixioModel",
        backbone("PixioBackbone", "PixioConfig", **FOUR, **IMAGE, n_cls_tokens=3),
        IMG,
        restores=True,
    ),
    DenseZoo(
        "beit-segmentation",
        "BeitModel",
        build("BeitForSemanticSegmentation", "BeitConfig", **BEIT, **SEGMENTING),
        IMG,
        restores=True,
    ),
    DenseZoo(
        "data2vec-vision-segmentation",
        "Data2VecVisionModel",
        build("Data2VecVisionForSemanticSegmentation", "Data2VecVisionConfig", **BEIT, **SEGMENTING),
        IMG,
        restores=True,
    ),
    DenseZoo("clipseg", "CLIPSegVisionModel", build_clipseg, with_prompts, restores=True),
    DenseZoo(
        "depth_anything",
        "Dinov2Backbone",
        around("DepthAnythingForDepthEstimation", "DepthAnythingConfig", dinov2(), **DPT_NECK),
        IMG,
        DEPTH,
        restores=True,
    ),
    DenseZoo(
        "prompt_depth_anything",
        "Dinov2Backbone",
        around("PromptDepthAnythingForDepthEstimation", "PromptDepthAnythingConfig", dinov2(), **DPT_NECK),
        IMG,
        DEPTH,
        restores=True,
    ),
    DenseZoo(
        "zoedepth",
        "BeitModel",
        around(
            "ZoeDepthForDepthEstimation",
            "ZoeDepthConfig",
            tf.BeitConfig(**BEIT, **READS, reshape_hidden_states=False),
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            bottleneck_features=8,
            num_relative_features=4,
            bin_embedding_dim=8,
            bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0}],
        ),
        IMG,
        DEPTH,
        restores=True,
    ),
    DenseZoo(
        "upernet",
        "Dinov2Backbone",
        around("UperNetForSemanticSegmentation", "UperNetConfig", dinov2(reshape_hidden_states=True), **UPERNET_HEAD),
        IMG,
        restores=True,
    ),
    DenseZoo(
        "chmv2",
        "DINOv3ViTBackbone",
        around(
            "CHMv2ForDepthEstimation",
            "CHMv2Config",
            tf.DINOv3ViTConfig(**DINOV3, **READS, return_class_token=True),
            patch_size=4,
            post_process_channels=[8, 8, 8, 8],
            fusion_hidden_size=8,
            head_hidden_size=4,
            number_output_channels=8,
        ),
        IMG,
        DEPTH,
        restores=True,
    ),
    DenseZoo(
        "tipsv2_dpt",
        "Tipsv2VisionBackbone",
        around(
            "Tipsv2DptForSemanticSegmentation",
            "Tipsv2DptConfig",
            tf.Tipsv2VisionConfig(**TIPS, **READS, reshape_hidden_states=False),
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            **LABELS,
        ),
        IMG,
        restores=True,
    ),
    DenseZoo(
        "dpt",
        "DPTModel",
        build("DPTForDepthEstimation", "DPTConfig", **FOUR, **IMAGE, **DPT),
        IMG,
        DEPTH,
        restores=True,
    ),
    DenseZoo(
        "dpt-segmentation",
        "DPTModel",
        build("DPTForSemanticSegmentation", "DPTConfig", **FOUR, **IMAGE, **DPT, **LABELS, use_auxiliary_head=False),
        IMG,
        restores=True,
    ),
    Zoo("owlvit", "OwlViTVisionTransformer", build_owl("OwlViT"), with_queries, "pred_boxes", restores=True),
    Zoo("owlv2", "Owlv2VisionTransformer", build_owl("Owlv2"), with_queries, "pred_boxes", restores=True),
    DenseZoo("vitpose", "VitPoseBackbone", build_vitpose, for_poses, "heatmaps", restores=True),
    DenseZoo(
        "sapiens2",
        "Sapiens2Model",
        build("Sapiens2ForSemanticSegmentation", "Sapiens2Config", **SAPIENS, **LABELS, head_config=SAPIENS_HEAD),
        IMG,
        restores=True,
    ),
    Maps("sapiens2-backbone", "Sapiens2Backbone", backbone("Sapiens2Backbone", "Sapiens2Config", **SAPIENS), IMG),
    Maps(
        "rf_detr_dinov2",
        "RfDetrDinov2Backbone",
        backbone("RfDetrDinov2Backbone", "RfDetrDinov2Config", **RF_DETR),
        IMG,
    ),
    Maps("lw_detr_vit", "LwDetrViTBackbone", backbone("LwDetrViTBackbone", "LwDetrViTConfig", **LW_DETR), IMG),
    DenseZoo("rf_detr", "RfDetrDinov2Backbone", detr("RfDetr", tf.RfDetrDinov2Config(**RF_DETR)), IMG, "pred_boxes"),
    DenseZoo(
        "lw_detr",
        "LwDetrViTBackbone",
        detr("LwDetr", tf.LwDetrViTConfig(**LW_DETR), projector_scale_factors=[1.0]),
        IMG,
        "pred_boxes",
    ),
    DenseZoo("depth_pro", "Dinov2Model", build_depth_pro, pixels(3, 64, 64), DEPTH, restores=True),
    DenseZoo("eomt", "EomtForUniversalSegmentation", build_eomt("Eomt"), IMG, "masks_queries_logits", restores=True),
    DenseZoo(
        "eomt_dinov3",
        "EomtDinov3ForUniversalSegmentation",
        build_eomt("EomtDinov3"),
        IMG,
        "masks_queries_logits",
        restores=True,
    ),
    DenseZoo(
        "videomt",
        "VideomtForUniversalSegmentation",
        build_eomt("Videomt"),
        one_frame,
        "masks_queries_logits",
        restores=True,
    ),
)

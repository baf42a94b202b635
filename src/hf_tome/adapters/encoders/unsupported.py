"""The model types in which tokens are not merged, and why. Read against the models' code in transformers.

A reason completes "it is not supported, because ...". `docs/models.md` is generated from this table and the families'.
"""

from __future__ import annotations

import transformers
from packaging.version import Version

CHECKED = "5.24.0"
"""The version of transformers whose every vision and audio model type has a row or a reason."""

CONVOLUTIONS = "it is made of convolutions over the full grid of pixels, and has no tokens to merge"
STAGES = "its stages shrink the grid of tokens from one to the next, which takes every token in its place"
WINDOWS = "its attention runs in windows cut from the full grid of tokens"
NEIGHBOURS = "its attention reads the neighbours of each token on the full grid"
FACTORISED = "it attends over space and over time in turn, and reshapes the tokens to frames for that"
DENSE = "it predicts something for every place on the full grid, and reads that grid out of the encoder"
LOOKED_UP = "its decoder looks features up by their place on the full grid of its backbone"
TIMM = "its encoder is code of the timm library, of which only its VisionTransformer of plain blocks has a row"
KEYPOINTS = "its tokens are keypoints, and it has to say of each one which other it matches"
LATENTS = "its blocks work on a fixed set of latents, and the image is only read into those"
CAUSAL = "its attention is causal over the order of the pixels, which merging would break"
MESSAGES = "its blocks pass a message token from frame to frame, next to the patches' attention"
TRAILING = "its detection tokens stand last, and position embeddings of the full grid may follow each block"
GROUPS = "it groups the tokens itself, into learned group tokens, between its stages"
ONE_SEQUENCE = "text and image run through one encoder as one sequence, and merging would mix them"

FRAMES = "its heads rebuild the padding mask from the number of frames, or give something out for each frame in order"
FRAME_BIAS = "its attention adds a bias for the distance between frames, and its heads need the frames in order"
CONFORMER = "each of its blocks holds a convolution along time, which needs the frames in order"
UPSAMPLED = "its encoder gives out every frame again after the last block, by upsampling in order"

MASKED_APART = (
    "its tower packs the patches of all images into one sequence under a mask, and hf_tome has no row for it yet"
)
JOINED_WINDOWS = "between its blocks its tower joins the tokens of each window, which takes every token in its place"
CONVOLVED = "some of the blocks of its tower are convolutions over neighbouring patches"
FOLDED = "its projector folds or pools neighbouring patches, which takes every token in its place on the grid"
LAID_OUT = "its image features are laid out on the full grid again, to add line ends and remove padding"
TILES = "its tower cuts its output back into tiles of a fixed number of tokens"
COUNTED = "what follows its tower is chosen, or masked, by the full number of patches"
CODES = "its images become codes of a convolutional tokenizer, one for each place on the grid"
NO_TOWER = "it has no vision encoder with attention: projected patches go straight into the language model"
PROTEINS = "it reads proteins rather than images"
TEXT = "it is a language model without a vision encoder"
SPEECH = "its language model takes one placeholder, or one step, for each stretch of time, in order"
NO_ROW = "merging would fit its encoder, but hf_tome has no row for it yet"

BY_REASON: dict[str, str] = {
    CONVOLUTIONS: """
        align bit convnext convnextv2 dinov3_convnext efficientnet hgnet_v2 mobilenet_v1 mobilenet_v2 pp_lcnet
        pp_lcnet_v3 pp_lcnet_v4 pp_ocrv5_mobile_det pp_ocrv5_server_det pp_ocrv6_medium_det pp_ocrv6_small_det
        regnet resnet rt_detr_resnet superpoint textnet uvdoc_backbone
    """,
    STAGES: """
        cvt focalnet glpn hiera levit mobilevit mobilevitv2 poolformer pvt pvt_v2 sam2 sam2_video segformer
        swiftformer
    """,
    WINDOWS: """
        donut-swin florence2 maskformer-swin swin swin2sr swinv2
    """,
    NEIGHBOURS: "dinat",
    FACTORISED: "timesformer videoprism videoprism_vision_model",
    DENSE: """
        efficientloftr vitmatte
    """,
    LOOKED_UP: """
        conditional_detr d_fine dab-detr deformable_detr deimv2 detr grounding-dino
        mm-grounding-dino omdet-turbo oneformer pp_doclayout_v2 pp_doclayout_v3 pp_doclayout_v4
        rt_detr rt_detr_v2 table-transformer
    """,
    TIMM: "edgetam edgetam_video fast_vlm gemma3n perception_lm timm_backbone timm_wrapper",
    KEYPOINTS: "lightglue superglue",
    LATENTS: "perceiver",
    CAUSAL: "imagegpt",
    MESSAGES: "xclip",
    TRAILING: "yolos",
    GROUPS: "groupvit",
    ONE_SEQUENCE: "udop vilt",
    FRAMES: "data2vec-audio hubert nemotron3_diarization unispeech unispeech-sat wav2vec2",
    FRAME_BIAS: "wavlm",
    CONFORMER: "wav2vec2-bert wav2vec2-conformer",
    UPSAMPLED: "sew sew-d",
    MASKED_APART: "lighton_ocr mistral3 mistral_large4 pixtral",
    JOINED_WINDOWS: "minicpm_ocr minicpmv4_6 minicpmv4_7",
    CONVOLVED: "lfm3_vl",
    FOLDED: """
        diffusion_gemma gemma4 granite_docling llama4 molmo2 ovis2 phi4_multimodal qianfan_ocr step3p7
    """,
    LAID_OUT: "granite4_vision",
    TILES: "mllama",
    COUNTED: "aria git idefics2",
    CODES: "apertus1p5 chameleon emu3",
    NO_TOWER: "fuyu gemma4_unified inkling_mm_model",
    PROTEINS: "evolla",
    TEXT: "mistral4",
    SPEECH: """
        fun_asr_nano glmasr granite_speech granite_speech_plus kyutai_speech_to_text moss_transcribe_diarize
        nemo_speechlm omniasr qwen2_audio qwen3_asr vibevoice_asr voxtral voxtral_realtime
    """,
    NO_ROW: """
        blip blip-2 flava idefics instructblip instructblipvideo kosmos-2.5 mlcd
        mlcd_vision_model nemotron_h_omni pix2struct vjepa2
    """,
}

UNSUPPORTED: dict[str, str] = {name: reason for reason, types in BY_REASON.items() for name in types.split()}
"""Why tokens are not merged in a model, by `config.model_type`."""


def why_unsupported(model_type: str | None) -> str | None:
    """Return the reason for a model type without a row; a generic one if transformers is newer than our tables."""
    reason = UNSUPPORTED.get(model_type or "")
    is_newer = Version(transformers.__version__) > Version(CHECKED)
    if reason is None and is_newer and model_type in transformers.CONFIG_MAPPING:
        return (
            f"hf_tome knows the vision and audio models up to transformers {CHECKED}, of which it is none, "
            f"and transformers {transformers.__version__} is newer"
        )
    return reason

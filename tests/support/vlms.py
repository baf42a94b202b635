"""Small vision-language models, one for every row of `adapters.connectors`, and prompts with images for them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature

import torch
import transformers as tf
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_tome import MergeConfig, apply, merging, remove
from hf_tome.adapters.vision_language.connectors import CONNECTORS
from hf_tome.adapters.vision_language.models import SHORTEN_PROMPT, VISION_LANGUAGE
from hf_tome.patching.patch import CONTEXT

IMAGE_TOKEN, VIDEO_TOKEN, PAD, NEW = 98, 97, 0, 5
SMALL = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
SQUARE = {"image_size": 32, "patch_size": 4}
SPECIAL = {"eos_token_id": 96, "bos_token_id": 95, "pad_token_id": PAD}
TEXT = {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 99, **SPECIAL}
CLIP = {"model_type": "clip_vision_model", **SMALL, **SQUARE}
SIGLIP = {"model_type": "siglip_vision_model", **SMALL, **SQUARE, "vision_use_head": False}
NAFLEX = {"model_type": "siglip2_vision_model", **SMALL, "num_patches": 64, "patch_size": 4, "vision_use_head": False}
PIXTRAL = {"model_type": "pixtral", **SMALL, **SQUARE, "head_dim": 16}
JANUS = {"model_type": "janus_vision_model", **SMALL, **SQUARE, "projection_dim": 32, "mlp_ratio": 2, "depth": 2}
IDEFICS3 = {"model_type": "idefics3_vision", **SMALL, **SQUARE}
OVIS = {**SMALL, **SQUARE, "vocab_size": 40}
OVIS_OPTIONS = {"vocab_size": 99, "hidden_size": 32, "visual_indicator_token_ids": [35, 64, 80, 26, 27]}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "hidden_size": 32}
PERCEIVER = {"resampler_n_latents": 16, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 16}
PERCEIVER |= {"num_key_value_heads": 2}
PERCEPTION = {**SIGLIP, "model_args": {"embed_dim": 32}}  # its own tower is timm's
KIMI_VISION = {**SMALL, "patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8}
KIMI = {"video_token_id": 97, "projection_hidden_size": 32}
LFM3_VISION = {**SMALL, "patch_size": 4, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"] * 2}
MOLMO_VISION = {**SMALL, "num_key_value_heads": 2, "head_dim": 16, "image_size": [32, 32], "patch_size": 4}
MOLMO = {"adapter_config": {"vision_feature_layer": [3, 1], **MOLMO_VISION, "text_hidden_size": 32}}
MINICPM_VISION = {**SMALL, **SQUARE}
GEMMA4_VISION = {**SMALL, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "pooling_kernel_size": 2}
GEMMA4_VISION |= {"position_embedding_size": 16}
GEMMA4 = {"video_token_id": 97, "audio_token_id": 94, "audio_config": None}
GEMMA4_TEXT = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 99, "global_head_dim": 16}
GEMMA4_TEXT |= {"use_bidirectional_attention": "vision", "sliding_window": 24, "num_kv_shared_layers": 0}
EYE_VISION = {"hidden_size": 32, "vocab_size": 2, "vocab_offset": 97}
EARS = {"hidden_size": 32, "vocab_size": 2, "vocab_offset": 99, "conf_num_attention_heads": 2}
EARS |= {"conf_num_hidden_layers": 1, "sscp_conv_channel_size": (4, 4), "input_feat_size": 16}
GEMMA3N = {"vision_soft_tokens_per_image": 16, "audio_token_id": 99, "audio_config": EARS}
GEMMA3N_TEXT = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 97, "num_kv_shared_layers": 0}
GEMMA3N_TEXT |= {"laurel_rank": 8, "altup_num_inputs": 2, "layer_types": ["sliding_attention", "full_attention"]}
VQ = {"embed_dim": 8, "num_embeddings": 10, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
PACKED = {"depth": 3, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN2_VISION = {**PACKED, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
QWEN_VISION = {**PACKED, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48}
QWEN_VISION |= {"window_size": 16, "fullatt_block_indexes": [1]}
QWEN3_VISION = {**PACKED, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48}
QWEN3_VISION |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
EDGE_VISION = {**SMALL, "patch_size": 4, "num_patches": 64, "spatial_merge_size": 2}
EXAONE_VISION = {**QWEN_VISION, "num_key_value_heads": 2}
ERNIE_VIT = {**PACKED, "hidden_size": 32, "intermediate_size": 48}
PADDLE = {**SMALL, **SQUARE}
GLM_VISION = {**PACKED, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "image_size": 32}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
ALL_ROTARY = {"rope_parameters": {**MROPE["rope_parameters"], "partial_rotary_factor": 1.0}}
EXPERTS = {**MROPE, "num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
HYBRID = {"layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8, "linear_value_head_dim": 8}
HYBRID |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
HYBRID |= ALL_ROTARY
HYBRID_EXPERTS = {**HYBRID, "num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
HYBRID_EXPERTS |= {"shared_expert_intermediate_size": 48}
GLM_EXPERTS = {**ALL_ROTARY, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
ARIA_EXPERTS = {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
LATENT_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "kv_lora_rank": 16}
LATENT_EXPERTS |= {"qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "index_n_heads": 2}
LATENT_EXPERTS |= {"index_head_dim": 32, "index_topk": 16}
DEEPSEEK_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "kv_lora_rank": 16}
DEEPSEEK_EXPERTS |= {"qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "q_lora_rank": 16}
DEEPSEEK_EXPERTS |= {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
CONV = {"layer_types": ["conv", "full_attention"]}
ERNIE = {"rope_parameters": {**MROPE["rope_parameters"], "mrope_section": [3, 3, 2]}, "moe_k": 2}
ERNIE |= {"moe_intermediate_size": [48, 32], "moe_num_experts": 4, "mlp_layer_types": ["dense", "sparse"]}
EXAONE = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 24}
COMPASS = {"rope_parameters": {"full_attention": MROPE["rope_parameters"]}}
SAM = {**SMALL, "image_size": 64, "patch_size": 4, "output_channels": 16, "window_size": 4, "mlp_dim": 48}
SAM |= {"global_attn_indexes": [1, 3], "initializer_range": 0.02}
OCR_SAM = {**SAM, "downsample_channels": [32, 32]}
OCR_VISION = {"sam_config": OCR_SAM, "encoder_config": {**SMALL, "num_key_value_heads": 2}}
OCR_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "topk_method": "greedy"}
OCR_EXPERTS |= {"mlp_layer_types": ["dense", "sparse"]}
STEP_VISION = {**SMALL, "image_size": 64, "patch_size": 4, "mlp_ratio": 1.5}
STEP = {"n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
STEP |= {"share_expert_dim": 48, "mlp_layer_types": ["dense", "sparse"], "sliding_window": 24}
PINPOINTS = {"image_grid_pinpoints": [[32, 64], [64, 32]]}


def smooth(*shape: int, seed: int = 0) -> torch.Tensor:
    """Images (..., H, W) with structure, so that MaMe finds tokens to merge."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(math.prod(shape[:-2]), 1, 4, 4, generator=generator)
    large = nn.functional.interpolate(coarse, size=shape[-2:]).view(shape)
    return 3 * large + torch.randn(shape, generator=generator)


Images = Sequence[Sequence[int]]
"""For each prompt, which images it has, by number."""


def squares(images: Images) -> dict:
    bank = smooth(4, 3, 32, 32)
    return {"pixel_values": bank[[index for row in images for index in row]]}


def pages(images: Images) -> dict:
    return {"pixel_values": smooth(4, 3, 64, 64)[[index for row in images for index in row]]}


def views(images: Images) -> dict:
    """Whole images, one of which has a part of it in addition."""
    flat = [index for row in images for index in row]
    parts = [int(index == 1) for index in flat]
    inputs = {**pages(images), "num_local_patches": parts}
    return {**inputs, "pixel_values_local": smooth(1, 3, 64, 64, seed=2)[[0] * sum(parts)]} if any(parts) else inputs


def anyres(images: Images) -> dict:
    bank, sizes = smooth(4, 3, 3, 32, 32), torch.tensor([[64, 32], [50, 30], [30, 60], [64, 32]])
    flat = [index for row in images for index in row]
    return {"pixel_values": bank[flat], "image_sizes": sizes[flat]}


def tiles(images: Images) -> dict:
    bank, most = smooth(4, 2, 3, 32, 32), max(len(row) for row in images)  # two tiles an image
    pixels = torch.zeros(len(images), 2 * most, 3, 32, 32)
    for row, chosen in enumerate(images):
        for place, index in enumerate(chosen):
            pixels[row, 2 * place : 2 * place + 2] = bank[index]
    return {"pixel_values": pixels}


def naflex(images: Images) -> dict:
    flat = [index for row in images for index in row]
    shapes = torch.tensor([[8, 8], [4, 12], [6, 8], [8, 6]])[flat]
    mask = (torch.arange(64) < shapes.prod(-1, keepdim=True)).long()
    pixels = smooth(4, 1, 64, 48)[:, 0][flat]
    return {"pixel_values": pixels, "spatial_shapes": shapes, "pixel_attention_mask": mask}


def packed(images: Images) -> dict:
    sizes = torch.tensor([[32, 32], [16, 32], [32, 24], [32, 32]])
    flat = [index for row in images for index in row]
    return {"pixel_values": smooth(4, 3, 32, 32)[flat], "image_sizes": sizes[flat]}


def pairs(images: Images) -> dict:
    return {**squares(images), "high_res_pixel_values": pages(images)["pixel_values"]}


def patches(images: Images, *shape: int) -> dict:
    flat = [index for row in images for index in row]
    grids = torch.tensor([[1, 8, 8], [1, 4, 12], [1, 6, 8], [1, 8, 4]])
    shape = shape or (3 * 2 * 4 * 4,)
    size = math.prod(shape)
    pixels = [
        smooth(1, 1, 1, int(grid.prod()), size, seed=n)[0, 0, 0].view(-1, *shape) for n, grid in enumerate(grids)
    ]
    pixel_values = torch.cat([pixels[index] for index in flat]) if flat else torch.zeros(0, *shape)
    return {"pixel_values": pixel_values, "image_grid_thw": grids[flat]}


def small_patches(images: Images) -> dict:
    return patches(images, 3, 4, 4)


def flat_patches(images: Images) -> dict:
    return patches(images, 3 * 4 * 4)


def merged_patches(images: Images) -> dict:
    inputs = flat_patches(images)
    return {**inputs, "image_merge_sizes": torch.full((len(inputs["image_grid_thw"]),), 2)}


def positioned(images: Images) -> dict:
    """Patches of 8 x 8, 4 x 12, 6 x 8 and 8 x 6, with their places, or -1 for padding."""
    flat = [index for row in images for index in row]
    places = torch.full((4, 64, 2), -1)
    for index, (height, width) in enumerate(((8, 8), (4, 12), (6, 8), (8, 6))):
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places[index, : height * width] = torch.stack([columns.flatten(), rows.flatten()], dim=1)
    return {"pixel_values": smooth(4, 1, 64, 48)[:, 0][flat], "image_position_ids": places[flat]}


def navit(images: Images) -> dict:
    """All images in one row of patches, 4 pixels high."""
    flat = [index for row in images for index in row]
    sizes = torch.tensor([[16, 16], [8, 24], [12, 20], [20, 8]])
    rows = [smooth(1, 3, 4, 4 * int(size.prod()), seed=index) for index, size in enumerate(sizes)]
    pixels = torch.cat([rows[index] for index in flat], dim=3) if flat else torch.zeros(1, 3, 4, 0)
    return {"pixel_values": pixels, "target_sizes": sizes[flat].int()}


def crops(images: Images) -> dict:
    return {"pixel_values": smooth(4, 2, 3, 32, 32)[[index for row in images for index in row]]}


def pooled(images: Images) -> dict:
    """Crops of 8 x 8 patches, of which an image has two: a small one, of which 4 tokens are made, and one of 16."""
    flat = [index for row in images for index in row]
    pixels = smooth(4, 1, 128, 48)[:, 0].view(4, 2, 64, 48)[flat].view(-1, 64, 48)
    first = 128 * torch.arange(len(flat))[:, None, None]
    small, large = torch.arange(64).view(4, 16)[:, ::4], 64 + torch.arange(64).view(16, 4)
    pooling = (torch.cat([small, large])[None] + first).view(-1, 4)
    return {
        "pixel_values": pixels,
        "image_token_pooling": pooling,
        "image_grids": torch.tensor([[2, 2, 4, 4]] * len(flat)),
    }


class Eye(tf.PreTrainedModel):
    """Stands in for the tower of timm's that Gemma 3n has, as timm may not be installed."""

    config_class = tf.models.gemma3n.Gemma3nVisionConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.patches = nn.Conv2d(3, config.hidden_size, kernel_size=8, stride=8)
        self.post_init()

    def forward(self, pixel_values, do_pooling, return_dict):
        return BaseModelOutputWithPooling(last_hidden_state=self.patches(pixel_values))


tf.AutoModel.register(Eye.config_class, Eye, exist_ok=True)


@dataclass(frozen=True)
class Vlm:
    """A model, its config, and its images.

    Attributes:
        images: builds the arguments for the images of a batch of prompts.
        types: the token types of a prompt, from which of its tokens are image tokens; or none.
        rope: more options of the language model.
        sdpa: whether every part of the model has this attention.
    """

    name: str
    vision: dict
    text: str = "llama"
    options: dict = field(default_factory=dict)
    images: Callable[[Images], dict] = squares
    token: str = "image_token_id"
    types: Callable[[list[bool]], list[int]] | None = None
    rope: dict = field(default_factory=dict)
    sdpa: bool = True
    built: dict = field(default_factory=dict, repr=False)

    @property
    def connector(self):
        return CONNECTORS[f"{self.name}Model"]

    @property
    def type_names(self) -> list[str]:
        """The arguments that take token types."""
        takes = signature(getattr(tf, f"{self.name}Model").forward).parameters if self.types is not None else ()
        return [name for name in takes if name.endswith("token_type_ids")]

    def make(self, backend: str = "sdpa"):
        """Return a model of one's own; it is built once."""
        if backend not in self.built:
            self.built[backend] = self.build(backend)
        return copy.deepcopy(self.built[backend])

    def build(self, backend: str):
        torch.manual_seed(0)
        config = getattr(tf, f"{self.name}Config")(
            vision_config=self.vision,
            text_config={"model_type": self.text, **TEXT, **self.rope},
            **{self.token: IMAGE_TOKEN},
            **self.options,
        )
        built = getattr(tf, f"{self.name}ForConditionalGeneration")
        backend = backend if built._supports_sdpa and self.sdpa else "eager"
        model = built._from_config(config, attn_implementation=backend)
        with torch.no_grad():  # freshly built models are nearly linear; larger weights make a mistake show
            for parameter in model.parameters():
                if parameter.ndim >= 2 and parameter.std() == 0:
                    parameter.normal_(std=0.1)  # Gemma3's projector starts at zero
                elif parameter.ndim >= 2 and parameter.std() < 0.06:
                    parameter.mul_(4)
        model.generation_config.update(eos_token_id=None, pad_token_id=PAD, max_new_tokens=NEW, do_sample=False)
        return model.eval()

    def features(self, model, images: Images) -> list[torch.Tensor]:
        """Return the features of each image or tile, as the model makes them."""
        rows = list(model.base_model.get_image_features(**self.images(images), return_dict=True).pooler_output)
        return [part for part in rows if len(part)]

    def prompts(self, texts, lengths: Images, side: str = "left") -> dict:
        """Write prompts with as many placeholders for each image as `lengths` says."""
        rows = []
        for pieces, counts in zip(texts, lengths):
            row = list(pieces[0])
            for piece, count in zip(pieces[1:], counts):
                row += [IMAGE_TOKEN] * count + piece
            rows.append(row)
        types = [[0] * len(row) if self.types is None else self.types([t == IMAGE_TOKEN for t in row]) for row in rows]
        inputs = {
            "input_ids": padded(rows, PAD, side),
            "attention_mask": padded([[1] * len(row) for row in rows], 0, side),
        }
        return {**inputs, **{name: padded(types, 0, side) for name in self.type_names}}

    def inputs(self, model, images: Images, side: str = "left") -> dict:
        """Return a batch as the processor would write it, from the lengths of the model's unmerged features."""
        lengths = [[sum(map(len, self.features(model, [[index]]))) for index in row] for row in images]
        return {**self.prompts(texts_for(images), lengths, side), **self.images(images)}

    def alone(self, model, pieces, chosen) -> dict:
        """Return one prompt of these pieces of text, for a plain model, with the merged model's features."""
        features = [torch.cat(self.features(model, [[index]])) for index in chosen]
        inputs = self.prompts([pieces], [[len(rows) for rows in features]])
        if features:
            joined = torch.cat(features)
            out = model.base_model.get_image_features(**self.images([chosen]), return_dict=True)
            rest = {**out, "pooler_output": joined[None] if self.connector.as_tensor else [joined]}
            inputs["mm_encoder_outputs"] = {"image": type(out)(**rest)}
        return inputs

    def alone_on_grid(self, unmerged, config, pieces, chosen) -> dict:
        """Do the same where positions are those of the full grid: from the unmerged model, column by column."""
        out = unmerged.model.get_image_features(**self.images([chosen]), return_dict=True) if chosen else None
        layers = [list(layer) for layer in (out.deepstack_features if out and self.connector.deepstack else [])]
        full = list(out.pooler_output) if chosen else []
        whole = self.prompts([pieces], [[len(rows) for rows in full]])
        grids = {"image_grid_thw": self.images([chosen])["image_grid_thw"]} if chosen else {}
        positions, _ = unmerged.model.get_rope_index(**whole, **grids)
        keep = torch.ones(positions.shape[2], dtype=torch.bool)
        start = (whole["input_ids"][0] == IMAGE_TOKEN).nonzero()[:, 0].tolist()
        merged_rows, merged_layers = [], [[] for _ in layers]
        for index, rows in enumerate(full):
            columns, start = torch.tensor(start[: len(rows)]), start[len(rows) :]
            joined = torch.cat([rows, *(layer[index] for layer in layers)], dim=1)
            tokens, _, place = by_hand(joined, None, config, rows.shape[1])
            keep[columns] = False
            keep[columns[place]] = True
            parts = tokens.split(rows.shape[1], dim=1)
            merged_rows.append(parts[0])
            for layer, part in zip(merged_layers, parts[1:]):
                layer.append(part)
        inputs = {name: value[:, keep] for name, value in whole.items()}
        text = torch.arange(int(keep.sum()))[None, None]
        inputs["position_ids"] = torch.cat([text, positions[:, :, keep]])
        if chosen:
            image = type(out)(pooler_output=merged_rows)
            if layers:
                image["deepstack_features"] = merged_layers
            inputs["mm_encoder_outputs"] = {"image": image}
        return inputs

    def rows_by_themselves(self, model, images: Images):
        """Yield each prompt's inputs for a plain model: the merged model's features, and as many placeholders."""
        alone = partial(self.alone, model)
        if self.connector.mrope:
            alone = partial(self.alone_on_grid, plain(model), model.base_model.__dict__[CONTEXT].target.config)
        for pieces, chosen in zip(texts_for(images), images):
            yield alone(pieces, chosen)


def padded(rows: list[list[int]], fill: int, side: str) -> torch.Tensor:
    longest = max(map(len, rows))
    pads = [[fill] * (longest - len(row)) for row in rows]
    return torch.tensor([pad + row if side == "left" else row + pad for pad, row in zip(pads, rows)])


def texts_for(images: Images) -> list[list[list[int]]]:
    """Return, for each prompt, the pieces of text between which its images stand."""
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randint(3, 90, (2 + row + piece,), generator=generator).tolist() for piece in range(len(chosen) + 1)]
        for row, chosen in enumerate(images)
    ]


def prefix_types(is_image: list[bool]) -> list[int]:
    return [0] * (len(is_image) - 2) + [1, 1]  # PaliGemma: a prefix that sees itself, and a suffix


def image_types(is_image: list[bool]) -> list[int]:
    return list(map(int, is_image))  # Gemma 3: the tokens of an image see each other


QWEN_VIDEO = {"video_token_id": VIDEO_TOKEN}
EDGE = {**QWEN_VIDEO, "projector_hidden_size": 32}
WITH_VIDEO = {"video_token_index": VIDEO_TOKEN}
OLD = "image_token_index"

VLMS: tuple[Vlm, ...] = (
    Vlm("Llava", CLIP, options={"vision_feature_select_strategy": "default"}, token=OLD),
    Vlm("VipLlava", CLIP, options={"vision_feature_layer": [-2, -3, 1]}, token=OLD),
    Vlm("PaliGemma", SIGLIP, "gemma", {"projection_dim": 32}, token=OLD, types=prefix_types),
    Vlm("DeepseekVL", SIGLIP),
    Vlm("Janus", JANUS, options={"vq_config": VQ}),
    Vlm("LlavaNext", CLIP, options=PINPOINTS, images=anyres, token=OLD),
    Vlm("LlavaNextVideo", CLIP, options={**PINPOINTS, **WITH_VIDEO}, images=anyres, token=OLD),
    Vlm("LlavaOnevision", SIGLIP, "qwen2", {**PINPOINTS, **WITH_VIDEO}, images=anyres, token=OLD),
    Vlm("Gemma3", SIGLIP, "gemma3_text", {"mm_tokens_per_image": 16}, token=OLD, types=image_types),
    Vlm("AyaVision", SIGLIP, "cohere2", token=OLD),
    Vlm("Cohere2Vision", SIGLIP, "cohere2", {"alignment_intermediate_size": 32}),
    Vlm("InternVL", {**SMALL, **SQUARE, "use_qk_norm": True}, "qwen2"),
    Vlm("Idefics3", {**SMALL, **SQUARE}, images=tiles),
    Vlm("SmolVLM", {**SMALL, **SQUARE}, images=tiles),
    Vlm("Lfm2Vl", NAFLEX, "lfm2", {"projector_hidden_size": 32}, images=naflex),
    Vlm("Qwen2VL", QWEN2_VISION, "qwen2_vl_text", QWEN_VIDEO, images=patches, types=image_types, rope=MROPE),
    Vlm("Qwen2_5_VL", QWEN_VISION, "qwen2_5_vl_text", QWEN_VIDEO, images=patches, types=image_types, rope=MROPE),
    Vlm("Qwen3VL", QWEN3_VISION, "qwen3_vl_text", QWEN_VIDEO, images=patches, types=image_types, rope=MROPE),
    Vlm("Qwen3VLMoe", QWEN3_VISION, "qwen3_vl_moe_text", QWEN_VIDEO, images=patches, types=image_types, rope=EXPERTS),
    Vlm("Cosmos3Omni", QWEN3_VISION, "qwen3_vl_text", QWEN_VIDEO, images=patches, types=image_types, rope=MROPE),
    Vlm("Cosmos3Edge", EDGE_VISION, "cosmos3_edge_text", EDGE, images=flat_patches, types=image_types, rope=MROPE),
    Vlm("HyperCLOVAXVisionV2", QWEN_VISION, "hyperclovax", QWEN_VIDEO, images=patches),
    Vlm("Qwen3_5", QWEN3_VISION, "qwen3_5_text", QWEN_VIDEO, images=patches, types=image_types, rope=HYBRID),
    Vlm("Qwen3_5Moe", QWEN3_VISION, "qwen3_5_moe_text", QWEN_VIDEO, patches, types=image_types, rope=HYBRID_EXPERTS),
    Vlm("Glm4v", GLM_VISION, "glm4v_text", QWEN_VIDEO, images=patches, types=image_types, rope=MROPE),
    Vlm("Glm4vMoe", GLM_VISION, "glm4v_moe_text", QWEN_VIDEO, images=patches, types=image_types, rope=GLM_EXPERTS),
    Vlm("Glm46V", GLM_VISION, "glm4v_text", QWEN_VIDEO, images=patches, types=image_types, rope=MROPE),
    Vlm("GlmOcr", GLM_VISION, "glm_ocr_text", QWEN_VIDEO, images=patches, types=image_types, rope=MROPE),
    Vlm("PaddleOCRVL", PADDLE, "paddleocr_vl_text", QWEN_VIDEO, small_patches, types=image_types, rope=MROPE),
    Vlm("Ernie4_5_VLMoe", ERNIE_VIT, "ernie4_5_vl_moe_text", QWEN_VIDEO, flat_patches, types=image_types, rope=ERNIE),
    Vlm("CohereCompass", QWEN3_VISION, "cohere_compass_text", QWEN_VIDEO, patches, types=image_types, rope=COMPASS),
    Vlm("VideoLlama3", SMALL | {"patch_size": 4}, "qwen2", QWEN_VIDEO, images=merged_patches),
    Vlm("Exaone4_5_", EXAONE_VISION, "exaone4", QWEN_VIDEO, images=patches, rope=EXAONE),
    Vlm("Kimi_K25", KIMI_VISION, "deepseek_v3", KIMI, images=small_patches, rope=DEEPSEEK_EXPERTS),
    Vlm("Lfm3Vl", LFM3_VISION, "lfm3", {**QWEN_VIDEO, "projector_hidden_size": 32}, patches, rope=CONV),
    Vlm("Molmo2", MOLMO_VISION, "molmo2_text", MOLMO, images=pooled, token="image_patch_id", types=image_types),
    Vlm("MiniCPMV4_6", MINICPM_VISION, "qwen3_5_text", {**QWEN_VIDEO, "insert_layer_id": 1}, navit, rope=HYBRID),
    Vlm("Gemma3n", EYE_VISION, "gemma3n_text", GEMMA3N, token="image_token_id", rope=GEMMA3N_TEXT),
    Vlm("Gemma4", GEMMA4_VISION, "gemma4_text", GEMMA4, images=positioned, types=image_types, rope=GEMMA4_TEXT),
    Vlm("Step3p7", STEP_VISION, "step3p5", images=views, rope=STEP),
    Vlm("DeepseekOcr2", OCR_VISION, "deepseek_ocr2_text", images=views, rope=OCR_EXPERTS),
    Vlm("GotOcr2", SAM, "qwen2", images=pages),
    Vlm("DeepseekVLHybrid", SIGLIP, options={"high_res_vision_config": SAM}, images=pairs),
    Vlm("Ovis2", OVIS, "qwen2", OVIS_OPTIONS),
    Vlm("PerceptionLM", PERCEPTION, options={**QWEN_VIDEO, "vision_use_cls_token": False}, images=crops),
    Vlm("FastVlm", RESNET, "qwen2", token=OLD, sdpa=False),  # its own tower is timm's
    Vlm("QianfanOCR", {**SMALL, "image_size": (32, 32), "patch_size": (4, 4)}, "qwen3"),
    Vlm("Aria", IDEFICS3, "aria_text", {"projector_patch_to_query_dict": {64: 16}}, token=OLD, rope=ARIA_EXPERTS),
    Vlm("Idefics2", {**SMALL, **SQUARE}, "mistral", {"perceiver_config": PERCEIVER}, images=tiles),
    Vlm("Mistral3", PIXTRAL, "mistral", images=packed, token=OLD),
    Vlm("MistralLarge4", PIXTRAL, "mistral_large4_text", images=packed, token=OLD, rope=LATENT_EXPERTS),
    Vlm("LightOnOcr", PIXTRAL, "qwen3", images=packed),
)
"""One for every row of the connectors."""

FEW = {name.removesuffix("Model") for name, heads in VISION_LANGUAGE.items() if heads == SHORTEN_PROMPT}
CASES = [(vlm, "projected") for vlm in VLMS] + [(vlm, "tower") for vlm in VLMS if vlm.name in FEW]
CONFIGS = {
    ("tower", "tome"): MergeConfig(r=6),
    ("tower", "mame"): MergeConfig(method="mame", threshold=0.5, layers=range(3)),
    ("projected", "tome"): MergeConfig(r=5, where="projected"),
    ("projected", "mame"): MergeConfig(method="mame", threshold=0.0, where="projected"),
}
IMAGES = [[0], [1, 2], []]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # sums over padded and unpadded rows run in another order: a few ulp

BY_NAME = {vlm.name: vlm for vlm in VLMS}


def plain(model):
    return remove(copy.deepcopy(model))


def merged(vlm: Vlm, method="tome", where="projected", backend="sdpa"):
    model = vlm.make(backend)
    return model, apply(copy.deepcopy(model), CONFIGS[where, method])


def labels_of(inputs):
    """Label all text but each row's first token, which padding in front would make a target and its absence not."""
    hidden = (inputs["input_ids"] == IMAGE_TOKEN) | (inputs["attention_mask"].cumsum(1) <= 1)
    return inputs["input_ids"].masked_fill(hidden | (inputs["attention_mask"] == 0), -100)


def by_hand(rows, newline, config, width=None):
    """Merge the tokens (N, C) of one image with the functions for tensors, round by round."""
    ends = torch.zeros(len(rows), dtype=torch.bool) if newline is None else (rows == newline).all(-1)
    place = torch.cat([ends.nonzero()[:, 0], (~ends).nonzero()[:, 0]])
    special, x, size, left = int(ends.sum()), rows[place][None], None, config.r
    for _ in range(1 if config.method == "mame" else 9):
        if config.method == "mame":
            match = merging.matrix_matching(x[..., :width], config.threshold, special, batching="pad")
        else:
            r = min(left, (x.shape[1] - special) // 2)
            match = merging.bipartite_soft_matching(x[..., :width], r, num_special=special)
            left -= r
        x, size = match.merge(x, size)
        place = place[match.representative[0]]
    order = place.argsort()
    return x[0, order], size[0, order], place[order]

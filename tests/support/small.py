"""Small random models saved with their processors, and what they read: for pipelines and evaluation, offline."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
import transformers as tf
from PIL import Image

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
IMAGE = {"image_size": 32, "patch_size": 4}  # 64 patches
VIDEO = {**SMALL, "image_size": 16, "patch_size": 4, "num_frames": 8, "tubelet_size": 2}  # 64 tubelets
AUDIO = {**SMALL, "num_mel_bins": 32, "max_length": 40, "patch_size": 8, "frequency_stride": 4, "time_stride": 4}
WORDS = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>", "a", "photo", "of", "the", "cat", "dog", "tree", "red", "big")


def labels(*names: str) -> dict:
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def larger(model: tf.PreTrainedModel, factor: float = 4) -> tf.PreTrainedModel:
    """Freshly built models are nearly linear; larger weights make a mistake show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2 and parameter.std() < 0.06:
                parameter.mul_(factor)
    return model.eval()


def save(folder: Path, model: tf.PreTrainedModel, *processors: object) -> Path:
    model.save_pretrained(folder)
    for processor in processors:
        processor.save_pretrained(folder)
    return folder


def image_processor(cls: str = "ViTImageProcessor", side: int = 32) -> tf.BaseImageProcessor:
    return getattr(tf, cls)(size={"height": side, "width": side}, do_center_crop=False)


def tokenizer() -> tf.PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens=["<image>"],
        model_max_length=16,
    )


def vit(folder: Path, *names: str) -> Path:
    torch.manual_seed(0)
    config = tf.ViTConfig(**SMALL, **IMAGE, **labels(*(names or ("cat", "dog", "tree"))))
    return save(folder, larger(tf.ViTForImageClassification(config)), image_processor())


def videomae(folder: Path, *names: str) -> Path:
    torch.manual_seed(0)
    config = tf.VideoMAEConfig(**VIDEO, **labels(*(names or ("yoga", "arm wrestling", "making a cake"))))
    processor = tf.VideoMAEImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return save(folder, larger(tf.VideoMAEForVideoClassification(config)), processor)


def ast(folder: Path, *names: str, **config: object) -> Path:
    torch.manual_seed(0)
    built = tf.ASTConfig(**AUDIO, **labels(*(names or ("cat", "thunder", "alarm"))), **config)
    extractor = tf.ASTFeatureExtractor(num_mel_bins=32, max_length=40)
    return save(folder, larger(tf.ASTForAudioClassification(built)), extractor)


LETTERS = ("<pad>", "<bos>", "<eos>", *"abcdefghijklmnop")

DENSE = {**SMALL, **IMAGE, "num_hidden_layers": 4, "mlp_ratio": 2, "out_indices": [1, 2, 3, 4]}


def depth(folder: Path) -> Path:
    """A Depth Anything model."""
    torch.manual_seed(0)
    config = tf.DepthAnythingConfig(
        backbone_config=tf.Dinov2Config(**DENSE, reshape_hidden_states=False),
        patch_size=4,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=4,
    )
    processor = tf.DPTImageProcessor(size={"height": 32, "width": 32})
    return save(folder, larger(tf.DepthAnythingForDepthEstimation(config)), processor)


def segmenter(folder: Path) -> Path:
    """A UPerNet around DINOv2."""
    torch.manual_seed(0)
    config = tf.UperNetConfig(
        backbone_config=tf.Dinov2Config(**DENSE),
        hidden_size=16,
        pool_scales=[1, 2],
        use_auxiliary_head=False,
        **labels("floor", "wall", "door"),
    )
    processor = tf.SegformerImageProcessor(size={"height": 32, "width": 32})
    return save(folder, larger(tf.UperNetForSemanticSegmentation(config)), processor)


def lw_detr(folder: Path) -> Path:
    """An LW-DETR with 2 x 2 windows; RF-DETR's processor needs torchvision."""
    torch.manual_seed(0)
    windows = {"num_windows": 4, "window_block_indices": [0, 2], "out_indices": [2, 4], "pretrain_image_size": 32}
    backbone = tf.LwDetrViTConfig(**{**SMALL, **IMAGE, "num_hidden_layers": 4, "mlp_ratio": 2}, **windows)
    sizes = {"d_model": 32, "decoder_ffn_dim": 32, "decoder_layers": 2, "num_queries": 9, "c2f_num_blocks": 1}
    heads = {"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2, "projector_scale_factors": [1.0]}
    config = tf.LwDetrConfig(backbone_config=backbone, **sizes, **heads, **labels("cat", "dog", "tree"))
    processor = tf.DeformableDetrImageProcessorPil(size={"height": 32, "width": 32})
    return save(folder, larger(tf.LwDetrForObjectDetection(config)), processor)


def owl(folder: Path) -> Path:
    """An OWL-ViT."""
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 16}
    config = tf.OwlViTConfig(vision_config={**SMALL, **IMAGE}, text_config=text, projection_dim=32)
    processor = tf.OwlViTImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    return save(folder, larger(tf.OwlViTForObjectDetection(config)), processor, tokenizer())


def whisper(folder: Path) -> Path:
    """A Whisper for clips of one second."""
    torch.manual_seed(0)
    config = tf.WhisperConfig(
        vocab_size=len(LETTERS) + 3,  # its tokenizer adds some of its own
        num_mel_bins=16,
        d_model=32,
        max_source_positions=50,
        max_target_positions=32,
        encoder_layers=3,
        encoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=48,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    extractor = tf.WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    speller = tf.WhisperTokenizer(vocab={letter: index for index, letter in enumerate(LETTERS)}, merges=[])
    return save(folder, larger(tf.WhisperForConditionalGeneration(config)), extractor, speller)


def dual(folder: Path, kind: str = "CLIP") -> Path:
    """A CLIP or SigLIP model."""
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 64, "eos_token_id": 2, "pad_token_id": 0}
    extra = {"projection_dim": 16} if kind == "CLIP" else {}
    config = getattr(tf, f"{kind}Config")(vision_config={**SMALL, **IMAGE}, text_config=text, **extra)
    processor = image_processor(f"{kind}ImageProcessor") if kind == "Siglip" else image_processor()
    return save(folder, larger(getattr(tf, f"{kind}Model")(config)), processor, tokenizer())


def llava(folder: Path) -> Path:
    torch.manual_seed(0)
    text = {**SMALL, "vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 2}
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**SMALL, **IMAGE),
        text_config=tf.LlamaConfig(**text),
        image_token_index=WORDS.index("<image>"),
        vision_feature_select_strategy="default",
    )
    model = larger(tf.LlavaForConditionalGeneration(config))
    model.generation_config.update(eos_token_id=None, pad_token_id=0, max_new_tokens=4, do_sample=False)
    processor = tf.LlavaProcessor(
        image_processor(),
        tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="",
    )
    return save(folder, model, processor)


def picture(seed: int = 0, side: int = 48) -> Image.Image:
    """Smooth noise, so that MaMe finds tokens to merge."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def frames(length: int, height: int = 24, width: int = 32) -> np.ndarray:
    """A clip (T, H, W, 3) whose frame t is a grey of brightness t."""
    return np.broadcast_to(np.arange(length, dtype=np.uint8)[:, None, None, None], (length, height, width, 3)).copy()


def write_clip(path: Path, length: int = 20, height: int = 48, width: int = 64) -> Path:
    """Write a clip that grows brighter from frame to frame."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for value in np.linspace(0, 255, length).astype(np.uint8):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), value, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path, frequency: float = 440.0, rate: int = 16000, seconds: float = 0.5) -> Path:
    import wave

    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 20000).astype(np.int16).tobytes())
    return path


def write_shard(path, samples):
    """Write a tar of samples, (key, {extension: content})."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for key, members in samples:
            for extension, content in members.items():
                content = content.encode() if isinstance(content, str) else content
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return path


def write_merge_config(folder: Path, **fields: object) -> None:
    (folder / "merge_config.json").write_text(json.dumps(fields))

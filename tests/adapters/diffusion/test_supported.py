"""Every denoiser of diffusers has a row or a reason, and an old diffusers is one clear error."""

import re

import diffusers
import pytest
import torch
from denoisers import BY_ROW

import hf_tome
from hf_tome import MergeConfig, UnsupportedModelError
from hf_tome.adapters.diffusion.denoisers import DENOISERS
from hf_tome.adapters.diffusion.unsupported import CHECKED, UNSUPPORTED
from hf_tome.patching.patch import is_patched

DENOISES = re.compile(
    r".*(Transformer\w*Model|Transformer|UNet\w*|UVit\w*|DiT\w*Model|ControlNet(Union)?Model|XSAdapter)"
)
OTHERS = re.compile(r".*(Multi\w*|Projection)Model")
"""Lists of ControlNets, whose members are found in them, and projections of embeddings."""


def test_every_denoiser_has_a_row_or_a_reason():
    if not diffusers.__version__.startswith(CHECKED):
        pytest.skip(f"checked against diffusers {CHECKED}")
    names = {name for name in dir(diffusers) if DENOISES.fullmatch(name) and not OTHERS.fullmatch(name)}
    models = {name for name in names if issubclass(getattr(diffusers, name), torch.nn.Module)}
    assert models - set(DENOISERS) - set(UNSUPPORTED) == set()
    assert not set(DENOISERS) & set(UNSUPPORTED)
    assert all(hasattr(diffusers, name) for name in (*DENOISERS, *UNSUPPORTED))


@pytest.mark.parametrize(
    ("name", "sizes", "reason"),
    [
        (
            "SanaTransformer2DModel",
            {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4, "num_cross_attention_heads": 2,
             "cross_attention_head_dim": 4, "cross_attention_dim": 8, "caption_channels": 8, "in_channels": 4},
            "its attention is linear",
        ),
        (
            "UNet2DModel",
            {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",),
             "norm_num_groups": 4, "sample_size": 8},
            "convolutions take most of the time",
        ),
        ("PriorTransformer", {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8}, "one embedding"),
    ],
)  # fmt: skip
def test_others_are_refused_with_the_reason(name, sizes, reason):
    model = getattr(diffusers, name)(**sizes)
    with pytest.raises(UnsupportedModelError, match=rf"{name} is not supported, because .*{reason}"):
        hf_tome.apply(model, MergeConfig(ratio=0.5))
    assert not any(is_patched(module) for module in model.modules())


def test_an_old_diffusers_is_refused(monkeypatch):
    model = BY_ROW["DiTTransformer2DModel"].make()
    monkeypatch.setattr(diffusers, "__version__", "0.30.1")
    with pytest.raises(UnsupportedModelError, match=r"diffusers 0\.30\.1 is installed.* it takes 0\.42 or later"):
        hf_tome.apply(model, MergeConfig(ratio=0.5))
    assert not any(is_patched(module) for module in model.modules())

"""GFLOPs in the report of denoisers: those of the products that PyTorch counts in passes with and without merging."""

import pytest
import torch
from denoisers import BY_ROW
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import hf_tome
from hf_tome import MergeConfig

diffusers = pytest.importorskip("diffusers")

COUNTED = [
    ("UNet2DConditionModel", {"modules": "attention"}),
    ("UNet2DConditionModel", {"modules": "block", "every": 2}),
    ("DiTTransformer2DModel", {"modules": "kv"}),
    ("DiTTransformer2DModel", {"method": "mame", "keep_ratio": 0.5, "ratio": None}),
    ("FluxTransformer2DModel", {}),
    ("SD3Transformer2DModel", {}),
    ("CogVideoXTransformer3DModel", {}),
    ("WanTransformer3DModel", {}),
    ("LTXVideoTransformer3DModel", {}),
]


def config(**fields):
    return MergeConfig(**{"ratio": 0.5, "min_tokens": 0, "tile": None, **fields})


def counted(denoiser, model):
    # The mathematical form of attention is made of products of matrices, all of which are counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        denoiser.run(model)
    return counter.get_total_flops() / 2 / denoiser.batch_size / 1e9


@pytest.mark.parametrize(("row", "fields"), COUNTED, ids=lambda value: value if isinstance(value, str) else "")
def test_gflops_are_those_that_run(row, fields):
    denoiser = BY_ROW[row]
    model = denoiser.make()
    unmerged = counted(denoiser, model)
    hf_tome.apply(model, config(**fields))
    assert hf_tome.report(model).towers[0].gflops is None  # before any pass nothing is known of the picture
    merged = counted(denoiser, model)
    (tower,) = hf_tome.report(model).towers
    assert tower.gflops_unmerged == pytest.approx(unmerged)
    assert tower.gflops == pytest.approx(merged)
    assert merged < unmerged
    assert "GFLOPs an image (multiply-adds)" in str(tower)
    assert counted(denoiser, model) == pytest.approx(merged)  # counting leaves the model as it was


def test_a_pipelines_denoiser_with_hooks_is_not_counted():
    denoiser = BY_ROW["UNet2DConditionModel"]
    model = denoiser.make()
    model.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    hf_tome.apply(model, config())
    denoiser.run(model)
    (tower,) = hf_tome.report(model).towers
    assert tower.gflops is None
    assert tower.levels

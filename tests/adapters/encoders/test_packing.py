"""Padding left out of the computation gives what padding computed with gives, and the report counts what is spent."""

from unittest.mock import patch

import pytest
import torch
from zoo import ZOO

from hf_tome import MergeConfig, apply, report
from hf_tome.adapters.encoders import block as encoder
from hf_tome.adapters.encoders.packing import PADDED, PackedLayout
from hf_tome.api import targets

CONFIGS = {
    "mame": MergeConfig(trace=True, method="mame", threshold=0.3, layers=range(3)),
    "mame-proportional": MergeConfig(
        trace=True, method="mame", threshold=0.3, layers=[0, 2], proportional_attention=True
    ),
}
computing_padding = patch.object(encoder, "layout_of", lambda *arguments: PADDED)
FAMILIES = [zoo for zoo in ZOO if zoo.name in ("vit-tower", "beit", "dinov3", "siglip", "siglip2", "ast")]


def is_packed(model):
    return [packing.lengths is not None for packing in targets(model)[0].recorder.summary.state.layout]


def test_pack_and_unpack():
    size = torch.tensor([[2.0, 1, 0], [1, 1, 3]])[..., None]
    packing, x = PackedLayout(size, per_image=True), torch.randn(2, 3, 4)
    assert packing.lengths == (2, 3)
    assert torch.equal(packing.pack(x), torch.cat([x[0, :2], x[1]])[None])
    assert torch.equal(packing.unpack(packing.pack(x)), x * (size > 0))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("zoo", FAMILIES, ids=lambda zoo: zoo.name)
def test_packed_equals_padded(zoo, backend, config):
    model = apply(zoo.make(backend), config)
    inputs = zoo.inputs(4)
    with torch.no_grad():
        packed = zoo.run(model, inputs=inputs)
        assert any(is_packed(model)), "no batch with padding, so nothing is tested"
        size = targets(model)[0].recorder.summary.state.size[-1]
        with computing_padding:
            padded = zoo.run(model, inputs=inputs)
    if zoo.by_tokens:
        packed, padded = packed[size[..., 0] > 0], padded[size[..., 0] > 0]
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)


def test_gradients_run_through():
    zoo = FAMILIES[0]
    model = apply(zoo.make(), CONFIGS["mame"])
    inputs = zoo.inputs(4)["pixel_values"].requires_grad_()

    def gradient():
        return torch.autograd.grad(zoo.run(model, inputs={"pixel_values": inputs})[:, 0].square().sum(), inputs)[0]

    packed = gradient()
    assert any(is_packed(model))
    with computing_padding:
        padded = gradient()
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-4)


def test_not_in_training():
    zoo = FAMILIES[0]
    model = apply(zoo.make(), CONFIGS["mame"]).train()
    zoo.run(model, inputs=zoo.inputs(4))
    assert not any(is_packed(model))


def test_report_counts_what_is_spent():
    zoo = FAMILIES[0]
    model = apply(zoo.make(), CONFIGS["mame"])
    inputs = zoo.inputs(4)["pixel_values"]
    with torch.no_grad():
        alone = []
        for image in inputs.split(1):
            model(image)
            alone.append(report(model).towers[0].gflops)
        model(inputs)
        packed = report(model).towers[0].gflops
        with computing_padding:
            model(inputs)
            padded = report(model).towers[0].gflops
    # The matching alone is computed with padding.
    assert sum(alone) / 4 <= packed < padded
    assert packed < 1.05 * sum(alone) / 4

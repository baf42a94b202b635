"""Stochastic depth: blocks that merge are dropped image by image in training, and never in evaluation."""

import pytest
import torch
from transformers import Dinov2Config, Dinov2ForImageClassification

import hf_tome
from hf_tome import MergeConfig

CONFIGS = {
    "tome": MergeConfig(r=4),
    "mame": MergeConfig(method="mame", threshold=0.3, keep_ratio=0.6, layers=range(2)),
}


def dinov2(drop_path_rate):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 2}
    config = Dinov2Config(
        image_size=16, patch_size=4, num_labels=2, drop_path_rate=drop_path_rate, layerscale_value=1.0, **sizes
    )
    return Dinov2ForImageClassification(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_drop_path_of_merged_blocks(name):
    model, plain = (hf_tome.apply(dinov2(rate), CONFIGS[name]) for rate in (0.5, 0.0))
    pixels = torch.randn(1, 3, 16, 16).expand(16, -1, -1, -1)  # one image, so that only what is dropped differs
    assert torch.equal(model.eval()(pixels).logits, plain.eval()(pixels).logits)
    logits = model.train()(pixels, labels=torch.zeros(16, dtype=torch.long))
    assert len(torch.unique(logits.logits.detach().round(decimals=5), dim=0)) > 1
    assert len(torch.unique(plain.train()(pixels).logits.detach().round(decimals=5), dim=0)) == 1
    logits.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

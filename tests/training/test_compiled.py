"""A compiled training step has the gradients of the plain one."""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

import hf_tome
from hf_tome import MergeConfig

CONFIGS = {
    "tome": MergeConfig(r=4),
    "mame": MergeConfig(method="mame", threshold=0.3, keep_ratio=0.6, layers=range(2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_inductor_trains_as_eager(name):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    model = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=2, **sizes)).train()
    hf_tome.apply(model, CONFIGS[name])
    pixels, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 1, 0])
    grads = []
    for step in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        step(pixel_values=pixels, labels=labels).loss.backward()
        grads.append({key: parameter.grad.clone() for key, parameter in model.named_parameters()})
    assert max(grad.abs().max() for grad in grads[0].values()) > 1e-3
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, atol=1e-5, rtol=1e-3)

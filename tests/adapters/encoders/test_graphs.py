"""Graphs that are made from one example hold for batches of any size, or say that they cannot be made."""

import pytest
import torch
import transformers as tf
from installed import TORCH
from packaging.version import Version
from zoo import IMAGE, SMALL

from hf_tome import MergeConfig, apply

CONFIGS = {
    "tome": MergeConfig(r=8),
    "random": MergeConfig(r=8, partition="random"),
    "unmerged": MergeConfig(r=8, restore=True),
    "ratio": MergeConfig(ratio=0.2),
    "mame": MergeConfig(method="mame", keep_ratio=0.6),
    "kmeans": MergeConfig(method="kmeans", r=8),
    "greedy": MergeConfig(method="greedy", r=4),
    "random_prune": MergeConfig(method="random_prune", r=4),
    "attention_prune": MergeConfig(method="attention_prune", r=4),
}
OF_IMAGES = MergeConfig(method="mame", threshold=0.3)


class Logits(torch.nn.Module):
    """A model whose output is a tensor."""

    def __init__(self, config, backend="sdpa"):
        super().__init__()
        torch.manual_seed(0)
        model = tf.ViTForImageClassification._from_config(
            tf.ViTConfig(**SMALL, **IMAGE), attn_implementation=backend
        ).eval()
        self.model = apply(model, config)

    def forward(self, pixels):
        return self.model(pixels).logits


@pytest.mark.filterwarnings("ignore")  # what a tracer says of any model
@pytest.mark.parametrize(("example", "others"), [(1, 3), (3, 1)])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_traced_graph_holds_for_other_batches(name, example, others):
    model = Logits(CONFIGS[name], "eager" if name == "tome" else "sdpa")
    pixels = torch.randn(others, 3, 32, 32)
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(example, 3, 32, 32), check_trace=False)
        torch.testing.assert_close(traced(pixels), model(pixels))


@pytest.mark.filterwarnings("ignore")
def test_numbers_that_depend_on_the_images_are_no_graph():
    pixels = torch.randn(2, 3, 32, 32)
    model = Logits(OF_IMAGES)
    message = "threshold of method 'mame' the number of tokens depends on the images.* Set `keep_ratio`"
    with pytest.raises(RuntimeError, match=message):
        torch.jit.trace(model, pixels, check_trace=False)
    for strict in (False, True) if Version("2.9") <= TORCH else (False,):  # strict fails on any patched forward before
        with pytest.raises(Exception, match=message):  # in strict mode torch wraps it
            torch.export.export(model, (pixels,), strict=strict)


@pytest.mark.filterwarnings("ignore")
def test_the_old_onnx_exporter_says_what_to_use(tmp_path):
    with pytest.raises(Exception, match=r"cannot write. Use `hf_tome.hub.export.export_onnx"):
        torch.onnx.export(Logits(MergeConfig(r=8)), (torch.randn(1, 3, 32, 32),), tmp_path / "x.onnx", dynamo=False)

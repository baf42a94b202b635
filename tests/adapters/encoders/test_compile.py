"""Compiled models: one graph, compiled anew at most once for batches of other sizes, with the same results."""

import pytest
import torch
import transformers as tf
from small import larger
from torch._dynamo.testing import CompileCounter
from vlms import smooth
from zoo import IMAGE, SMALL, ZOO

from hf_tome import MergeConfig, apply

CONFIGS = {"tome": MergeConfig(r=6), "mame": MergeConfig(method="mame", keep_ratio=0.6, layers=[0, 2])}
FAMILIES = [zoo for zoo in ZOO if zoo.name in ("vit", "deit", "clip-projection", "siglip-classifier", "videomae")]

every_family = pytest.mark.parametrize("zoo", FAMILIES, ids=lambda zoo: zoo.name)


def every_config(test):
    return pytest.mark.product(pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)(test))


@every_config
@every_family
def test_batches_of_every_size_share_a_graph(zoo, config):
    model = apply(zoo.make(), config)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for batch_size in (2, 3, 5, 8):
            inputs = zoo.inputs(batch_size)
            torch.testing.assert_close(
                zoo.run(compiled, inputs=inputs), zoo.run(model, inputs=inputs), atol=1e-5, rtol=1e-5
            )
            if batch_size == 3:
                frames = counter.frame_count
    assert frames <= 2, "compiled more than once for the first size, and once for all others"
    assert counter.frame_count == frames, "compiled again after the second size"


@pytest.mark.slow
@every_config
def test_inductor(config):
    zoo = FAMILIES[0]
    model = apply(zoo.make(), config)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch_size in (2, 4):
            inputs = zoo.inputs(batch_size)
            torch.testing.assert_close(
                zoo.run(compiled, inputs=inputs), zoo.run(model, inputs=inputs), atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("config", [CONFIGS["tome"], MergeConfig(method="mame", threshold=0.5)], ids=["tome", "mame"])
@torch._dynamo.config.patch(recompile_limit=2)
def test_graphs_that_break(config):
    # MaMe's number of tokens depends on the images, and a hook breaks any graph. There are more blocks than graphs may
    # be compiled for one function, so that the last ones run outside of them, as with 12 blocks and 8 graphs.
    vit = tf.ViTConfig(**{**SMALL, "num_hidden_layers": 4}, **IMAGE)
    torch.manual_seed(0)
    model = apply(larger(tf.ViTModel(vit)), config)
    for layer in model.layers:
        layer.register_forward_hook(lambda module, args, out: torch._dynamo.graph_break())
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    first, second = (smooth(2, 3, 32, 32, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        expected = [model(pixels).last_hidden_state[:, 0] for pixels in (first, second)]  # behind it may be padding
        for run, pixels in ((compiled, first), (model, second), (compiled, first), (compiled, second)):
            right = expected[0] if pixels is first else expected[1]
            torch.testing.assert_close(run(pixels).last_hidden_state[:, 0], right, atol=1e-5, rtol=1e-5)

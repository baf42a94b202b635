"""A family is one row: GFLOPs, example inputs and pictures of a family that is not in the package follow from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as tf
from small import picture
from zoo import AUDIO, IMAGE, SMALL, VIDEO

from hf_tome import MergeConfig, UnsupportedModelError, apply, register_family, remove, report
from hf_tome.adapters.encoders.families.family import TOKENS
from hf_tome.adapters.encoders.families.registry import TOWERS
from hf_tome.inspection.flops import gflops
from hf_tome.profiling.example_inputs import example_inputs
from hf_tome.visualize import input_kind, trace_input

R = 6
CLIP = np.random.default_rng(0).integers(0, 256, (8, 24, 32, 3), dtype=np.uint8)
SOUND = np.sin(np.arange(8000) / 5).astype(np.float32)
SMALL_FRAMES = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
# class, config class, options, shape of one input, processor, content: of one family for each medium
TOYS = {
    "image": (
        tf.ViTModel,
        tf.ViTConfig,
        {**SMALL, **IMAGE},
        (3, 32, 32),
        lambda: tf.ViTImageProcessor(size={"height": 32, "width": 32}),
        picture(),
    ),
    "video": (
        tf.VideoMAEModel,
        tf.VideoMAEConfig,
        VIDEO,
        (8, 3, 16, 16),
        lambda: tf.VideoMAEImageProcessor(**SMALL_FRAMES),
        CLIP,
    ),
    "audio": (
        tf.ASTModel,
        tf.ASTConfig,
        AUDIO,
        (40, 32),
        lambda: tf.ASTFeatureExtractor(num_mel_bins=32, max_length=40),
        SOUND,
    ),
}


@pytest.fixture
def registered():
    """Take out again what a test registers."""
    before = dict(TOWERS)
    yield
    TOWERS.clear()
    TOWERS.update(before)


@pytest.mark.parametrize("medium", TOYS)
def test_everything_follows_from_the_row(medium, registered):
    model_class, config_class, options, shape, processor, content = TOYS[medium]
    toy_config = type("ToyConfig", (config_class,), {"model_type": f"toy_{medium}"})
    toy_class = type(f"Toy{medium}Model", (model_class,), {"config_class": toy_config})
    torch.manual_seed(0)
    model = toy_class(toy_config(**options)).eval()
    with pytest.raises(ValueError, match=f"model type 'toy_{medium}'"):
        gflops(model.config)
    with pytest.raises(UnsupportedModelError):
        input_kind(model)

    name = toy_class.__name__
    row = replace(TOWERS[model_class.__name__], tower=name, model_types=(f"toy_{medium}",), heads={name: (TOKENS,)})
    register_family(row)

    inputs = example_inputs(model, 2)
    assert {tuple(values.shape) for values in inputs.values()} == {(2, *shape)}
    with torch.no_grad():
        apply(model, MergeConfig(r=R))(**inputs)
    (tower,) = report(model).towers
    assert gflops(model.config, MergeConfig(r=R)) == pytest.approx(tower.gflops, rel=1e-12)
    assert tower.gflops < tower.gflops_unmerged == pytest.approx(gflops(model.config), rel=1e-12)
    remove(model)

    assert input_kind(model) == medium
    traced = trace_input(model, processor(), content, MergeConfig(r=R))
    assert traced.grid.patches + row.num_prefix_tokens(model.config) == tower.tokens[0][0]
    assert traced.sources[-1].unique().numel() == traced.grid.patches - 3 * R


def test_a_row_that_is_not_known_here_reads_its_own_sizes(registered):
    """The sizes, the inputs and the special tokens are the row's own, not those of the family it was made from."""
    row = TOWERS["ViTModel"]
    toy = replace(
        row,
        tower="ToyModel",
        model_types=("toy",),
        num_prefix_tokens=lambda config: 5,
        sizes=replace(
            row.sizes, intermediate=lambda config: 64, head=lambda config: (7, 0), gated=lambda config: True
        ),
        inputs=replace(row.inputs, patches=lambda config: (10, 12)),
    )
    register_family(toy)
    config = type("ToyConfig", (tf.ViTConfig,), {"model_type": "toy"})(**SMALL, **IMAGE)
    width, tokens = 32, 10 + 5
    attention, mlp, norms = 4 * tokens * width**2 + 2 * tokens**2 * width, 3 * tokens * width * 64, 10 * tokens * width
    expected = 10 * 12 * width + 3 * (attention + mlp + norms) + 7 + 5 * tokens * width
    assert gflops(config) == expected / 1e9


@pytest.mark.parametrize(("field", "value"), [("inputs", "image"), ("sizes", None), ("num_prefix_tokens", 1)])
def test_entries_are_checked(field, value, registered):
    row = replace(TOWERS["ViTModel"], tower="ToyModel", model_types=("toy",), **{field: value})
    with pytest.raises(ValueError, match=f"`{field}` of 'ToyModel' is {value!r}; it takes"):
        register_family(row)
    assert "ToyModel" not in TOWERS

"""Every family whose tokens lie on a grid can be drawn: the pictures line up, and the rest is refused in words."""

import numpy as np
import pytest
import torch
import transformers as tf
from small import llava, picture, vit
from zoo import ZOO

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")

from PIL import Image

from hf_tome import MergeConfig, apply, report
from hf_tome.api import targets
from hf_tome.visualize import compare_sheet, input_kind, merged_image, trace_input
from hf_tome.visualize.axes import SpectrogramAxes, with_axes
from hf_tome.visualize.inputs import load_model

CONFIG = MergeConfig(r=6)
CLASSIC = tf.ViTImageProcessor(size={"height": 32, "width": 32})


class Naflex:
    """As SigLIP 2's processor: a batch of one picture in patches, padded."""

    def __call__(self, images, **kwargs):
        return tf.Siglip2ImageProcessorPil(patch_size=4, max_num_patches=64)(images=images, **kwargs)


PROCESSORS = {
    "siglip2": Naflex(),
    "siglip2-classifier": Naflex(),
    "videomae": tf.VideoMAEImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    "vivit": tf.VivitImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    "ast": tf.ASTFeatureExtractor(num_mel_bins=32, max_length=40),
}
CONTENTS = {
    "image": picture(),
    "video": np.random.default_rng(0).integers(0, 256, (8, 24, 32, 3), dtype=np.uint8),
    "audio": np.sin(np.arange(8000) / 5).astype(np.float32),
}


@pytest.mark.parametrize("zoo", ZOO, ids=lambda zoo: zoo.name)
def test_every_family_can_be_drawn(zoo):
    model = zoo.make()
    kind = input_kind(model)
    traced = trace_input(model, PROCESSORS.get(zoo.name, CLASSIC), CONTENTS[kind], CONFIG)
    assert not targets(model)  # unmerged again
    assert len(traced.sources) == 3
    for block, source in enumerate(traced.sources):
        # 64 patches (of AST 9 x 7), 6 of which are merged in each of the 3 blocks
        assert source.shape == (traced.grid.patches,)
        assert source.min() >= 0
        assert source.unique().numel() == traced.grid.patches - 6 * (block + 1)
    assert len(traced.frames) == traced.grid.frames
    assert compare_sheet([traced, traced], ["a", "b"]).width > 192


def test_a_merge_that_the_user_applied_is_left_as_it_was():
    zoo = next(zoo for zoo in ZOO if zoo.name == "vit")
    model = apply(zoo.make(), MergeConfig(r=3))
    output = zoo.run(model)
    (tower,), reported = targets(model), str(report(model))
    assert input_kind(model) == "image"
    trace_input(model, CLASSIC, CONTENTS["image"], CONFIG)
    with pytest.raises(ValueError, match="for one picture"):
        trace_input(model, Tiles(), picture(), CONFIG)
    assert targets(model) == [tower]
    assert str(report(model)) == reported
    assert torch.equal(zoo.run(model), output)


@pytest.mark.parametrize("name", ["vit", "videomae", "ast", "siglip2"])
def test_cells_have_the_mean_colour_of_their_place(name):
    """Unmerged, each cell has the mean colour of the pixels that it lies on."""
    zoo = next(zoo for zoo in ZOO if zoo.name == name)
    model, processor = zoo.make(), PROCESSORS.get(name, CLASSIC)
    kind = input_kind(model)
    traced = trace_input(model, processor, CONTENTS[kind], MergeConfig())
    grid, shown = traced.grid, np.asarray(traced.frames[0], dtype=float)
    drawn = np.asarray(
        merged_image(traced.frames[0], torch.arange(grid.rows * grid.columns), flat(grid), border=False)
    )
    rows, columns = grid.starts(shown.shape[:2])
    for row, column in [(0, 0), (1, 2), (grid.rows - 1, grid.columns - 1)]:
        bottom = [*rows, shown.shape[0]][row + 1]
        right = [*columns, shown.shape[1]][column + 1]
        cell = slice(rows[row], bottom), slice(columns[column], right)
        assert np.abs(drawn[cell] - shown[cell].mean(axis=(0, 1))).max() <= 0.5


def flat(grid):
    from dataclasses import replace

    return replace(grid, steps=1, tubelet=1)


def test_a_crop_leaves_out_what_does_not_fill_a_patch():
    """36 pixels hold 4 patches of 8 and 4 pixels that the embedding drops: the picture has 32."""
    config = tf.ViTConfig(
        image_size=36, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    processor = tf.ViTImageProcessor(size={"height": 36, "width": 36})
    traced = trace_input(tf.ViTModel(config).eval(), processor, picture(side=36), MergeConfig(r=2))
    assert (traced.grid.rows, traced.grid.columns) == (4, 4)
    assert traced.frames[0].size == (32, 32)
    assert (np.asarray(traced.frames[0]) == np.asarray(picture(side=36))[:32, :32]).all()


def test_rows_of_a_spectrogram_run_from_the_top_down():
    """A patch of the model counts from the lowest frequency, so block sources are flipped with the picture."""
    zoo = next(zoo for zoo in ZOO if zoo.name == "ast")
    traced = trace_input(zoo.make(), PROCESSORS["ast"], CONTENTS["audio"], MergeConfig())
    rows = traced.sources[-1].view(traced.grid.rows, traced.grid.columns)
    assert rows[-1, 0] < rows[0, 0]
    assert (rows[-1].diff() == 1).all()


def test_a_vision_language_model_shows_the_blocks_that_it_reads(tmp_path):
    model, processor = load_model(str(llava(tmp_path)), "cpu")
    traced = trace_input(model, processor, picture(), CONFIG)
    assert len(traced.sources) == 2  # the last of 3 blocks is not read by feature layer -2
    assert traced.sources[-1].unique().numel() == 64 - 12
    with pytest.raises(ValueError, match="with where='projected' none of them merges"):
        trace_input(model, processor, picture(), MergeConfig(r=6, where="projected"))


def test_pruned_patches_have_no_token(tmp_path):
    model, processor = load_model(str(vit(tmp_path)), "cpu")
    traced = trace_input(model, processor, picture(), MergeConfig(method="random_prune", r=6))
    assert int((traced.sources[-1] == -1).sum()) == 18


class Tiles:
    def __call__(self, images, **kwargs):
        return tf.BatchFeature({"pixel_values": torch.zeros(1, 3, 3, 32, 32)})


class Tiny:
    def __call__(self, images, **kwargs):
        return tf.BatchFeature({"pixel_values": torch.zeros(1, 3, 3, 3)})


class OneFrame:
    def __call__(self, images, **kwargs):
        return tf.BatchFeature({"pixel_values": torch.zeros(1, 1, 3, 16, 16)})


def test_inputs_that_do_not_fit_are_refused():
    by_name = {zoo.name: zoo for zoo in ZOO}
    model = by_name["vit"].make()
    with pytest.raises(ValueError, match=r"shape \(3, 3, 32, 32\) for one picture"):
        trace_input(model, Tiles(), picture(), CONFIG)
    with pytest.raises(ValueError, match="sees 3 x 3 pixels, less than one patch of 4 x 4"):
        trace_input(model, Tiny(), picture(), CONFIG)
    assert not targets(model)  # an error leaves nothing merged
    with pytest.raises(ValueError, match="The clip has 1 frames, but a token of this model covers 2"):
        trace_input(by_name["videomae"].make(), OneFrame(), CONTENTS["video"], CONFIG)
    masked = tf.ViTMAEModel(tf.ViTMAEConfig(**{**by_name["vit_mae"].make().config.to_dict(), "mask_ratio": 0.75}))
    with pytest.raises(ValueError, match=r"16 tokens for 64 patches, so they have no grid.*Set mask_ratio to 0"):
        trace_input(masked.eval(), CLASSIC, picture(), MergeConfig(r=1))


def test_spectrograms_have_time_and_frequency_along_their_edges():
    axes = SpectrogramAxes(seconds=10.24, highest=8000)
    assert axes.height_of(20) == 0
    assert axes.height_of(8000) == 1
    assert 0 < axes.height_of(500) < axes.height_of(1000) < axes.height_of(4000) < 1
    picture = Image.new("RGB", (1024, 128), "blue")
    framed = np.asarray(with_axes(picture, axes))
    left, below = framed.shape[1] - 1024, framed.shape[0] - 128
    assert (framed[:128, left:] == np.asarray(picture)).all()  # the patches stay where they were
    ticks = (framed[128:132, left:] == 0).all(axis=(0, 2)).nonzero()[0]
    assert [round(x * 10.24 / 1024, 2) for x in ticks] == [step / 2 for step in range(21)]
    assert (framed[:128, :left] < 128).any()
    assert (framed[128:, :left] == 255).mean() > 0.9
    assert below > 0

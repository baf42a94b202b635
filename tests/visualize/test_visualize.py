"""Pictures of merged tokens: colours, borders, pruned patches, crops that line up, and clear refusals."""

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

from transformers import CLIPImageProcessorPil, Siglip2ImageProcessorPil, ViTImageProcessorPil  # noqa: E402

from hf_tome import visualize  # noqa: E402
from hf_tome.visualize import contact_sheet, merged_image, model_view, progression, readable_scale, size_heatmap  # noqa: E402

GRID = (2, 3)


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def patch(image, row: int, column: int, side: int = 16) -> np.ndarray:
    pixels = np.asarray(image, dtype=float)
    return pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]


def test_patches_of_a_token_have_their_mean_colour(picture):
    source = torch.tensor([4, 4, 0, 2, 4, 1])
    drawn = merged_image(picture, source, GRID, border=False)
    members = [(0, 0), (0, 1), (1, 1)]
    mean = np.mean([patch(picture, *member) for member in members], axis=(0, 1, 2))
    for member in members:
        assert np.abs(patch(drawn, *member) - mean).max() <= 0.5
    assert np.abs(patch(drawn, 0, 2) - patch(picture, 0, 2).mean(axis=(0, 1))).max() <= 0.5
    assert drawn.size == picture.size


def test_borders_lie_between_tokens_and_at_the_edge_only(picture):
    source = torch.tensor([0, 0, 1, 0, 0, 1])
    changed = np.asarray(merged_image(picture, source, GRID)) != np.asarray(
        merged_image(picture, source, GRID, border=False)
    )
    changed = changed.any(axis=2)
    expected = np.zeros((32, 48), dtype=bool)
    expected[[0, -1], :] = expected[:, [0, -1]] = True
    expected[:, 31:33] = True
    assert (changed == expected).all()


def test_border_colours_are_distinct_and_stay_with_a_growing_token(picture):
    palette = np.rint(visualize.drawing.palette(37 * 37))
    assert len(np.unique(palette, axis=0)) == 37 * 37
    assert palette.min() >= 0
    assert palette.max() <= 255
    before = np.asarray(merged_image(picture, torch.tensor([5, 1, 2, 3, 4, 0]), GRID))
    after = np.asarray(merged_image(picture, torch.tensor([0, 1, 1, 0, 1, 1]), GRID))
    assert (before[0, 0] == after[0, 0]).all()
    assert (before[0, 20] == after[0, 20]).all()
    assert (before[0, 0] != before[0, 20]).any()


def test_pruned_patches_are_hatched_and_colour_nothing(picture):
    drawn = merged_image(picture, torch.tensor([-1, 0, 0, -1, 0, 0]), GRID)
    hatched = patch(drawn, 0, 0)
    assert set(np.unique(hatched)) == {0.0, 90.0}
    kept = merged_image(picture, torch.tensor([-1, 0, 0, -1, 0, 0]), GRID, border=False)
    mean = np.asarray(picture, dtype=float)[:, 16:].mean(axis=(0, 1))
    assert np.abs(patch(kept, 0, 1) - mean).max() <= 0.5
    everything = np.asarray(merged_image(picture, torch.full((6,), -1), GRID))
    assert set(np.unique(everything)) == {0, 90}


def test_patches_that_do_not_divide_the_picture(picture):
    assert merged_image(picture, torch.arange(35), (5, 7)).size == (48, 32)


def test_scale_enlarges(picture):
    assert merged_image(picture, torch.arange(6), GRID, scale=3).size == (144, 96)
    assert readable_scale(Image.new("RGB", (224, 224)), (14, 14)) == 1
    assert readable_scale(Image.new("L", (32, 32)), (8, 8)) == 6


def test_same_picture_every_time(picture):
    source = torch.tensor([0, 1, 1, 2, 3, 3])
    assert merged_image(picture, source, GRID).tobytes() == merged_image(picture, source, GRID).tobytes()


def test_a_large_picture_has_the_colours_of_a_plain_loop():
    """518 pixels and 37 x 37 patches, as DINOv2 has, against token by token."""
    pixels = np.random.default_rng(0).integers(0, 256, (518, 518, 3), dtype=np.uint8)
    source = torch.randint(0, 300, (37 * 37,), generator=torch.Generator().manual_seed(0))
    drawn = np.asarray(merged_image(Image.fromarray(pixels), source, (37, 37), border=False), dtype=float)
    places = np.kron(source.view(37, 37).numpy(), np.ones((14, 14), dtype=int))
    for token in range(0, 300, 29):
        assert np.abs(drawn[places == token] - pixels[places == token].mean(axis=0)).max() <= 0.5  # rounded


def test_heatmap_follows_the_size(picture):
    size = torch.tensor([1, 1, 4, 4, 4, 4])
    heat = size_heatmap(size, GRID, Image.new("L", (48, 32), 128), legend=False)
    assert heat.size == (48, 32)
    assert (patch(heat, 0, 0) == patch(heat, 0, 1)).all()
    assert (patch(heat, 0, 2) == patch(heat, 1, 0)).all()
    assert (patch(heat, 0, 0) != patch(heat, 0, 2)).any()
    assert size_heatmap(size, GRID, picture).width > 48
    assert set(np.unique(patch(size_heatmap(size * (size > 1), GRID, picture), 0, 0))) == {0, 90}


def test_a_dark_sheet_has_light_labels():
    grey = Image.new("RGB", (192, 192), (120, 120, 120))
    light, dark = (np.asarray(contact_sheet([grey], labels=["input"], dark=dark)) for dark in (False, True))
    assert light.shape == dark.shape
    assert (light[0, 0].min(), dark[0, 0].max() < 80) == (255, True)
    assert (light.min() < 60, dark.max() > 200) == (True, True)  # the labels, smoothed
    assert (light[100, 100] == dark[100, 100]).all()


def test_progression_and_contact_sheet(picture):
    sheet = progression(picture, [torch.arange(6), torch.tensor([0, 0, 1, 1, -1, -1])], GRID, blocks=[3, 7], columns=2)
    scale = readable_scale(picture, GRID)
    assert sheet.width == 2 * 48 * scale + 3 * 6
    assert sheet.height > 2 * 32 * scale
    plain = contact_sheet([picture, picture, picture], gap=0)
    assert plain.size == (144, 32)
    assert plain.crop((48, 0, 96, 32)).tobytes() == picture.tobytes()


def test_model_view_is_what_the_model_sees():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    seen = model_view(photo, processor)
    assert seen.size == (32, 32)
    values = processor(images=photo, return_tensors="pt")["pixel_values"][0].permute(1, 2, 0).numpy()
    pixels = 255 * (values * np.array(processor.image_std) + np.array(processor.image_mean))
    assert np.abs(pixels - np.asarray(seen, dtype=float)).max() < 0.6
    assert model_view(photo.convert("L"), ViTImageProcessorPil(size={"height": 24, "width": 24})).size == (24, 24)


def test_model_view_of_padded_patches():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=24)
    inputs = processor(images=photo, return_tensors="pt")
    rows, columns = inputs["spatial_shapes"][0].tolist()
    seen = model_view(photo, processor)
    assert seen.size == (8 * columns, 8 * rows)
    assert merged_image(seen, torch.arange(rows * columns), (rows, columns)).size == seen.size
    first = inputs["pixel_values"][0, 1].view(8, 8, 3).numpy() * 127.5 + 127.5
    assert np.abs(first - np.asarray(seen, dtype=float)[:8, 8:16]).max() < 0.6


class Spectrogram:
    def __call__(self, **kwargs):
        return {"pixel_values": torch.zeros(1, 1024, 128)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image: merged_image(image, torch.arange(7), GRID), r"shape \(7,\), but a grid of 2 x 3 has 6 patches"),
        (lambda image: merged_image(image, torch.zeros(1, 6), GRID), r"shape \(1, 6\)"),
        (lambda image: merged_image(image, torch.zeros(6), GRID), "takes token numbers"),
        (lambda image: merged_image(image, torch.arange(6) - 2, GRID), "-1 for pruned"),
        (lambda image: merged_image(image, torch.arange(0), (0, 3)), "rows and columns"),
        (lambda image: merged_image(image, torch.zeros(64 * 64, dtype=int), (64, 64)), "smaller than one pixel"),
        (lambda image: size_heatmap(torch.ones(5), GRID, image), "a grid of 2 x 3"),
        (lambda image: size_heatmap(torch.full((6,), torch.nan), GRID, image), "below 0 or NaN"),
        (lambda image: progression(image, [], GRID), "`sources` has 0 entries"),
        (lambda image: progression(image, [torch.arange(6)], GRID, blocks=[1, 2]), "`blocks` 2"),
        (lambda image: contact_sheet([]), "at least 1 picture"),
        (lambda image: contact_sheet([image], columns=0), "1 column"),
        (lambda image: contact_sheet([image], labels=["a", "b"]), "`labels` has 2 entries for 1"),
        (lambda image: model_view(image, Spectrogram()), r"Spectrogram returns pixel values of shape \(1024, 128\)"),
    ],
)
def test_refusals(picture, call, message):
    with pytest.raises(ValueError, match=message):
        call(picture)

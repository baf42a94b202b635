"""Clips, spectrograms and comparisons: tokens keep their colours over time, cells lie where patches do, files play."""

from itertools import pairwise

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")

from hf_tome import visualize  # noqa: E402
from hf_tome.visualize import (  # noqa: E402
    TokenGrid,
    Traced,
    compare_pictures,
    compare_sheet,
    followed_frames,
    merged_frames,
    merged_image,
    moving_token,
    save_animation,
    spectrogram_view,
    token_at,
)

GRID = TokenGrid(2, 3, steps=4, tubelet=2)
RED, CODECS = visualize.video.RED, visualize.animation.CODECS


@pytest.fixture
def clip():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3), dtype=np.uint8)
    return [Image.fromarray(frame) for frame in pixels]


def moving_source():
    """Each step has the background as token 0, and token 7 in another patch."""
    source = torch.zeros(4, 6, dtype=torch.long)
    for step, place in enumerate((0, 1, 2, 5)):
        source[step, place] = 7
    return source.flatten()


def array(image) -> np.ndarray:
    return np.asarray(image, dtype=float)


def test_a_token_has_the_mean_colour_of_all_its_frames(clip):
    drawn = merged_frames(clip, moving_source(), GRID, border=False)
    assert len(drawn) == 4
    patches = [array(clip[2 * step + t]) for step in range(4) for t in range(2)]
    boxes = [(0, 0), (0, 1), (0, 2), (1, 2)]
    mean = np.mean(
        [
            patches[2 * step + t][16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            for step, (row, column) in enumerate(boxes)
            for t in range(2)
        ],
        axis=(0, 1, 2),
    )
    for picture, (row, column) in zip(drawn, boxes):
        cell = array(picture)[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        assert np.abs(cell - mean).max() <= 0.5  # rounded to whole numbers


def test_border_colour_is_the_same_in_all_frames(clip):
    drawn = [array(picture) for picture in merged_frames(clip, moving_source(), GRID)]
    corners = [drawn[0][0, 0], drawn[1][0, 20], drawn[2][0, 40], drawn[3][31, 40]]
    assert all((corner == corners[0]).all() for corner in corners)
    assert (drawn[0][0, 40] != corners[0]).any()


def test_tokens_do_not_border_those_of_other_frames(clip):
    """Neighbours in time are no neighbours in the picture: one token over a frame has its border at the edge alone."""
    source = torch.arange(4).repeat_interleave(6)
    drawn = [array(picture) for picture in merged_frames(clip, source, GRID)]
    plain = [array(picture) for picture in merged_frames(clip, source, GRID, border=False)]
    for with_border, without in zip(drawn, plain):
        changed = (with_border != without).any(axis=2)
        assert changed[0].all()
        assert not changed[1:-1, 1:-1].any()


def test_the_moving_token_is_followed_in_red(clip):
    source = moving_source()
    assert moving_token(source, GRID) == 7
    drawn = [array(picture) for picture in followed_frames(clip, source, GRID)]
    for step, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 2)]):
        red = (drawn[step] == RED).all(axis=2)
        assert red[16 * row, 16 * column]
        assert red.sum() == 4 * 2 * 14  # a frame of 2 pixels inside 16 x 16
        inner = slice(16 * row + 4, 16 * row + 12), slice(16 * column + 4, 16 * column + 12)
        assert (drawn[step][inner] == array(clip[2 * step])[inner]).all()
        grey = drawn[step][20, 4] if row == 0 else drawn[step][4, 4]
        assert (grey == grey[0]).all()


def test_moving_token_prefers_small_ones_then_many_frames_then_distance():
    grid = TokenGrid(4, 4, steps=3)
    still, moving, short = 5, 6, 8
    source = torch.zeros(3, 16, dtype=torch.long)
    source[:, 3] = still
    source[0, 12], source[1, 13], source[2, 15] = moving, moving, moving
    source[0, 4], source[1, 11] = short, short
    assert moving_token(source.flatten(), grid) == moving
    assert moving_token(torch.zeros(48, dtype=torch.long), grid) == 0
    large = torch.arange(48).view(3, 16) + 100
    large[:, 5] = still
    large[0, 8:], large[1, 4:12:2], large[2, :4] = moving, moving, moving  # half a frame, further than any other
    assert moving_token(large.flatten(), grid) == still
    pruned = torch.full((48,), -1)
    pruned[20] = 9
    assert moving_token(pruned, grid) == 9


def test_token_at_a_pixel():
    source = moving_source()
    assert token_at(source, GRID, (48, 32), 5, 5) == 7
    assert token_at(source, GRID, (48, 32), 16, 15, 2) == 7
    assert token_at(source, GRID, (48, 32), 15, 15, 3) == 0
    assert token_at(source, GRID, (48, 32), 47, 31, 7) == 7


def test_cells_of_overlapping_patches_lie_a_stride_apart():
    """The cell of each patch has the patch's middle in its own middle, but for those at the edges."""
    from small import AUDIO
    from transformers import ASTConfig

    from hf_tome.adapters.encoders.families.inputs import SPECTROGRAM

    config = ASTConfig(**{**AUDIO, "patch_size": 16, "frequency_stride": 10, "time_stride": 10, "max_length": 104})
    grid = SPECTROGRAM.grid(config, {"input_values": torch.zeros(1, 104, 128)})
    assert (grid.rows, grid.columns) == (12, 9)
    rows, columns = grid.starts((128, 104))
    assert columns.tolist() == [0, *range(13, 13 + 80, 10)]
    # Patch 1 covers the times 10 to 26, whose middle is 18; row 0 is the highest of the frequencies.
    assert (columns[1] + columns[2]) / 2 == 18
    assert rows.tolist() == [0, *range(15, 15 + 110, 10)]
    assert 128 - (rows[10] + rows[11]) / 2 == 8 + 10
    drawn = array(merged_image(Image.new("RGB", (104, 128), "white"), torch.arange(108), grid))
    assert (drawn[:, 12] != drawn[:, 13]).any()


def test_spectrogram_has_low_frequencies_at_the_bottom():
    values = torch.zeros(40, 16)
    values[:, 0] = 1
    drawn = array(spectrogram_view(values)).sum(axis=2)
    assert drawn.shape == (16, 40)
    assert (drawn[-1] > drawn[0]).all()
    assert (array(spectrogram_view(torch.ones(40, 16))) == 0).sum() >= 0  # a constant does not divide by 0


def traced(frames, grid, *sources):
    return Traced(list(frames), grid, list(sources))


def test_configs_stand_side_by_side():
    image, grid = Image.new("RGB", (192, 192), "white"), TokenGrid(4, 4)
    one = traced([image], grid, torch.arange(16), torch.zeros(16, dtype=torch.long))
    single = compare_sheet([one], ["a"])
    assert single.width == 2 * 192 + 3 * 6
    assert compare_sheet([one, one, one], ["a", "b", "c"]).size == (4 * 192 + 5 * 6, single.height)
    blocks = compare_sheet([one, one], ["a", "b"], all_blocks=True)
    assert blocks.width == 3 * 192 + 4 * 6
    assert blocks.height > 2 * 192
    assert len(compare_pictures([one, one], ["a", "b"])) == 2
    low = traced([Image.new("RGB", (600, 60))], TokenGrid(5, 50), torch.arange(250))
    assert compare_sheet([low, low], ["a", "b"]).width == 600 + 12


def test_clips_have_a_row_a_config(clip):
    one = traced(clip, GRID, moving_source())
    plain = compare_sheet([one], ["a"], follow=False)
    followed = compare_sheet([one], ["a"])
    assert plain.width == followed.width == 4 * 192 + 5 * 6
    assert followed.height / plain.height == pytest.approx(3 / 2, rel=0.05)
    assert compare_sheet([one, one], ["a", "b"], follow=False).height == followed.height
    pictures = compare_pictures([one], ["a"], follow=(5, 5))
    assert len(pictures) == 8
    assert pictures[0].tobytes() != pictures[1].tobytes()  # the input moves on within a tube


def test_each_picture_of_an_animation_has_its_step_and_its_config(clip):
    whole = traced(clip, GRID, torch.arange(24))
    pictures = compare_pictures([traced(clip, GRID, moving_source()), whole], ["a", "b"], follow=False)
    column = (pictures[0].width - 6) // 3
    first, second = (
        [array(picture)[20:, start * column + 6 : (start + 1) * column] for picture in pictures] for start in (1, 2)
    )
    for columns in (first, second):
        same = [(one == other).all() for one, other in pairwise(columns)]
        assert same == [True, False, True, False, True, False, True]  # two frames a step
    assert (first[0] != second[0]).any()


def test_a_long_clip_is_thinned_to_eight_steps():
    grid = TokenGrid(2, 2, steps=16, tubelet=2)
    frames = [Image.new("RGB", (192, 192), (8 * frame, 0, 0)) for frame in range(32)]
    sheet = compare_sheet([traced(frames, grid, torch.arange(64))], ["a"], follow=False)
    assert sheet.width == 8 * 192 + 9 * 6
    assert sheet.getpixel((sheet.width - 20, 100)) == (240, 0, 0)


@pytest.mark.parametrize(("suffix", "codecs"), [(".gif", ()), (".GIF", ()), (".mp4", CODECS), (".mp4", CODECS[-1:])])
def test_animations_play(tmp_path, monkeypatch, suffix, codecs):
    if codecs:
        pytest.importorskip("av")
        monkeypatch.setattr(visualize.animation, "CODECS", codecs)
    grey = [Image.new("RGB", (47, 31), (30 * index,) * 3) for index in range(5)]  # odd sides
    path = tmp_path / f"a{suffix}"
    save_animation(grey, path, seconds=0.2)
    shades = read_animation(path)
    assert len(shades) == 5
    # 4:2:0 and the limited range of MP4 round; a GIF has one palette of 256 colours.
    assert np.abs(np.array(shades) - np.arange(5) * 30).max() < 4


def read_animation(path) -> list[float]:
    if path.suffix == ".mp4":
        import av

        with av.open(str(path)) as container:
            return [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    with Image.open(path) as opened:
        assert opened.info["duration"] == 200
        means = []
        for index in range(opened.n_frames):
            opened.seek(index)
            means.append(np.asarray(opened.convert("RGB")).mean())
        return means


def test_a_token_keeps_its_shade_in_a_gif(tmp_path):
    """Though the light of the frames changes, and each frame by itself would get another palette."""
    frames = [Image.new("RGB", (48, 32), (200, 20 * index, 30)) for index in range(8)]
    drawn = merged_frames(frames, moving_source(), GRID)
    save_animation(drawn, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as opened:
        first = opened.convert("RGB").getpixel((0, 0))
        opened.seek(3)
        assert opened.convert("RGB").getpixel((40, 31)) == first
        assert opened.convert("RGB").getpixel((0, 0)) != first


def test_missing_encoders_are_said(tmp_path, clip, monkeypatch):
    pytest.importorskip("av")
    monkeypatch.setattr(visualize.animation, "CODECS", ("not_there",))
    with pytest.raises(ImportError, match=r"none of the encoders not_there; name a \.gif"):
        save_animation(clip, tmp_path / "a.mp4")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match="needs PyAV"):
        save_animation(clip, tmp_path / "a.mp4")


def test_pillow_without_freetype_still_writes_labels(monkeypatch):
    from PIL import ImageFont

    small = ImageFont.load_default_imagefont()

    def no_freetype(size=None):
        if size is not None:
            raise ImportError("The _imagingft C module is not installed")
        return small

    monkeypatch.setattr(ImageFont, "load_default", no_freetype)
    sheet = visualize.contact_sheet([Image.new("RGB", (192, 192), "white")], labels=["input"])
    assert np.asarray(sheet).min() < 100
    heat = visualize.size_heatmap(torch.arange(1, 17), (4, 4), Image.new("RGB", (192, 192)))
    assert heat.width > 192


def test_long_labels_stay_within_their_column():
    white = Image.new("RGB", (100, 40), "white")
    sheet = np.asarray(visualize.contact_sheet([white, white], labels=["a rather long label, r=16", ""]))
    alone = np.asarray(visualize.contact_sheet([white, white], labels=["a rather long label", "b"]))
    assert sheet[:14, 112:].min() < 128  # runs on over a place without a label
    assert alone[:14, 106:112].min() == 255


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda clip: merged_frames(clip[:7], moving_source(), GRID), "There are 7 frames of 1 sizes; 4 steps of 2"),
        (lambda clip: merged_frames([*clip[:7], clip[0].resize((9, 9))], moving_source(), GRID), "of 2 sizes"),
        (lambda clip: merged_frames([], moving_source(), GRID), "There are 0 frames"),
        (lambda clip: merged_frames(clip, torch.arange(6), GRID), "a grid of 4 x 2 x 3 has 24 patches"),
        (lambda clip: followed_frames(clip, moving_source(), GRID, 3), "No patch is held by the token 3"),
        (lambda clip: moving_token(torch.full((24,), -1), GRID), "Every patch was pruned"),
        (lambda clip: token_at(moving_source(), GRID, (48, 32), 48, 0), "lies outside"),
        (lambda clip: token_at(moving_source(), GRID, (48, 32), 0, 0, 8), "lies outside"),
        (lambda clip: token_at(torch.full((24,), -1), GRID, (48, 32), 0, 0), "was pruned"),
        (lambda clip: save_animation(clip, "a.avi"), r"ends in \.gif or \.mp4"),
        (lambda clip: save_animation([], "a.gif"), "got 0 of 0 sizes"),
        (lambda clip: TokenGrid(2, 2, steps=0), "0 steps"),
    ],
)
def test_refusals(clip, call, message):
    with pytest.raises(ValueError, match=message):
        call(clip)

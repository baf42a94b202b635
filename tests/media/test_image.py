"""Images become RGB by what their modes mean, and are checked before they are decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
import small
from PIL import Image

from hf_tome.media.image import JPEG_SCANS, ImageError, read_image, to_rgb
from hf_tome.media.limits import MediaLimitError, MediaLimits


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(dtype, top):
    """Greys from 0 to `top` over 256 columns."""
    return np.broadcast_to((np.arange(256) * (top / 255)).round(6).astype(dtype), (16, 256))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("PNG", ramp(np.uint16, 65535)),
        ("TIFF", ramp(np.uint16, 65535)),
        ("TIFF", ramp(np.float32, 1)),
        ("TIFF", ramp(np.uint8, 255)),
    ],
)
def test_deep_greys_keep_their_brightness(kind, values):
    pixels = np.asarray(read_image(encoded(Image.fromarray(values), kind)))
    assert pixels.shape == (16, 256, 3)
    assert np.abs(pixels[0, :, 0].astype(int) - np.arange(256)).max() <= 1
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_16_bits_are_rounded():
    values = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    assert np.asarray(read_image(encoded(Image.fromarray(values))))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.linspace(-3, 800, 64, dtype=np.float32).reshape(8, 8), r"floats such as -3, whose white is unknown"),
        (np.full((8, 8), np.nan, dtype=np.float32), "floats such as nan"),
        (np.full((8, 8), 70_000, dtype=np.int32), "32-bit integers such as 70000"),
    ],
)
def test_modes_without_a_white_are_refused(values, message):
    with pytest.raises(ImageError, match=f"Cannot read the upload as an image: it holds {message}"):
        read_image(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(mode):
    hidden = np.zeros((8, 8, 4), dtype=np.uint8)
    hidden[:, 4:] = (90, 90, 90, 255)
    hidden[:, :4, 0] = 200  # behind alpha 0
    image = Image.fromarray(hidden)
    content = encoded(image.quantize() if mode == "P" else image.convert(mode))
    pixels = np.asarray(read_image(content))
    assert (pixels[:, :4] == 255).all()
    assert np.abs(pixels[:, 4:].astype(int) - 90).max() <= 1


def test_half_transparent_parts_are_mixed_with_white():
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert np.asarray(read_image(encoded(image))).tolist()[0][0] == [127] * 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF"])
def test_usual_images_are_as_pillow_converts_them(kind):
    content = encoded(small.picture(), kind)
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(np.asarray(read_image(content)), np.asarray(image.convert("RGB")))
    opaque = small.picture().convert("RGBA")
    assert np.array_equal(np.asarray(read_image(encoded(opaque))), np.asarray(small.picture()))


def test_images_are_upright(tmp_path):
    image, exif = small.picture().crop((0, 0, 48, 20)), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "phone.png", exif=exif)
    turned = read_image(tmp_path / "phone.png")
    assert turned.size == (20, 48)
    assert np.array_equal(np.asarray(turned), np.asarray(image.transpose(Image.Transpose.ROTATE_270)))
    assert not turned.getexif().get(0x0112)  # nobody turns it again


def test_decoded_images():
    assert to_rgb(Image.fromarray(ramp(np.uint16, 65535))).getpixel((128, 0)) == (128, 128, 128)


def test_large_images_are_converted_band_by_band(monkeypatch):
    whole = np.random.default_rng(0).integers(0, 65536, (40, 30), dtype=np.uint16)
    faded = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8))
    expected = [np.asarray(read_image(encoded(image))) for image in (Image.fromarray(whole), faded)]
    monkeypatch.setattr("hf_tome.media.image.BLOCK", 100)
    for image, pixels in zip((Image.fromarray(whole), faded), expected):
        assert np.array_equal(np.asarray(read_image(encoded(image))), pixels)


# Limits


def bomb(width, height):
    """A PNG that declares a size which its bytes do not fill; decoding it takes the memory all the same."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((8000, 8000), r"it has 8000 x 8000 pixels, above the limit image_pixels=25000000"),
        ((40000, 40000), r"Image size \(1600000000 pixels\) exceeds limit"),
        ((1, 5000), r"it has 1 x 5000 pixels, above the limit aspect_ratio=300"),
    ],
)
def test_the_declared_size_is_checked_before_decoding(size, message, monkeypatch):
    from PIL import ImageFile

    def load(image):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(MediaLimitError, match=message):
        read_image(bomb(*size))


def test_limits_are_raised_by_the_caller():
    content = encoded(small.picture())
    with pytest.raises(MediaLimitError, match=r"48 x 48 pixels, above the limit image_pixels=2000\."):
        read_image(content, MediaLimits(image_pixels=2000))
    with pytest.raises(MediaLimitError, match="above the limit file_bytes=10"):
        read_image(content, MediaLimits(file_bytes=10))
    assert read_image(content, MediaLimits(image_pixels=2304)).size == (48, 48)


def test_jpegs_of_many_scans_are_refused():
    content = encoded(small.picture(), "JPEG", progressive=True)
    assert read_image(content).size == (48, 48)
    scan = content.rindex(b"\xff\xda")
    many = content[:-2] + content[scan:-2] * JPEG_SCANS + content[-2:]
    with pytest.raises(MediaLimitError, match="JPEG scans, above the limit of 100"):
        read_image(many)


def test_large_images_of_slow_codecs_are_refused():
    content = b"P3 2000 1000 255\n" + b"1 " * 1000
    with pytest.raises(MediaLimitError, match="2000 x 1000 pixels in a slow encoding"):
        read_image(content)
    assert read_image(b"P3 2 1 255\n1 2 3 4 5 6").getpixel((1, 0)) == (4, 5, 6)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n", "photo.png"),
        (b"", "empty.png"),
        (b"#EXTM3U\nother.png", "list.png"),
        (encoded(small.picture())[:60], "cut.png"),
    ],
)
def test_other_formats_are_refused(content, name, tmp_path, monkeypatch):
    import subprocess

    def start(*args, **kwargs):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=f"^Cannot read {name} as an image: [^\n]*\\.$") as refused:
        read_image(tmp_path / name)
    assert str(tmp_path) not in str(refused.value)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    import os

    for source in ("https://127.0.0.1:9/a.png", tmp_path / "absent.png"):
        with pytest.raises(ImageError, match=r"Cannot read .*a?.*\.png as an image: No such file"):
            read_image(source)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=r"Cannot read pipe\.png as an image: it is not a regular file"):
        read_image(tmp_path / "pipe.png")


def test_reasons_hold_no_python_objects():
    with pytest.raises(ImageError) as refused:
        read_image(b"no image at all")
    assert "_io" not in str(refused.value)
    assert "cannot identify image file" in str(refused.value)

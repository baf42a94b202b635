"""The examples: digits and photographs of scikit-learn, still and moving, and a landscape and a sound made by code.

The digits are from the test part of *Optical Recognition of Handwritten Digits* (E. Alpaydin, C. Kaynak, 1998, CC BY
4.0), as `sklearn.datasets.load_digits` ships them. Some lie on, or move over, parts of the two photographs of
`sklearn.datasets.load_sample_images` (danielbuechele and vultilion, CC BY 2.0), which are offered as they are too.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image

from hf_tome.demo import digits_scenes
from hf_tome.evaluation.data.digits import load_digits
from hf_tome.visualize import save_animation

DIGITS = (0, 5, 9, 17)  # places among the held-out digits
MOVING = (1, 3, 4)
SIDE = 128  # pixels, of a picture
RATE = 16_000  # samples a second, of a sound
TIMES = 3  # enlarged, of a picture with a photograph: 56 pixels look lost on a page
ENLARGED = 8  # times, of a clip: MP4 would blur its 28 pixels


def write_examples(folder: Path) -> dict[str, list[str]]:
    """Write the examples as PNG and MP4 files, and return their paths by the kind of input."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"image": _write_images(folder), "video": _write_clips(folder), "audio": [_write_sound(folder)]}


def _write_images(folder: Path) -> list[str]:
    pictures = _on_photographs()
    for name in ("china", "flower"):
        pictures[name] = Image.fromarray(load_sample_image(f"{name}.jpg"))
    for digit in load_digits("test").select(DIGITS):
        pictures[f"digit-{digit['label']}"] = digit["image"].resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pictures["landscape"] = landscape()
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    return [str(folder / f"{name}.png") for name in pictures]


def _on_photographs() -> dict[str, Image.Image]:
    """Draw digits as the small CLIP and SigLIP have learnt to read them, by name."""
    material, generator = digits_scenes.load_material("test"), torch.Generator().manual_seed(0)
    drawn, _ = digits_scenes.make_pictures(material, torch.tensor(MOVING), generator)
    names = [f"photograph-{int(material.labels[digit])}" for digit in MOVING]
    large = digits_scenes.to_bytes(drawn).repeat(TIMES, axis=1).repeat(TIMES, axis=2)  # (3, H, W, 3)
    return dict(zip(names, map(Image.fromarray, large)))


def _write_clips(folder: Path) -> list[str]:
    material, generator = digits_scenes.load_material("test"), torch.Generator().manual_seed(0)
    clips, _ = digits_scenes.make_clips(material, torch.tensor(MOVING), torch.arange(len(MOVING)), generator)
    paths = []
    for digit, clip in zip(MOVING, digits_scenes.to_bytes(clips)):
        paths.append(str(folder / f"moving-{int(material.labels[digit])}.mp4"))
        large = clip.repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)  # (T, H, W, 3)
        save_animation([Image.fromarray(frame) for frame in large], paths[-1], seconds=1 / 8)
    return paths


def _write_sound(folder: Path) -> str:
    """Write a tone that rises by three octaves and falls again, twice."""
    seconds = np.arange(4 * RATE) / RATE
    octaves = 1.5 - 1.5 * np.cos(np.pi * seconds)
    phase = 2 * np.pi * np.cumsum(220 * 2**octaves) / RATE
    path = str(folder / "rising-and-falling.wav")
    with wave.open(path, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
        sound.writeframes((12_000 * np.sin(phase)).astype("<i2").tobytes())
    return path


def landscape(side: int = 384) -> Image.Image:
    """Draw a house on a hill under the sun: large even areas, which merge, and small things, which do not."""
    height = np.linspace(0, 1, side)[:, None, None]
    sky = (1 - height) * np.array([86, 140, 214]) + height * np.array([236, 214, 186])
    grain = np.random.default_rng(0).normal(0, 3, (side, side, 1))
    picture = Image.fromarray(np.clip(np.broadcast_to(sky, (side, side, 3)) + grain, 0, 255).astype(np.uint8))
    draw, unit = ImageDraw.Draw(picture), side / 100
    shapes = [
        ("ellipse", (68, 8, 86, 26), (255, 232, 150)),
        ("ellipse", (-40, 58, 80, 150), (94, 140, 74)),
        ("ellipse", (30, 66, 150, 160), (70, 112, 62)),
        ("rectangle", (28, 44, 52, 66), (214, 196, 170)),
        ("polygon", (24, 44, 40, 30, 56, 44), (158, 66, 54)),
        ("rectangle", (32, 50, 38, 56), (70, 84, 110)),
        ("rectangle", (43, 52, 48, 66), (108, 72, 50)),
        ("rectangle", (77, 60, 80, 76), (96, 66, 46)),
        ("ellipse", (68, 42, 89, 64), (46, 92, 52)),
    ]
    for shape, corners, colour in shapes:
        getattr(draw, shape)([unit * corner for corner in corners], fill=colour)
    return picture

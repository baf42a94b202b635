"""Draw the tokens of a moving digit for the docs: `python scripts/clip_pictures.py`.

A held-out digit of scikit-learn moves over a part of one of its photographs (danielbuechele and vultilion, CC BY 2.0)
that training did not show; the VideoMAE that ships with the package sees it. Writes docs/images/clip.png and clip.gif.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from hf_tome import MergeConfig
from hf_tome.demo import digits_scenes
from hf_tome.evaluation.data.digits import MODELS
from hf_tome.visualize import compare_pictures, compare_sheet, save_animation, trace_input
from hf_tome.visualize.inputs import load_model

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
CONFIGS = {"ToMe, r=56": MergeConfig(r=56), "MaMe, threshold 0.8": MergeConfig(method="mame", threshold=0.8)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODELS / "digits-videomae"), help="Folder of the VideoMAE.")
    parser.add_argument("--digit", type=int, default=8, help="Place among the held-out digits.")
    parser.add_argument("--direction", default="right", choices=digits_scenes.DIRECTIONS, help="Where it goes.")
    parser.add_argument("--out", type=Path, default=IMAGES, help="Folder of the pictures.")
    args = parser.parse_args()
    model, processor = load_model(args.model, "cpu")
    direction = list(digits_scenes.DIRECTIONS).index(args.direction)
    clip, _ = digits_scenes.make_clips(
        digits_scenes.load_material("test"),
        torch.tensor([args.digit]),
        torch.tensor([direction]),
        torch.Generator().manual_seed(0),
    )
    frames = digits_scenes.to_bytes(clip)[0]  # (T, H, W, 3)
    traced = [trace_input(model, processor, frames, config) for config in CONFIGS.values()]
    compare_sheet(traced, list(CONFIGS)).quantize(256, method=2).save(args.out / "clip.png", optimize=True)
    save_animation(compare_pictures(traced, list(CONFIGS)), args.out / "clip.gif")
    for name in ("clip.png", "clip.gif"):
        print(f"{name}: {(args.out / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

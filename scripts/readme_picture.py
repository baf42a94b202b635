"""Draw the README's picture: a photograph merged at two settings, with what DeiT-Tiny predicts of each.

python scripts/readme_picture.py --weights DEIT_TINY [--out docs/images/photograph.png]

`DEIT_TINY` is a folder with facebook/deit-tiny-patch16-224, or that id. The photograph, china.jpg, ships with
scikit-learn: by danielbuechele on Flickr, CC BY 2.0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_image

import hf_tome
from hf_tome import MergeConfig

OUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "photograph.png"
CONFIGS = (MergeConfig(r=8), MergeConfig(r=13))


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="folder or Hub id of DeiT-Tiny")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    hf_tome.show(options.weights, photograph, CONFIGS).save(options.out, optimize=True)
    print(f"wrote {options.out.name}, {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()

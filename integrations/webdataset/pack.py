"""Pack a folder of images into WebDataset shards, to try `label_shards.py` on your own photographs.

python integrations/webdataset/pack.py PHOTOGRAPHS shards/ --per-shard 250
"""

from __future__ import annotations

import argparse
import tarfile
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--per-shard", type=int, default=1000)
parser.add_argument("--extension", default="jpg", help="all samples of WebDataset shards have the same members")
args = parser.parse_args()

images = sorted(args.folder.rglob(f"*.{args.extension}"))
args.out.mkdir(parents=True, exist_ok=True)
for start in range(0, len(images), args.per_shard):
    with tarfile.open(args.out / f"{start // args.per_shard:05}.tar", "w") as shard:
        for image in images[start : start + args.per_shard]:
            shard.add(image, arcname=str(image.relative_to(args.folder)))
print(f"{len(images)} images -> {args.out}")

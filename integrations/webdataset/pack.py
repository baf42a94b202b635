"""Pack a folder of images into WebDataset shards, to try `label_shards.py` on your own photographs.

python integrations/webdataset/pack.py PHOTOGRAPHS shards/ --per-shard 250
"""

from __future__ import annotations

import argparse
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hf_tome.files import replacing

SAME = {"jpeg": "jpg", "tiff": "tif"}
"""Extensions that are another spelling of one."""


def extension(path: Path) -> str:
    """Return the extension of a file: lower case, and one spelling a type."""
    suffix = path.suffix.lower().lstrip(".")
    return SAME.get(suffix, suffix)


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder and its folders, without hidden ones."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def unique_keys(files: list[Path], folder: Path) -> list[str]:
    """Return the key of each sample: its path without the extension, and without dots, at which WebDataset cuts.

    What would have the same key (`a.jpg` and `a.JPG`, `a.b.jpg` and `a_b.jpg`) gets a number.
    """
    keys: dict[str, None] = {}
    for file in files:
        plain = file.relative_to(folder).with_suffix("").as_posix().replace(".", "_")
        key, number = plain, 1
        while key in keys:
            number += 1
            key = f"{plain}_{number}"
        keys[key] = None
    return list(keys)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--per-shard", type=int, default=1000)
    parser.add_argument("--extension", default="jpg", help="all samples of WebDataset shards have the same members")
    args = parser.parse_args(arguments)
    if args.per_shard < 1:
        raise SystemExit(f"--per-shard is {args.per_shard}; it takes an integer of at least 1.")
    if not args.folder.is_dir():
        raise SystemExit(f"{args.folder} is not a folder.")
    if any(args.out.glob("*.tar")):
        raise SystemExit(f"{args.out} holds shards already; give another folder, so that no sample is in two of them.")

    files = list(visible_files(args.folder))
    wanted = extension(Path(f"x.{args.extension.lstrip('.')}"))
    images = [file for file in files if extension(file) == wanted]
    others = Counter(file.suffix.lower() or "without extension" for file in files if extension(file) != wanted)
    left_out = f"; left out: {', '.join(f'{count} {name}' for name, count in others.most_common())}" if others else ""
    if not images:
        raise SystemExit(f"No .{wanted} files in {args.folder}{left_out}; choose with --extension.")
    args.out.mkdir(parents=True, exist_ok=True)
    samples = list(zip(unique_keys(images, args.folder), images))
    for start in range(0, len(samples), args.per_shard):
        shard_file = args.out / f"{start // args.per_shard:05}.tar"
        with replacing(shard_file) as unfinished, tarfile.open(unfinished, "w", dereference=True) as shard:
            for key, image in samples[start : start + args.per_shard]:
                shard.add(image, arcname=f"{key}.{wanted}")
    print(f"{len(images)} images -> {args.out}{left_out}")


if __name__ == "__main__":
    main()

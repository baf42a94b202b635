"""Run a merged model over WebDataset shards: labels or embeddings, one Parquet file a shard.

    python integrations/webdataset/label_shards.py 'shards/*.tar' --model MODEL --config r=13 --out labels/
    torchrun --nproc-per-node 4 integrations/webdataset/label_shards.py ...    # each process takes every fourth shard

The files lie in `--out` as the shards do below the fixed part of the pattern: `'shards/*/*.tar'` gives
`labels/day1/00000.parquet`. A shard whose Parquet file is there is done; the same command resumes a killed run.
Members that are no image are skipped, counted, and listed in `<shard>.skipped.jsonl` and in the summary.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

import hf_tome
from hf_tome.config import parse_config
from hf_tome.files import replacing, write_whole
from hf_tome.media.image import read_image

Columns = dict[str, list]
SHARD = b"hf_tome.shard"
"""The key in a Parquet file's metadata under which the fingerprint of its shard stands."""
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff")


def samples(shard: str) -> Iterator[tuple[str, bytes]]:
    """Stream the key and the undecoded image of each sample."""
    files = {"shard": glob.escape(shard)}  # brackets in the path of a shard are no pattern
    rows = datasets.load_dataset("webdataset", data_files=files, split="shard", streaming=True)
    column = next((name for name in rows.features if name.lower() in IMAGES), None)
    if column is None:
        raise ValueError(f"has no image; its members are {', '.join(rows.features)}")
    for row in rows.cast_column(column, datasets.Image(decode=False)):
        yield row["__key__"], row[column]["bytes"] if row[column] else b""  # samples may lack members


def batches(shard: str, size: int, skipped: list[dict]) -> Iterator[tuple[list[str], list[Image.Image]]]:
    """Yield keys and decoded images; what cannot be decoded goes to `skipped`."""
    keys, images = [], []
    for key, content in samples(shard):
        try:
            images.append(read_image(content))
            keys.append(key)
        except Exception as error:  # PIL raises a dozen kinds
            skipped.append({"key": key, "reason": f"{type(error).__name__}: {error}"})
        if len(keys) == size:
            yield keys, images
            keys, images = [], []
    if keys:
        yield keys, images


def classifier(args: argparse.Namespace) -> tuple[torch.nn.Module, Callable[[torch.Tensor], Columns]]:
    """Return a merged classifier, and what makes columns of its pixels: the likeliest label and its probability."""
    model = load(AutoModelForImageClassification, args)

    def run(pixels: torch.Tensor) -> Columns:
        best = model(pixel_values=pixels).logits.float().softmax(-1).max(-1)
        labels = [model.config.id2label[index] for index in best.indices.tolist()]
        return {"label": labels, "probability": best.values.tolist()}

    return model, run


def embedder(args: argparse.Namespace) -> tuple[torch.nn.Module, Callable[[torch.Tensor], Columns]]:
    """Return a merged encoder, and what makes embeddings of pixels: theirs of CLIP and SigLIP, else class tokens."""
    model = load(AutoModel, args)
    dual = hasattr(model, "get_image_features")
    if not dual and not hf_tome.report(model).towers[0].num_prefix_tokens:
        raise SystemExit(f"{type(model).__name__} has no class token to take for an embedding.")

    def run(pixels: torch.Tensor) -> Columns:
        out = model.get_image_features(pixel_values=pixels) if dual else model(pixel_values=pixels)
        embeddings = out.pooler_output if dual else out.last_hidden_state[:, 0]  # (B, C)
        return {"embedding": embeddings.float().cpu().tolist()}

    return model, run


def load(auto_class: type, args: argparse.Namespace) -> torch.nn.Module:
    model = auto_class.from_pretrained(args.model, dtype=args.dtype, trust_remote_code=False).to(args.device).eval()
    return hf_tome.apply(model, parse_config(args.config))


def find_shards(pattern: str) -> dict[str, str]:
    """Return the shards of a pattern by their paths, without the suffix, below its fixed part.

    The pattern may be the path of a single shard, with brackets in it. Two shards that would share an output stop the
    run.
    """
    parts = Path(pattern).parts
    fixed = Path(*takewhile(lambda part: not glob.has_magic(part), parts[:-1]))
    files = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
    root = Path(pattern).parent if files == [pattern] else fixed
    shards: dict[str, str] = {}
    for file in files:
        name = os.path.normpath(Path(file).relative_to(root).with_suffix(""))
        if name.startswith("..") or shards.setdefault(name, file) != file:
            raise SystemExit(f"{file} and {shards.get(name, root)} would be written to one file, {name}.parquet.")
    if not shards:
        raise SystemExit(f"No files match {pattern}.")
    return shards


def fingerprint(shard: str) -> str:
    """Return a few letters that differ between shards that differ, of their size and their first bytes."""
    with open(shard, "rb") as file:
        return hashlib.sha256(f"{os.path.getsize(shard)}:".encode() + file.read(1 << 16)).hexdigest()[:16]


def is_done(shard: str, target: Path) -> bool:
    """Tell whether a shard has its Parquet file; stop where that is of another shard of the same name."""
    if not target.is_file():
        return False
    try:
        written = (pq.read_schema(target).metadata or {}).get(SHARD, b"").decode()
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise SystemExit(f"{target} is no Parquet file ({error}); remove it, or give another --out.") from error
    if written != fingerprint(shard):
        raise SystemExit(f"{target} is of another shard than {shard}; give another --out.")
    return True


@torch.inference_mode()
def do_shard(shard: str, target: Path, args: argparse.Namespace, processor, model, run) -> tuple[int, list[dict]]:
    """Write the Parquet file of one shard; return its number of images, and those that were skipped."""
    columns: Columns = {}
    skipped: list[dict] = []
    for keys, images in batches(shard, args.batch_size, skipped):
        pixels = processor(images, return_tensors="pt")["pixel_values"].to(args.device, model.dtype)
        for name, values in {"key": keys, **run(pixels)}.items():
            columns.setdefault(name, []).extend(values)
    target.parent.mkdir(parents=True, exist_ok=True)
    if skipped:
        write_whole(
            Path(f"{target.with_suffix('')}.skipped.jsonl"), "".join(json.dumps(record) + "\n" for record in skipped)
        )
    table = pa.table(columns or {"key": pa.array([], pa.string())})
    with replacing(target) as unfinished:  # whole or not at all
        pq.write_table(table.replace_schema_metadata({SHARD: fingerprint(shard)}), unfinished)
    return len(columns.get("key", ())), skipped


def check_run(args: argparse.Namespace) -> None:
    """Write what this run is, or stop where the folder holds the results of another."""
    run = {"model": args.model, "config": args.config, "what": args.what, "dtype": args.dtype}
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "run.json"
    text = json.dumps(run)
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{file} is of another run, {file.read_text(encoding='utf-8')!r}; give another --out.")
    write_whole(file, text)


def main(arguments: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="a pattern of tar files, in quotes")
    parser.add_argument("--model", required=True, help="Hub id or folder")
    parser.add_argument("--config", default="r=13", help="what to merge; r=0 is the unmerged model")
    parser.add_argument("--what", choices=["labels", "embeddings"], default="labels")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(arguments)
    shards = find_shards(args.shards)
    check_run(args)
    mine = list(shards.items())[int(os.environ.get("RANK", 0)) :: int(os.environ.get("WORLD_SIZE", 1))]
    targets = {shard: args.out / f"{name}.parquet" for name, shard in mine}
    todo = [shard for shard, target in targets.items() if not is_done(shard, target)]
    model, run = classifier(args) if args.what == "labels" else embedder(args)
    processor = AutoImageProcessor.from_pretrained(args.model, trust_remote_code=False)

    begun, images, skipped, failed = (time.perf_counter(), time.process_time()), 0, [], []
    for shard in todo:
        name = targets[shard].relative_to(args.out).with_suffix(Path(shard).suffix).as_posix()
        try:
            count, unread = do_shard(shard, targets[shard], args, processor, model, run)
            images, skipped = images + count, skipped + [{"shard": name, **record} for record in unread]
        except (OSError, ValueError, EOFError, tarfile.TarError) as error:  # no tar, or cut short
            failed.append({"shard": name, "reason": f"{type(error).__name__}: {error}"})
        print(f"{shard}: {images} images, {len(skipped)} skipped so far", file=sys.stderr)
    seconds, processor_seconds = time.perf_counter() - begun[0], time.process_time() - begun[1]
    return {
        "shards": len(mine), "done_before": len(mine) - len(todo), "images": images, "skipped": skipped,
        "failed": failed, "images_per_second": round(images / seconds, 1),
        "images_per_processor_second": round(images / processor_seconds, 1),
    }  # fmt: skip


if __name__ == "__main__":
    summary = main()
    print(json.dumps(summary))
    sys.exit(1 if summary["failed"] else 0)

"""Ask a running app.py with several clients at once, and tell how fast it answers.

python integrations/serve/load.py PHOTOGRAPHS --url http://127.0.0.1:8000 --requests 500 --clients 16
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path

import httpx

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("--url", default="http://127.0.0.1:8000")
parser.add_argument("--requests", type=int, default=500)
parser.add_argument("--clients", type=int, default=16)
args = parser.parse_args()


async def main() -> dict[str, object]:
    images = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    todo = iter([images[index % len(images)] for index in range(args.requests)])
    seconds: list[float] = []

    async with httpx.AsyncClient(base_url=args.url, timeout=120) as http:

        async def client() -> None:
            for path in todo:
                begun = time.perf_counter()
                answer = await http.post("/classify", files={"image": (path.name, path.read_bytes())})
                answer.raise_for_status()
                seconds.append(time.perf_counter() - begun)

        before = (await http.get("/health")).json()
        begun = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(args.clients)))
        total = time.perf_counter() - begun
        after = (await http.get("/health")).json()

    images_done, batches = after["images"] - before["images"], after["batches"] - before["batches"]
    busy = after["processor_seconds"] - before["processor_seconds"]
    seconds.sort()
    return {
        "config": after["config"],
        "requests_per_second": round(len(seconds) / total, 1),
        "median_ms": round(1000 * seconds[len(seconds) // 2]),
        "p95_ms": round(1000 * seconds[int(len(seconds) * 0.95)]),
        "images_per_batch": round(images_done / batches, 1),
        "model_processor_ms_per_image": round(1000 * busy / images_done, 1),
    }


print(json.dumps(asyncio.run(main())))

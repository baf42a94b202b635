"""Serve a merged image classifier over HTTP; requests that come together run as one batch.

    python integrations/serve/app.py --model facebook/deit-base-patch16-224 --config r=13 --port 8000
    curl -F image=@photo.jpg 'http://localhost:8000/classify?top=5'

Each option may stand in the environment instead: HF_TOME_MODEL, HF_TOME_CONFIG, HF_TOME_MAX_BATCH, ...
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator

from admission import Admission, timed_protocol
from batching import BadImage, Batcher, Classifier, Settings
from fastapi import FastAPI, HTTPException, Query, UploadFile


def create_app(settings: Settings) -> FastAPI:
    """Return the application; the model is loaded when it starts."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.classifier = await asyncio.to_thread(Classifier, settings)
        app.state.batcher = Batcher(app.state.classifier, settings)
        app.state.decoding = asyncio.Semaphore(settings.max_decoding)
        task = asyncio.create_task(app.state.batcher.run())
        yield
        task.cancel()

    app = FastAPI(title="hf_tome", lifespan=lifespan)
    app.add_middleware(Admission, settings=settings)

    @app.get("/health")
    def health() -> dict[str, object]:
        served = app.state.classifier
        counts = {"images": served.images, "batches": served.batches, "processor_seconds": served.processor_seconds}
        return {"status": "ok", "model": settings.model, "config": served.config, **counts}

    @app.post("/classify")
    async def classify(image: UploadFile, top: int = Query(5, ge=1)) -> dict[str, object]:
        name = image.filename or "The upload"
        if image.size is None or image.size > settings.max_bytes:
            raise HTTPException(413, f"{name} is larger than {settings.max_bytes} bytes.")
        try:
            async with app.state.decoding:
                pixels = await asyncio.to_thread(app.state.classifier.prepare, await image.read())
            probabilities = await app.state.batcher.submit(pixels)
        except BadImage as error:
            raise HTTPException(error.status, f"{name}: {error}") from error
        except asyncio.QueueFull as error:
            raise HTTPException(503, "Too many requests are waiting; try again later.") from error
        best = probabilities.topk(min(top, len(probabilities)))
        names = app.state.classifier.model.config.id2label
        ranked = zip(best.values.tolist(), best.indices.tolist())
        return {"labels": [{"label": names[index], "score": score} for score, index in ranked]}

    return app


def read_settings(arguments: list[str] | None = None) -> tuple[Settings, argparse.Namespace]:
    """Read the settings from the command line, the environment, and the defaults, in this order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Settings):
        fallback = None if field.default is dataclasses.MISSING else field.default
        value = os.environ.get(f"HF_TOME_{field.name.upper()}", fallback)
        option, kind = f"--{field.name.replace('_', '-')}", str if fallback is None else type(fallback)
        parser.add_argument(option, type=kind, default=value, required=value is None, help=f"default {fallback}")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args(arguments)
    return Settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)}), args


if __name__ == "__main__":
    import uvicorn

    settings, address = read_settings()
    uvicorn.run(
        create_app(settings),
        host=address.host,
        port=address.port,
        http=timed_protocol(settings.head_seconds),
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )

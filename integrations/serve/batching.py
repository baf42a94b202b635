"""A merged classifier, and a queue that puts the images of concurrent requests into batches."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

import hf_tome
from hf_tome.config import format_config, parse_config
from hf_tome.hub.save_load import find_merge_config
from hf_tome.media.image import read_image
from hf_tome.media.limits import MediaLimitError, parse_limits

RESIZED_PIXELS = 4_000_000
"""Most pixels after resizing, when several copies of them are held, one of them in float32."""


class BadImage(ValueError):
    """An upload that cannot be classified; `status` is the HTTP status that says so."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is served, and how."""

    model: str  # Hub id or folder
    config: str = "saved"  # what to merge, as in r=13; "saved" takes the model's merge_config.json; r=0 merges nothing
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    dtype: str = "float32"
    max_batch: int = 16  # images in one batch
    max_wait_ms: float = 5.0  # how long the first request of a batch waits for others
    max_queue: int = 256  # requests admitted at once, uploads included; more are turned away with status 503
    max_bytes: int = 20_000_000  # size of an upload; larger ones get status 413
    max_decoding: int = 2  # images decoded at once, each in at most 300 MB
    media_limits: str = ""  # other limits than the usual, as in image_pixels=50000000 (see hf_tome.media.limits)
    head_seconds: float = 10.0  # time for the head of a request, from when its connection is idle; then it is closed
    upload_seconds: float = 30.0  # time for an upload; slower ones get status 408
    shutdown_seconds: int = 10  # time for open requests after SIGTERM


class Classifier:
    """A merged model that classifies batches of images."""

    def __init__(self, settings: Settings):
        chosen = find_merge_config(settings.model) if settings.config == "saved" else parse_config(settings.config)
        if chosen is None:
            raise ValueError(f"{settings.model} was saved without a merge config; give one, as in --config r=13.")
        model = AutoModelForImageClassification.from_pretrained(
            settings.model, dtype=settings.dtype, trust_remote_code=False
        )
        self.model = hf_tome.apply(model.to(settings.device).eval(), chosen)
        self.processor = AutoImageProcessor.from_pretrained(settings.model, trust_remote_code=False)
        self.config = format_config(chosen)
        self.limits = dataclasses.replace(parse_limits(settings.media_limits), file_bytes=settings.max_bytes)
        self.images = self.batches = 0
        self.processor_seconds = 0.0

    def prepare(self, content: bytes) -> torch.Tensor:
        """Decode and preprocess one upload to (C, H, W); done before batching, so that a bad one spoils no batch."""
        try:
            pixels = np.asarray(read_image(content, self.limits))  # (H, W, 3), the image itself is freed
            self._check_resized(*pixels.shape[:2])
            inputs = self.processor(pixels, input_data_format="channels_last", return_tensors="pt")
            return inputs["pixel_values"][0]
        except MediaLimitError as error:
            raise BadImage(413, str(error)) from error
        except ValueError as error:  # written for the reader
            raise BadImage(400, " ".join(str(error).split())) from error
        except Exception as error:  # a processor is free to raise anything
            raise BadImage(400, f"Cannot process it: {type(error).__name__}.") from error

    def _check_resized(self, height: int, width: int) -> None:
        """Refuse an image that a processor which resizes the shorter side would make too large."""
        size = getattr(self.processor, "size", None)
        shorter = size["shortest_edge"] if size is not None and "shortest_edge" in size else None
        pixels = shorter * shorter * max(height, width) // min(height, width) if shorter else 0
        if pixels > RESIZED_PIXELS:
            raise MediaLimitError(
                f"An image of {width} x {height} pixels has {pixels} once it is resized, above {RESIZED_PIXELS}."
            )

    @torch.inference_mode()
    def __call__(self, pixels: list[torch.Tensor]) -> torch.Tensor:
        """Return probabilities (B, classes) of prepared images."""
        begun = time.thread_time()
        batch = torch.stack(pixels).to(self.model.device, self.model.dtype)
        probabilities = self.model(pixel_values=batch).logits.float().softmax(-1).cpu()
        self.images, self.batches = self.images + len(pixels), self.batches + 1
        self.processor_seconds += time.thread_time() - begun
        return probabilities


class Batcher:
    """Runs what waits in the queue in batches of equal shapes, one at a time."""

    def __init__(self, classify: Classifier, settings: Settings):
        self.classify, self.settings = classify, settings
        self.queue: asyncio.Queue = asyncio.Queue(settings.max_queue)

    async def submit(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of one image. Raises `asyncio.QueueFull` where too many wait."""
        answer = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((pixels, answer))
        return await answer

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            requests = sorted(await self._collect(), key=_shape)
            for _, group in itertools.groupby(requests, key=_shape):
                await self._answer(list(group))

    async def _answer(self, requests: list) -> None:
        """Answer requests of one shape together; where that fails each alone, so that one cannot fail the others."""
        try:
            results = list(await asyncio.to_thread(self.classify, [pixels for pixels, _ in requests]))
        except Exception as error:
            if len(requests) > 1:
                for request in requests:
                    await self._answer([request])
                return
            results = [error]
        for (_, answer), result in zip(requests, results):
            if answer.done():  # its client went away
                continue
            answer.set_exception(result) if isinstance(result, Exception) else answer.set_result(result)

    async def _collect(self) -> list:
        batch = [await self.queue.get()]
        end = time.monotonic() + self.settings.max_wait_ms / 1000
        while len(batch) < self.settings.max_batch:
            if self.queue.empty() and time.monotonic() >= end:
                break
            try:
                wait = max(0.001, end - time.monotonic())  # wait_for takes nothing from the queue in no time
                batch.append(await asyncio.wait_for(self.queue.get(), wait))
            except TimeoutError:
                break
        return batch


def _shape(request: tuple) -> tuple[int, ...]:
    return tuple(request[0].shape)

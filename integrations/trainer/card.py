"""The model card of a run, from what was measured before, during and after it."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import ModelCardData

from hf_tome.evaluation.environment import describe_environment
from hf_tome.files import write_whole
from hf_tome.hub.sources import public_name

CARD = """\
---
{metadata}
---

# {model} trained with token merging

{summary} Tokens merge by `hf_tome` as `{config}`.

```python
import hf_tome

model = hf_tome.from_pretrained("PATH_OR_ID_OF_THIS_REPOSITORY")  # merges as it was trained
```

Plain `from_pretrained` of transformers loads the same weights unmerged.

## Measured

| weights | merging | held-out accuracy, % |
|---|---|---:|
{rows}

{samples} held-out samples of {data}, one seed, so that a difference of a few samples means nothing. Trained for
{epochs:g} epochs on {trained} samples, batches of {batch_size}, learning rate {learning_rate:g}{lora}; the weights are
those of the best epoch. {speed}{environment}, {date}.
"""


class StepTimer(transformers.TrainerCallback):
    """Keeps the processor time of each step, which neighbours on a shared machine do not lengthen, and the clock's."""

    def __init__(self) -> None:
        self.processor: list[float] = []
        self.clock: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to measure."""
        self._begun = time.process_time(), time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep what the step took."""
        self.processor.append(time.process_time() - self._begun[0])
        self.clock.append(time.perf_counter() - self._begun[1])

    def medians(self) -> dict[str, float]:
        """Return the medians in seconds; nothing where no step was taken."""
        if not self.clock:
            return {}
        return {
            "processor_seconds_per_step": round(statistics.median(self.processor), 4),
            "seconds_per_step": round(statistics.median(self.clock), 4),
        }


def write_card(folder: Path, settings: Mapping[str, Any], result: Mapping[str, Any], summary: str) -> Path:
    """Write `README.md` into the folder of a run, and return its path."""
    environment = describe_environment("cpu")
    versions = environment["packages"]
    rows = [
        f"| {weights} | {merging} | {100 * result[key]:.1f} |"
        for key, weights, merging in (
            ("accuracy_before_unmerged", "before training", "none"),
            ("accuracy_before", "before training", f"`{result['merged']}`"),
            ("accuracy_unmerged", "trained", "none"),
            ("accuracy", "trained", f"`{result['merged']}`"),
        )
        if key in result
    ]
    speed = result.get("seconds_per_step")
    text = CARD.format(
        metadata=ModelCardData(library_name="hf_tome", tags=["token-merging", settings["recipe"]]).to_yaml(),
        model=public_name(settings["model"]),
        summary=summary,
        config=result["merged"],
        rows="\n".join(rows),
        samples=result["held_out_samples"],
        data=public_name(settings["data"]),
        epochs=settings["epochs"],
        trained=result["train_samples"],
        batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        lora=", LoRA" if settings["lora"] else "",
        speed="" if speed is None else f"A step took {speed:.3g} s (median, {environment['device_name']}). ",
        environment=f"torch {versions['torch']}, transformers {versions['transformers']}",
        date=datetime.date.today().isoformat(),
    )
    path = folder / "README.md"
    write_whole(path, text)
    return path

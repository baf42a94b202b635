"""The model cards of the demo's models: what the training scripts say, and what is measured here."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from training import SEED

from hf_tome.config import parse_config
from hf_tome.demo import digits_scenes
from hf_tome.demo.digits_demo import DEMOS
from hf_tome.evaluation.data.digits import load_digits
from hf_tome.evaluation.reporting.tables import unit
from hf_tome.evaluation.running.runner import evaluate

TEMPLATE = Path(__file__).with_name("demo_model_card.md")
MEASURES = {
    "accuracy": ("accuracy", "accuracy", "right"),
    "top1": ("accuracy", "accuracy", "right"),
    "miou": ("mIoU", "mean_iou", "mIoU"),
}
"""What a card calls the measure of a row: in words, on the Hub, and in the table."""
ALL = 10**6
"""More samples than there are held-out digits."""


@dataclass(frozen=True)
class Card:
    """What a model's card says that is not measured.

    Attributes:
        demo: the row of `digits_demo.DEMOS` that the model is for.
        pipeline: the pipeline that takes it.
        tokens: how many, in words.
        summary: what the model sees and says.
        training: how it was trained.
        merging: what the table of merged accuracy shows.
        command: the script with its arguments.
    """

    demo: str
    pipeline: str
    tokens: str
    summary: str
    training: str
    merging: str
    command: str


def write_card(card: Card, models: Path, minutes: float) -> None:
    """Measure a saved model on all held-out digits, and write its model card."""
    demo = DEMOS[card.demo]
    with TemporaryDirectory() as place:
        job = demo.job(Path(place), ALL, models=models)
        results = evaluate(job, [parse_config(text) for text in demo.configs], batch_size=32)
    measure = next(name for name in MEASURES if name in results.rows[0])
    config, unmerged = job.model.config, results.rows[0]
    vision = getattr(config, "vision_config", None) or getattr(config, "backbone_config", None) or config
    filled = TEMPLATE.read_text().format(
        **vars(card),
        name=demo.model,
        task=demo.task,
        data=demo.data,
        model_type=config.model_type,
        architecture=type(job.model).__name__,
        shape=f"{vision.num_hidden_layers} blocks of width {vision.hidden_size}, {card.tokens}",
        parameters=job.model.num_parameters(),
        train=len(load_digits("train")),
        test=len(load_digits("test")),
        photograph=digits_scenes.TRAIN_SHARE,
        seed=SEED,
        minutes=minutes,
        threads=torch.get_num_threads(),
        share=unmerged[measure] / 100,
        accuracy=unmerged[measure],
        count=f"{results.data['num_samples']} {unit(results)}",
        measure=MEASURES[measure][0],
        metric=MEASURES[measure][1],
        table=_table(results.rows, measure),
    )
    (models / demo.model / "README.md").write_text(filled)
    print(f"{unmerged[measure]:.2f}% -> {models / demo.model}\n{_table(results.rows, measure)}")


def _table(rows: list[dict[str, Any]], measure: str) -> str:
    lines = [f"| config | {MEASURES[measure][2]} % | same as unmerged % | tokens left |", "|---|---:|---:|---:|"]
    lines += [f"| {row['name']} | {row[measure]:.1f} | {row['agreement']:.1f} | {row['tokens']:.0f} |" for row in rows]
    return "\n".join(lines) + "\n"

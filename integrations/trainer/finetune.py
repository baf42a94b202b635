"""Fine-tune an image classifier with transformers' Trainer while its tokens are merged.

    python integrations/trainer/finetune.py --config r=24 --epochs 3 --out digits-merged
    python integrations/trainer/finetune.py --model facebook/deit-small-patch16-224 --data IMAGE_FOLDER --config r=13

The only lines that merging adds are `hf_tome.apply` before the Trainer and `hf_tome.save_pretrained` after it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import datasets
import numpy as np
import torch
import transformers
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments

import hf_tome
from hf_tome.config import parse_config
from hf_tome.config.text import is_unmerged
from hf_tome.evaluation.data.digits import MODEL_DIR, load_digits


class StepTimer(transformers.TrainerCallback):
    """Keeps the processor time of each step, which neighbours on a shared machine do not lengthen, and the clock's."""

    def __init__(self):
        self.processor, self.clock = [], []

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun = time.process_time(), time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.processor.append(time.process_time() - self.begun[0])
        self.clock.append(time.perf_counter() - self.begun[1])

    def medians(self) -> dict[str, float]:
        return {
            "processor_seconds_per_step": round(statistics.median(self.processor), 4),
            "seconds_per_step": round(statistics.median(self.clock), 4),
        }


def open_data(source: str, limit: int | None) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Return a train and a held-out split with the columns `image` and `label`, of digits, a folder or a Hub id."""
    if source == "digits":
        train, held_out = load_digits("train"), load_digits("test")
    else:
        splits = datasets.load_dataset(source)
        name = next((name for name in ("validation", "test") if name in splits), None)
        if name is None or "train" not in splits:
            raise SystemExit(f"{source} has the splits {', '.join(splits)}; needs train, and validation or test.")
        train, held_out = splits["train"], splits[name]
    missing = {"image", "label"} - set(train.column_names)
    if missing:
        raise SystemExit(f"{source} has the columns {', '.join(train.column_names)}; needs image and label.")
    for rows in (train, held_out):
        if not isinstance(rows.features["label"], datasets.ClassLabel):
            raise SystemExit(f"The labels of {source} have no names; cast the column to ClassLabel.")
    if limit:
        train, held_out = (rows.shuffle(seed=0).select(range(min(limit, len(rows)))) for rows in (train, held_out))
    return train, held_out


def load_model(name: str, names: list[str], from_scratch: bool) -> transformers.PreTrainedModel:
    """Load a model with a class for each name: its own head where it has those classes, else a new one."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    if from_scratch:
        return AutoModelForImageClassification.from_config(
            transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **labels)
        )
    return AutoModelForImageClassification.from_pretrained(
        name, ignore_mismatched_sizes=True, trust_remote_code=False, **labels
    )


def count_correct(prediction: transformers.EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def build_trainer(args: argparse.Namespace) -> tuple[Trainer, StepTimer]:
    transformers.set_seed(args.seed)
    train, held_out = open_data(args.data, args.limit)
    processor = AutoImageProcessor.from_pretrained(args.model, trust_remote_code=False)
    model = load_model(args.model, train.features["label"].names, args.from_scratch)

    def preprocess(rows: dict[str, list]) -> dict[str, object]:
        pixels = processor([image.convert("RGB") for image in rows["image"]], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": rows["label"]}

    merge_config = parse_config(args.config)
    if not is_unmerged(merge_config):
        hf_tome.apply(model, merge_config)  # before the Trainer, which may wrap the model

    timer = StepTimer()
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=args.out,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            warmup_steps=0.1,  # of all steps
            weight_decay=0.05,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="epoch",
            report_to="none",
            remove_unused_columns=False,  # `preprocess` needs the images
            activation_checkpointing=args.activation_checkpointing,
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=args.seed,
            disable_tqdm=True,
        ),
        train_dataset=train.with_transform(preprocess),
        eval_dataset=held_out.with_transform(preprocess),
        processing_class=processor,
        compute_metrics=count_correct,
        callbacks=[timer],
    )
    trainer.remove_callback(transformers.PrinterCallback)  # standard output is for the result
    return trainer, timer


def main(arguments: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL_DIR), help="Hub id or folder; by default the digits model")
    parser.add_argument("--data", default="digits", help="digits, or a Hub id or image folder with two splits")
    parser.add_argument("--config", default="r=16", help="what to merge, as in r=16; r=0 is the unmerged model")
    parser.add_argument("--from-scratch", action="store_true", help="random weights instead of the model's")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--limit", type=int, help="as many images of each split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="finetuned")
    args = parser.parse_args(arguments)

    trainer, timer = build_trainer(args)
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]
    if is_unmerged(parse_config(args.config)):
        trainer.save_model(args.out)
    else:
        hf_tome.save_pretrained(trainer.model, args.out)  # with merge_config.json, for hf_tome.from_pretrained
        trainer.processing_class.save_pretrained(args.out)
    result = {"config": args.config, "accuracy_before": before, "accuracy_after": after, **timer.medians()}
    return {**result, "epochs": args.epochs, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    json.dump(main(), sys.stdout)
    print()

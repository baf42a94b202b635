"""Train an image or video classifier with transformers' Trainer while its tokens merge: one recipe, one command.

    python integrations/trainer/train.py tome-finetune --out digits-merged
    python integrations/trainer/train.py mame-scratch --model facebook/deit-tiny-patch16-224 --data FOLDER --out mine

A run that was cut off goes on with `--resume` and the same options. The last line on standard output is one JSON
object with what was measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from card import StepTimer, write_card
from data import Samples, Split, collate, open_data, reader
from distil import DistillationTrainer
from models import has_classes, load_model, make_teacher, train_last_block_alone, with_lora
from recipes import RECIPES, Recipe
from run_folder import check_folder, read_before, write_settings
from transformers import AutoImageProcessor, Trainer, TrainingArguments

import hf_tome
from hf_tome.config.text import format_config, is_unmerged


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options, the recipe's own where they were left out."""
    recipes = "\n".join(f"  {name:18} {recipe.summary}" for name, recipe in RECIPES.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nRecipes:\n{recipes}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=RECIPES, metavar="RECIPE")
    parser.add_argument("--out", required=True, help="folder of the run: checkpoints, the best model, its card")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--model", help="Hub id or folder; by default a small one that comes with the package")
    parser.add_argument("--data", help="Hub id, or folder with train/<class>/ and validation/<class>/ (or test/)")
    parser.add_argument("--config", help="what merges, as in r=8, instead of the recipe's; r=0 is the unmerged model")
    parser.add_argument("--unmerged-epochs", type=float, default=0, help="merge from this epoch on alone")
    parser.add_argument("--evaluate-unmerged", action="store_true", help="choose the best epoch without merging")
    parser.add_argument("--lora", action="store_true", help="train adapters (peft) instead of the weights")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--feature-weight", type=float, default=1.0, help="of the features in distillation")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--limit", type=int, help="as many samples of each split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(arguments)
    recipe = RECIPES[options.recipe]
    for name in ("model", "data", "learning_rate"):
        if getattr(options, name) is None:
            setattr(options, name, getattr(recipe, name))
    return options


def build_model(options: argparse.Namespace, recipe: Recipe, names: tuple[str, ...]) -> tuple[Any, Any]:
    """Return the model to train, and its teacher or `None`.

    Raises:
        ValueError: the options exclude each other, or do not fit the model.
    """
    if options.lora and (recipe.from_scratch or recipe.last_block):
        raise ValueError(f"--lora trains adapters beside pretrained weights, which {options.recipe} does not.")
    if recipe.distils and not has_classes(options.model, names):
        raise ValueError(
            f"{options.model} does not tell the classes of {options.data} apart, so it has nothing to teach. "
            "Fine-tune it unmerged first (`tome-finetune --config r=0`), and distil from what that writes."
        )
    transformers.set_seed(options.seed)
    model = load_model(options.model, recipe.kind, names, recipe.from_scratch)
    teacher = make_teacher(model) if recipe.distils else None
    if recipe.last_block:
        train_last_block_alone(model)
    return with_lora(model) if options.lora else model, teacher


def build_trainer(options: argparse.Namespace, splits: tuple[Split, Split]) -> tuple[Trainer, StepTimer]:
    """Return the Trainer, whose callback merges, and the timer of its steps."""
    recipe = RECIPES[options.recipe]
    model, teacher = build_model(options, recipe, splits[0].names)
    processor = AutoImageProcessor.from_pretrained(options.model, trust_remote_code=False)
    read = reader(recipe.kind, processor, model.config)
    config = recipe.merge_config(options.config, model.config)
    merging = hf_tome.MergeCallback(
        config,
        schedule={0: None, options.unmerged_epochs: {}} if options.unmerged_epochs else None,
        eval_config=hf_tome.MergeConfig() if options.evaluate_unmerged else None,
    )
    timer = StepTimer()
    cls, extra = Trainer, {}
    if teacher is not None:
        cls, extra = DistillationTrainer, {"teacher": teacher, "feature_weight": options.feature_weight}
    trainer = cls(
        model,
        TrainingArguments(
            output_dir=options.out,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            warmup_steps=0.1,  # of all steps
            weight_decay=0.05,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            logging_strategy="epoch",
            report_to="none",
            remove_unused_columns=False,
            label_names=["labels"],
            activation_checkpointing=options.activation_checkpointing,
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=options.seed,
            disable_tqdm=options.quiet,
        ),
        data_collator=collate,
        train_dataset=Samples(splits[0], read),
        eval_dataset=Samples(splits[1], read),
        processing_class=processor,
        compute_metrics=accuracy,
        callbacks=[timer, merging],
        **extra,
    )
    trainer.remove_callback(transformers.PrinterCallback)  # standard output is for the result
    return trainer, timer


def accuracy(prediction: transformers.EvalPrediction) -> dict[str, float]:
    """Return the share of samples that are told right."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def evaluate(trainer: Trainer, suffix: str = "") -> dict[str, float]:
    """Return the accuracy of the model as it merges and, where it does, unmerged."""
    key = f"accuracy{suffix}"
    measured = {key: trainer.evaluate()["eval_accuracy"]}
    if hf_tome.is_merged(trainer.model):
        with hf_tome.merged(trainer.model, hf_tome.MergeConfig()):
            measured[f"{key}_unmerged"] = trainer.evaluate()["eval_accuracy"]
    return measured


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Run a recipe, and return what was measured."""
    recipe, folder = RECIPES[options.recipe], Path(options.out)
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "resume", "quiet")}
    checkpoint = check_folder(folder, settings, options.resume)
    train_split, held_out = (split.first(options.limit) for split in open_data(options.data, recipe.kind))
    trainer, timer = build_trainer(options, (train_split, held_out))
    if not options.resume:
        is_ready = not recipe.from_scratch and has_classes(options.model, train_split.names)
        write_settings(folder, settings, evaluate(trainer, "_before") if is_ready else {})
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(options.out)
    if options.lora:
        hf_tome.patching.unwrap.unwrap(trainer.model).config.save_pretrained(folder)
    config = hf_tome.get_config(trainer.model) or hf_tome.MergeConfig()
    result = {
        "recipe": options.recipe,
        "merged": "unmerged" if is_unmerged(config) else format_config(config),
        **read_before(folder),
        **evaluate(trainer),
        "train_samples": len(train_split.labels),
        "held_out_samples": len(held_out.labels),
        "epochs": options.epochs,
        **timer.medians(),
        "threads": torch.get_num_threads(),
    }
    write_card(folder, settings, result, recipe.summary)
    return result


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run a recipe; what is wrong with the options, the data or the folder ends it with one line."""
    options = parse(arguments)
    try:
        return train(options)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error


if __name__ == "__main__":
    json.dump(main(), sys.stdout)
    print()

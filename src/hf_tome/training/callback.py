"""`MergeCallback`: merging in transformers' `Trainer`, whose checkpoints carry the config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.utils import SAFE_WEIGHTS_NAME

from ..api import apply, check_config, get_config, plan_targets, remove
from ..config import MergeConfig
from ..config.json_file import CONFIG_NAME
from ..config.text import format_config, is_unmerged
from ..hub.save_load import CONFIG_KEY
from ..hub.sources import ADAPTER_CONFIG_NAME
from ..patching.unwrap import unwrap
from .schedule import MergeSchedule
from .settings import describe_changes

ROUNDING = 1e-9  # epochs are sums of fractions


class MergeCallback(TrainerCallback, ExportableState):
    """Merge tokens while `transformers.Trainer` trains, and write the merge config into every checkpoint.

    The config travels in two places: as the key `merge_config` of the model's config, so that whatever saves the
    model saves it (`Trainer.save_model`, `push_to_hub`), and as `merge_config.json` in each checkpoint and, after
    training, in the output folder. `hf_tome.from_pretrained(folder)` of any of these merges as the model was trained.

    Args:
        config (`MergeConfig`): what to merge.
        schedule (`MergeSchedule` or `dict`, *optional*): what merges when; `{0: None, 2: {"r": 4}, 4: {}}` merges
            nothing for two epochs, 4 tokens a block for two more, then what `config` says.
        eval_config (`MergeConfig`, *optional*): what merges in the evaluations during training; `MergeConfig()` is
            nothing. By default the same as in training at that time. (`Trainer` announces no evaluation that is called
            by hand, so `trainer.evaluate()` takes the model as it is: see `hf_tome.merged`.)

    Raises:
        TypeError, ValueError: see `MergeSchedule` and `MergeConfig`. What does not fit the model is said when the
            `Trainer` is made, and what does not fit the run before its first step.
    """

    def __init__(
        self,
        config: MergeConfig | Mapping[str, Any],
        schedule: MergeSchedule | Mapping[Any, Any] | None = None,
        eval_config: MergeConfig | Mapping[str, Any] | None = None,
    ):
        self.config = _config_from(config, "config")
        self.schedule = None if schedule is None else MergeSchedule.from_value(schedule)
        self.eval_config = None if eval_config is None else _config_from(eval_config, "eval_config")
        self._stages = ((0.0, self.config),) if self.schedule is None else self.schedule.configs(self.config)

    def state(self) -> dict[str, Any]:
        """Return the settings, which `Trainer` keeps in a checkpoint's `trainer_state.json`."""
        settings = {
            "config": self.config.to_dict(),
            "schedule": None if self.schedule is None else self.schedule.to_dict(),
            "eval_config": None if self.eval_config is None else self.eval_config.to_dict(),
        }
        return {"args": settings, "attributes": {}}

    def config_at(self, epoch: float, step: int) -> MergeConfig:
        """Return what merges in training after so many epochs and optimizer steps."""
        by_step = self.schedule is not None and self.schedule.unit == "step"
        progress = float(step if by_step else epoch) + ROUNDING
        return [config for start, config in self._stages if start <= progress][-1]

    # What the Trainer calls

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Check every stage against the model, and merge as the first one does, before anything wraps the model."""
        if model is not None:
            self._check_model(model)
            _merge(model, self.config_at(0, 0))

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Check the run, and merge as it did where a checkpoint is resumed."""
        self._check_run(state)
        self._check_resumed(state)
        self._check_model(model)
        _merge(model, self.config_at(state.epoch or 0, state.global_step))

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Merge as this step's stage does."""
        _merge(model, self.config_at(state.epoch or 0, state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Merge as evaluation does where it comes next."""
        if self.eval_config is not None and control.should_evaluate:
            _merge(model, self.eval_config, travels=False)

    on_epoch_end = on_step_end

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Merge as the model was trained again, so that a checkpoint says so."""
        if self.eval_config is not None and get_config(model) != self._trained_with(model):
            _merge(model, self._trained_with(model))

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Write `merge_config.json` into the checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.should_save and folder.is_dir():  # a hyperparameter search has folders of its own
            self._trained_with(model).save_pretrained(folder)
            _complete_checkpoint(model, folder)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Merge as the weights were trained, which may be the best checkpoint's, and write that down."""
        config = self._trained_with(model)
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if best is not None and (Path(best) / CONFIG_NAME).is_file():
            config = MergeConfig.from_pretrained(best)
        _merge(model, config)
        if args.should_save:
            config.save_pretrained(args.output_dir)

    # What it checks

    def _trained_with(self, model: Any) -> MergeConfig:
        values = getattr(unwrap(model).config, CONFIG_KEY, None)
        return self.config_at(0, 0) if values is None else MergeConfig.from_dict(values)

    def _check_model(self, model: Any) -> None:
        for start, config in self._stages:
            if is_unmerged(config):
                continue
            targets = plan_targets(model, config)
            for target in targets if self.schedule is not None else ():
                self._check_tokens(config, start, target.plan.shape(target.module))
        if self.eval_config is not None:
            plan_targets(model, self.eval_config)

    def _check_tokens(self, config: MergeConfig, start: float, shape: Any) -> None:
        """Raise a `ValueError` where a stage merges more tokens than there are, of a tower of that shape."""
        if shape is None or self.schedule is None:
            return
        asked, mergeable = sum(config.schedule(shape.num_layers)), shape.num_tokens - shape.num_prefix_tokens
        if asked >= mergeable:
            raise ValueError(
                f"From {self.schedule.unit} {start:g} on the schedule merges {asked} tokens in {shape.num_layers} "
                f"blocks ({format_config(config)}), but this model has {mergeable} that may merge. Lower `r`."
            )

    def _check_run(self, state: Any) -> None:
        """Raise a `ValueError` where a stage begins after the end of training."""
        if self.schedule is None:
            return
        unit, (start, _) = self.schedule.unit, self._stages[-1]
        end = state.max_steps if unit == "step" else state.num_train_epochs
        if start >= end:
            raise ValueError(
                f"The schedule's last stage begins at {unit} {start:g}, but training ends at {unit} {end:g}, so that "
                "it would never be reached. Start it earlier, or train longer."
            )

    def _check_resumed(self, state: Any) -> None:
        """Raise a `ValueError` where a checkpoint that is resumed was trained with other settings."""
        stored = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        if not isinstance(stored, Mapping):
            return
        changes = describe_changes(self.state()["args"], stored.get("args", {}))
        if changes:
            raise ValueError(
                f"The checkpoint of step {state.global_step} was trained with other merge settings: {changes}. Resume "
                "with the same MergeCallback, or start a new run from the checkpoint's weights in another folder."
            )


def _config_from(value: MergeConfig | Mapping[str, Any], name: str) -> MergeConfig:
    if isinstance(value, Mapping):
        return MergeConfig.from_dict(value)
    check_config(value, name)
    return value


def _merge(model: Any, config: MergeConfig, travels: bool = True) -> None:
    """Let a model merge as the config says, where it does not already; `travels`: its own config says so too."""
    if get_config(model) != (None if is_unmerged(config) else config):
        if is_unmerged(config):
            remove(model)
        else:
            apply(model, config)
    if travels:
        setattr(unwrap(model).config, CONFIG_KEY, config.to_dict())


def _complete_checkpoint(model: Any, folder: Path) -> None:
    """Write what a checkpoint needs besides, so that it is resumed and loaded with the weights that were trained.

    transformers writes the weights of some models under the names of older versions, but `Trainer` resumes, and loads
    the best model, by today's names alone, and otherwise keeps the model's weights. And a PEFT checkpoint has no
    config, which says how many classes the head has.
    """
    root = unwrap(model)
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        root.config.save_pretrained(folder)
        return
    weights = folder / SAFE_WEIGHTS_NAME
    if weights.is_file():
        with safe_open(weights, "pt") as file:
            written = set(file.keys())
        if not written <= set(root.state_dict()):
            root.save_pretrained(folder, save_original_format=False)

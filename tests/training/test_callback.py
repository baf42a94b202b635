"""`MergeCallback`: checkpoints carry the config, stages follow the schedule, and what does not fit is said at once."""

import copy
import json

import pytest
import torch
from installed import checkpoint_activations
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification

import hf_tome
from hf_tome import MergeCallback, MergeConfig, MergeSchedule
from hf_tome.api import get_config, is_merged

pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

TOME = MergeConfig(r=4)
MAME = MergeConfig(method="mame", threshold=0.3, layers=range(2))


class Pictures(torch.utils.data.Dataset):
    """24 random pictures of two classes, one brighter than the other."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 16, 16, generator=generator) + index % 2, "labels": index % 2}


def tiny_vit(**fields):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=2, **sizes, **fields))


class Watch(TrainerCallback):
    """Writes down what merges in each step, and after each evaluation's last batch."""

    def __init__(self):
        self.trained, self.evaluated = [], []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.trained.append(get_config(model))

    def on_prediction_step(self, args, state, control, model=None, **kwargs):
        self.evaluated.append(get_config(model))


def trainer_of(folder, callback, model=None, **arguments):
    """Three steps an epoch, two epochs by default."""
    options = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 24,
        "learning_rate": 1e-2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    data, watch = Pictures(), Watch()
    model = tiny_vit() if model is None else model
    args = TrainingArguments(output_dir=str(folder), **{**options, **arguments})
    # The watch comes first, and so sees a step as it was before the callback prepares an evaluation.
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=data, callbacks=[watch, callback])
    return trainer, watch


def logits(model):
    pixels = torch.stack([Pictures()[index]["pixel_values"] for index in range(4)])
    with torch.no_grad():
        return model.eval()(pixels).logits


@pytest.mark.parametrize("config", [TOME, MAME], ids=["tome", "mame"])
def test_every_checkpoint_loads_merged(config, tmp_path):
    trainer, watch = trainer_of(tmp_path, MergeCallback(config), save_strategy="epoch")
    assert get_config(trainer.model) == config  # before training as well
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert set(watch.trained) == {config}
    for folder in ("checkpoint-3", "checkpoint-6", "saved"):
        model = hf_tome.from_pretrained(tmp_path / folder)
        assert get_config(model) == config
    assert torch.equal(logits(model), logits(trainer.model))
    assert MergeConfig.from_pretrained(tmp_path / "checkpoint-3") == config
    assert not is_merged(ViTForImageClassification.from_pretrained(tmp_path / "saved"))


def test_resuming_goes_on_exactly(tmp_path):
    schedule = {0: None, 1: {"r": 2}, 1.5: {}}
    whole, watch = trainer_of(tmp_path / "whole", MergeCallback(TOME, schedule), save_strategy="epoch")
    whole.train()
    assert [config and config.r for config in watch.trained] == [None, None, None, 2, 2, 4]
    assert MergeConfig.from_pretrained(tmp_path / "whole" / "checkpoint-3") == MergeConfig()

    resumed, watch = trainer_of(tmp_path / "resumed", MergeCallback(TOME, schedule))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert [config and config.r for config in watch.trained] == [2, 2, 4]
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, atol=0, rtol=0)


def test_resuming_with_other_settings_is_refused(tmp_path):
    trainer_of(tmp_path, MergeCallback(TOME, {0: {"r": (2, -1.0)}}), save_strategy="epoch")[0].train()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for callback in (MergeCallback(MergeConfig(r=5)), MergeCallback(TOME, {0: {"r": 2}})):
        trainer, _ = trainer_of(tmp_path, callback, save_strategy="epoch", num_train_epochs=3)
        with pytest.raises(ValueError, match="was trained with other merge settings"):
            trainer.train(resume_from_checkpoint=True)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    # The same settings go on, also where the Trainer makes the callback anew from the checkpoint.
    for restores in (False, True):
        trainer, _ = trainer_of(
            tmp_path,
            MergeCallback(TOME, {0: {"r": (2, -1.0)}}),
            num_train_epochs=3,
            restore_callback_states_from_checkpoint=restores,
        )
        trainer.train(resume_from_checkpoint=True)
        assert get_config(trainer.model).r == (2, -1.0)


def test_the_best_model_merges_as_it_was_trained(tmp_path):
    class Metric:  # the first epoch is the best
        values = iter([1.0, 0.0])

        def __call__(self, prediction):
            return {"score": next(self.values)}

    trainer, _ = trainer_of(
        tmp_path,
        MergeCallback(TOME, {0: {"r": 1}, 1: {}}),
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    trainer.compute_metrics = Metric()
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-3")
    assert get_config(trainer.model) == MergeConfig.from_pretrained(tmp_path) == MergeConfig(r=1)
    trainer.save_model(tmp_path / "best")
    assert get_config(hf_tome.from_pretrained(tmp_path / "best")) == MergeConfig(r=1)
    best = hf_tome.from_pretrained(tmp_path / "checkpoint-3")
    assert torch.equal(logits(trainer.model), logits(best))


@pytest.mark.parametrize("eval_config", [MergeConfig(), MergeConfig(r=2)], ids=["unmerged", "other"])
def test_evaluation_may_merge_otherwise(eval_config, tmp_path):
    trainer, watch = trainer_of(
        tmp_path, MergeCallback(TOME, eval_config=eval_config), eval_strategy="epoch", save_strategy="epoch"
    )
    trainer.train()
    assert set(watch.trained) == {TOME}
    assert set(watch.evaluated) == {eval_config if eval_config.r else None}
    assert MergeConfig.from_pretrained(tmp_path / "checkpoint-3") == TOME
    assert get_config(trainer.model) == TOME


def test_ramps_in_steps():
    ramp = MergeSchedule.ramp("threshold", 0.9, 0.7, begin=2, end=6, stages=3, unit="step")
    callback = MergeCallback(MAME, ramp)
    found = [callback.config_at(9.0, step) for step in range(8)]
    assert found[:2] == [MergeConfig()] * 2
    assert [config.threshold for config in found[2:]] == pytest.approx([0.9, 0.9, 0.8, 0.8, 0.7, 0.7])
    assert MergeSchedule.from_value(json.loads(json.dumps(ramp.to_dict()))) == ramp


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({}, "has no stages"),
        ({2: {}, 1: {}}, "after the one before"),
        ({-1: {}}, "from 0 on"),
        ({0: 8}, "takes a dictionary of fields"),
        ({0: {"rr": 8}}, "Unknown merge config fields"),
        ({0: {"threshold": 0.5}}, "stage from epoch 0 on: `threshold` is 0.5"),
        (MergeSchedule(((0, None), (1, {})), unit="step"), None),
    ],
)
def test_schedules_that_make_no_sense(schedule, message):
    if message is None:
        assert MergeCallback(TOME, schedule).config_at(0.0, 1) == TOME
        return
    with pytest.raises(ValueError, match=message):
        MergeCallback(TOME, schedule)


def test_what_does_not_fit_is_said_before_training(tmp_path):
    with pytest.raises(TypeError, match="takes a MergeConfig"):
        MergeCallback(8)
    with pytest.raises(TypeError, match="takes a MergeSchedule"):
        MergeCallback(TOME, 3)
    with pytest.raises(ValueError, match="names blocks"):  # the config of a larger model
        trainer_of(tmp_path, MergeCallback(MergeConfig(r=4, layers=[7])))
    with pytest.raises(ValueError, match=r"merges 24 tokens in 3 blocks .*has 16 that may merge"):
        trainer_of(tmp_path, MergeCallback(TOME, {0: {}, 1: {"r": 8}}))
    model = tiny_vit()
    trainer, _ = trainer_of(tmp_path, MergeCallback(TOME, {0: None, 2: {}}), model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="begins at epoch 2, but training ends at epoch 2"):
        trainer.train()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [TOME, MAME], ids=["tome", "mame"])
def test_checkpointing_changes_nothing(config, tmp_path):
    trained = []
    for checkpoints in (False, True):
        model = tiny_vit()
        if checkpoints:
            checkpoint_activations(model)
        trainer, _ = trainer_of(tmp_path, MergeCallback(config, {0: None, 1: {}}), model)
        trainer.train()
        trained.append(trainer.model.state_dict())
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, atol=1e-6, rtol=1e-5)


def test_bfloat16_and_a_compiled_model(tmp_path):
    trainer, watch = trainer_of(
        tmp_path,
        MergeCallback(TOME, {0: None, 1: {}}),
        bf16=True,
        torch_compile=True,
        torch_compile_backend="eager",
        save_strategy="epoch",
    )
    trainer.train()
    assert [config and config.r for config in watch.trained] == [None] * 3 + [4] * 3
    assert get_config(hf_tome.from_pretrained(tmp_path / "checkpoint-6")) == TOME
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_lora_checkpoints_load_merged(tmp_path):
    peft = pytest.importorskip("peft")
    tiny_vit().save_pretrained(tmp_path / "base")
    base = ViTForImageClassification.from_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], r=2)
    trainer, watch = trainer_of(
        tmp_path, MergeCallback(TOME), peft.get_peft_model(base, lora), save_strategy="epoch", label_names=["labels"]
    )
    trainer.train()
    assert set(watch.trained) == {TOME}
    loaded = hf_tome.from_pretrained(tmp_path / "checkpoint-6")
    assert get_config(loaded) == TOME
    torch.testing.assert_close(logits(loaded), logits(trainer.model))


def test_averaged_weights_merge_too(tmp_path):
    """An exponential moving average keeps a copy of the model, which merges as the model does."""

    class Average(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.model = torch.optim.swa_utils.AveragedModel(
                model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
            )

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.model.update_parameters(model)

    average = Average()
    trainer, _ = trainer_of(tmp_path, MergeCallback(MAME))
    trainer.add_callback(average)
    trainer.train()
    assert get_config(average.model) == MAME
    own = {id(module) for module in trainer.model.modules()}
    assert not own & {id(module) for module in average.model.modules()}
    assert not torch.equal(logits(average.model.module), logits(trainer.model))

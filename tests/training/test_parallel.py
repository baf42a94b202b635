"""Two processes (DDP) train the weights that one does with the same global batch, merged too."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

SCRIPT = """
import os, sys
import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
from hf_tome import MergeCallback, MergeConfig

CONFIGS = {
    "none": MergeConfig(),
    "tome": MergeConfig(r=4),
    "mame": MergeConfig(method="mame", threshold=0.3, layers=range(2)),
}
out, name, batch_size = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.manual_seed(0)
torch.set_num_threads(1)
sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
model = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=2, **sizes))
pictures = [{"pixel_values": torch.randn(3, 16, 16) + i % 2, "labels": i % 2} for i in range(32)]
args = TrainingArguments(
    output_dir=out, num_train_epochs=2, per_device_train_batch_size=batch_size, learning_rate=0.05, optim="sgd",
    report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no", logging_strategy="no",
    dataloader_pin_memory=False,
)
trainer = Trainer(model, args, train_dataset=pictures, callbacks=[MergeCallback(CONFIGS[name], {0: None, 1: {}})])
trainer.train()
assert trainer.state.global_step == 8, trainer.state.global_step
trainer.save_model(out)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "tome", "mame"])
def test_two_processes_train_as_one(name, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    trained = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *launch, str(script), str(out), name, str(8 // processes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        trained.append(load_file(out / "model.safetensors"))
    for key, value in trained[0].items():
        torch.testing.assert_close(trained[1][key], value, atol=1e-5, rtol=1e-5)

"""Two processes (DDP, FSDP) train the weights that one does with the same global batch, merged too."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

COMMON = """
import sys
import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification
import hf_tome
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
"""
DDP = """
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


FSDP = """
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
hf_tome.apply(model, CONFIGS[name])  # before the classes of the modules are changed
mesh = init_device_mesh("cpu", (world,))
for layer in model.vit.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(8):
    own = [pictures[(8 * step + rank * batch_size + i) % 32] for i in range(batch_size)]
    pixels, labels = torch.stack([row["pixel_values"] for row in own]), torch.tensor([row["labels"] for row in own])
    optimizer.zero_grad()
    model(pixel_values=pixels, labels=labels).loss.backward()
    optimizer.step()
state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
if rank == 0:
    hf_tome.MergeConfig().save_pretrained(out)  # makes the folder
    save_file(state, out + "/model.safetensors")
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [DDP, FSDP], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["none", "tome", "mame"])
def test_two_processes_train_as_one(name, strategy, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(COMMON + strategy)
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

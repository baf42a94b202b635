"""Train the demo's diffusion model, a small DiT on scikit-learn's handwritten digits, and write it with its card.

    python scripts/training/train_digits_dit.py [--card]

It takes about five minutes on one CPU core: half of them at half the resolution (64 tokens), the rest at the full one
(256 tokens). `--card` only measures the stored model again and writes its card.
"""

import argparse
import copy
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from torch import Tensor

from hf_tome.demo.digits_dit import GUIDANCE, NUM_CLASSES, SIDE, STEPS, TIMESTEPS, load_digits_dit
from hf_tome.demo.digits_pictures import count_right, draw_digits
from hf_tome.evaluation.data.digits import MODELS, load_digits

STAGES = ((16, 64, 700), (32, 32, 350))  # (side, batch size, steps)
LEARNING_RATE, WARMUP, DECAY, SEED = 3e-3, 50, 0.99, 0
CARD_PICTURES = 200
CARD = Path(__file__).with_name("digits_dit_card.md")


def make_model() -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=1,
        out_channels=1,
        num_layers=4,
        sample_size=SIDE,
        patch_size=2,
        num_embeds_ada_norm=NUM_CLASSES,
        norm_num_groups=1,
    )


def load_pictures(side: int) -> tuple[Tensor, Tensor]:
    """Return the digits to train on, enlarged to (N, 1, side, side) from -1 to 1, and their labels (N,)."""
    rows = load_digits("train")
    # (N, 8, 8) -> (N, 1, 8, 8)
    pixels = (
        torch.from_numpy(np.stack([np.array(image.convert("L")) for image in rows["image"]]))[:, None].float() / 255
    )
    large = F.interpolate(pixels, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    return large * 2 - 1, torch.tensor(rows["label"])


def learning_rate(step: int) -> float:
    steps = sum(stage[2] for stage in STAGES)
    return min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(model: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """Train on the straight way from image to noise (rectified flow), and return the running mean of the weights."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate)
    mean = copy.deepcopy(model).eval()
    model.train()
    start, total = time.perf_counter(), 0.0
    for side, batch_size, steps in STAGES:
        pictures, labels = load_pictures(side)
        for _ in range(steps):
            which = torch.randint(len(labels), (batch_size,), generator=generator)
            images, noise = pictures[which], torch.randn(batch_size, 1, side, side, generator=generator)
            # Times near the middle are drawn more often: there the way is hardest to tell.
            times = torch.randn(batch_size, generator=generator).sigmoid()
            at = times[:, None, None, None]
            velocity = model(
                (1 - at) * images + at * noise, timestep=times * TIMESTEPS, class_labels=labels[which]
            ).sample
            loss = F.mse_loss(velocity, noise - images)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done = schedule.last_epoch
            decay = min(DECAY, done / (done + 10))
            with torch.no_grad():
                for averaged, parameter in zip(mean.parameters(), model.parameters()):
                    averaged.lerp_(parameter, 1 - decay)
            total += loss.item()
            if done % 50 == 0:
                print(
                    f"side {side}  step {done}  loss {total / 50:.4f}  {time.perf_counter() - start:.0f} s", flush=True
                )
                total = 0.0
    return mean


def save(model: DiTTransformer2DModel, folder: Path) -> None:
    """Write the weights in float16, which halves the file."""
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    (folder / "diffusion_pytorch_model.safetensors").chmod(0o644)  # safetensors makes it private to its owner
    config_file = folder / "config.json"
    config = {name: value for name, value in json.loads(config_file.read_text()).items() if name != "_name_or_path"}
    config_file.write_text(json.dumps(config, indent=2) + "\n")


def write_card(folder: Path, minutes: str) -> None:
    """Measure the stored model, and write its card."""
    model = load_digits_dit(folder)
    labels = torch.arange(CARD_PICTURES) % NUM_CLASSES
    right = count_right(draw_digits(model, labels, seed=SEED), labels)
    text = CARD.read_text().format(
        right=right,
        pictures=CARD_PICTURES,
        share=right / CARD_PICTURES,
        parameters=model.num_parameters(),
        layers=model.config.num_layers,
        width=model.config.num_attention_heads * model.config.attention_head_dim,
        tokens=(SIDE // model.config.patch_size) ** 2,
        train=len(load_digits("train")),
        side=SIDE,
        steps=STEPS,
        guidance=GUIDANCE,
        training=sum(stage[2] for stage in STAGES),
        first=STAGES[0],
        second=STAGES[1],
        rate=LEARNING_RATE,
        seed=SEED,
        minutes=minutes,
    )
    (folder / "README.md").write_text(text)
    print(f"{right} of {CARD_PICTURES} drawn digits are read right -> {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODELS / "digits-dit")
    parser.add_argument("--threads", type=int, default=1, help="results are the same only for the same number")
    parser.add_argument("--card", metavar="MINUTES", help="only write the card of a model that took so long")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    minutes = args.card
    if minutes is None:
        start = time.process_time()
        save(train(make_model()), args.out)
        minutes = f"{(time.process_time() - start) / 60:.0f}"
    write_card(args.out, minutes)


if __name__ == "__main__":
    main()

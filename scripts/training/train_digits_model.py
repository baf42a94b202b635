"""Train the demo's model, a small ViT on scikit-learn's handwritten digits, and write it with its model card.

    python scripts/training/train_digits_model.py

It takes about ten minutes on one CPU core. Most epochs run at half the resolution (64 tokens), the last few at the
full one (256 tokens), which is several times cheaper than the full resolution throughout.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_tome.evaluation.data.digits import MODEL_DIR, load_digits

IMAGE_SIZE = 32
STAGES = ((16, 60), (32, 8))  # (image size, epochs)
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
WARMUP_EPOCHS = 4
SEED = 0

CARD = Path(__file__).with_name("digits_model_card.md")


def make_processor() -> ViTImageProcessorPil:
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return ViTImageProcessorPil(size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def make_model() -> ViTForImageClassification:
    config = ViTConfig(
        image_size=IMAGE_SIZE,
        patch_size=2,
        hidden_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        intermediate_size=256,
        id2label={digit: str(digit) for digit in range(10)},
        label2id={str(digit): digit for digit in range(10)},
    )
    return ViTForImageClassification(config)


def load_split(split: str, processor: ViTImageProcessorPil, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixel values (N, 3, size, size) and labels (N,)."""
    dataset = load_digits(split)
    inputs = processor(list(dataset["image"]), size={"height": size, "width": size}, return_tensors="pt")
    return inputs["pixel_values"], torch.tensor(dataset["label"])


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rotate by up to 12 degrees, scale by up to 10 % and shift by up to 6 % of the side, each image its own way."""

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(len(pixels), generator=generator) * 2 - 1) * limit

    angle, scale = uniform(math.radians(12)), 1 + uniform(0.1)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack([torch.stack([cos, -sin, uniform(0.12)], 1), torch.stack([sin, cos, uniform(0.12)], 1)], 1)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    # Black is -1 after normalisation, while grid_sample fills with 0.
    return F.grid_sample(pixels + 1, grid, align_corners=False) - 1


def train(model: ViTForImageClassification, processor: ViTImageProcessorPil) -> None:
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    model.train()
    for size, epochs in STAGES:
        pixels, labels = load_split("train", processor, size)
        for _ in range(epochs):
            total = 0.0
            for batch in torch.randperm(len(pixels), generator=generator).split(BATCH_SIZE):
                logits = model(augment(pixels[batch], generator), interpolate_pos_encoding=True).logits
                loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                total += loss.item() * len(batch)
            schedule.step()
            print(f"size {size}  epoch {schedule.last_epoch}  loss {total / len(pixels):.4f}", flush=True)


def learning_rate_factor(epoch: int) -> float:
    """A linear warm-up, then half a cosine; the first epoch has number 0."""
    epochs = sum(epochs for _, epochs in STAGES)
    if epoch < WARMUP_EPOCHS:
        return (epoch + 1) / WARMUP_EPOCHS
    return 0.5 * (1 + math.cos(math.pi * (epoch - WARMUP_EPOCHS) / (epochs - WARMUP_EPOCHS)))


@torch.inference_mode()
def count_correct(model: ViTForImageClassification, processor: ViTImageProcessorPil) -> tuple[int, int]:
    pixels, labels = load_split("test", processor, IMAGE_SIZE)
    model.eval()
    predictions = torch.cat([model(batch).logits.argmax(-1) for batch in pixels.split(BATCH_SIZE)])
    return int((predictions == labels).sum()), len(labels)


def save(model: ViTForImageClassification, processor: ViTImageProcessorPil, folder: Path) -> None:
    """Write the weights in float16, which halves the file, and a config that loads them as float32."""
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private to its owner
    processor.save_pretrained(folder)
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text()) | {"dtype": "float32"}
    config_file.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    parser.add_argument("--threads", type=int, default=1, help="results are the same only for the same number")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    start = time.perf_counter()
    processor, model = make_processor(), make_model()
    train(model, processor)
    minutes = (time.perf_counter() - start) / 60

    save(model, processor, args.out)
    stored = ViTForImageClassification.from_pretrained(args.out)
    correct, test = count_correct(stored, processor)
    train_count = len(load_digits("train"))
    card = CARD.read_text().format(
        accuracy=correct / test,
        correct=correct,
        test=test,
        train=train_count,
        total=train_count + test,
        layers=stored.config.num_hidden_layers,
        width=stored.config.hidden_size,
        tokens=(IMAGE_SIZE // stored.config.patch_size) ** 2,
        parameters=stored.num_parameters(),
        size=IMAGE_SIZE,
        epochs=sum(epochs for _, epochs in STAGES),
        seed=SEED,
        minutes=minutes,
        threads=args.threads,
    )
    (args.out / "README.md").write_text(card)
    print(f"{correct} of {test} held-out digits ({correct / test:.2%}) -> {args.out}")


if __name__ == "__main__":
    main()

"""Train the demo's segmentation model, which finds handwritten digits in scenes, and write it with its model card.

    python scripts/training/train_digits_scenes.py

It takes some eight minutes on one CPU core: most epochs show scenes of 2 x 2 cells (196 tokens), the last few whole
ones (784 tokens), whose positions start from those of the small ones.
"""

import torch
import torch.nn.functional as F
import transformers as tf
from demo_cards import Card, write_card
from training import Loss, Stage, arguments, fit, livelier, normalise, save_half, square_processor

from hf_tome.demo import digits_masks as masks
from hf_tome.demo import digits_scenes as scenes
from hf_tome.evaluation.data.digits import MODELS

PATCH = 4
STAGES = ((scenes.SIDE, 14, 2e-3), (masks.SIDE, 1, 7e-4))  # (side in pixels, epochs, learning rate)


CARD = Card(
    demo="scenes",
    pipeline="image-segmentation",
    tokens=f"{(masks.SIDE // PATCH) ** 2 + 1} tokens, with a UPerNet head",
    summary=f"It finds handwritten digits in scenes of {masks.SIDE}x{masks.SIDE} pixels, up to sixteen in each: the "
    "class of each pixel, one of ten digits or the background. The mask of a digit has a margin of about one of the "
    "pixels that the digit is made of.",
    training=", ".join(f"{epochs} epoch{'s' * (epochs > 1)} of scenes of {side} pixels" for side, epochs, _ in STAGES),
    merging="Each hidden state that the head reads is unmerged, while the blocks go on merging. Merging half of the "
    "tokens in the second block (`r=392,layers=[1]`) costs more than merging as many gradually (`r=64`).",
    command="train_digits_scenes.py",
)


def make_model() -> tf.UperNetForSemanticSegmentation:
    backbone = tf.Dinov2Config(
        image_size=scenes.SIDE,
        patch_size=PATCH,
        hidden_size=64,
        num_hidden_layers=6,
        num_attention_heads=2,
        mlp_ratio=4,
        out_indices=[2, 4, 6],
    )
    config = tf.UperNetConfig(
        backbone_config=backbone,
        hidden_size=24,
        pool_scales=[1, 2],
        use_auxiliary_head=False,
        id2label=dict(enumerate(masks.CLASSES)),
        label2id={name: index for index, name in enumerate(masks.CLASSES)},
    )
    return tf.UperNetForSemanticSegmentation(config)


def make_loss(model: tf.UperNetForSemanticSegmentation, material: scenes.Material, side: int) -> Loss:
    """Return the loss of scenes of a side: cross-entropy of each pixel."""

    def loss(which: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        pictures, classes = masks.make_scenes(material, which, generator, side)
        logits = model(pixel_values=normalise(pictures)).logits  # (B, classes, side, side)
        return F.cross_entropy(logits, classes)

    return loss


def look_at_whole(model: tf.UperNetForSemanticSegmentation) -> None:
    """Make the backbone take whole scenes: each quarter starts with the positions that were learnt for small ones."""
    embeddings = model.backbone.embeddings
    grid, times = scenes.SIDE // PATCH, masks.SIDE // scenes.SIDE
    special, table = embeddings.position_embeddings.data.split([1, grid**2], dim=1)
    tiled = table.view(1, grid, grid, -1).repeat(1, times, times, 1).flatten(1, 2)  # (1, N, C)
    embeddings.position_embeddings = torch.nn.Parameter(torch.cat([special, tiled], dim=1))
    size = (masks.SIDE, masks.SIDE)
    embeddings.patch_embeddings.image_size = size
    embeddings.patch_embeddings.num_patches = tiled.shape[1]
    model.config.backbone_config.image_size = masks.SIDE


def main() -> None:
    args = arguments(__doc__, MODELS)
    material, model, minutes = scenes.load_material("train"), make_model(), 0.0
    livelier(model)
    for side, epochs, learning_rate in STAGES:
        if side == masks.SIDE:
            look_at_whole(model)
        stage = Stage(f"{side} px", epochs, make_loss(model, material, side), learning_rate, batch_size=16)
        minutes += fit(model, stage, len(material.labels))
    save_half(model.eval(), args.out / "digits-dinov2", square_processor(tf.SegformerImageProcessor, masks.SIDE))
    write_card(CARD, args.out, minutes)


if __name__ == "__main__":
    main()

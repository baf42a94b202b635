"""Train the demo's VideoMAE, which tells a handwritten digit and the way it moves, and write it with its model card.

    python scripts/training/train_video_model.py

It takes about ten minutes on one CPU core: most epochs show the encoder one or two of the eight slices of time, at the
positions that they have in the clip; the last few show all.
"""

import torch
import torch.nn.functional as F
import transformers as tf
from demo_cards import Card, write_card
from torch import Tensor
from training import (
    Loss,
    PatchTeacher,
    Stage,
    arguments,
    fit,
    livelier,
    normalise,
    save_half,
    square_processor,
)

from hf_tome.demo import digits_scenes as scenes
from hf_tome.evaluation.data.digits import MODELS

PATCH, TUBELET = 4, 2
SLICES = scenes.CLIP_FRAMES // TUBELET
PATCHES = (scenes.CLIP_SIDE // PATCH) ** 2
STAGES = ((1, 70, 2e-3), (2, 10, 1e-3), (SLICES, 4, 7e-4))  # (slices of time shown, epochs, learning rate)

CARD = Card(
    demo="video",
    pipeline="video-classification",
    tokens=f"{SLICES * PATCHES} tokens",
    summary=f"It tells which digit moves which way, left, right, up or down, in clips of {scenes.CLIP_FRAMES} frames "
    f"of {scenes.CLIP_SIDE}x{scenes.CLIP_SIDE} pixels: {len(scenes.clip_names())} classes.",
    training=", ".join(f"{epochs} epochs on {shown} of {SLICES} slices of each clip" for shown, epochs, _ in STAGES)
    + ", with a teacher of single tubelets that is not kept",
    merging="Strong merging needs the sizes in the attention too (`proportional_attention=true`), with MaMe all the "
    "more: the default leaves them out for VideoMAE, as both papers do. Dropping tokens at random (`random_prune`) "
    "costs little here, for every slice of time shows the digit again; merging random pairs costs more, see "
    "`tests/cli/test_demo.py`.",
    command="train_video_model.py",
)


def make_model() -> tf.VideoMAEForVideoClassification:
    names = scenes.clip_names()
    config = tf.VideoMAEConfig(
        image_size=scenes.CLIP_SIDE,
        patch_size=PATCH,
        num_frames=scenes.CLIP_FRAMES,
        tubelet_size=TUBELET,
        hidden_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=256,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    return tf.VideoMAEForVideoClassification(config)


def make_loss(model: tf.VideoMAEForVideoClassification, material: scenes.Material, shown: int, table: Tensor) -> Loss:
    """Return the loss of clips of which so many slices of time are shown; `table` has the positions of all."""

    def loss(which: Tensor, generator: torch.Generator) -> Tensor:
        directions = torch.randint(len(scenes.DIRECTIONS), (len(which),), generator=generator)
        slices = torch.randperm(SLICES, generator=generator)[:shown].sort().values
        frames = (slices[:, None] * TUBELET + torch.arange(TUBELET)).flatten().tolist()
        clips, ink = scenes.make_clips(material, which, directions, generator, frames)
        # The table is no parameter: the model adds the positions of the slices that it is shown.
        model.videomae.embeddings.position_embeddings = table[:, slices].flatten(1, 2)
        tokens = model.videomae(normalise(clips)).last_hidden_state
        labels = scenes.clip_label(material.labels[which], directions)
        tubelets = F.avg_pool3d(ink.transpose(1, 2), (TUBELET, PATCH, PATCH)).flatten(1)  # (B, T, 1, S, S) -> (B, N)
        logits = model.classifier(model.fc_norm(tokens.mean(1)))
        return F.cross_entropy(logits, labels) + model.teacher(tokens, tubelets, labels)

    return loss


def main() -> None:
    args = arguments(__doc__, MODELS)
    material, model, minutes = scenes.load_material("train"), make_model(), 0.0
    livelier(model)
    model.teacher = PatchTeacher(model.config.hidden_size, model.num_labels)
    table = model.videomae.embeddings.position_embeddings.unflatten(1, (SLICES, PATCHES))
    for shown, epochs, learning_rate in STAGES:
        loss = make_loss(model, material, shown, table)
        stage = Stage(f"{shown * PATCHES} tokens", epochs, loss, learning_rate)
        minutes += fit(model, stage, len(material.labels))
    del model.teacher

    processor = square_processor(tf.VideoMAEImageProcessorPil, scenes.CLIP_SIDE)
    save_half(model, args.out / "digits-videomae", processor)
    write_card(CARD, args.out, minutes)


if __name__ == "__main__":
    main()

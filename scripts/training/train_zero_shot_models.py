"""Train the demo's CLIP and SigLIP on pictures of handwritten digits and sentences about them.

    python scripts/training/train_zero_shot_models.py clip
    python scripts/training/train_zero_shot_models.py siglip

They take about ten and five minutes on one CPU core; the SigLIP starts from the CLIP's tower. Most epochs show the
tower only the cell of the picture that the digit is in, 49 of 196 patches, which is several times cheaper; the last
few show all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    look_at_all,
    look_at_cell,
    normalise,
    save_half,
    square_processor,
    word_tokenizer,
)

from hf_tome.demo import digits_scenes as scenes
from hf_tome.evaluation.data.digits import MODELS, TEMPLATES

PATCH = 4
GRID = scenes.SIDE // PATCH
VISION = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 256}
TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
# (side of the picture, epochs, learning rate); the SigLIP starts from the tower of the CLIP
STAGES = {
    "clip": ((scenes.CELL, 65, 2e-3), (scenes.SIDE, 8, 1e-3)),
    "siglip": ((scenes.CELL, 10, 1e-3), (scenes.SIDE, 5, 1e-3)),
}
SENTENCE_LENGTH = 64


@dataclass(frozen=True)
class Kind:
    """What CLIP and SigLIP do differently.

    Attributes:
        classes: the prefix of their classes.
        special: tokens before the patches.
        single: the tokenizer's template; CLIP reads the sentence at its <eos>, SigLIP at the last place.
        padding: how sentences are padded.
        options: more for the config.
        loss: of logits (B, sentences) and the right sentence of each picture (B,).
        card: the model card.
    """

    classes: str
    special: int
    single: str
    padding: dict[str, Any]
    options: dict[str, Any]
    loss: Callable[[Tensor, Tensor], Tensor]
    card: Card


def make_card(name: str, loss: str) -> Card:
    return Card(
        demo=name,
        pipeline="zero-shot-image-classification",
        tokens=f"{GRID * GRID} patch tokens" + (" and a class token" if name == "clip" else ""),
        summary=f"It matches pictures of {scenes.SIDE}x{scenes.SIDE} pixels, each with one digit in it, with "
        'sentences such as "a photo of the digit seven".',
        training=", ".join(f"{epochs} epochs on pictures of {side} px" for side, epochs, _ in STAGES[name])
        + (", from the tower of digits-clip on" if name == "siglip" else "")
        + f", with {loss} over the ten digits' sentences and a teacher of single patches that is not kept",
        merging="Dropping as many tokens at random (`random_prune`) costs several times as much.",
        command=f"train_zero_shot_models.py {name}",
    )


def sigmoid_loss(logits: Tensor, right: Tensor) -> Tensor:
    """SigLIP's loss: each pair of a picture and a sentence is right or wrong by itself (Zhai et al., ICCV 2023)."""
    sign = 2 * F.one_hot(right, logits.shape[1]) - 1
    return -F.logsigmoid(sign * logits).sum(dim=1).mean()


KINDS = {
    "clip": Kind(
        "CLIP",
        1,
        "<bos> $A <eos>",
        {"padding": True},
        {"projection_dim": 64},
        F.cross_entropy,
        make_card("clip", "a softmax"),
    ),
    "siglip": Kind(
        "Siglip",
        0,
        "$A <eos>",
        {"padding": "max_length", "max_length": SENTENCE_LENGTH},
        {},
        sigmoid_loss,
        make_card("siglip", "a sigmoid"),
    ),
}


def make_tokenizer(kind: Kind) -> Any:
    words = " ".join(template.format("") for template in TEMPLATES).lower().replace(".", " . ").replace(",", " , ")
    return word_tokenizer([*words.split(), *scenes.NAMES], single=kind.single, model_max_length=SENTENCE_LENGTH)


def make_model(kind: Kind, tokenizer: Any) -> tf.PreTrainedModel:
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": SENTENCE_LENGTH,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {**VISION, "image_size": scenes.SIDE, "patch_size": PATCH}
    config = getattr(tf, f"{kind.classes}Config")(text_config=text, vision_config=vision, **kind.options)
    return getattr(tf, f"{kind.classes}Model")(config)


@torch.no_grad()
def set_scale(model: Any) -> None:
    """Start SigLIP with logits from -15 to 5; transformers' own start, a scale of 1, takes long to grow."""
    model.logit_scale.fill_(math.log(10))
    model.logit_bias.fill_(-5)


def start_from(tower: Any, clip: Any) -> None:
    """Start a SigLIP's tower from a CLIP's: the same blocks, patches and positions, without its class token."""
    tower.encoder.load_state_dict(clip.encoder.state_dict())
    with torch.no_grad():
        tower.embeddings.patch_embedding.weight.copy_(clip.embeddings.patch_embedding.weight)
        tower.embeddings.position_embedding.weight.copy_(clip.embeddings.position_embedding.weight[1:])


def make_loss(model: Any, kind: Kind, tokenizer: Any, material: scenes.Material, side: int) -> Loss:
    """Return the loss at one side of the picture: of the model, and of the teacher that it is given."""
    sentences = [
        tokenizer([template.format(name) for name in scenes.NAMES], return_tensors="pt", **kind.padding)
        for template in TEMPLATES
    ]

    def loss(which: Tensor, generator: torch.Generator) -> Tensor:
        pictures, ink = scenes.make_pictures(material, which, generator, side)
        chosen = sentences[int(torch.randint(len(sentences), (), generator=generator))]
        out, labels = model(pixel_values=normalise(pictures), **chosen), material.labels[which]
        patches = F.avg_pool2d(ink, PATCH).flatten(1)  # (B, 1, S, S) -> (B, N)
        tokens = out.vision_model_output.last_hidden_state[:, kind.special :]
        return kind.loss(out.logits_per_image, labels) + model.teacher(tokens, patches, labels)

    return loss


def main() -> None:
    args = arguments(__doc__, MODELS, names=tuple(KINDS))
    kind = KINDS[args.name]
    tokenizer, material = make_tokenizer(kind), scenes.load_material("train")
    model = make_model(kind, tokenizer)
    livelier(model)
    if args.name == "siglip":
        set_scale(model)
        start_from(model.vision_model, tf.CLIPVisionModel.from_pretrained(args.out / "digits-clip"))
    model.teacher = PatchTeacher(VISION["hidden_size"], len(scenes.NAMES))
    embeddings, minutes = model.vision_model.embeddings, 0.0
    for (side, epochs, learning_rate), look in zip(STAGES[args.name], (look_at_cell, look_at_all)):
        look(embeddings, side, kind.special)
        loss = make_loss(model, kind, tokenizer, material, side)
        minutes += fit(model, Stage(f"{side} px", epochs, loss, learning_rate), len(material.labels))
    del model.teacher

    processor = square_processor(getattr(tf, f"{kind.classes}ImageProcessorPil"), scenes.SIDE)
    save_half(model, args.out / f"digits-{args.name}", getattr(tf, f"{kind.classes}Processor")(processor, tokenizer))
    write_card(kind.card, args.out, minutes)


if __name__ == "__main__":
    main()

"""Train the demo's LLaVA, which answers questions about pictures of four handwritten digits, and write its model card.

    python scripts/training/train_zero_shot_models.py clip     # makes the tower that this one starts from
    python scripts/training/train_llava_model.py

It takes about half an hour on one CPU core. First the tower learns to tell four digits apart; then projector and
language model learn to answer, from the tower's tokens of pictures that are drawn once. All questions about a picture
stand behind it in one sequence, at the same positions, and do not see each other.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import transformers as tf
from demo_cards import Card, write_card
from torch import Tensor, nn
from training import (
    INKED,
    SEED,
    Loss,
    PatchTeacher,
    Stage,
    arguments,
    fit,
    livelier,
    normalise,
    save_half,
    square_processor,
    word_tokenizer,
)

from hf_tome.demo import digits_questions as questions
from hf_tome.demo import digits_scenes as scenes
from hf_tome.evaluation.data.digits import MODELS

PATCH = 4
PATCHES = (scenes.SIDE // PATCH) ** 2
TEXT = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192}


@dataclass(frozen=True)
class Turn:
    """Some epochs of the tower, and then of the answers on so many pictures, drawn once."""

    tower_epochs: int
    tower_rate: float
    answer_epochs: int
    answer_rate: float
    pictures: int
    seed: int = SEED


TURNS = (
    Turn(11, 1.5e-3, 8, 3e-3, 2560),
    Turn(8, 1e-3, 4, 1.5e-3, 2560),
    Turn(8, 1e-3, 14, 2e-3, 3072, seed=SEED + 1),
)
TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)

CARD = Card(
    demo="questions",
    pipeline="image-text-to-text",
    tokens=f"{PATCHES} image tokens, and {TEXT['num_hidden_layers']} Llama blocks of width {TEXT['hidden_size']}",
    summary=f'It answers questions about pictures of {scenes.SIDE}x{scenes.SIDE} pixels with four digits: "which '
    'digit is top left?", "how many sevens are there?".',
    training="from the tower of digits-clip on, in turns: "
    f"{', '.join(str(turn.tower_epochs) for turn in TURNS)} epochs of the tower with a teacher of single patches that "
    f"is not kept, and {', '.join(str(turn.answer_epochs) for turn in TURNS)} epochs of projector and language model "
    f"on all questions about {', '.join(str(turn.pictures) for turn in TURNS)} pictures",
    merging="The tokens left are the image tokens that the language model reads. It was trained on all of them, and "
    "has to find four small digits, so that merging costs it more than it does the other models here; least where the "
    "first blocks are left alone.",
    command="train_llava_model.py",
)


def make_tokenizer():
    words = " ".join(questions.QUESTIONS).replace("?", " ? ").split()
    return word_tokenizer(
        [*words, *scenes.NAMES], single="<bos> $A", extra_special_tokens=["<image>"], padding_side="left"
    )


def make_processor(tokenizer) -> tf.LlavaProcessor:
    return tf.LlavaProcessor(
        square_processor(tf.CLIPImageProcessorPil, scenes.SIDE),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def make_model(tokenizer, tower: tf.CLIPVisionModel) -> tf.LlavaForConditionalGeneration:
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    text = tf.LlamaConfig(**TEXT, **special, vocab_size=len(tokenizer), tie_word_embeddings=True)
    config = tf.LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = tf.LlavaForConditionalGeneration(config)
    livelier(model)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    tell_corners_apart(model.model.vision_tower.embeddings.position_embedding.weight)
    model.generation_config.update(**special, max_new_tokens=4, do_sample=False)
    return model


@torch.no_grad()
def tell_corners_apart(positions: Tensor) -> None:
    """Shift the positions (1 + PATCHES, C) of each corner its own way.

    The CLIP has no need to know in which corner a digit is, and hardly does.
    """
    side = scenes.SIDE // PATCH
    grid = positions[1:].view(2, side // 2, 2, side // 2, -1)
    shift = 2 * positions.std() * torch.randn(2, 2, grid.shape[-1])
    grid += shift[:, None, :, None]


class Asking(nn.Module):
    """All questions behind one picture: (questions, tokens) each with room for the answer, and who sees whom."""

    def __init__(self, tokenizer):
        super().__init__()
        rows = tokenizer(list(questions.QUESTIONS), add_special_tokens=False)["input_ids"]
        self.asked = torch.tensor(rows)  # all have as many tokens
        self.names = torch.tensor(tokenizer.convert_tokens_to_ids(list(scenes.NAMES)))
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        count, length = self.asked.shape
        self.length = length + 1
        before = 1 + PATCHES
        total = before + count * self.length
        own = torch.cat([torch.full((before,), -1), torch.arange(count).repeat_interleave(self.length)])
        sees = torch.ones(total, total, dtype=torch.bool).tril() & ((own[None] == -1) | (own[:, None] == own[None]))
        self.mask = torch.zeros(total, total).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]
        inside = torch.arange(self.length).repeat(count)
        self.positions = torch.cat([torch.arange(before), before + inside])[None]

    def ids(self, answers: Tensor) -> Tensor:
        """Return the questions with their answers (B, questions * length) for answers (B, questions)."""
        asked = self.asked.expand(len(answers), -1, -1)
        return torch.cat([asked, self.names[answers][..., None]], dim=2).flatten(1)


def make_tower_loss(model: tf.LlavaForConditionalGeneration, teacher: PatchTeacher, material: scenes.Material) -> Loss:
    """Return the loss of single patches: what digit each belongs to, and in which corner that is."""

    def loss(which: Tensor, generator: torch.Generator) -> Tensor:
        pictures, inked, labels = draw(which, material, generator)
        tokens = model.model.vision_tower(pictures).last_hidden_state[:, 1:]
        return teacher(tokens, inked, by_patch(labels * len(scenes.CORNERS) + torch.arange(len(scenes.CORNERS))))

    return loss


def draw(which: Tensor, material: scenes.Material, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw pictures (B, 3, S, S) of digits (B,) and three others each, their ink (B, N) and labels (B, 4)."""
    more = torch.randint(len(material.labels), (len(which), len(scenes.CORNERS) - 1), generator=generator)
    which = torch.cat([which[:, None], more], dim=1)
    pictures, ink = scenes.make_quartets(material, which, generator)
    return normalise(pictures), F.avg_pool2d(ink, PATCH).flatten(1), material.labels[which]


def by_patch(corners: Tensor) -> Tensor:
    """Return for each patch (B, N) what is said of its corner (B, 4)."""
    grid = corners.view(-1, 2, 2).repeat_interleave(scenes.CELL // PATCH, 1).repeat_interleave(scenes.CELL // PATCH, 2)
    return grid.flatten(1)  # (B, R, C) -> (B, N)


@torch.no_grad()
def look(
    model: tf.LlavaForConditionalGeneration, material: scenes.Material, count: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tower's tokens (count, N, C) of pictures, their ink (count, N) and labels (count, 4)."""
    generator = torch.Generator().manual_seed(seed)
    seen = []
    for which in torch.randint(len(material.labels), (count,), generator=generator).split(64):
        pictures, inked, labels = draw(which, material, generator)
        seen.append((model.model.vision_tower(pictures).last_hidden_state[:, 1:], inked, labels))
    tokens, inked, labels = (torch.cat(parts) for parts in zip(*seen))
    return tokens, inked, labels


def make_answer_loss(
    model: tf.LlavaForConditionalGeneration, asking: Asking, tokens: Tensor, inked: Tensor, labels: Tensor
) -> Loss:
    """Return the loss of the answers, of the ends after them, and of what single projected patches say."""
    inner = model.model

    def loss(which: Tensor, generator: torch.Generator) -> Tensor:
        right = questions.answers(labels[which])
        embed = inner.get_input_embeddings()
        start, image = embed(torch.full((len(which), 1), asking.bos)), inner.multi_modal_projector(tokens[which])
        sequence = torch.cat([start, image, embed(asking.ids(right))], dim=1)
        out = inner.language_model(inputs_embeds=sequence, attention_mask=asking.mask, position_ids=asking.positions)
        # (B, questions, length, C), of which the question mark tells the answer, and the answer that it ends there
        states = out.last_hidden_state[:, 1 + PATCHES :].unflatten(1, (-1, asking.length))
        answer, end = (model.lm_head(states[:, :, at]).flatten(0, 1) for at in (-2, -1))
        # Most digits are not there, and how many there are of those is soon learnt.
        weight = torch.where(right == 0, 0.5, 1.0)
        weight[:, : len(scenes.CORNERS)] = 2
        told = F.cross_entropy(answer, asking.names[right].flatten(), reduction="none")
        ended = F.cross_entropy(end, torch.full((len(end),), asking.eos))
        # A patch of a digit should mean the word for it, which is then only to be found and copied.
        ink = inked[which] > INKED
        meant = F.cross_entropy(model.lm_head(image[ink]), asking.names[by_patch(labels[which])[ink]])
        return (told * weight.flatten()).mean() + 0.1 * ended + 0.3 * meant

    return loss


def take_turn(model: tf.LlavaForConditionalGeneration, asking: Asking, material: scenes.Material, turn: Turn) -> float:
    """Train the tower with a new teacher, then projector and language model behind it; return the minutes."""
    tower = model.model.vision_tower.requires_grad_(True)
    teacher = PatchTeacher(model.config.vision_config.hidden_size, len(scenes.NAMES) * len(scenes.CORNERS))
    reading = Stage("tower", turn.tower_epochs, make_tower_loss(model, teacher, material), turn.tower_rate)
    minutes = fit(nn.ModuleList([tower, teacher]), reading, len(material.labels))
    tower.requires_grad_(False)
    answers = make_answer_loss(model, asking, *look(model, material, turn.pictures, turn.seed))
    return minutes + fit(model, Stage("answers", turn.answer_epochs, answers, turn.answer_rate), turn.pictures)


def main() -> None:
    args = arguments(__doc__, MODELS)
    tokenizer, material = make_tokenizer(), scenes.load_material("train")
    model = make_model(tokenizer, tf.CLIPVisionModel.from_pretrained(args.out / "digits-clip"))
    minutes = sum(take_turn(model, Asking(tokenizer), material, turn) for turn in TURNS)
    save_half(model, args.out / "digits-llava", make_processor(tokenizer))
    write_card(CARD, args.out, minutes)


if __name__ == "__main__":
    main()

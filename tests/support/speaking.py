"""A small random LLaVA that says words, saved with a processor that has a chat template."""

from __future__ import annotations

from pathlib import Path

import small
import torch
import transformers as tf

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>"]
SAID = "a photo of the cat dog tree red big what is it A B C D yes no one two 3 . ? , : USER ASSISTANT in on and man"
WORDS = [*SPECIAL, *SAID.split(" ")]
TEMPLATE = (
    "{% for message in messages %}USER : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)
PATCHES = 64
"""Image tokens that reach the language model of the unmerged model."""


def tokenizer() -> tf.PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens=["<image>"],
    )


def build(template: str | None = TEMPLATE, patch_size: int = 4) -> tuple[tf.PreTrainedModel, tf.ProcessorMixin]:
    torch.manual_seed(0)
    text = {**small.SMALL, "vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 2}
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**small.SMALL, **small.IMAGE),
        text_config=tf.LlamaConfig(**text),
        image_token_index=WORDS.index("<image>"),
        vision_feature_select_strategy="default",
    )
    model = small.larger(tf.LlavaForConditionalGeneration(config))
    model.generation_config.update(eos_token_id=2, pad_token_id=0, do_sample=False)
    processor = tf.LlavaProcessor(
        small.image_processor(),
        tokenizer(),
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return model, processor


def llava(folder: Path, **options: object) -> Path:
    return small.save(folder, *build(**options))

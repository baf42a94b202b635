"""A context is read once, and every question is asked of its merged cache."""

import pytest
import torch
from decoders import TINY, decoder
from small import tokenizer

from hf_tome import MergeConfig, is_merged
from hf_tome.contexts import ContextPipeline

CONTEXT = "the cat of the tree the red dog of a big photo " * 8


def reads(model):
    lengths = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return lengths


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }} photo"])
def test_the_context_is_read_once(template):
    model, tokens = decoder(), tokenizer()
    tokens.chat_template = template
    lengths = reads(model)
    pipe = ContextPipeline(model, tokens, MergeConfig(where="cache", keep_ratio=0.5, size="fitted", protect=(2, 8)))
    answers = pipe(CONTEXT, ["the cat", "a big red dog", "the cat"], max_new_tokens=3)
    assert len(answers) == 3
    assert answers[0] == answers[2]  # no question hears of another
    assert sum(length > 60 for length in lengths) == 1
    assert not is_merged(model)


def test_keeping_everything_answers_as_generate_does():
    model, tokens = decoder(), tokenizer()
    answer = ContextPipeline(model, tokens, MergeConfig(where="cache", keep_ratio=1.0))(CONTEXT, ["the cat"], 5)[0]
    ids = tokens(CONTEXT, return_tensors="pt").input_ids
    asked = tokens("the cat\n", return_tensors="pt", add_special_tokens=False).input_ids
    whole = torch.cat([ids, asked], dim=1)
    output = model.generate(whole, max_new_tokens=5, do_sample=False, pad_token_id=TINY["pad_token_id"])
    assert answer == tokens.decode(output[0, whole.shape[1] :], skip_special_tokens=True).strip()


def test_what_it_does_not_take():
    model = decoder()
    with pytest.raises(ValueError, match="contexts are kept in a cache"):
        ContextPipeline(model, tokenizer(), MergeConfig(r=8))
    with pytest.raises(TypeError, match="it takes a list"):
        ContextPipeline(model, tokenizer())(CONTEXT, "the cat")

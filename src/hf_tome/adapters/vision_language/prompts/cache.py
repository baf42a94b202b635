"""Continue generation from a cache built on shortened prompts, which stores how they were shortened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ...cache_names import CACHE
from ..call_args import cache_argument
from .prompt import FILL, Shortening, shorten_call

MARK = "_hf_tome_shortening"
PER_TOKEN = ("input_ids", *(name for name in FILL if name != "attention_mask"))
"""Arguments that a continuing call may hold for its new tokens alone; a mask is that of the whole conversation."""
NEW_IMAGE = (
    f"There is a new image, but the cache (`{CACHE}`) is already filled: the surplus placeholders of a merged image "
    f"have to leave the prompt before a cache is built on it. Leave `{CACHE}` out and pass the whole conversation "
    "with all of its images."
)


def remembered(cache: Any) -> Shortening | None:
    """Return how the prompts in a cache were shortened, or `None`; one that was reset forgets it."""
    if getattr(cache, MARK, None) is not None and not int(cache.get_seq_length()):
        delattr(cache, MARK)
    return getattr(cache, MARK, None)


def remember(cache: Any, shortening: Shortening) -> None:
    """Write on a cache how its prompts were shortened."""
    if cache is not None:
        setattr(cache, MARK, shortening)


@contextmanager
def without_history(cache: Any) -> Iterator[None]:
    """Within this, a cache counts as one whose every argument has been shortened already."""
    shortening = remembered(cache)
    if shortening is not None:
        delattr(cache, MARK)
    try:
        yield
    finally:
        if shortening is not None:
            remember(cache, shortening)


def continue_generate(
    call: dict[str, Any], history: Shortening, placeholders: Tensor, has_images: bool, pad_token_id: int
) -> Shortening:
    """Shorten, in place, the next turn of a conversation as its cache was.

    Args:
        placeholders: (B, L) bool, of the ids or embeddings in the call.

    Raises:
        ValueError: the call has a new image, or is no continuation of what the cache holds.
    """
    if has_images:
        raise ValueError(NEW_IMAGE)
    history = history.repeated(placeholders.shape[0])
    length, mask = placeholders.shape[1], call.get("attention_mask")
    past, start = int(cache_argument(call).get_seq_length()), history.keep.shape[1]
    columns = length if mask is None else mask.shape[1]
    whole = columns == length  # else these are the new tokens alone, and the mask is that of the whole conversation
    fits = columns > start and past >= history.length
    if whole and fits:
        fits = torch.equal(placeholders[:, :start], history.placeholders)
    if not fits:
        raise ValueError(
            f"The cache (`{CACHE}`) holds {past} tokens, of prompts that merging shortened from {start} columns to "
            f"{history.length}; the {columns} columns of this call do not begin with those prompts. Pass the whole "
            f"conversation as `generate` returned it and what follows, or leave `{CACHE}` out."
        )
    if mask is None:
        call["attention_mask"] = torch.ones_like(placeholders, dtype=torch.int64)
    new = {} if whole else {name: call.pop(name) for name in PER_TOKEN if _columns(call.get(name)) == length}
    shorten_call(call, history, pad_token_id)
    call.update(new)
    return history


def check_unmarked(cache: Any, placeholders: Tensor) -> None:
    """Raise where a prompt continues a cache that ends among its images and has no record of merging.

    Args:
        placeholders: (B, L) bool, of the prompt.

    Raises:
        ValueError: there are images behind what the cache holds, and none in the call.
    """
    past = int(cache.get_seq_length()) if isinstance(cache, Cache) else 0
    if past and bool(placeholders[:, past:].any()):
        raise ValueError(
            f"The cache (`{CACHE}`) holds {past} tokens, and the prompt has image placeholders after those, but "
            "there is no image. A cache knows how merging shortened its prompts as long as it is the object that a "
            "call returned; one that is built anew from its tensors does not. Pass that object, or leave "
            f"`{CACHE}` out and pass the whole conversation with all of its images."
        )


def _columns(argument: Any) -> int:
    return argument.shape[1] if isinstance(argument, Tensor) else -1


def continue_forward(
    call: dict[str, Any], history: Shortening, has_images: bool, first_position: int | None = 0
) -> None:
    """Fit mask and position ids of new tokens, in place, to a cache whose prompts were shortened.

    The model's positions count from `first_position`, or columns of the cache where that is `None`.

    Raises:
        ValueError: the call has a new image, or they fit neither the prompts as passed nor the shortened ones.
    """
    if has_images:
        raise ValueError(NEW_IMAGE)
    tokens = call["input_ids"] if call.get("input_ids") is not None else call["inputs_embeds"]
    batch_size, num_new = tokens.shape[:2]
    history = history.repeated(batch_size)
    past, start = int(cache_argument(call).get_seq_length()), history.keep.shape[1]
    fitting, original = past + num_new, past + num_new + history.lost
    mask = call.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        if mask.shape[1] == original and past >= history.length:
            call["attention_mask"] = history.shorten(mask, 0)
        elif mask.shape[1] != fitting:
            raise ValueError(
                f"`attention_mask` has {mask.shape[1]} columns; for {num_new} new token(s) after prompts that merging "
                f"shortened from {start} to {history.length} columns it takes {original} (the prompts as passed) or "
                f"{fitting}."
            )
    given = call.get("position_ids")
    if given is not None or first_position is not None:
        call["position_ids"] = _positions(given, history, past + (first_position or 0), num_new)


def _positions(position_ids: Tensor | None, history: Shortening, past: int, num_new: int) -> Tensor:
    """Return position ids (B, q) that follow the shortened prompts; those given may follow the prompts as passed."""
    kept = history.keep.sum(dim=1, keepdim=True)
    expected = kept + past - history.length  # (B, 1)
    if position_ids is None:
        # The model itself would count the padding between rows of unequal lengths.
        return expected + torch.arange(num_new, device=expected.device)
    first = position_ids[:, :1]
    if bool((first == expected).all()):
        return position_ids
    dropped = history.dropped.sum(dim=1, keepdim=True)
    if bool((first == expected + dropped).all()):
        return position_ids - dropped
    raise ValueError(
        f"`position_ids` begin at {first.flatten().tolist()}; after prompts that merging shortened they take "
        f"{expected.flatten().tolist()}, or {(expected + dropped).flatten().tolist()} as if nothing had merged."
    )

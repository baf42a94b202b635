"""Prompts whose image placeholders are fewer than the processor wrote: which go, and how everything per token follows.

Tensors only; `vlm` says when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FILL: dict[str, float] = {
    "inputs_embeds": 0,
    "attention_mask": 0,
    "labels": -100,
    "shift_labels": -100,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "moe_mm_token_type_ids": 0,
}
"""The arguments with one entry for each token of the prompt, and what padding holds; ids and positions come on top."""


@dataclass(frozen=True)
class Shortening:
    """Which columns of a batch of prompts stay, and on which side the rows are padded to equal lengths again.

    Attributes:
        keep: (B, L) bool.
        dropped: (B, L) bool, the surplus placeholders; what is in neither is padding around the prompts.
        placeholders: (B, L) bool, all of them.
        left: pad on the left, as generation needs, rather than on the right.
    """

    keep: Tensor
    dropped: Tensor
    placeholders: Tensor
    left: bool

    @property
    def length(self) -> int:
        """The columns of the shortened prompts."""
        return int(self.keep.sum(dim=1).max())

    @property
    def lost(self) -> int:
        """How many columns shorter the prompts are."""
        return self.keep.shape[1] - self.length

    def shorten(self, x: Tensor, fill: float) -> Tensor:
        """Drop columns of `x` (B or 1, L or more, ...) and pad; columns that came after the prompt stay."""
        keep = self._extended(x.shape[1])
        x = x.expand(keep.shape[0], *x.shape[1:])
        # A stable sort moves what goes to the side of the padding, and leaves the rest in order.
        order = (keep if self.left else ~keep).int().argsort(dim=1, stable=True)
        length = int(keep.sum(dim=1).max())
        order = order[:, -length:] if self.left else order[:, :length]
        index, real = order, keep.gather(1, order)
        if x.ndim == 3:
            index, real = index[..., None].expand(-1, -1, x.shape[2]), real[..., None]
        return x.gather(1, index).masked_fill(~real, fill)

    def positions(self, position_ids: Tensor) -> Tensor:
        """Close the gaps in position ids (B or 1, L): each falls by the placeholders dropped before it."""
        dropped = self._pad(self.dropped, position_ids.shape[1], False).int()
        before = dropped.cumsum(dim=1)
        position_ids = position_ids.expand(before.shape[0], -1)
        # Rows may hold several packed sequences, whose positions start anew; so does the count.
        starts = torch.ones_like(position_ids, dtype=torch.bool)
        starts[:, 1:] = position_ids[:, 1:] <= position_ids[:, :-1]
        at_start = torch.where(starts, before - dropped, 0).cummax(dim=1).values
        return self.shorten(position_ids - (before - at_start), 0)

    def repeated(self, batch_size: int) -> Shortening:
        """Return the same for a batch in which each row stands several times in a row, as for beams.

        Raises:
            ValueError: the batch is no multiple of this one.
        """
        rows = self.keep.shape[0]
        if batch_size % rows:
            raise ValueError(
                f"The cache holds {rows} prompts that were shortened by merging, but the batch has "
                f"{batch_size} rows. Pass the cache together with the rows that it was made of."
            )
        keep, dropped, placeholders = (
            mask.repeat_interleave(batch_size // rows, dim=0) for mask in (self.keep, self.dropped, self.placeholders)
        )
        return Shortening(keep, dropped, placeholders, self.left)

    def _extended(self, length: int) -> Tensor:
        return self._pad(self.keep, length, True)

    @staticmethod
    def _pad(columns: Tensor, length: int, value: bool) -> Tensor:
        more = columns.new_full((columns.shape[0], length - columns.shape[1]), value)
        return torch.cat([columns, more], dim=1)


def plan_shortening(
    placeholders: Tensor,
    lengths: Sequence[int],
    full: Sequence[int] | None,
    attention_mask: Tensor | None,
    left: bool | None,
    places: Sequence[Tensor] | None = None,
) -> Shortening | None:
    """Plan which placeholders go, so that each image has as many as it has features.

    Args:
        placeholders: (B, L) bool.
        lengths: the features of each image, in the order of the placeholders.
        full: the placeholders of each image; `None` if not known, then all have equally many.
        attention_mask: (B, L), *optional*.
        left: the side on which to pad; `None`: the right if the prompts are padded there, else the left.
        places: which placeholders of each image stay, (M_i,); the last ones where not given.

    Returns:
        `None` where the placeholders are as many as the features already.

    Raises:
        ValueError: the placeholders do not fit the images.
    """
    total, images = int(placeholders.sum()), len(lengths)
    if not images:
        return None
    if total == sum(lengths) and (full is None or total != sum(full)):
        return None
    full = list(full) if full is not None else [total // images] * images
    ends = torch.tensor(full, device=placeholders.device).cumsum(0)
    by_row = placeholders.sum(dim=1)
    whole = bool(torch.isin(by_row.cumsum(0), torch.cat([ends.new_zeros(1), ends])).all())
    if total != sum(full) or total == 0 or not whole or any(map(int.__gt__, lengths, full)):
        each = f"{full[0]} tokens each" if len(set(full)) == 1 else f"{full} tokens"
        raise ValueError(
            f"The prompts hold {by_row.tolist()} image placeholders, but {images} image(s) of {each} need "
            f"{sum(full)} in all, whole images in each prompt. Write one image token for each image into the "
            "prompt, and let the processor expand it."
        )
    if total == sum(lengths):
        return None
    stay = torch.zeros(total, dtype=torch.bool, device=placeholders.device)
    for image, (end, keep) in enumerate(zip(ends.tolist(), lengths)):
        if places is None:
            stay[end - keep : end] = True
        else:
            stay[end - full[image] + places[image].to(stay.device)] = True
    rank = placeholders.flatten().cumsum(0).view_as(placeholders) - 1  # of each placeholder among all
    dropped = placeholders & ~stay[rank.clamp(min=0)]
    real = _inside(attention_mask, placeholders)
    if left is None:
        left = bool(real[:, -1].all())
    return Shortening(real & ~dropped, dropped, placeholders, left)


def _inside(attention_mask: Any, like: Tensor) -> Tensor:
    """Return the columns (B, L) that are not padding at either end of their row; holes between tokens stay."""
    if attention_mask is None:
        return torch.ones_like(like)
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != like.shape:
        mask_type = (
            tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        )
        raise ValueError(
            f"`attention_mask` is {mask_type}, but for prompts whose placeholders follow the "
            f"merged tokens it takes {tuple(like.shape)}, one entry for each token. Leave masks of other shapes out."
        )
    seen = attention_mask.to(torch.int64)
    return (seen.cumsum(dim=1) > 0) & (seen.flip(1).cumsum(dim=1).flip(1) > 0)


def shorten_call(
    call: dict[str, Any], shortening: Shortening, pad_token_id: int, first_position: int | None = 0
) -> None:
    """Shorten, in place, every argument of a model's call that has one entry for each token of the prompt.

    Position ids that have to be made count from `first_position`; none are made where that is `None`.
    """
    length = shortening.keep.shape[1]
    ids, mask, positions = (call.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    if ids is not None and ids.shape[1] >= length:
        call["input_ids"] = shortening.shorten(ids, pad_token_id)
    if positions is not None and positions.shape[-1] >= length:
        call["position_ids"] = shortening.positions(positions)
    for name, fill in FILL.items():
        if isinstance(call.get(name), Tensor):
            call[name] = shortening.shorten(call[name], fill)
    if mask is None:
        kept = shortening.shorten(torch.ones_like(shortening.keep, dtype=torch.int64), 0)
        call["attention_mask"] = None if bool(kept.all()) else kept
    made = positions is None and shortening.left and call["attention_mask"] is not None
    if made and first_position is not None:
        # Padding that was put in front must not shift the positions.
        mask = call["attention_mask"].long()
        call["position_ids"] = (mask.cumsum(dim=-1) - 1).masked_fill(mask == 0, 0) + first_position

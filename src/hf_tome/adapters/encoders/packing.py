"""Leave padding out of the computation: where images keep unequal numbers of tokens, only the real ones are run.

Norms, projections and the MLP work token by token, so they take the real tokens of all images in one row. Attention
runs image by image where that is cheap, on the padded batch elsewhere. Between blocks the batch is padded as ever.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Attend = Callable[..., tuple[Tensor, Tensor | None]]


class PaddedLayout:
    """The batch as it is, (B, N, C), with padding computed with where there is any."""

    lengths: tuple[int, ...] | None = None
    """The number of real tokens of each image, where they are packed."""
    per_image = False
    """Whether attention runs image by image."""

    def pack(self, x: Tensor) -> Tensor:
        """Take tokens (B, N, C) to the real ones in one row, (1, R, C)."""
        return x

    def unpack(self, x: Tensor) -> Tensor:
        """Take (1, R, C) to (B, N, C), zeros at padding."""
        return x

    def computed(self, num_tokens: int) -> tuple[float, float]:
        """Return the tokens an image that token-wise layers run on, and the pairs of tokens in its attention."""
        return num_tokens, num_tokens**2

    def to(self, device: torch.device) -> PaddedLayout:
        """Return the same for tokens on `device`."""
        return self


class PackedLayout(PaddedLayout):
    """The real tokens of a batch with padding. Every image has its real tokens first."""

    def __init__(self, size: Tensor, per_image: bool):
        self.per_image = per_image
        self.shape = size.shape[:2]
        # The lengths have to be known on the host, and there a call of NumPy costs a tenth of one of PyTorch.
        real = size.detach()[..., 0].cpu().numpy() > 0  # (B, N)
        flat = real.reshape(-1)
        rows, padding = flat.nonzero()[0], (~flat).nonzero()[0]  # (R,), (B*N - R,)
        place = np.maximum(flat.cumsum() - 1, 0)  # (B*N,), the row of each real token, any of padding
        self.rows, self._padding, self._place = (torch.from_numpy(x).to(size.device) for x in (rows, padding, place))
        self.lengths: tuple[int, ...] = tuple(real.sum(axis=1).tolist())

    def pack(self, x: Tensor) -> Tensor:
        """See the base class."""
        return x.reshape(-1, x.shape[-1]).index_select(0, self.rows)[None]  # (B, N, C) -> (B*N, C) -> (1, R, C)

    def unpack(self, x: Tensor) -> Tensor:
        """See the base class."""
        # Selecting rows and clearing the few of padding takes a quarter of the time of copying rows into zeros.
        return x[0].index_select(0, self._place).index_fill_(0, self._padding, 0).view(*self.shape, -1)

    def computed(self, num_tokens: int) -> tuple[float, float]:
        """See the base class."""
        images = len(self.lengths)
        pairs = sum(length**2 for length in self.lengths) / images if self.per_image else num_tokens**2
        return sum(self.lengths) / images, pairs

    def to(self, device: torch.device) -> PackedLayout:
        """See the base class."""
        if self.rows.device == device:
            return self
        moved = copy.copy(self)
        moved.rows, moved._place, moved._padding = (x.to(device) for x in (self.rows, self._place, self._padding))
        return moved


PADDED = PaddedLayout()


def layout_of(size: Tensor | None, padded: bool, block: nn.Module, backend: str, has_mask: bool) -> PaddedLayout:
    """Return how tokens of `size` (B, N, 1), among which there is padding if `padded`, go through MLP and attention.

    Not in training, where modules such as DropPath tell images apart by the batch dimension, and not in graphs, whose
    shapes may not depend on the data.
    """
    if size is None or not padded or block.training or torch.compiler.is_compiling():
        return PADDED
    # On an accelerator launching a kernel for each image costs more than the padding.
    per_image = size.device.type == "cpu" and backend == "sdpa" and not has_mask
    return PackedLayout(size, per_image)


def attend_per_image(
    attend: Attend,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    layout: PaddedLayout,
    *,
    packed: bool,
    **kwargs: Any,
) -> Tensor:
    """Attend in each image by itself, over its real tokens: (B, H, N, d) -> (1, R, H, d); `bias` is (B, N).

    Where they are `packed` already, queries, keys and values are (1, H, R, d).
    """
    lengths = layout.lengths or ()
    if packed:
        images = zip(*(states.split(lengths, dim=2) for states in (query, key, value)))
    else:
        images = zip(*(_real_tokens(states, lengths) for states in (query, key, value)))
    outputs = []
    for image, states in enumerate(images):
        mask = None if bias is None else bias[image, None, None, None, : lengths[image]]
        outputs.append(attend(module, *states, mask, is_causal=False, **kwargs)[0])
    return torch.cat(outputs, dim=1)


def _real_tokens(states: Tensor, lengths: tuple[int, ...]) -> list[Tensor]:
    """Return the real tokens of each image, (B, H, N, d) -> (1, H, length, d) each."""
    return [states[image : image + 1, :, :length] for image, length in enumerate(lengths)]

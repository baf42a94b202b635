"""Storage with room behind the entries of a layer: a token is appended without copying all that came before it."""

from __future__ import annotations

import torch
from torch import Tensor

from .entries import Entries, join

ROOM = 16
"""New storage has room for one more entry in so many."""
LEAST_ROOM = 16


class GrowingStorage:
    """Appends entries in place while there is room, and moves them to larger storage where there is none."""

    def __init__(self) -> None:
        self._buffers: Entries | None = None

    def append(self, held: Entries, new: Entries) -> Entries:
        """Return the entries with new ones behind them; those held are views of this storage, or move there."""
        if torch.is_grad_enabled():  # which may need the entries as they are now
            self._buffers = None
            return join([held, new])
        length, total = held.length, held.length + new.length
        if self._buffers is None or not all(_fits(*pair, total) for pair in zip(self._buffers, held)):
            capacity = total + max(total // ROOM, LEAST_ROOM)
            self._buffers = held.each(lambda x: x.new_empty((*x.shape[:2], capacity, *x.shape[3:])))
            for buffer, x in zip(self._buffers, held):
                buffer[:, :, :length] = x
        for buffer, x in zip(self._buffers, new):
            buffer[:, :, length:total] = x
        return self._buffers.part(0, total)

    def num_bytes(self, held: Entries) -> int:
        """Return the bytes of the storage of entries, room included."""
        buffers = self._buffers
        is_held = buffers is not None and all(_fits(*pair, 0) for pair in zip(buffers, held))
        tensors = held if buffers is None or not is_held else buffers
        return sum(int(tensor.numel() * tensor.element_size()) for tensor in tensors)


def _fits(buffer: Tensor, held: Tensor, total: int) -> bool:
    """Return whether a tensor is the front of a buffer, which has room for `total` entries and can be written to."""
    is_front = buffer.data_ptr() == held.data_ptr() and buffer.stride() == held.stride()
    is_writable = not buffer.is_inference() or torch.is_inference_mode_enabled()
    return is_front and is_writable and buffer.shape[:2] == held.shape[:2] and buffer.shape[2] >= total

"""Peak memory of model forwards, and waiting for accelerators."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20


def peak_memory_mib(run: Callable[[], object], model: torch.nn.Module, device: torch.device) -> float:
    """Run once and return the model's weights plus the peak of the memory that torch allocated meanwhile.

    On CUDA the allocator tells the peak. Elsewhere the storages of the tensors that operators return are counted while
    they live, which leaves out what a kernel needs inside itself; the process's resident memory would be no better,
    for it moves by tens of MiB with what malloc keeps.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (weights + torch.cuda.max_memory_allocated(device) - before) / MIB
    with _LiveStorages(model) as storages:
        run()
    return (weights + storages.peak) / MIB


class _LiveStorages(TorchDispatchMode):
    """Counts the bytes of the storages that operators made and that are still alive."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.live = self.peak = 0
        # A view of a weight is no new memory.
        self.counted = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.counted:
            return
        self.counted.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes()).atexit = False

    def _drop(self, address: int, size: int) -> None:
        self.counted.discard(address)
        self.live -= size


def release_cached_memory(device: torch.device) -> None:
    """Give memory that torch keeps for later back to an accelerator."""
    empty = getattr(torch.get_device_module(device), "empty_cache", None)
    if empty is not None:
        empty()


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator (CUDA, MPS, XPU, ...) has finished its queue; a CPU has none."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)

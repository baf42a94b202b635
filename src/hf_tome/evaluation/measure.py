"""Seconds and peak memory of a stretch of model forwards, on a CPU or a GPU."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

MIB = 2**20
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass
class Clock:
    """The seconds spent in all `with` blocks so far, waiting for the GPU included."""

    device: torch.device
    seconds: float = 0.0

    def __enter__(self) -> None:
        _synchronize(self.device)
        self._start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        _synchronize(self.device)
        self.seconds += time.perf_counter() - self._start


def peak_memory_mib(run: Callable[[], object], model: torch.nn.Module, device: torch.device) -> float | None:
    """Run once and return the peak of the memory held meanwhile, model included; `None` where it is unknown.

    On CUDA it is `torch.cuda.max_memory_allocated`. On a CPU under Linux it is the size of the model's weights plus
    the rise of the process's resident memory above what it was before: freed memory is handed back first and the
    kernel's high-water mark is reset. Elsewhere it is unknown.
    """
    before = _reset_peak(device)
    run()
    _synchronize(device)
    return _peak_mib(model, device, before)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> float | None:
    """Start a new peak and return the resident memory in MiB, where it is needed and known."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return None
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return None
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR_REFS.write_text("5")
        return _status_mib("VmRSS")
    except OSError:
        return None


def _peak_mib(model: torch.nn.Module, device: torch.device, before: float | None) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    if before is None:
        return None
    tensors = (*model.parameters(), *model.buffers())
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return weights / MIB + max(_status_mib("VmHWM") - before, 0.0)


def _status_mib(field: str) -> float:
    match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"No {field} in {_STATUS}.")
    return int(match[1]) / 1024

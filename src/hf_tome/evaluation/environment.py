"""What a measurement was made with: versions, device and threads."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    *("hf_tome", "torch", "transformers", "diffusers", "datasets", "evaluate", "accelerate", "huggingface_hub"),
    *("numpy", "av"),
)


def describe_environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return versions (`None` where a package is missing), the device's name and the threads, as plain JSON."""
    device = torch.device(device)
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

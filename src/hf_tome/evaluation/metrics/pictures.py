"""How alike two pictures of the same noise are: PSNR and SSIM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 100.0
"""Decibels of pictures that are equal, so that means stay finite."""
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def psnr(pictures: Tensor, references: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each picture (N, ..., H, W) from 0 to 1 in decibels, (N,)."""
    error = (pictures.double() - references.double()).square().flatten(1).mean(dim=1)
    return (-10 * error.clamp(min=1e-30).log10()).clamp(max=MOST).float()


def ssim(pictures: Tensor, references: Tensor) -> Tensor:
    """Return the structural similarity of each picture (N, H, W) or (N, C, H, W) from 0 to 1, (N,).

    As Wang et al. (2004) define it: a Gaussian window of 11 pixels, without filling at the edges.
    """
    first, second = (x.double() if x.ndim == 4 else x.double()[:, None] for x in (pictures, references))
    channels = first.shape[1]
    side = min(WINDOW, *first.shape[-2:])
    at = torch.arange(side, dtype=torch.float64, device=first.device) - (side - 1) / 2
    weights = torch.exp(-at.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    window = (weights[:, None] * weights).expand(channels, 1, -1, -1)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=channels)

    mean_1, mean_2 = mean(first), mean(second)
    variance_1, variance_2 = mean(first.square()) - mean_1.square(), mean(second.square()) - mean_2.square()
    covariance = mean(first * second) - mean_1 * mean_2
    c1, c2 = K1**2, K2**2
    value = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    value = value / ((mean_1.square() + mean_2.square() + c1) * (variance_1 + variance_2 + c2))
    return value.flatten(1).mean(dim=1).float()

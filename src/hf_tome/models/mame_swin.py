"""Swin whose stages are joined by MaMe instead of patch merging (MaMe, section 4, training from scratch).

Between two stages one token of each cell of two by two is a destination, the other three are sources: a quarter of
the tokens stays, on a regular grid, and the width stays as it is. Sources like no destination are dropped, since
windows need the grid. The paper does not say where in a cell the destination is (here its first token), nor how
many heads there are: its numbers of parameters are those of three heads in every stage, as in Swin's first.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.models.swin.configuration_swin import SwinConfig
from transformers.models.swin.modeling_swin import (
    SwinEmbeddings,
    SwinEncoder,
    SwinForImageClassification,
    SwinModel,
    SwinPreTrainedModel,
    SwinStage,
)

from ..merging.mame.hierarchical import matrix_downsample


class MameSwinConfig(SwinConfig):
    """Configuration of `MameSwinModel`: that of Swin, whose width is the same in every stage.

    Args:
        threshold (`float`, *optional*, defaults to 0.5): MaMe's similarity threshold, in [-1, 1].
        kwargs: the fields of `SwinConfig`; `num_heads` is 3 in every stage by default.

    Raises:
        ValueError: `threshold` is out of range, or a stage's heads do not divide the width.
    """

    model_type = "mame_swin"

    num_heads: list[int] | tuple[int, ...] = (3, 3, 3, 3)
    threshold: float | int = 0.5

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.hidden_size = self.embed_dim
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"`threshold` is {self.threshold!r}; it takes a number from -1 to 1.")
        if len(self.num_heads) != len(self.depths) or any(self.embed_dim % heads for heads in self.num_heads):
            raise ValueError(
                f"`num_heads` is {list(self.num_heads)}; it takes one for each of the {len(self.depths)} stages "
                f"(`depths`), each a divisor of `embed_dim`, {self.embed_dim}."
            )


class MameDownsample(nn.Module):
    """MaMe between two stages; it has no parameters."""

    def __init__(self, dim: int, threshold: float):
        super().__init__()
        self.threshold = threshold

    def forward(self, hidden_states: Tensor, input_dimensions: tuple[int, int]) -> Tensor:
        """Take tokens (B, H*W, C) of a grid to (B, ceil(H/2)*ceil(W/2), C)."""
        return matrix_downsample(hidden_states, input_dimensions, self.threshold)

    def extra_repr(self) -> str:
        """Return what `print` shows of it."""
        return f"threshold={self.threshold}"


class MameSwinEncoder(SwinEncoder):
    """Swin's encoder with stages of one width."""

    def __init__(self, config: MameSwinConfig, grid_size: tuple[int, int]):
        SwinPreTrainedModel.__init__(self, config)
        self.config = config
        self.num_layers = len(config.depths)
        num_blocks = sum(config.depths)
        drop_path = [config.drop_path_rate * block / max(num_blocks - 1, 1) for block in range(num_blocks)]
        downsample = partial(MameDownsample, threshold=config.threshold)
        stages, begin = [], 0
        for index, (depth, num_heads) in enumerate(zip(config.depths, config.num_heads)):
            stages.append(
                SwinStage(
                    config=config,
                    dim=config.embed_dim,
                    input_resolution=(grid_size[0] // 2**index, grid_size[1] // 2**index),
                    depth=depth,
                    num_heads=num_heads,
                    drop_path=drop_path[begin : begin + depth],
                    downsample=downsample if index < self.num_layers - 1 else None,
                )
            )
            begin += depth
        self.layers = nn.ModuleList(stages)
        self.post_init()


class MameSwinModel(SwinModel):
    """Swin with MaMe between its stages: inputs, outputs and names of parameters are those of `SwinModel`."""

    config: MameSwinConfig
    config_class = MameSwinConfig

    def __init__(self, config: MameSwinConfig, add_pooling_layer: bool = True, use_mask_token: bool = False):
        SwinPreTrainedModel.__init__(self, config)
        self.config = config
        self.num_layers = len(config.depths)
        self.num_features = config.embed_dim
        self.embeddings = SwinEmbeddings(config, use_mask_token=use_mask_token)
        self.encoder = MameSwinEncoder(config, self.embeddings.patch_grid)
        self.layernorm = nn.LayerNorm(self.num_features, eps=config.layer_norm_eps)
        self.pooler = nn.AdaptiveAvgPool1d(1) if add_pooling_layer else None
        self.post_init()


class MameSwinForImageClassification(SwinForImageClassification):
    """`MameSwinModel` with a linear classifier of its mean token, as `SwinForImageClassification`."""

    config: MameSwinConfig
    config_class = MameSwinConfig

    def __init__(self, config: MameSwinConfig):
        SwinPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.swin = MameSwinModel(config)
        classes = config.num_labels or 0
        self.classifier = nn.Linear(self.swin.num_features, classes) if classes > 0 else nn.Identity()
        self.post_init()

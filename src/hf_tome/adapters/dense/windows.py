"""Towers whose windows are rows of the batch (RF-DETR, LW-DETR): tokens merge inside their window.

Some blocks attend over all windows of a picture. They know no positions, so that nothing but the rows changes for
them: the windows of a picture are laid end to end, however many tokens each has left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...patching.patch import context_of
from ..encoders.attention import AttentionCall, MergedAttention
from ..encoders.families import sizes
from ..encoders.families.family import Family, OutputAdapter, one, zero
from ..encoders.families.inputs import IMAGE, TokenGrid


class JoinedWindows(MergedAttention):
    """Attention that takes windows (B * W, M, C), and in some blocks attends over the windows (B, W * M, C)."""

    config: Any

    def num_joined(self) -> int:
        """Return how many windows attend together: W, or 1 in blocks that attend in each by itself."""
        raise NotImplementedError

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        *,
        merge_call: AttentionCall | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over windows (B * W, M, C); where all of a picture attend together, over those of the picture."""
        call, joined = merge_call, self.num_joined()
        if call is None or joined == 1:  # outside of the patched block the model has joined them itself
            return super().forward(hidden_states, attention_mask, merge_call=call, **kwargs)
        windows = call.layout.unpack(hidden_states)  # (B * W, M, C)
        count, num_tokens = windows.shape[:2]
        together = AttentionCall(
            bias=_join(call.bias, joined),
            real=_join(call.real, joined),
            feature=call.feature,
            attending=None if call.attending is None else 0,  # the class tokens of all windows lie apart
        )
        states = windows.reshape(count // joined, joined * num_tokens, -1)
        out, weights = super().forward(states, attention_mask, merge_call=together, **kwargs)
        call.result = _split(together.result, joined)
        call.attended = _split(together.attended, joined)
        return call.layout.pack(out.reshape(count, num_tokens, -1)), weights


class RfDetrWindows(JoinedWindows):
    """RF-DETR's attention: the blocks whose outputs are read attend over all windows."""

    def num_joined(self) -> int:
        """See the base class."""
        is_windowed = context_of(self).index in self.config.window_block_indexes
        return 1 if is_windowed else self.config.num_windows**2


class LwDetrWindows(JoinedWindows):
    """LW-DETR's attention."""

    def num_joined(self) -> int:
        """See the base class."""
        is_windowed = context_of(self).index in self.config.window_block_indices
        return 1 if is_windowed else self.config.num_windows


def _join(values: Tensor | None, joined: int) -> Tensor | None:
    return None if values is None else values.reshape(len(values) // joined, -1)  # (B * W, M) -> (B, W * M)


def _split(values: Tensor | None, joined: int) -> Tensor | None:
    """Return features of tokens (B, H, W * M, d), or numbers (B, W * M), as those of windows, (B * W, ...)."""
    if values is None:
        return None
    if values.ndim == 2:
        return values.reshape(len(values) * joined, -1)
    by_window = values.unflatten(2, (joined, -1)).transpose(1, 2)  # (B, W, H, M, d)
    return by_window.flatten(0, 1)


def _rf_detr_windows(config: Any) -> int:
    return config.num_windows**2


def _rf_detr_joined(config: Any) -> tuple[int, ...]:
    return _others(config, config.window_block_indexes)


def _lw_detr_windows(config: Any) -> int:
    return config.num_windows


def _lw_detr_joined(config: Any) -> tuple[int, ...]:
    return _others(config, config.window_block_indices)


def _others(config: Any, windowed: Sequence[int]) -> tuple[int, ...]:
    return tuple(index for index in range(config.num_hidden_layers) if index not in windowed)


def _patches_of(num_windows: Callable[[Any], int]) -> Callable[[Any], tuple[int, int]]:
    """Return what counts the patches of one window, and the values in each."""

    def patches(config: Any) -> tuple[int, int]:
        count, values = IMAGE.patches(config)
        return count // num_windows(config), values

    return patches


def _no_grid(config: Any, inputs: Mapping[str, Tensor]) -> TokenGrid:
    raise ValueError("The tokens of a picture in windows are rows of a batch, which cannot be drawn.")


def window_families(features: OutputAdapter) -> tuple[Family, ...]:
    """Return the rows; `features` unmerges the hidden states that a backbone reads."""
    rf_detr = Family(
        model_types=("rf_detr_dinov2", "rf_detr"),
        tower="RfDetrDinov2Backbone",
        num_prefix_tokens=one,  # a class token in each window
        heads={"RfDetrDinov2Backbone": (features,)},
        layers="encoder.layer",
        norm1="norm1",
        after_attention=("layer_scale1", "drop_path"),
        norm2="norm2",
        mlp=("mlp", "layer_scale2", "drop_path"),
        inputs=replace(IMAGE, patches=_patches_of(_rf_detr_windows), grid=_no_grid),
        num_windows=_rf_detr_windows,
        joined_blocks=_rf_detr_joined,
        sizes=sizes.RATIO_TOWER,
        attention_mixin=RfDetrWindows,
    )
    lw_detr = replace(
        rf_detr,
        model_types=("lw_detr_vit", "lw_detr"),
        tower="LwDetrViTBackbone",
        num_prefix_tokens=zero,
        heads={"LwDetrViTBackbone": (features,)},
        norm1="layernorm_before",
        after_attention=("gamma_1",),
        norm2="layernorm_after",
        mlp=("intermediate", "gamma_2"),
        residual_first=True,
        inputs=replace(IMAGE, patches=_patches_of(_lw_detr_windows), grid=_no_grid),
        num_windows=_lw_detr_windows,
        joined_blocks=_lw_detr_joined,
        attention_mixin=LwDetrWindows,
    )
    return rf_detr, lw_detr

"""Packed towers in which whole groups of patches stay merged up to the patch merger, which makes one token of each."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....patching.patch import PatchedModel, PatchedModule, context_of
from .block import WindowedTower
from .state import PackedState


class GroupReader(PatchedModule):
    """A module between the blocks that makes one token of each group (deepstack): it gets the groups that are left."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the module on tokens (M, C), and write down where it did; `GroupedTower` gives the groups back."""
        state: PackedState | None = context_of(self).target.recorder.current()
        if state is not None:
            state.read_before.append(state.next_block)
        return super().forward(x, *args, **kwargs)


class RestoredGroups(PatchedModule):
    """The patch merger: it runs on the groups that are left, and gives every group its token."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Take what is left of the groups to one token for each group that there was."""
        out = super().forward(x, *args, **kwargs)
        state: PackedState | None = context_of(self).target.recorder.result()
        return out if state is None else state.unmerge(state.num_layers, out)


class GroupedTower(PatchedModel):
    """A tower whose groups stay merged to its end: what comes out has the rows that it always has.

    What a later merge has joined has one token between the blocks, too, the mean of its members' tokens there.
    """

    methods = ("forward",)
    reads_sizes = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the tower on patches (S, values) and `grid_thw` (K, 3), as ever."""
        as_tuple = kwargs.pop("return_dict", True) is False
        recorder = context_of(self).target.recorder
        with recorder.reader():
            out = super().forward(*args, return_dict=True, **kwargs)
            state: PackedState | None = recorder.result()
        if state is not None:
            state.order = self.order_of_groups(kwargs["grid_thw"] if "grid_thw" in kwargs else args[1], kwargs)
            last = state.num_layers
            out.last_hidden_state = state.unmerge(last, out.last_hidden_state)
            if state.read_before:
                read = zip(state.read_before, out.deepstack_features)
                out.deepstack_features = [state.unmerge(last, state.follow(index, x)) for index, x in read]
        return out.to_tuple() if as_tuple else out

    def order_of_groups(self, grid_thw: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
        """Return which of the tower's outputs each group is, (S / g,), where they come in another order."""
        return None


class GroupedWindows(GroupedTower, WindowedTower):
    """The same of a tower whose blocks attend in windows, in whose order the groups merge."""

    spatial_merge_size: int
    window_size: int
    patch_size: int

    def order_of_groups(self, grid_thw: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """See the base class: groups merge in the order of windows."""
        from transformers.vision_utils import get_vision_window_index

        sides = (self.spatial_merge_size, self.window_size, self.patch_size)
        order, _ = get_vision_window_index(grid_thw, *sides, kwargs=dict(kwargs))
        return order

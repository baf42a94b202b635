"""Models between a packed tower and a language model, which gets the tokens of the groups that are left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dense.packed.state import PackedState
from ..vision_language.call_args import arguments
from ..vision_language.vlm import FULL, PLACES, MergedFeatures, RestingVideos


class GroupedImageModel(MergedFeatures):
    """The owner of a packed tower whose groups stay merged."""

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Return the features of the groups that are left of each image as `pooler_output`, a list of (M_i, C)."""
        plain, recorder = super().get_image_features, self._target.recorder
        if not self._merges or recorder.scope("resting"):
            return plain(*args, **kwargs)
        call = arguments(plain, args, kwargs)
        as_tuple = call.pop("return_dict", True) is False
        with recorder.reader():
            out = plain(**call, return_dict=True)
            state: PackedState = recorder.result()
        images, deepstack = list(out["pooler_output"]), self._connector.deepstack
        full = [len(rows) for rows in images]
        places = _places_of(state.kept_outputs(), full)
        out["pooler_output"] = _taken(images, places)
        if deepstack is not None:
            out[deepstack] = [_taken(layer, places) for layer in out[deepstack]]
        setattr(out, FULL, full)
        setattr(out, PLACES, places)
        return out.to_tuple() if as_tuple else out


class GroupedVideoModel(RestingVideos, GroupedImageModel):
    """The same of a model that encodes videos too, of which the language model gets every group."""


def _places_of(kept: Tensor | None, full: list[int]) -> list[Tensor]:
    """Return which groups of each image are left, (M_i,), given those of all images in a row, (M,)."""
    if kept is None:
        return [torch.arange(length) for length in full]
    ends = torch.tensor(full, device=kept.device).cumsum(0)
    counts = torch.searchsorted(kept, ends).diff(prepend=ends.new_zeros(1)).tolist()
    starts = ends - torch.tensor(full, device=kept.device)
    return [places - start for places, start in zip(kept.split(counts), starts)]


def _taken(images: Any, places: list[Tensor]) -> list[Tensor]:
    return [rows.index_select(0, kept.to(rows.device)) for rows, kept in zip(images, places)]

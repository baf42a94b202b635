"""Vision-language models whose language model gets the merged tokens: placeholders follow the features.

The image features are made once, the surplus placeholders of each image leave the prompt with everything that goes by
token, and the model's own code does the rest.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from ...patching.patch import PatchedModel, context_of
from ...patching.plans import Target
from ..cache_names import cache_of
from ..encoders.carry import ForwardState
from ..encoders.plan import check_reads
from .call_args import arguments, cache_argument, has_images, pad_token_id
from .connectors import OLD_LAYERS, Connector, connector_of
from .features import (
    check_image_size,
    cropped_tokens,
    has_feature_layers,
    image_tokens,
    read_layers,
    split_real,
)
from .projected import merge_features
from .prompts.cache import NEW_IMAGE, continue_forward, remember, remembered
from .prompts.mrope import continued_positions, shortened_positions
from .prompts.prompt import Shortening, plan_shortening, shorten_call

FULL, PLACES = "hf_tome_placeholders", "hf_tome_places"
"""Attributes of image features that have merged: how many placeholders each image has in the prompt, which stay."""

NO_PLACES = (
    "The features in `mm_encoder_outputs` are fewer than the prompt's placeholders and do not say which of them stay, "
    "from which their positions follow. Take them from this model's `get_image_features`."
)


class MergedModel(PatchedModel):
    """A model in whose prompts the placeholders follow the merged tokens."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on shortened prompts: logits, hidden states and the cache have as many columns as those."""
        plain = super().forward
        call = arguments(plain, args, kwargs)
        history, shortening = remembered(cache_argument(call)), None
        if history is not None:
            self._continue(call, history)
        elif self._merges and has_images(call):
            shortening = self._shorten(call, None, self._connector.first_position)
            call = self._repacked(call)
        # Images are features by now; what the model still encodes are videos.
        with self._target.recorder.scoped("resting", True):
            out = plain(**call)
        if shortening is not None:
            remember(cache_of(out), shortening)
        return out

    @property
    def _target(self) -> Target:
        return context_of(self).target

    @property
    def _merges(self) -> bool:
        return any(self._target.plan.merging)

    @property
    def _connector(self) -> Connector:
        return connector_of(self)

    def _continue(self, call: dict[str, Any], history: Shortening) -> None:
        """Fit mask and position ids of new tokens to their cache, in place."""
        connector = self._connector
        given = call.pop("position_ids", None) if connector.mrope else None
        continue_forward(call, history, has_images(call), connector.first_position)
        if connector.mrope:
            in_text = call["position_ids"]
            call["position_ids"] = continued_positions(self.base_model, in_text) if given is None else given

    def _shorten(self, call: dict[str, Any], left: bool | None, first_position: int | None = 0) -> Shortening | None:
        """Make the image features and shorten the call to them, in place; `None` if its length is right already."""
        passed = dict(call)
        shortening = self._plan(call, self._encode(call)["image"], left)
        if shortening is None:
            return None
        _check_can_shorten(call)
        positions = None
        if self._connector.mrope:
            positions = shortened_positions(self.base_model, passed, shortening, for_generate=left is True)
        if positions is not None:
            call.pop("position_ids", None)
        shorten_call(call, shortening, pad_token_id(self, call), first_position)
        if positions is not None:
            call["position_ids"] = positions
        return shortening

    def _plan(self, call: dict[str, Any], image: Any, left: bool | None) -> Shortening | None:
        """Plan which placeholders of a call go, given its image features; `None` if they are right already."""
        lengths, full = [len(rows) for rows in image.pooler_output], getattr(image, FULL, None)
        if full is not None and len(full) != len(lengths):
            full = None  # these have been expanded for beams, or cut into chunks, and shortened before
        mrope = self._connector.mrope
        places = getattr(image, PLACES, None) if mrope and full is not None else None
        placeholders = self._placeholders(call.get("input_ids"), call.get("inputs_embeds"))
        shortening = plan_shortening(placeholders, lengths, full, call.get("attention_mask"), left, places)
        if shortening is not None and mrope and places is None:
            raise ValueError(NO_PLACES)
        return shortening

    def _encode(self, call: dict[str, Any]) -> dict[str, Any]:
        """Put features into the call for its pixels, in place, and return them by what they are of."""
        encoded = call.get("mm_encoder_outputs") or {}
        if call.get("pixel_values") is None:
            return encoded
        if encoded.get("image") is not None:
            raise ValueError("Specify `pixel_values` or the image in `mm_encoder_outputs`; there are both.")
        connector, owner = self._connector, self.base_model
        check_image_size(call["pixel_values"], self.config)

        def given(names: tuple[str, ...]) -> dict[str, Any]:
            return {name: call[name] for name in names if call.get(name) is not None}

        encoded = {**encoded, "image": owner.get_image_features(**given(connector.pixels), return_dict=True)}
        if connector.videos and call.get(connector.videos[0]) is not None:
            # Models take pixels of all kinds, or features of all kinds.
            encoded["video"] = owner.get_video_features(**given(connector.videos), return_dict=True)
        for name in (*connector.pixels, *connector.videos):
            call.pop(name, None)
        call["mm_encoder_outputs"] = encoded
        return encoded

    def _placeholders(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Return which tokens of the prompts stand for image features, (B, L) bool."""
        token = self.config.image_token_id
        if input_ids is not None and input_ids.numel():
            return input_ids == token
        if inputs_embeds is None:
            raise ValueError("Specify `input_ids` or `inputs_embeds`; there is neither.")
        embedded = self.get_input_embeddings()(torch.tensor(token, device=inputs_embeds.device))
        return (inputs_embeds == embedded).all(dim=-1)

    def _repacked(self, call: dict[str, Any]) -> dict[str, Any]:
        return call


def _check_can_shorten(call: dict[str, Any]) -> None:
    cache = cache_argument(call)
    if cache is not None and int(cache.get_seq_length()):
        raise ValueError(NEW_IMAGE)
    if isinstance(call.get("logits_to_keep"), Tensor):
        raise ValueError("`logits_to_keep` is a tensor of columns, which merging moves; it takes a number.")


class MergedFeatures(MergedModel):
    """A model without its language modelling head (`LlavaModel`)."""

    methods: tuple[str, ...] = ("forward", "get_image_features")

    def _repacked(self, call: dict[str, Any]) -> dict[str, Any]:
        """Return the call with all images' features in the one container that the model's own forward takes."""
        outputs = call["mm_encoder_outputs"]
        features = outputs["image"].pooler_output
        if isinstance(features, Tensor):
            return call
        rows = torch.cat(list(features))
        connector = self._connector
        image = {**outputs["image"], "pooler_output": rows[None] if connector.as_tensor else [rows]}
        if connector.deepstack is not None:
            image[connector.deepstack] = [[torch.cat(list(layer))] for layer in image[connector.deepstack]]
        return {**call, "mm_encoder_outputs": {**outputs, "image": type(outputs["image"])(**image)}}


class MergedImageModel(MergedFeatures):
    """The owner of a tower whose merged tokens are projected one by one."""

    reads_sizes = True

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Return the projected features of each image as `pooler_output`, a list of (M_i, C); nothing is padded.

        Blocks after the last feature layer do not run, so `last_hidden_state` is left out, unless all hidden states or
        attentions are asked for.
        """
        plain, plan, recorder = super().get_image_features, self._target.plan, self._target.recorder
        if not self._merges:
            return plain(*args, **kwargs)
        call = arguments(plain, args, kwargs)
        strategy = call.pop("vision_feature_select_strategy", None)
        layers = call.pop("vision_feature_layer", call.pop(OLD_LAYERS, None))
        reads, cropped = read_layers(self, plan.num_layers, layers), cropped_tokens(self, strategy)
        check_reads(type(self).__name__, reads, plan.merging)
        if cropped > plan.num_prefix_tokens:
            raise ValueError(
                f"`vision_feature_select_strategy` {strategy!r} cuts off the first token, which merging was not told "
                "to protect. Set it in the model's config before `hf_tome.apply`."
            )
        call.pop("image_sizes", None)  # for packed towers, which do not merge
        as_tuple = call.pop("return_dict", True) is False
        by_layer = has_feature_layers(self)
        whole = bool(not by_layer or call.get("output_hidden_states") or call.get("output_attentions"))
        if by_layer:
            call["output_hidden_states"] = call.get("output_hidden_states") or sorted(set(reads))
        connector = self._connector
        read = (*reads, *([plan.num_layers] if whole else []))
        with recorder.reader(), recorder.scoped("reads", read):
            out = attrgetter(connector.tower)(self)(call.pop("pixel_values"), return_dict=True, **call)
            state: ForwardState = recorder.result().state
        hidden_states = out.hidden_states if by_layer else {plan.num_layers: out.last_hidden_state}
        tokens, size = image_tokens(hidden_states, reads, state)
        features = attrgetter(connector.projector)(self)(tokens[:, cropped:])
        out = type(out)(**{name: value for name, value in out.items() if whole})
        out["pooler_output"] = split_real(features, None if size is None else size[:, cropped:])
        setattr(out, FULL, [state.tokens[0] - cropped] * len(out["pooler_output"]))
        return out.to_tuple() if as_tuple else out


class ProjectedImageModel(MergedFeatures):
    """The owner of a projector behind which image tokens merge, wherever they come from."""

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Return the merged features of each image, or tile, as `pooler_output`, a list of (M_i, C)."""
        plain = super().get_image_features
        if not self._merges or self._target.recorder.scope("resting"):
            return plain(*args, **kwargs)
        call = arguments(plain, args, kwargs)
        as_tuple = call.pop("return_dict", True) is False
        out = plain(**call, return_dict=True)
        images, connector = list(out["pooler_output"]), self._connector
        if connector.tile is not None:
            length = attrgetter(connector.tile)(self)
            images = [tile for rows in images for tile in rows.split(length) if len(rows)]
        newline = None if connector.newline is None else attrgetter(connector.newline)(self)
        full, width = [len(rows) for rows in images], images[0].shape[1]
        if connector.deepstack is not None:  # what is added behind later layers merges as the tokens do
            images = [torch.cat(parts, dim=1) for parts in zip(images, *out[connector.deepstack])]
        merged = merge_features(images, newline, self._target, width)
        out["pooler_output"] = [image.tokens[:, :width] for image in merged]
        if connector.deepstack is not None:
            stacked = [image.tokens[:, width:].split(width, dim=1) for image in merged]
            out[connector.deepstack] = [list(layer) for layer in zip(*stacked)]
        setattr(out, FULL, full)
        setattr(out, PLACES, [image.place for image in merged])
        return out.to_tuple() if as_tuple else out


class RestingVideos(MergedFeatures):
    """A model that encodes videos too, whose tokens do not merge."""

    methods = (*MergedFeatures.methods, "get_video_features")

    def get_video_features(self, *args: Any, **kwargs: Any) -> Any:
        """Return the features of videos, which some models make as they make those of images."""
        with self._target.recorder.scoped("resting", True):
            return super().get_video_features(*args, **kwargs)


class ProjectedVideoModel(RestingVideos, ProjectedImageModel):
    """The owner of a projector behind which image tokens merge, and those of videos do not."""

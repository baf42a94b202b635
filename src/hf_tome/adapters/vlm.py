"""Vision-language models whose language model gets the merged tokens: placeholders follow the features.

The image features are made once, the surplus placeholders of each image leave the prompt with everything that goes by
token, and the model's own code does the rest.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from ..state import Tower
from .features import cropped_tokens, image_tokens, read_layers, split_real
from .history import NEW_IMAGE, continue_forward, continue_generate, remember, remembered, without_history
from .placeholders import Shortening, plan_shortening, shorten_call
from .prompts import Prompt, show_prompt
from .swap import LINK, Swapped

OLD_LAYERS = "vision_feature_layers"
PIXELS = ("pixel_values", "vision_feature_layer", OLD_LAYERS, "vision_feature_select_strategy", "image_sizes")
"""The arguments that image features are made of; VipLLaVA still takes the old name of the layers."""


class _MergedModel(Swapped):
    """A model in whose prompts the placeholders follow the merged tokens."""

    methods: tuple[str, ...] = ()
    """What is overridden here; transformers asks for the signatures, so they are those of the model's own."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if len(cls.__bases__) == 2:  # made by `swap`
            mixin, base = cls.__bases__
            for name in cls.methods:
                setattr(cls, name, _with_signature(getattr(mixin, name), getattr(base, name)))

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Build a plain model where one is built from a config, as in `type(model).from_pretrained(...)`."""
        return cls.__bases__[1](*args, **kwargs) if args or kwargs else super().__new__(cls)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on shortened prompts: logits, hidden states and the cache have as many columns as those."""
        plain = super().forward
        call = _arguments(plain, args, kwargs)
        history = remembered(call.get("past_key_values"))
        if history is None and not (self._merges and _has_images(call)):
            return plain(*args, **kwargs)
        if history is not None:
            continue_forward(call, history, _has_images(call))
            return plain(**call)
        shortening = self._shorten(call, None)
        out = plain(**self._repacked(call))
        if shortening is not None:
            remember(_cache_of(out), shortening)
        return out

    @property
    def _tower(self) -> Tower:
        return self.__dict__[LINK].tower

    @property
    def _merges(self) -> bool:
        return any(self._tower.merging)

    def _shorten(self, call: dict[str, Any], left: bool | None) -> Shortening | None:
        """Make the image features and shorten the call to them, in place; `None` if its length is right already."""
        full, encoded = None, call.get("mm_encoder_outputs") or {}
        if call.get("pixel_values") is not None:
            if encoded.get("image") is not None:
                raise ValueError("Specify `pixel_values` or the image in `mm_encoder_outputs`; there are both.")
            given = {name: call.pop(name, None) for name in PIXELS}
            chosen = {name: value for name, value in given.items() if value is not None}
            features = self.get_image_features(**chosen, return_dict=True)
            call["mm_encoder_outputs"] = encoded = {**encoded, "image": features}
            full = self._tower.current().tokens[0] - cropped_tokens(self, given["vision_feature_select_strategy"])
        lengths = [len(rows) for rows in encoded["image"].pooler_output]
        placeholders = self._placeholders(call.get("input_ids"), call.get("inputs_embeds"))
        shortening = plan_shortening(placeholders, lengths, full, call.get("attention_mask"), left)
        if shortening is not None:
            cache = call.get("past_key_values")
            if cache is not None and int(cache.get_seq_length()):
                raise ValueError(NEW_IMAGE)
            if isinstance(call.get("logits_to_keep"), Tensor):
                raise ValueError("`logits_to_keep` is a tensor of columns, which merging moves; it takes a number.")
            shorten_call(call, shortening, _pad_token_id(self, call))
        return shortening

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


class MergedImageModel(_MergedModel):
    """A model without its language modelling head (`LlavaModel`): the owner of the tower."""

    methods = ("forward", "get_image_features")
    as_tensor = False

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Return the projected features of each image as `pooler_output`, a list of (M_i, C); nothing is padded.

        Blocks after the last feature layer do not run, so `last_hidden_state` is left out, unless all hidden states or
        attentions are asked for.
        """
        plain, tower = super().get_image_features, self._tower
        if not self._merges:
            return plain(*args, **kwargs)
        call = _arguments(plain, args, kwargs)
        strategy = call.pop("vision_feature_select_strategy", None)
        layers = call.pop("vision_feature_layer", call.pop(OLD_LAYERS, None))
        reads, cropped = read_layers(self, tower.num_layers, layers), cropped_tokens(self, strategy)
        if cropped > tower.num_special:
            raise ValueError(
                f"`vision_feature_select_strategy` {strategy!r} cuts off the first token, which merging was not told "
                "to protect. Set it in the model's config before `hf_tome.apply`."
            )
        call.pop("image_sizes", None)  # for packed towers, which do not merge
        as_tuple = call.pop("return_dict", True) is False
        whole = bool(call.get("output_hidden_states") or call.get("output_attentions"))
        call["output_hidden_states"] = call.get("output_hidden_states") or sorted(set(reads))
        with tower.reading(reads, whole):
            out = self.vision_tower(call.pop("pixel_values"), return_dict=True, **call)
        tokens, size = image_tokens(out.hidden_states, reads, tower.current())
        features = self.multi_modal_projector(tokens[:, cropped:])
        out = type(out)(**{name: value for name, value in out.items() if whole})
        out["pooler_output"] = split_real(features, None if size is None else size[:, cropped:])
        return out.to_tuple() if as_tuple else out

    def _repacked(self, call: dict[str, Any]) -> dict[str, Any]:
        """Return the call with all images' features in the one container that the model's own forward takes."""
        outputs = call["mm_encoder_outputs"]
        features = outputs["image"].pooler_output
        if isinstance(features, Tensor):
            return call
        rows = torch.cat(list(features))
        packed = type(outputs["image"])(pooler_output=rows[None] if self.as_tensor else [rows])
        return {**call, "mm_encoder_outputs": {**outputs, "image": packed}}


class MergedTensorImageModel(MergedImageModel):
    """The same, where the features are one tensor rather than a list (`VipLlavaModel`)."""

    as_tensor = True


class MergedGenerator(_MergedModel):
    """A model with its language modelling head (`LlavaForConditionalGeneration`)."""

    methods = ("forward", "generate")

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate from shortened prompts; what comes back begins with the prompts as they were passed."""
        plain = super().generate
        call = _arguments(plain, args, kwargs)
        cache = call.get("past_key_values")
        history = remembered(cache)
        if history is None and not (self._merges and _has_images(call)):
            return plain(*args, **kwargs)
        if call.get("inputs") is not None:
            call["input_ids"] = call.pop("inputs")
        ids = call.get("input_ids")
        length = (call["inputs_embeds"] if ids is None else ids).shape[1]
        if call.get("attention_mask") is None:
            call["attention_mask"] = _inferred_mask(self, ids, call)
        shortening: Shortening | None
        if history is not None:
            given = self._placeholders(ids, call.get("inputs_embeds"))
            shortening = continue_generate(call, history, given, _has_images(call), _pad_token_id(self, call))
        else:
            shortening = self._shorten(call, True)
        if shortening is None:
            return plain(**call)
        tokens = "inputs_embeds" if ids is None else "input_ids"
        self._adjust_lengths(call, length - call[tokens].shape[1])
        prompt = None if ids is None else Prompt(ids, call["input_ids"].shape[1])
        if prompt is not None:  # embeddings never come back
            show_prompt(call, prompt)
        with without_history(cache):
            out = plain(**call)
        made = getattr(out, "past_key_values", None)
        remember(cache if made is None else made, shortening)
        return out if prompt is None else prompt.restore(out)

    def _adjust_lengths(self, call: dict[str, Any], lost: int) -> None:
        """Count limits that include the prompt (`max_length`, `min_length`) from the shortened one."""
        sources = (call, call.get("generation_config"), self.generation_config)
        for limit, instead in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            if _first(sources, limit) and not _first(sources, instead):
                call[limit] = max(_first(sources, limit) - lost, 0)


def _with_signature(method: Callable[..., Any], like: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(like)
    def standing_in(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return standing_in


def _arguments(method: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name."""
    if not args:
        return dict(kwargs)
    bound = inspect.signature(method).bind(*args, **kwargs).arguments
    for parameter in inspect.signature(method).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound.update(bound.pop(parameter.name, {}))
    return dict(bound)


def _has_images(call: dict[str, Any]) -> bool:
    encoded = call.get("mm_encoder_outputs") or {}
    return call.get("pixel_values") is not None or encoded.get("image") is not None


def _cache_of(out: Any) -> Cache | None:
    values = out if isinstance(out, tuple) else [getattr(out, "past_key_values", None)]
    return next((value for value in values if isinstance(value, Cache)), None)


def _first(sources: Sequence[Any], name: str) -> Any:
    """Return the first value of a generation setting that is set: by argument, config, or the model's config."""
    values = (source.get(name) if isinstance(source, dict) else getattr(source, name, None) for source in sources)
    return next((value for value in values if value is not None), None)


def _pad_token_id(model: Any, call: dict[str, Any]) -> int:
    sources = (call, call.get("generation_config"), getattr(model, "generation_config", None), model.config)
    for name in ("pad_token_id", "eos_token_id"):
        value = _first(sources, name)
        if value is not None:
            return int(value[0] if isinstance(value, (list, tuple)) else value)
    return 0  # never attended to


def _inferred_mask(model: Any, ids: Tensor | None, call: dict[str, Any]) -> Tensor | None:
    """Return the mask that `generate` would make of padding tokens, where they cannot be ends of sequences as well."""
    sources = (call, call.get("generation_config"), model.generation_config)
    pad, eos = _first(sources, "pad_token_id"), _first(sources, "eos_token_id")
    if ids is None or not ids.numel() or pad is None or pad in (eos if isinstance(eos, (list, tuple)) else [eos]):
        return None
    return ids.ne(pad).long()

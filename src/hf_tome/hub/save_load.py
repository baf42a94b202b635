"""Save and load a model together with its merge config."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..adapters.encoders.plan import unwrap
from ..api import apply, check_config, towers
from ..config import MergeConfig
from ..config.merge_config import CONFIG_NAME
from .card import write_card

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

CONFIG_KEY = "merge_config"
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def save_pretrained(model: Any, save_directory: str | Path, **kwargs: Any) -> None:
    """Write a model, its `merge_config.json` and a model card into a folder.

    The weights and `config.json` are those of the unmerged model, so that plain `from_pretrained` loads it, unmerged.

    Args:
        model: a model to which `apply` was called, or a pipeline around one, whose processors are saved as well.
        save_directory: the folder, made if need be.
        kwargs: for the model's own `save_pretrained`.

    Raises:
        ValueError: no tokens are merged in the model, or it holds PEFT adapters.
    """
    found = towers(model)
    if not found:
        raise ValueError(
            "No tokens are merged in this model, so there is no merge config to save. Call `hf_tome.apply` first, or "
            "the model's own `save_pretrained`."
        )
    root = unwrap(model)
    if any(hasattr(module, "base_layer") for module in root.modules()):
        raise ValueError(
            "This model holds PEFT adapters, which a whole model's files have no place for. Save "
            "`model.merge_and_unload()` instead, or the adapter by its own `save_pretrained` and the merge config by "
            "`config.save_pretrained` into the same folder."
        )
    saved = model if isinstance(model, transformers.Pipeline) else root
    saved.save_pretrained(save_directory, **kwargs)
    found[0].config.save_pretrained(save_directory)
    write_card(model, Path(save_directory))


def from_pretrained(
    id_or_dir: str | Path,
    merge_config: MergeConfig | None = None,
    auto_class: Any = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a model and merge its tokens.

    The config is `merge_config` if given, else the repository's `merge_config.json`, else the key `merge_config` of
    the model's `config.json`.

    Args:
        id_or_dir: Hub id or folder.
        merge_config (`MergeConfig`, *optional*): beats what is saved.
        auto_class (*optional*): the class to load with, such as `AutoModelForImageClassification`; by default the
            one that `config.json` names.
        kwargs: for the class's `from_pretrained`; with `output_loading_info=True` that comes back beside the model.

    Raises:
        ValueError: there is no merge config anywhere.
        UnsupportedModelError: see `apply`.
    """
    if merge_config is not None:
        check_config(merge_config, "merge_config")
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    config = kwargs.get("config")
    if not isinstance(config, transformers.PreTrainedConfig):
        config = transformers.AutoConfig.from_pretrained(config or id_or_dir, **hub)
    chosen = merge_config if merge_config is not None else find_merge_config(id_or_dir, config, **hub)
    if chosen is None:
        raise ValueError(
            f"{id_or_dir} has neither a {CONFIG_NAME} nor the key {CONFIG_KEY!r} in its config.json; pass "
            "`merge_config=MergeConfig(r=16)`."
        )
    loaded = (auto_class or own_class(config)).from_pretrained(id_or_dir, **kwargs)
    if isinstance(loaded, tuple):  # `output_loading_info=True`
        return apply(loaded[0], chosen), *loaded[1:]  # type: ignore[return-value]
    return apply(loaded, chosen)


def find_merge_config(id_or_dir: str | Path, config: Any = None, **hub_kwargs: Any) -> MergeConfig | None:
    """Return the merge config saved with a model, or `None`: `merge_config.json`, else `config.json`'s key."""
    try:
        return MergeConfig.from_pretrained(id_or_dir, **hub_kwargs)
    except LocalEntryNotFoundError:
        logger.warning("Could not look for %s in %s: offline, and not cached.", CONFIG_NAME, id_or_dir)
    except (FileNotFoundError, EntryNotFoundError):
        logger.debug("no %s in %s", CONFIG_NAME, id_or_dir)
    if config is None:
        config = transformers.AutoConfig.from_pretrained(id_or_dir, **hub_kwargs)
    values = getattr(config, CONFIG_KEY, None)
    return None if values is None else MergeConfig.from_dict(values)


def own_class(config: Any) -> Any:
    """Return the class that a config says its model was saved as, `AutoModel` where it is none of transformers'."""
    names = getattr(config, "architectures", None) or []
    return getattr(transformers, names[0], transformers.AutoModel) if names else transformers.AutoModel

"""Save and load a model together with its merge config."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from ..api import apply, check_config, targets
from ..config import MergeConfig
from ..config.json_file import CONFIG_NAME
from ..errors import UnsupportedModelError
from ..patching.unwrap import unwrap
from .card import write_card
from .sources import find_adapter, hub_id, naming

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

CONFIG_KEY = "merge_config"
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
CODE_ARGUMENTS = ("code_revision", "trust_remote_code")
UPLOAD_ARGUMENTS = ("repo_id", "private", "commit_message", "commit_description", "create_pr", "revision")
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
)


def save_pretrained(model: Any, save_directory: str | Path, *, processor: Any = None, **kwargs: Any) -> None:
    """Write a model, its `merge_config.json`, its processor and a model card into a folder.

    The weights and `config.json` are those of the unmerged model, so that plain `from_pretrained` loads it, unmerged.

    Args:
        model: a model to which `apply` was called, or a pipeline around one, whose processors are saved as well.
        save_directory: the folder, made if need be; a `README.md` of the user's own in it is kept.
        processor (*optional*): processor, image processor or tokenizer to save with the model; by default the one of
            the folder or the Hub repository that the model was loaded from, unless the folder has one already.
        kwargs: for the model's own `save_pretrained`. With `push_to_hub=True` all that was written is uploaded, in one
            commit, to `repo_id`, by default the folder's name; `UPLOAD_ARGUMENTS` are for that.

    Raises:
        ValueError: no tokens are merged in the model, or it holds PEFT adapters.
        TypeError: `processor` cannot be saved.
    """
    if processor is not None and not hasattr(processor, "save_pretrained"):
        raise TypeError(
            f"`processor` is a {type(processor).__name__}; it takes a processor, image processor, feature extractor "
            "or tokenizer of transformers, which has `save_pretrained`."
        )
    merged = targets(model)
    if not merged:
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
    saved, folder = model if isinstance(model, transformers.Pipeline) else root, Path(save_directory)
    upload = {name: kwargs.pop(name) for name in ("push_to_hub", *UPLOAD_ARGUMENTS) if name in kwargs}
    before = _modification_times(folder)
    saved.save_pretrained(folder, **kwargs)
    merged[0].config.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    else:
        copy_processor(root.config, folder)
    write_card(model, folder)
    if upload.pop("push_to_hub", False):
        written = [name for name, time in _modification_times(folder).items() if time != before.get(name)]
        _upload(folder, written, token=kwargs.get("token"), **upload)


def _modification_times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*") if path.is_file()}


def _upload(
    folder: Path,
    names: list[str],
    *,
    repo_id: str | None = None,
    private: bool | None = None,
    token: Any = None,
    commit_message: str | None = None,
    **options: Any,
) -> None:
    """Upload these files of a folder in one commit; transformers would leave out what is written after the model."""
    api = HfApi(token=token)
    repository = api.create_repo(repo_id or folder.resolve().name, private=private, exist_ok=True).repo_id
    message = commit_message or "Upload the merged model"
    api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=names, commit_message=message, **options)


def copy_processor(config: Any, folder: Path) -> None:
    """Save the processor of the repository that a model's config was loaded from, unless `folder` has one."""
    name = getattr(config, "_name_or_path", None)
    if not name or any((folder / file).exists() for file in PROCESSOR_FILES):
        return
    source = name if Path(name).is_dir() else hub_id(config)
    try:
        if source is None:
            raise FileNotFoundError(f"{name} is gone, or was not loaded through the Hub's cache")
        transformers.AutoProcessor.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        logger.warning(
            "No processor was saved with the model, so pipelines cannot load %s by itself; pass `processor=` to "
            "`save_pretrained`. (%s)",
            folder,
            reason,
        )


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
        id_or_dir: Hub id or folder; a folder may be a checkpoint of PEFT, whose base model is loaded with it.
        merge_config (`MergeConfig`, *optional*): beats what is saved.
        auto_class (*optional*): the class to load with, such as `AutoModelForImageClassification`; by default the
            one that `config.json` names.
        kwargs: for the class's `from_pretrained`; with `output_loading_info=True` that comes back beside the model.
            Code of the repository runs only with `trust_remote_code=True`; nobody is asked.

    Raises:
        ValueError: there is no merge config anywhere, or the saved one is of another model.
        UnsupportedModelError: see `apply`.
    """
    if merge_config is not None:
        check_config(merge_config, "merge_config")
    kwargs["trust_remote_code"] = kwargs.get("trust_remote_code") or False  # `None` asks on standard input
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    code = {name: kwargs[name] for name in CODE_ARGUMENTS if name in kwargs}
    config, adapter = kwargs.get("config"), find_adapter(id_or_dir)
    if not isinstance(config, transformers.PreTrainedConfig):
        source = config or (id_or_dir if adapter is None else adapter.config_source)
        with naming(str(source), "model"):
            config = transformers.AutoConfig.from_pretrained(source, **hub, **code)
    chosen = merge_config if merge_config is not None else find_merge_config(id_or_dir, config, **hub)
    if chosen is None:
        raise ValueError(
            f"{id_or_dir} has neither a {CONFIG_NAME} nor the key {CONFIG_KEY!r} in its config.json; pass "
            "`merge_config=MergeConfig(r=16)`."
        )
    auto_class = auto_class or saved_class(config, kwargs["trust_remote_code"])

    def merged(model: Any) -> Any:
        return apply(model, chosen) if merge_config is not None else _apply_saved(model, chosen, id_or_dir)

    if adapter is not None:
        return merged(adapter.load(auto_class, config, kwargs))
    loaded = auto_class.from_pretrained(id_or_dir, **kwargs)
    if isinstance(loaded, tuple):  # `output_loading_info=True`
        return merged(loaded[0]), *loaded[1:]  # type: ignore[return-value]
    return merged(loaded)


def _apply_saved(model: Any, config: MergeConfig, id_or_dir: str | Path) -> Any:
    """Merge as a saved config says; one that does not fit is named with where it was found."""
    try:
        return apply(model, config)
    except UnsupportedModelError:
        raise
    except ValueError as error:
        raise ValueError(
            f"The merge config saved in {id_or_dir} does not fit its model, a {type(model).__name__}; it is of "
            f"another one, or was edited: {error} Pass `merge_config` to merge otherwise."
        ) from error


def find_merge_config(
    id_or_dir: str | Path, config: Any = None, *, trust_remote_code: bool | None = False, **hub_kwargs: Any
) -> MergeConfig | None:
    """Return the merge config saved with a model, or `None`: `merge_config.json`, else `config.json`'s key."""
    try:
        return MergeConfig.from_pretrained(id_or_dir, **hub_kwargs)
    except LocalEntryNotFoundError:
        logger.warning("Could not look for %s in %s: offline, and not cached.", CONFIG_NAME, id_or_dir)
    except (FileNotFoundError, EntryNotFoundError):
        logger.debug("no %s in %s", CONFIG_NAME, id_or_dir)
    if config is None:
        config = transformers.AutoConfig.from_pretrained(
            id_or_dir, trust_remote_code=trust_remote_code or False, **hub_kwargs
        )
    values = getattr(config, CONFIG_KEY, None)
    return None if values is None else MergeConfig.from_dict(values)


def load_unmerged(id_or_dir: str | Path, **kwargs: Any) -> Any:
    """Load a model in the class that it was saved as, without merging and without code of its repository."""
    with naming(str(id_or_dir), "model"):
        config = transformers.AutoConfig.from_pretrained(id_or_dir, trust_remote_code=False)
    return saved_class(config).from_pretrained(id_or_dir, trust_remote_code=False, **kwargs)


def saved_class(config: Any, trust_remote_code: bool = False) -> Any:
    """Return the class that a config says its model was saved as, `AutoModel` where it is no model of transformers.

    With `trust_remote_code`, the auto class that loads this class from the repository's own code, where there is one.
    """
    names = getattr(config, "architectures", None)
    name = names[0] if isinstance(names, (list, tuple)) and names else None
    if not isinstance(name, str):
        return transformers.AutoModel
    if trust_remote_code:
        for auto_name, reference in (getattr(config, "auto_map", None) or {}).items():
            auto_class = getattr(transformers, auto_name, None)
            if str(reference).rpartition(".")[2] == name and _is_class(auto_class, _BaseAutoModelClass):
                return auto_class
    saved_as = getattr(transformers, name, None)
    if _is_class(saved_as, transformers.PreTrainedModel) and saved_as is not transformers.PreTrainedModel:
        return saved_as
    return transformers.AutoModel


def _is_class(value: Any, parent: type) -> bool:
    return isinstance(value, type) and issubclass(value, parent)

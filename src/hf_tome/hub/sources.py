"""Where a model or a data set comes from: a local folder or the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

ADAPTER_CONFIG_NAME = "adapter_config.json"
"""What PEFT writes beside an adapter's weights."""


@contextmanager
def naming(source: str, kind: str) -> Iterator[None]:
    """Name a model or data set in errors of loading it that do not, such as those of a Hub that cannot be reached.

    Raises:
        OSError: as in the block.
    """
    try:
        yield
    except OSError as error:
        if source in str(error):
            raise
        raise OSError(not_opened(source, kind, error)) from error


def not_opened(source: str, kind: str, error: Exception) -> str:
    """Return the message for an id that cannot be opened."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return (
        f"Cannot open the {kind} {source!r}: {first}. There is no local folder of that name either; check the id, the "
        "network and, for a gated one, `hf auth login`."
    )


class SourceError(ValueError):
    """Something looks like a local folder and is not one."""


def is_folder(source: str, kind: str) -> bool:
    """Tell whether `source` is a local folder; if not, it can be the id of a `kind` on the Hub.

    Raises:
        SourceError: it can be neither.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return True
    if path.exists() or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise SourceError(f"{source} is not a folder; give a local folder or the id of a {kind} on the Hub.")
    return False


def public_name(source: str) -> str:
    """Return a Hub id as it is and a local folder by its name alone, so that results name no path of a machine."""
    path = Path(source).expanduser()
    return path.resolve().name if path.is_dir() else source


def hub_id(config: Any) -> str | None:
    """Return the id on the Hub that a model's config was loaded from, `None` for local folders and new models.

    A path such as `runs/best` looks like an id, so the id counts only if the Hub's cache has its config.
    """
    name = getattr(config, "_name_or_path", None)
    if not name or Path(name).exists():
        return None
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return name if isinstance(cached, str) else None


@dataclass(frozen=True)
class Adapter:
    """A folder that `PeftModel.save_pretrained` wrote, and the model that its adapter is for.

    Attributes:
        folder: of the adapter.
        base: Hub id or folder of the base model.
    """

    folder: Path
    base: str

    @property
    def config_source(self) -> str:
        """Where the model's config is: with the adapter, as `MergeCallback` writes it, or else the base model's."""
        return str(self.folder) if (self.folder / "config.json").is_file() else self.base

    def load(self, auto_class: Any, config: Any, kwargs: dict[str, Any]) -> Any:
        """Return the base model with the adapter; a head of other classes comes with the adapter."""
        from peft import PeftModel

        options = {"ignore_mismatched_sizes": self.config_source != self.base, **kwargs, "config": config}
        return PeftModel.from_pretrained(auto_class.from_pretrained(self.base, **options), self.folder)


def find_adapter(id_or_dir: str | Path) -> Adapter | None:
    """Return the PEFT adapter that a folder holds, `None` where it holds none.

    Raises:
        ValueError: its config does not name the base model.
    """
    path = Path(id_or_dir) / ADAPTER_CONFIG_NAME
    if not path.is_file():
        return None
    base = json.loads(path.read_bytes()).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{path} does not name the base model that the adapter is for. Load that model, and call "
            "`hf_tome.apply(PeftModel.from_pretrained(model, folder), config)`."
        )
    return Adapter(Path(id_or_dir), base)

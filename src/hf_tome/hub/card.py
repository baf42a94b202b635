"""The model card that goes with a saved model: how to load it, and what merging does to it."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ..files import write_whole
from ..inspection.reports import report
from ..patching.unwrap import unwrap
from .sources import hub_id

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
MARK = "<!-- Written by hf_tome, which renews this card as long as nobody edits it: {digest} -->\n"

_BODY = """\

# {name} with token merging

Tokens of this model are merged {place} by `hf_tome`, without training.

```python
import hf_tome

model = hf_tome.from_pretrained("PATH_OR_ID_OF_THIS_REPOSITORY")
```

Plain `from_pretrained` of transformers loads the same weights **unmerged**.

## Merging

```
{report}
```

`merge_config.json` holds the configuration. No results have been measured for this card; `hf-tome eval` measures them.
"""


def write_card(model: Any, folder: Path) -> Path:
    """Write `README.md` for a merged model into `folder`, and return its path.

    A `README.md` that is not a card of hf_tome, or that was edited since, is kept.
    """
    path = folder / CARD_NAME
    if path.exists() and not _is_unedited(path):
        logger.warning("%s is kept: it is not a card that hf_tome wrote, or it was edited since.", path)
        return path
    merged = report(model)
    first = merged.towers[0]
    metadata = ModelCardData(
        library_name="hf_tome",
        base_model=hub_id(unwrap(model).config),
        tags=["token-merging", first.method],
    )
    place = "before its language model" if first.is_projected else "inside its encoder"
    body = _BODY.format(name=merged.model, place=place, report=merged)
    text = f"---\n{metadata.to_yaml()}\n---\n{body}\n"
    write_whole(path, text + MARK.format(digest=_digest(text)))
    return path


def _is_unedited(path: Path) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    written, _, last = text.rstrip("\n").rpartition("\n")
    return f"{last}\n" == MARK.format(digest=_digest(f"{written}\n"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

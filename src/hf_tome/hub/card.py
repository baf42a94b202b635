"""The model card that goes with a saved model: how to load it, and what merging does to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..adapters.encoders.plan import unwrap
from ..inspection.reports import report

CARD_NAME = "README.md"

_TEMPLATE = """\
---
library_name: hf_tome
base_model: {base_model}
tags:
- token-merging
- {method}
---

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
    """Write `README.md` for a merged model into `folder`, and return its path."""
    found = report(model)
    root = unwrap(model)
    path = folder / CARD_NAME
    path.write_text(
        _TEMPLATE.format(
            base_model=getattr(root.config, "_name_or_path", "") or "unknown",
            method=found.towers[0].method,
            place="before its language model" if found.towers[0].is_projected else "inside its encoder",
            name=found.model,
            report=str(found),
        )
    )
    return path

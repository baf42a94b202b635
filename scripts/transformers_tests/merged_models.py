"""Merge tokens in every model that is built, so that tests of the plain models run on merged ones."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import hf_tome
from hf_tome.patching.patch import is_patched


@contextmanager
def merge_when_built(classes: Sequence[type], r: int) -> Iterator[None]:
    """Merge `r` tokens a layer in every model of these classes that is built within the block."""
    depth = 0  # a model may hold one of another of the classes, and its tower is merged once, from outside

    def merging(build: Any) -> Any:
        @functools.wraps(build)
        def built(self: Any, *args: Any, **kwargs: Any) -> None:
            nonlocal depth
            if is_patched(self):  # built by the `type(model)(config)` of a merged model, and merged on the way
                return
            depth += 1
            try:
                build(self, *args, **kwargs)
            finally:
                depth -= 1
            if depth == 0:
                hf_tome.apply(self, r=r)

        return built

    with ExitStack() as patches:
        for cls in classes:
            patches.enter_context(patch.object(cls, "__init__", merging(cls.__init__)))
        yield

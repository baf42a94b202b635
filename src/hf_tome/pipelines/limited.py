"""The argument `media_limits`, which all pipelines here have."""

from __future__ import annotations

from typing import Any

import transformers

from ..media.limits import MediaLimits


class LimitsMedia(transformers.Pipeline):
    """Adds the argument `media_limits`, of the pipeline or of a call."""

    def _sanitize_parameters(self, media_limits: MediaLimits | None = None, **kwargs: Any) -> Any:
        plain: Any = super()._sanitize_parameters  # type: ignore[safe-super]
        preprocess, forward, postprocess = plain(**kwargs)
        if media_limits is not None:
            preprocess = {**preprocess, "media_limits": media_limits}
        return preprocess, forward, postprocess

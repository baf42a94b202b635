"""The errors that are hf_tome's own."""


class UnsupportedModelError(ValueError):
    """A model, backbone, head or attention backend in which tokens cannot be merged, or not yet."""

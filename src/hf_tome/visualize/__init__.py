"""Pictures of merged tokens: which patches went together, how large each token is, block by block, frame by frame.

`trace_input` runs a model on one image, clip or recording; the rest draws what it found. Pillow and matplotlib are
imported only where something is drawn.
"""

from ..adapters.encoders.families.inputs import TokenGrid
from .animation import save_animation
from .compare import compare_pictures, compare_sheet
from .drawing import PRUNED, count_tokens
from .image import merged_image, progression, size_heatmap
from .sheet import contact_sheet, readable_scale
from .traced import Traced, input_kind, process_input, trace_input
from .video import followed_frames, merged_frames, moving_token, token_at
from .view import model_frames, model_view, spectrogram_view

__all__ = [
    "PRUNED",
    "TokenGrid",
    "Traced",
    "compare_pictures",
    "compare_sheet",
    "contact_sheet",
    "count_tokens",
    "followed_frames",
    "input_kind",
    "merged_frames",
    "merged_image",
    "model_frames",
    "model_view",
    "moving_token",
    "process_input",
    "progression",
    "readable_scale",
    "save_animation",
    "size_heatmap",
    "spectrogram_view",
    "token_at",
    "trace_input",
]

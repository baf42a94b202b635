"""Train models whose tokens merge: a callback for transformers' `Trainer`, and schedules over training."""

from .callback import MergeCallback
from .schedule import MergeSchedule

__all__ = ["MergeCallback", "MergeSchedule"]

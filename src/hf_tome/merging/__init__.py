"""Token merging on tensors: no models, no configs, nothing but torch."""

from .base import HardMerge, Merge, identity_merge
from .baselines import greedy_matching, kmeans, prune_lowest, prune_random
from .mame import MatrixMerge, matrix_matching
from .tome import bipartite_soft_matching

__all__ = [
    "HardMerge",
    "MatrixMerge",
    "Merge",
    "bipartite_soft_matching",
    "greedy_matching",
    "identity_merge",
    "kmeans",
    "matrix_matching",
    "prune_lowest",
    "prune_random",
]

"""Token merging on tensors: no models, no configs, nothing but torch."""

from .base import HardMerge, Merge, identity_merge
from .greedy import greedy_matching
from .k_means import kmeans
from .mame.matching import matrix_matching
from .mame.matrix_merge import MatrixMerge
from .method import MatchInputs, Method
from .pruning.attention import prune_lowest
from .pruning.random import prune_random
from .tome import bipartite_soft_matching

__all__ = [
    "HardMerge",
    "MatchInputs",
    "MatrixMerge",
    "Merge",
    "Method",
    "bipartite_soft_matching",
    "greedy_matching",
    "identity_merge",
    "kmeans",
    "matrix_matching",
    "prune_lowest",
    "prune_random",
]

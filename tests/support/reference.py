"""The papers' methods in plain loops over one image's tokens, in float64: slow, and easy to check against them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TIE = 1e-6  # see reference/algorithms.md: W - zeta up to this is rounding, not a connection


@dataclass
class Merged:
    """What comes out of one image: row i starts from token `kept[i]`, and holds the tokens `members[i]`."""

    kept: list[int]
    members: list[list[int]]

    def combine(self, x: np.ndarray, size: np.ndarray, how: str = "weighted_mean") -> tuple[np.ndarray, np.ndarray]:
        """Return tokens (M, C) and sizes (M,) from tokens (N, C) and sizes (N,)."""
        rows = []
        for first, members in zip(self.kept, self.members):
            if how == "keep_one":
                rows.append(x[first])
            elif how == "max":
                rows.append(np.max([x[i] for i in members], axis=0))
            elif how == "mean":
                rows.append(sum(x[i] for i in members) / len(members))
            else:
                whole = sum(size[i] for i in members)
                rows.append(sum(x[i] * size[i] for i in members) / whole)
                length = math.sqrt(sum(rows[-1] ** 2))
                if how == "keep_norm" and length > 0:
                    wanted = sum(math.sqrt(sum(x[i] ** 2)) * size[i] for i in members) / whole
                    rows[-1] = rows[-1] * min(wanted / length, 2)
        sizes = [sum(size[i] for i in members) for members in self.members]
        return np.array(rows).reshape(len(rows), x.shape[1]), np.array(sizes)

    def source(self, num_tokens: int) -> list[int]:
        """Return the row that holds each token, -1 for none."""
        where = [-1] * num_tokens
        for row, members in enumerate(self.members):
            for token in members:
                where[token] = row
        return where


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = math.sqrt(a @ a) * math.sqrt(b @ b)
    return float(a @ b) / lengths if lengths > 0 else 0.0


def similarities(metric: np.ndarray, sources: list[int], destinations: list[int], distance: str) -> np.ndarray:
    """Return the similarity (S, T) of each source to each destination (ToMe, table 1b), higher is more alike."""
    scores = np.zeros((len(sources), len(destinations)))
    for i, source in enumerate(sources):
        for j, destination in enumerate(destinations):
            a, b = metric[source], metric[destination]
            if distance == "cosine":
                scores[i, j] = cosine(a, b)
            elif distance == "euclidean":
                scores[i, j] = -math.sqrt(sum((a - b) ** 2))
            else:
                scores[i, j] = float(a @ b) / math.sqrt(len(a))
        if distance == "softmax" and destinations:
            powers = np.exp(scores[i] - scores[i].max())
            scores[i] = powers / powers.sum()
    return scores


def halves(num_tokens: int, num_special: int, partition: str, first: int = 0) -> tuple[list[int], list[int]]:
    """Split the unprotected tokens; the alternating sources are at `first`, `first + 2`, ... of the whole sequence."""
    rest = list(range(num_special, num_tokens))
    if partition == "alternating":
        return [i for i in rest if (i - first) % 2 == 0], [i for i in rest if (i - first) % 2 == 1]
    half = math.ceil(len(rest) / 2)
    return rest[:half], rest[half:]


def tome(
    metric: np.ndarray, r: int, num_special: int, distance: str = "cosine", partition: str = "alternating"
) -> Merged:
    """ToMe, section 3: the five steps."""
    num_tokens = len(metric)
    r = min(r, (num_tokens - num_special) // 2)
    if r == 0:  # nothing changes, not even the order
        return Merged(list(range(num_tokens)), [[token] for token in range(num_tokens)])
    # 1. Partition the tokens into two sets A and B.
    set_a, set_b = halves(num_tokens, num_special, partition)
    # 2. Draw one edge from each token in A to its most similar token in B.
    scores = similarities(metric, set_a, set_b, distance)
    edges = [(scores[i].max(), token, set_b[scores[i].argmax()]) for i, token in enumerate(set_a) if set_b]
    # 3. Keep the r most similar edges.
    edges = sorted(edges, key=lambda edge: -edge[0])[:r]
    # 4. Merge tokens that are still connected. 5. Concatenate the two sets back together.
    gone = {token for _, token, _ in edges}
    kept = [*range(num_special), *(token for token in set_a if token not in gone), *set_b]
    return Merged(kept, [[token, *(a for _, a, b in edges if b == token)] for token in kept])


def greedy(metric: np.ndarray, r: int, num_special: int, distance: str = "cosine") -> Merged:
    """ToMe, section 4.1: merge the most similar pair of tokens, r times, without replacement."""
    rest = list(range(num_special, len(metric)))
    scores = similarities(metric, rest, rest, distance)
    pairs = [(scores[i, j], rest[i], rest[j]) for i in range(len(rest)) for j in range(i + 1, len(rest))]
    pairs.sort(key=lambda pair: -pair[0])
    partner: dict[int, int] = {}
    for _, first, second in pairs:
        if len(partner) == r:
            break
        if not {first, second} & (partner.keys() | set(partner.values())):
            partner[second] = first
    kept = [token for token in range(len(metric)) if token not in partner]
    return Merged(kept, [[token, *(a for a, b in partner.items() if b == token)] for token in kept])


def kmeans(metric: np.ndarray, starts: list[int], num_special: int, iterations: int) -> Merged:
    """Lloyd's iteration from the tokens `starts`, each of which stays in its own cluster."""
    rest = list(range(num_special, len(metric)))
    centroids = [metric[token] for token in starts]
    cluster: dict[int, int] = {}
    for _ in range(iterations):
        for token in rest:
            distances = [math.sqrt(sum((metric[token] - centroid) ** 2)) for centroid in centroids]
            cluster[token] = starts.index(token) if token in starts else int(np.argmin(distances))
        centroids = [np.mean([metric[i] for i in rest if cluster[i] == k], axis=0) for k in range(len(starts))]
    kept = [*range(num_special), *starts]
    members = [[token] for token in range(num_special)]
    for k, token in enumerate(starts):
        members.append([token, *(i for i in rest if cluster[i] == k and i != token)])
    return Merged(kept, members)


@dataclass
class Fused:
    """What MaMe makes of one image: W^F (T, S), and which tokens are sources, destinations and preserved."""

    weights: np.ndarray
    sources: list[int]
    destinations: list[int]
    num_special: int

    @property
    def preserved(self) -> list[int]:
        return [token for j, token in enumerate(self.sources) if self.weights[:, j].sum() == 0]

    def merge(self, x: np.ndarray) -> np.ndarray:
        """Equations 9 and 10."""
        rows = [x[token] for token in range(self.num_special)]
        for i, token in enumerate(self.destinations):
            row = x[token].copy()
            for j, source in enumerate(self.sources):
                row = row + self.weights[i, j] * x[source]
            rows.append(row / (1 + self.weights[i].sum()))
        rows += [x[token] for token in self.preserved]
        return np.array(rows).reshape(len(rows), x.shape[1])

    def unmerge(self, merged: np.ndarray) -> np.ndarray:
        """MaRe: a fused source is its column's weighted sum of destinations; the others go back to their places."""
        num_special, num_destinations = self.num_special, len(self.destinations)
        tokens = np.zeros((num_special + len(self.sources) + num_destinations, merged.shape[1]))
        tokens[:num_special] = merged[:num_special]
        for i, token in enumerate(self.destinations):
            tokens[token] = merged[num_special + i]
        for j, token in enumerate(self.sources):
            if token in self.preserved:
                tokens[token] = merged[num_special + num_destinations + self.preserved.index(token)]
            else:
                tokens[token] = sum(self.weights[i, j] * merged[num_special + i] for i in range(num_destinations))
        return tokens


def mame(
    metric: np.ndarray,
    threshold: float,
    num_special: int,
    eps: float = 1e-6,
    adaptive_pruning: bool = True,
    distance: str = "cosine",
    partition: str = "alternating",
) -> Fused:
    """MaMe, equations 1 to 8."""
    # Equation 1, with the special tokens set aside before positions are counted.
    sources, destinations = halves(len(metric), num_special, partition, first=num_special)
    num_sources, num_destinations = len(sources), len(destinations)
    # Equation 2: rows are destinations, columns are sources.
    s = similarities(metric, sources, destinations, distance).T
    weights = np.zeros((num_destinations, num_sources))
    for j in range(num_sources):
        sparse = [max(s[i, j] - threshold, 0.0) for i in range(num_destinations)]  # equation 3
        w = [value / (sum(sparse) + eps) for value in sparse]  # equation 4
        if adaptive_pruning:
            count = sum(value / (value + eps) for value in w)  # equation 6
            zeta = sum(w) / (count + eps)  # equation 5
            pruned = [value - zeta if value - zeta > TIE else 0.0 for value in w]  # equation 7, ties as zero
            w = [value / (sum(pruned) + eps) for value in pruned]  # equation 8
        else:
            w = [value if value > TIE else 0.0 for value in w]
        weights[:, j] = w
    return Fused(weights, sources, destinations, num_special)

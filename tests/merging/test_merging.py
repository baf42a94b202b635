"""Properties of `hf_tome.merging` on tensors, against the papers in plain loops (`reference.py`)."""

from __future__ import annotations

import itertools
import math
from functools import partial

import hypothesis
import numpy as np
import pytest
import reference
import torch
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_tome.merging import (
    HardMerge,
    bipartite_soft_matching,
    greedy_matching,
    identity_merge,
    kmeans,
    matrix_matching,
    prune_lowest,
    prune_random,
    similarity,
)

DISTANCES = ("cosine", "euclidean", "dot", "softmax")
COMBINES = ("weighted_mean", "mean", "max", "keep_one", "keep_norm")
PARTITIONS = ("alternating", "sequential", "random")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
KINDS = ("random", "duplicates", "equal", "zeros")

seeds = st.integers(0, 2**20)
batch_sizes = st.integers(1, 3)
counts = st.integers(1, 13)
specials = st.integers(0, 3)
amounts = st.one_of(st.integers(0, 7), st.just(10**6))


def given(*strategies, max_examples=40):
    """Run a test on examples, the same in every run, so that a failure is there again when it is looked for."""
    settings = hypothesis.settings(deadline=None, max_examples=max_examples, derandomize=True, database=None)
    return lambda test: settings(hypothesis.given(*strategies)(test))


def tokens(seed, *shape, kind="random", dtype=torch.float64):
    """Return tokens (B, N, C), the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "duplicates":
        x = x[:, torch.randint(0, max(1, shape[1] // 3), (shape[1],), generator=generator)] if shape[1] else x
    elif kind == "equal":
        x = x[:, :1].expand(shape).clone()
    elif kind == "zeros":
        x = torch.zeros_like(x)
    return x.to(dtype)


def sizes(seed, *shape):
    return torch.randint(1, 6, (*shape, 1), generator=torch.Generator().manual_seed(seed)).double()


def tome(metric, r, num_special=0, size=None, **options):
    return bipartite_soft_matching(metric, r, num_special=num_special, size=size, **options)


def mame(metric, r, num_special=0, size=None, **options):
    # r has no meaning to MaMe; it varies the threshold instead
    return matrix_matching(metric, 0.6 - min(r, 7) / 10, num_special, size=size, batching="pad", **options)


def mame_fixed(metric, r, num_special=0, size=None, **options):
    return matrix_matching(metric, 0.3, num_special, size=size, keep_ratio=1 - min(r, 5) / 10, **options)


def prune(metric, r, num_special=0, size=None):
    return prune_lowest(metric.norm(dim=-1), r, num_special, size=size)


def prune_at_random(metric, r, num_special=0, size=None):
    return prune_random(*metric.shape[:2], r, num_special, metric.device, seed=3, size=size)


MATCHINGS = {
    "tome": tome,
    "greedy": greedy_matching,
    "kmeans": kmeans,
    "mame": mame,
    "mame-fixed": mame_fixed,
    "prune": prune,
    "random_prune": prune_at_random,
}
HARD = ("tome", "greedy", "kmeans")
MERGING = tuple(name for name in MATCHINGS if "prune" not in name)
PADDED = tuple(name for name in MATCHINGS if name != "kmeans")
PARTITIONED = ("tome", "mame", "mame-fixed")

every_matching = pytest.mark.parametrize("name", MATCHINGS)


def assert_consistent(match, size):
    """Check that source and representative agree with each other, and with the sizes that come out of `size`."""
    batch_size, num_input, _ = size.shape
    source, representative = match.source, match.representative
    assert source.dtype == representative.dtype == torch.int64
    assert source.shape == (batch_size, num_input)
    assert representative.shape == (batch_size, match.num_output)
    assert ((source >= -1) & (source < match.num_output)).all()
    _, out_size = match.merge(torch.zeros(batch_size, num_input, 1), size)
    for image in range(batch_size):
        kept = representative[image].tolist()
        assert len(set(kept)) == len(kept), "one token keeps the place of two"
        for row, token in enumerate(kept):
            real = out_size[image, row, 0] > 0
            assert source[image, token] == row if real else source[image, token] != row


# ---------------------------------------------------------------------------------------------- against the papers


@given(
    batch_sizes,
    counts,
    specials,
    amounts,
    seeds,
    st.sampled_from(DISTANCES),
    st.sampled_from(COMBINES),
    st.booleans(),
    max_examples=120,
)
def test_tome_is_the_papers_five_steps(batch_size, num_tokens, num_special, r, seed, distance, combine, sequential):
    num_special = min(num_special, num_tokens)
    partition = "sequential" if sequential else "alternating"
    metric, x = tokens(seed, batch_size, num_tokens, 5), tokens(seed + 1, batch_size, num_tokens, 3)
    size = sizes(seed, batch_size, num_tokens)
    match = tome(metric, r, num_special, distance=distance, combine=combine, partition=partition)
    assert_is(
        match,
        [reference.tome(image.numpy(), r, num_special, distance, partition) for image in metric],
        x,
        size,
        combine,
    )
    assert match.num_output == num_tokens - min(r, (num_tokens - num_special) // 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kept_norm_is_the_mean_of_the_members_and_other_rows_keep_their_bits(dtype):
    x = tokens(0, 2, 13, 6, dtype=dtype).requires_grad_()
    match = tome(x.detach().double(), 4, 1, combine="keep_norm")
    merged, size = match.merge(x)
    plain, _ = tome(x.detach().double(), 4, 1).merge(x.detach())
    alone = size[..., 0] == 1
    assert torch.equal(merged[alone], plain[alone])
    assert (merged.norm(dim=-1) > plain.norm(dim=-1))[~alone].all()
    merged.sum().backward()
    assert x.grad.isfinite().all()


def coherence_of(members):
    """Return the length of the mean of vectors (rows), as a share of their mean length."""
    return members.mean(dim=0).norm() / members.norm(dim=-1).mean()


def test_coherence_is_what_is_left_of_the_length_of_the_members():
    x = tokens(0, 1, 13, 6, dtype=torch.float64)
    match = tome(x, 4, 1, combine="keep_norm")
    merged, _, coherence = match.merge_keeping_norm(x)
    assert torch.equal(merged, match.merge(x)[0])
    for row, value in enumerate(coherence[0]):
        members = x[0, match.source[0] == row]
        assert value == pytest.approx(coherence_of(members).item() if len(members) > 1 else 1)
    _, _, again = match.merge_keeping_norm(x, None, torch.full((1, 13), 0.5))
    torch.testing.assert_close(again, coherence / 2)
    assert not match.merge_keeping_norm(x.requires_grad_())[2].requires_grad
    opposite = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert tome(opposite, 1, combine="keep_norm").merge_keeping_norm(opposite)[2].tolist() == [[0]]
    assert tome(opposite, 1, combine="keep_norm").merge_keeping_norm(0 * opposite)[2].tolist() == [[1]]


def test_a_maximum_is_where_it_comes_first():
    scores = torch.randint(40, (2, 30, 1100), generator=torch.Generator().manual_seed(0)).float()
    scores[0, 3] = -torch.inf
    highest, place = similarity.row_maximum(scores)
    assert torch.equal(highest, scores.amax(dim=-1))
    first = [[row.index(max(row)) for row in image] for image in scores.tolist()]
    assert place.tolist() == first


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("r", [7, 15])
@pytest.mark.parametrize("distance", DISTANCES)
def test_scores_by_blocks_match_as_all_at_once(distance, r, causal, monkeypatch):
    metric = tokens(3, 2, 31, 5)
    metric[0, 4] = math.nan
    chosen = torch.stack([torch.arange(1, 31, 2), torch.arange(16, 31)])
    for destinations in (None, chosen):
        match = partial(
            bipartite_soft_matching, metric, r, distance=distance, causal=causal, destinations=destinations
        )
        whole = match()
        monkeypatch.setattr(similarity, "BLOCK", 100)  # 15 * 15 scores an image
        monkeypatch.setattr(similarity, "STRETCH", 2)
        blocks = match()
        monkeypatch.undo()
        for name in ("kept", "merged", "into"):
            assert torch.equal(getattr(blocks, name), getattr(whole, name)), name


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "softmax"])
def test_important_tokens_merge_last(distance):
    metric = tokens(3, 1, 12, 4)
    plain = tome(metric, 2, 1, distance=distance)
    importance = torch.zeros(1, 12)
    assert torch.equal(tome(metric, 2, 1, distance=distance, importance=importance).source, plain.source)
    first = plain.merged[0]
    importance[0, first] = 1e4
    moved = tome(metric, 2, 1, distance=distance, importance=importance)
    assert not set(moved.merged[0].tolist()) & set(first.tolist())
    partner = plain.representative[0, plain.into[0, 0]]
    importance = torch.zeros(1, 12).index_fill(1, partner, 1e4)
    assert partner not in tome(metric, 1, 1, distance=distance, importance=importance).source[0, first]


def test_importance_multiplies_the_distance():
    # (1, 4, 2), of which 0 and 2 are set A: 0 is nearer to 1 than 2 to 3, until 0 counts for more
    angles = torch.tensor([[0.0, 0.1, 2.0, 2.12]])
    metric = torch.stack([angles.cos(), angles.sin()], dim=-1)
    assert tome(metric, 1).merged.tolist() == [[0]]
    assert tome(metric, 1, importance=torch.tensor([[0.4, 0, 0, 0]])).merged.tolist() == [[0]]  # 0.1^2 * 1.4 < 0.12^2
    assert tome(metric, 1, importance=torch.tensor([[0.5, 0, 0, 0]])).merged.tolist() == [[2]]
    with pytest.raises(ValueError, match="`distance` is 'dot', which has no highest score"):
        tome(metric, 1, distance="dot", importance=torch.zeros(1, 4))


def assert_is(match, expected, x, size, combine="weighted_mean"):
    """Check a merge against `reference.Merged` of each image: tokens, sizes, sources, and what unmerge gives."""
    merged, merged_size = match.merge(x, size)
    restored = match.unmerge(merged)
    for image, want in enumerate(expected):
        rows, row_sizes = want.combine(x[image].numpy(), size[image, :, 0].numpy(), combine)
        np.testing.assert_allclose(merged[image].numpy(), rows, atol=1e-12)
        np.testing.assert_allclose(merged_size[image, :, 0].numpy(), row_sizes, rtol=1e-14)
        source = want.source(x.shape[1])
        assert match.source[image].tolist() == source
        assert match.representative[image].tolist() == want.kept
        np.testing.assert_array_equal(restored[image].numpy(), merged[image].numpy()[source])


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("distill_token", [False, True])
def test_flags_protect_leading_tokens(class_token, distill_token):
    metric = tokens(0, 2, 9, 4)
    match = bipartite_soft_matching(metric, 3, class_token, distill_token)
    same = tome(metric, 3, int(class_token) + int(distill_token))
    assert torch.equal(match.source, same.source)


@given(counts, specials, amounts, seeds, st.sampled_from(DISTANCES), st.sampled_from(COMBINES))
def test_greedy_merges_the_most_similar_pair_again_and_again(num_tokens, num_special, r, seed, distance, combine):
    num_special = min(num_special, num_tokens)
    metric, x = tokens(seed, 2, num_tokens, 5), tokens(seed + 1, 2, num_tokens, 3)
    match = greedy_matching(metric, r, num_special, distance=distance, combine=combine)
    expected = [reference.greedy(image.numpy(), r, num_special, distance) for image in metric]
    assert_is(match, expected, x, sizes(seed, 2, num_tokens), combine)


@given(counts, specials, st.integers(0, 12), seeds, st.integers(1, 4))
def test_kmeans_is_lloyds_iteration(num_tokens, num_special, r, seed, iterations):
    num_special = min(num_special, num_tokens)
    metric, x = tokens(seed, 2, num_tokens, 4), tokens(seed + 1, 2, num_tokens, 3)
    match = kmeans(metric, r, num_special, iterations=iterations, seed=seed)
    rest = num_tokens - num_special
    assert match.num_output == num_special + max(rest - r, min(rest, 1))
    starts = match.representative[0, num_special:].tolist()
    assert match.representative[1, num_special:].tolist() == starts
    expected = [reference.kmeans(image.numpy(), starts, num_special, iterations) for image in metric]
    assert_is(match, expected, x, sizes(seed, 2, num_tokens))


@given(counts, specials, amounts, seeds)
def test_prune_drops_the_lowest_scores(num_tokens, num_special, r, seed):
    num_special = min(num_special, num_tokens)
    x = tokens(seed, 2, num_tokens, 3)
    score = x[..., 0]
    match = prune_lowest(score, r, num_special)
    merged, size = match.merge(x)
    restored = match.unmerge(merged)
    dropped = min(r, (num_tokens - num_special) // 2)
    for image in range(2):
        worst = sorted(range(num_special, num_tokens), key=lambda token: float(score[image, token]))[:dropped]
        kept = [token for token in range(num_tokens) if token not in worst]
        assert match.representative[image].tolist() == kept
        assert torch.equal(merged[image], x[image, kept])
        assert torch.equal(restored[image, kept], x[image, kept])
        assert (restored[image, worst] == 0).all()
        assert (match.source[image, worst] == -1).all()
    assert (size == 1).all()


thresholds = st.floats(-1, 1)


@given(
    counts,
    specials,
    thresholds,
    seeds,
    st.booleans(),
    st.sampled_from(["cosine", "dot", "softmax"]),
    st.booleans(),
    max_examples=120,
)
def test_mame_is_the_papers_equations(num_tokens, num_special, threshold, seed, adaptive, distance, sequential):
    num_special = min(num_special, num_tokens)
    partition = "sequential" if sequential else "alternating"
    x = tokens(seed, 1, num_tokens, 4)
    match = matrix_matching(
        x, threshold, num_special, adaptive_pruning=adaptive, distance=distance, partition=partition
    )
    want = reference.mame(x[0].numpy(), threshold, num_special, 1e-6, adaptive, distance, partition)
    np.testing.assert_allclose(match.weights[0].numpy(), want.weights, atol=1e-9)
    merged, size = match.merge(x)
    np.testing.assert_allclose(merged[0].numpy(), want.merge(x[0].numpy()), atol=1e-9)
    assert match.representative[0].tolist() == [*range(num_special), *want.destinations, *want.preserved]
    assert (size.sum(dim=1) - num_tokens).abs().max() < 1e-9
    other = tokens(seed + 1, 1, match.num_output, 3)
    np.testing.assert_allclose(match.unmerge(other)[0].numpy(), want.unmerge(other[0].numpy()), atol=1e-9)


def test_mame_takes_tokens_by_a_bounded_euclidean_similarity():
    x = tokens(0, 1, 10, 4)
    same = torch.cat([x, x], dim=2)[:, [0, 0, 2, 2, 4, 4]]  # each source equals the destination after it
    match = matrix_matching(same, 0.999, distance="euclidean", adaptive_pruning=False)
    assert match.num_output == 3
    opposite = torch.cat([x[:, :1], -x[:, :1]], dim=1)
    assert matrix_matching(opposite, -0.999, distance="euclidean", adaptive_pruning=False).num_output == 2


@given(st.integers(2, 3), counts, thresholds, seeds, st.booleans())
def test_union_preserves_what_any_image_preserves(batch_size, num_tokens, threshold, seed, adaptive):
    x = tokens(seed, batch_size, num_tokens, 3)
    match = matrix_matching(x, threshold, adaptive_pruning=adaptive, batching="union")
    alone = [reference.mame(image.numpy(), threshold, 0, 1e-6, adaptive) for image in x]
    preserved = sorted(set().union(*(want.preserved for want in alone)))
    weights = [want.weights * [token not in preserved for token in want.sources] for want in alone]
    np.testing.assert_allclose(match.weights.numpy(), np.array(weights), atol=1e-9)
    assert match.real is None, "images of one length need no padding"
    for image, want in enumerate(alone):
        assert match.representative[image].tolist() == [*want.destinations, *preserved]


@given(st.integers(0, 40), specials, st.floats(0.5, 1), st.sampled_from(PARTITIONS), seeds)
def test_keep_ratio_keeps_exactly_its_share(num_rest, num_special, keep_ratio, partition, seed):
    x = tokens(seed, 2, num_rest + num_special, 3)
    match = matrix_matching(x, 0.9, num_special, keep_ratio=keep_ratio, partition=partition)
    destinations = num_rest // 2
    assert match.num_output == max(math.ceil(keep_ratio * num_rest), destinations) + num_special
    size = match.merge(x)[1]
    assert match.real is None
    assert (size > 0).all()
    torch.testing.assert_close(size.sum(dim=1), torch.full_like(size.sum(dim=1), num_rest + num_special))


def test_keep_ratio_merges_the_best_matched_sources():
    x = tokens(4, 3, 14, 3)
    match = matrix_matching(x, 0.0, num_special=2, keep_ratio=0.7)
    scores = np.array(
        [reference.similarities(image.numpy(), range(2, 14, 2), range(3, 14, 2), "cosine") for image in x]
    )
    best = scores.max(axis=2)
    for image in range(3):
        merged = (~match.preserved[image]).nonzero()[:, 0].tolist()
        assert merged == sorted(np.argsort(-best[image])[: 12 - math.ceil(0.7 * 12)].tolist())


@pytest.mark.parametrize("num_real", [20, 100, 180, 200])
def test_keep_ratio_rounds_the_same_with_padding(num_real):
    # 0.55 * 100 is a little over 55 in double precision, and 55 in single.
    x = tokens(0, 1, num_real, 2)
    alone = matrix_matching(x, 0.9, keep_ratio=0.55)
    padded, size = pad(x, torch.ones(1, num_real, 1), 7)
    _, out_size = matrix_matching(padded, 0.9, keep_ratio=0.55, size=size).merge(padded, size)
    assert (out_size > 0).sum() == alone.num_output


# ----------------------------------------------------------------------------------- what holds for every matching


@every_matching
@given(batch_sizes, counts, specials, amounts, seeds, st.sampled_from(KINDS), st.sampled_from(DTYPES), max_examples=60)
def test_sizes_sources_and_shapes(name, batch_size, num_tokens, num_special, r, seed, kind, dtype):
    num_special = min(num_special, num_tokens)
    metric, x = (tokens(s, batch_size, num_tokens, 4, kind=kind, dtype=dtype) for s in (seed, seed + 1))
    size = sizes(seed, batch_size, num_tokens)
    match = MATCHINGS[name](metric, r, num_special)
    merged, merged_size = match.merge(x, size)
    assert (match.num_input, match.num_output) == (num_tokens, merged.shape[1])
    assert match.num_output >= 1
    assert merged.dtype == dtype
    assert merged.shape == (batch_size, match.num_output, 4)
    assert merged_size.shape == (batch_size, match.num_output, 1)
    assert merged.isfinite().all()
    assert torch.equal(merged[:, :num_special], x[:, :num_special]), "a protected token changed"
    assert torch.equal(merged_size[:, :num_special], size[:, :num_special])
    if name in MERGING:
        torch.testing.assert_close(merged_size.sum(dim=1), size.sum(dim=1))
    if kind in ("equal", "zeros"):
        close = {"atol": 1e-2, "rtol": 1e-2} if dtype.itemsize == 2 else {}
        real = merged_size > 0
        torch.testing.assert_close(merged, torch.where(real, x[:, :1].expand_as(merged), merged), **close)
    assert match.unmerge(merged).shape == x.shape
    assert match.unmerge(merged).dtype == dtype
    assert_consistent(match, size)


@every_matching
@given(counts, amounts, seeds)
def test_sizes_start_at_one(name, num_tokens, r, seed):
    x = tokens(seed, 2, num_tokens, 4)
    match = MATCHINGS[name](x, r, 0)
    for dtype, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        merged, size = match.merge(x.to(dtype))
        same, same_size = match.merge(x.to(dtype), torch.ones(2, num_tokens, 1, dtype=expected))
        assert size.dtype == expected, "counts are not rounded to half precision"
        assert torch.equal(merged, same)
        assert torch.equal(size, same_size)


@pytest.mark.parametrize("name", MERGING)
@pytest.mark.parametrize("dtype", DTYPES[2:])
@given(counts, amounts, seeds)
def test_half_precision_tokens_are_matched_in_full(name, dtype, num_tokens, r, seed):
    # Merged in half precision, of which a token of a few members is off by a few ulp.
    x = tokens(seed, 2, num_tokens, 4, dtype=dtype)
    half, full = MATCHINGS[name](x, r), MATCHINGS[name](x.float(), r)
    assert torch.equal(half.source, full.source)
    merged, size = half.merge(x)
    expected, expected_size = full.merge(x.float())
    torch.testing.assert_close(size, expected_size)
    torch.testing.assert_close(merged.float(), expected, atol=8 * torch.finfo(dtype).eps, rtol=0.02)
    assert half.unmerge(merged).dtype == dtype


@every_matching
@given(counts, amounts, seeds)
def test_results_do_not_depend_on_layout(name, num_tokens, r, seed):
    metric, x = tokens(seed, 2, num_tokens, 4), tokens(seed + 1, 2, num_tokens, 4)
    size = sizes(seed, 2, num_tokens)

    def strided(t):
        spread = torch.empty(*t.shape[:2], 2 * t.shape[2], dtype=t.dtype).transpose(0, 1).contiguous().transpose(0, 1)
        spread[..., ::2] = t
        return spread[..., ::2]

    plain, other = MATCHINGS[name](metric, r, 1), MATCHINGS[name](strided(metric), r, 1)
    assert torch.equal(plain.source, other.source)
    for one, two in zip(plain.merge(x, size), other.merge(strided(x), strided(size))):
        torch.testing.assert_close(one, two, atol=1e-14, rtol=1e-14)
    y = plain.merge(x)[0]
    torch.testing.assert_close(plain.unmerge(y), other.unmerge(strided(y)), atol=1e-14, rtol=1e-14)


@every_matching
@given(st.integers(2, 13), amounts, seeds)
def test_an_image_does_not_see_its_batch_mates(name, num_tokens, r, seed):
    metric, x = tokens(seed, 3, num_tokens, 4), tokens(seed + 1, 3, num_tokens, 2)
    together = MATCHINGS[name](metric, r, 1)
    merged, size = together.merge(x)
    restored = together.unmerge(merged)
    for image in range(3):
        alone = MATCHINGS[name](metric[image : image + 1], r, 1)
        assert_same_tokens(alone, together, x[image : image + 1], merged[image], size[image], restored[image])


def assert_same_tokens(alone, together, x, merged, size, restored):
    """Check that an image's real tokens, sizes and restored tokens are those that it gets alone from `x` (1, n, C)."""
    expected, expected_size = alone.merge(x)
    real = size[:, 0] > 0
    first = int(real.sum())
    assert real[:first].all(), "padding stands before a real token"
    torch.testing.assert_close(merged[:first], expected[0][expected_size[0, :, 0] > 0], atol=1e-12, rtol=0)
    torch.testing.assert_close(size[:first], expected_size[0][expected_size[0, :, 0] > 0], atol=1e-12, rtol=0)
    torch.testing.assert_close(restored[: x.shape[1]], alone.unmerge(expected)[0], atol=1e-12, rtol=0)


def pad(x, size, more, value=1e3):
    """Return `x` (B, N, C) and `size` (B, N, 1) with `more` tokens of padding, whose values must not matter."""
    return torch.nn.functional.pad(x, (0, 0, 0, more), value=value), torch.nn.functional.pad(size, (0, 0, 0, more))


@pytest.mark.parametrize("name", PADDED)
@given(
    st.integers(1, 11),
    st.integers(1, 9),
    st.integers(0, 2),
    amounts,
    seeds,
    st.sampled_from([1e3, 0.0, math.nan]),
    max_examples=80,
)
def test_padding_takes_no_part(name, num_tokens, more, num_special, r, seed, value):
    num_special = min(num_special, num_tokens)
    metric, x = tokens(seed, 2, num_tokens, 4), tokens(seed + 1, 2, num_tokens, 3)
    size = sizes(seed, 2, num_tokens)
    expect_padding_to_take_no_part(MATCHINGS[name], metric, x, size, r, num_special, more, value)


def expect_padding_to_take_no_part(matching, metric, x, size, r, num_special, more, value=1e3):
    longer, longer_size = pad(metric, size, more, value)
    longer_x, _ = pad(x, size, more, value)
    match = matching(longer, r, num_special, size=longer_size)
    merged, merged_size = match.merge(longer_x, longer_size)
    restored = match.unmerge(merged)
    num_tokens = x.shape[1]
    assert (match.source[:, num_tokens:] == -1).all()
    assert (restored[:, num_tokens:] == 0).all()
    assert match.may_pad(True) or (merged_size > 0).all()
    for image in range(len(x)):
        one = slice(image, image + 1)
        alone = matching(metric[one], r, num_special)
        expected, expected_size = alone.merge(x[one], size[one])
        num_output = alone.num_output
        assert (merged_size[image, num_output:] == 0).all(), "padding came to count for something"
        torch.testing.assert_close(merged[one, :num_output], expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(merged_size[one, :num_output], expected_size, atol=1e-12, rtol=0)
        assert torch.equal(match.representative[one, :num_output], alone.representative)
        assert torch.equal(match.source[one, :num_tokens], alone.source)
        torch.testing.assert_close(restored[one, :num_tokens], alone.unmerge(expected), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["tome", "greedy"])
@pytest.mark.parametrize("combine", COMBINES)
@given(st.integers(1, 9), st.integers(1, 6), amounts, seeds)
def test_padding_takes_no_part_however_tokens_combine(name, combine, num_tokens, more, r, seed):
    metric, x = tokens(seed, 2, num_tokens, 4), tokens(seed + 1, 2, num_tokens, 3)
    matching = partial(MATCHINGS[name], combine=combine)
    expect_padding_to_take_no_part(matching, metric, x, sizes(seed, 2, num_tokens), r, 0, more)


@pytest.mark.parametrize("name", [*PARTITIONED, "greedy"])
@pytest.mark.parametrize("distance", DISTANCES)
@given(st.integers(1, 9), st.integers(1, 6), amounts, seeds, max_examples=20)
def test_padding_takes_no_part_however_distance_is_measured(name, distance, num_tokens, more, r, seed):
    metric, x = tokens(seed, 2, num_tokens, 4), tokens(seed + 1, 2, num_tokens, 3)
    matching = partial(MATCHINGS[name], distance=distance)
    expect_padding_to_take_no_part(matching, metric, x, sizes(seed, 2, num_tokens), r, 0, more, value=2.0)


@pytest.mark.parametrize("name", PARTITIONED)
@pytest.mark.parametrize("partition", PARTITIONS)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 2), amounts, seeds)
def test_padding_takes_no_part_however_tokens_are_split(name, partition, num_tokens, more, num_special, r, seed):
    metric, x = tokens(seed, 2, num_tokens, 4), tokens(seed + 1, 2, num_tokens, 3)
    matching = partial(MATCHINGS[name], partition=partition, seed=seed)
    num_special = min(num_special, num_tokens)
    expect_padding_to_take_no_part(matching, metric, x, sizes(seed, 2, num_tokens), r, num_special, more)


@given(st.integers(2, 9), st.integers(1, 6), thresholds, seeds)
def test_padding_does_not_keep_a_source_of_other_images(num_tokens, more, threshold, seed):
    long, short = tokens(seed, 1, num_tokens + more, 3), tokens(seed + 1, 1, num_tokens, 3)
    padded, size = pad(short, torch.ones(1, num_tokens, 1), more)
    options = {"adaptive_pruning": False, "batching": "union"}
    both = matrix_matching(
        torch.cat([long, padded]), threshold, size=torch.cat([torch.ones_like(size), size]), **options
    )
    alone = matrix_matching(long, threshold, **options), matrix_matching(short, threshold, **options)
    preserved = [set(match.representative[0, match.weights.shape[1] :].tolist()) for match in alone]
    expected = {token for token in preserved[0] if token >= num_tokens} | preserved[0] | preserved[1]
    merged_size = both.merge(torch.cat([long, padded]), torch.cat([torch.ones_like(size), size]))[1]
    for image, length in enumerate((num_tokens + more, num_tokens)):
        real = both.representative[image][merged_size[image, :, 0] > 0].tolist()
        assert {token for token in real if token % 2 == 0} == {token for token in expected if token < length}


def test_kmeans_refuses_padding():
    with pytest.raises(ValueError, match="k-means baseline takes no padded input"):
        kmeans(tokens(0, 1, 4, 3), 1, size=torch.ones(1, 4, 1))


# ------------------------------------------------------------------------------------------ what is not a number


BROKEN = (math.nan, math.inf, -math.inf, 1e30)  # the last is too large to multiply in single precision


@pytest.mark.parametrize("value", BROKEN[:3])
@every_matching
@given(batch_sizes, counts, amounts, seeds, st.data())
def test_only_the_token_that_takes_it_in_becomes_nan(name, value, batch_size, num_tokens, r, seed, data):
    x = tokens(seed, batch_size, num_tokens, 4)
    broken = data.draw(st.sets(st.tuples(st.integers(0, batch_size - 1), st.integers(0, num_tokens - 1)), max_size=4))
    for image, token in broken:
        x[image, token, 1] = value
    match = MATCHINGS[name](x, r)
    merged, size = match.merge(x)
    assert size.isfinite().all()
    assert_consistent(match, torch.ones(batch_size, num_tokens, 1, dtype=x.dtype))
    holds = {(image, int(match.source[image, token])) for image, token in broken}
    for image, row in itertools.product(range(batch_size), range(match.num_output)):
        if (image, row) not in holds and size[image, row] > 0:
            assert merged[image, row].isfinite().all()
    restored = match.unmerge(merged)
    for image, token in itertools.product(range(batch_size), range(num_tokens)):
        if (image, int(match.source[image, token])) not in holds:
            assert restored[image, token].isfinite().all()


@pytest.mark.parametrize(
    ("name", "values"), [("tome", BROKEN), ("greedy", BROKEN), ("mame", BROKEN[:3]), ("mame-fixed", BROKEN[:3])]
)
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_token_that_is_no_number_is_like_no_other(name, values, distance):
    # All real tokens point away from each other, so that a broken one would win if it counted as zeros.
    metric = torch.eye(6)[None] * 10 - 2
    x = tokens(0, 1, 6, 3)
    for token, value in itertools.product(range(6), values):
        broken = metric.clone()
        broken[0, token] = value
        match = MATCHINGS[name](broken, 1, distance=distance)
        if name == "mame-fixed":
            match = matrix_matching(broken, 0.5, distance=distance, keep_ratio=0.8)
            assert match.num_output == 5
        merged, size = match.merge(x)
        row = int(match.source[0, token])
        assert size[0, row] == 1
        assert torch.equal(merged[0, row], x[0, token])


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", ["tome", "greedy", "mame-fixed"])
def test_numbers_asked_for_are_kept_with_nothing_but_nan(name, distance):
    metric = torch.full((2, 8, 3), math.nan)
    x = tokens(0, 2, 8, 3)
    match = MATCHINGS[name](metric, 4, distance=distance)
    assert match.num_output == {"tome": 4, "greedy": 4, "mame-fixed": 5}[name]
    merged, size = match.merge(x)
    assert merged.isfinite().all()
    assert (size.sum(dim=1) == 8).all()
    assert_consistent(match, torch.ones(2, 8, 1))


# ------------------------------------------------------------------------------------------------------------ ties


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(st.integers(2, 12), st.integers(1, 4), seeds, st.floats(-0.9, 0.999))
def test_mame_preserves_ties(dtype, num_pairs, num_destinations, seed, threshold):
    # Every source has `num_destinations` equal destinations, and nothing else above the threshold: W = zeta for all.
    basis = torch.eye(max(num_pairs, num_destinations), dtype=torch.float64)
    scale = 1 + tokens(seed, 1, 1, 2 * num_pairs)[0, 0].abs()[:, None]
    rows = []
    for pair in range(num_pairs):
        rows += [basis[0], basis[0] if pair < num_destinations else basis[-1] * 0]
    x = (torch.stack(rows) * scale)[None].to(dtype)
    match = matrix_matching(x, max(threshold, 0.0))
    assert match.preserved.all()
    assert match.num_output == 2 * num_pairs


@given(st.integers(2, 14), thresholds, seeds, st.sampled_from(KINDS), st.booleans())
def test_mame_does_not_depend_on_precision(num_tokens, threshold, seed, kind, adaptive):
    x = tokens(seed, 2, num_tokens, 4, kind=kind, dtype=torch.float32)
    single, double = (
        matrix_matching(t, threshold, adaptive_pruning=adaptive, batching="pad") for t in (x, x.double())
    )
    assert torch.equal(single.representative, double.representative)
    assert torch.equal(single.preserved, double.preserved)
    torch.testing.assert_close(single.weights.double(), double.weights.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("adaptive", [False, True])
def test_mame_at_threshold_1_merges_nothing(adaptive):
    # Equal tokens have similarity 1 up to rounding, which must not delete a token into weights of 1e-10.
    for seed in range(20):
        x = tokens(seed, 1, 12, 7, kind="equal")
        assert matrix_matching(x, 1.0, adaptive_pruning=adaptive).num_output == 12


@pytest.mark.parametrize("adaptive", [False, True])
def test_mame_weights_are_shares(adaptive):
    match = matrix_matching(tokens(1, 2, 40, 3), 0.2, adaptive_pruning=adaptive, batching="pad")
    columns = match.weights.sum(dim=1)
    assert ((columns == 0) == match.preserved).all()
    assert (columns[~match.preserved] > 0.99).all()
    assert (columns <= 1).all()


# --------------------------------------------------------------------------------------------------- random choices


RANDOM = {
    "tome": lambda seed: tome(tokens(0, 1, 40, 4), 9, 1, partition="random", seed=seed).source,
    "mame": lambda seed: matrix_matching(tokens(0, 1, 40, 4), 0.2, 1, partition="random", seed=seed).sources,
    "kmeans": lambda seed: kmeans(tokens(0, 1, 40, 4), 9, 1, seed=seed).representative,
    "random_prune": lambda seed: prune_random(1, 40, 9, 1, torch.device("cpu"), seed=seed).representative,
}


@pytest.mark.parametrize("name", RANDOM)
def test_seeds_choose(name):
    chosen = [RANDOM[name](seed) for seed in (0, 1, 2, 2**31, 2**63, 2**80)]
    for one, other in itertools.combinations(chosen, 2):
        assert not torch.equal(one, other)
    assert torch.equal(RANDOM[name](1), chosen[1])


def test_random_choices_are_the_same_in_every_release():
    assert prune_random(1, 12, 6, 0, torch.device("cpu"), seed=0).representative[0].tolist() == [0, 2, 4, 8, 9, 11]


def test_random_choices_are_fair():
    # Over many seeds each of 20 tokens is dropped in about half of the runs.
    kept = torch.stack(
        [prune_random(1, 20, 10, 0, torch.device("cpu"), seed=seed).source[0] >= 0 for seed in range(400)]
    )
    assert kept.float().mean(dim=0).sub(0.5).abs().max() < 0.12
    assert kept.float().T.corrcoef().fill_diagonal_(0).abs().max() < 0.25


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("name", HARD)
def test_gradients_of_hard_merges(name, combine):
    match = MATCHINGS[name](tokens(0, 2, 7, 4), 3, 1, combine=combine)
    x, size = tokens(1, 2, 7, 3).requires_grad_(), sizes(2, 2, 7).requires_grad_()
    assert torch.autograd.gradcheck(match.merge, (x, size))
    assert torch.autograd.gradcheck(match.unmerge, tokens(3, 2, match.num_output, 3).requires_grad_())
    assert torch.autograd.gradcheck(prune(x.detach(), 3).unmerge, tokens(3, 2, 4, 3).requires_grad_())


@pytest.mark.parametrize("options", [{}, {"adaptive_pruning": False}, {"keep_ratio": 0.6}, {"distance": "euclidean"}])
def test_gradients_of_mame_run_through_the_matching(options):
    def merge(x):
        return matrix_matching(x, 0.1, 1, batching="pad", **options).merge(x)[0]

    def there_and_back(x):
        match = matrix_matching(x, 0.1, 1, batching="pad", **options)
        return match.unmerge(match.merge(x)[0])

    x = tokens(0, 2, 9, 4).requires_grad_()
    assert matrix_matching(x, 0.1, 1, batching="pad", **options).num_output < 9
    assert torch.autograd.gradcheck(merge, x)
    assert torch.autograd.gradcheck(there_and_back, x)
    match = matrix_matching(x, 0.1, 1, batching="pad", **options).detach()
    out = match.unmerge(match.merge(x.detach())[0])
    assert not out.requires_grad


@every_matching
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite(name, kind):
    x = tokens(0, 2, 9, 4, kind=kind, dtype=torch.float32)
    x[1, 4] = 0
    padded, size = pad(x, torch.ones(2, 9, 1), 3)
    for tensor, options in ((x, {}), (padded, {"size": size})):
        if name == "kmeans" and options:
            continue
        tensor = tensor.clone().requires_grad_()
        match = MATCHINGS[name](tensor, 3, **options)
        merged, _ = match.merge(tensor, options.get("size"))
        (merged.square().sum() + match.unmerge(merged).sum()).backward()
        assert tensor.grad.isfinite().all()


# ------------------------------------------------------------------------------------------ graphs and accelerators


STATIC = tuple(name for name in MATCHINGS if name != "mame")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", STATIC)
def test_shapes_follow_from_shapes_alone(name, padded):
    # On fake tensors, reading a value (`.item()`, `nonzero`), which would stop an accelerator, raises.
    if padded and name == "kmeans":
        pytest.skip("takes no padded input")
    real = MATCHINGS[name](tokens(0, 2, 12, 4), 3, 1)
    with FakeTensorMode():
        x = torch.empty(2, 12, 4)
        size = torch.empty(2, 12, 1) if padded else None
        match = MATCHINGS[name](x, 3, 1, **({"size": size} if padded else {}))
        merged, merged_size = match.merge(x, size)
        assert merged.shape == (2, real.num_output, 4)
        assert merged_size.shape == (2, real.num_output, 1)
        assert match.unmerge(merged).shape == x.shape
        assert match.source.shape == (2, 12)
        assert match.representative.shape == (2, real.num_output)


class Step(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x, size):
        match = MATCHINGS[self.name](x, 3, 1)
        merged, merged_size = match.merge(x, size)
        return merged, merged_size, match.unmerge(merged), match.source


@pytest.mark.parametrize("name", STATIC)
def test_compiles_without_a_graph_break(name):
    torch._dynamo.reset()
    step, x, size = Step(name), tokens(0, 2, 12, 4), sizes(0, 2, 12)
    for one, other in zip(torch.compile(step, backend="eager", fullgraph=True)(x, size), step(x, size)):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", STATIC)
def test_exports_with_any_batch_size(name):
    def inputs(batch_size):
        return tokens(0, batch_size, 12, 4), sizes(0, batch_size, 12)

    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        Step(name), inputs(3), dynamic_shapes={"x": {0: batch}, "size": {0: batch}}
    ).module()
    for batch_size in (2, 5):
        for one, other in zip(exported(*inputs(batch_size)), Step(name)(*inputs(batch_size))):
            torch.testing.assert_close(one, other)


@every_matching
def test_autocast_does_not_round(name):
    # Half precision would change 3 % of the chosen tokens, and make sizes that sum to 49.99 of 50.
    x = tokens(0, 2, 200, 16, dtype=torch.float32)
    plain = MATCHINGS[name](x, 50, 1)
    with torch.autocast("cpu", torch.bfloat16):
        match = MATCHINGS[name](x, 50, 1)
        merged, size = match.merge(x)
        restored = match.unmerge(merged)
    assert torch.equal(match.source, plain.source)
    expected, expected_size = plain.merge(x)
    for one, other in ((merged, expected), (size, expected_size), (restored, plain.unmerge(expected))):
        assert torch.equal(one, other)


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: tome(torch.zeros(3, 4), 1),
            r"`metric` is a torch.float32 tensor of shape \(3, 4\); it takes a floating",
        ),
        (lambda: tome(torch.zeros(1, 3, 4, dtype=torch.int64), 1), "`metric` is a torch.int64 tensor"),
        (lambda: greedy_matching(torch.zeros(3, 4), 1), "`metric` is a torch.float32 tensor"),
        (lambda: kmeans(torch.zeros(3, 4), 1), "`metric` is a torch.float32 tensor"),
        (lambda: matrix_matching(torch.zeros(3, 4)), "`metric` is a torch.float32 tensor"),
        (lambda: prune_lowest(torch.zeros(3, 4, 2), 1), r"`score` is a torch.float32 tensor of shape \(3, 4, 2\)"),
        (lambda: tome(torch.zeros(1, 3, 4), 1, num_special=4), "`num_special` is 4; .* from 0 to 3"),
        (lambda: prune_lowest(torch.zeros(1, 3), 1, -1), "`num_special` is -1; .* from 0 to 3"),
        (lambda: prune_random(1, 3, 1, 4, torch.device("cpu")), "`num_special` is 4; .* from 0 to 3"),
        (lambda: tome(torch.zeros(1, 3, 4), -1), "`r` is -1; it takes an integer of at least 0"),
        (lambda: tome(torch.zeros(1, 3, 4), 1.0), "`r` is 1.0; it takes an integer of at least 0"),
        (lambda: tome(torch.zeros(1, 3, 4), "3"), "`r` is 3; it takes an integer of at least 0"),
        (lambda: tome(torch.zeros(1, 3, 4), None), "`r` is None; it takes an integer of at least 0"),
        (lambda: tome(torch.zeros(1, 3, 4), True), "`r` is True; it takes an integer of at least 0"),
        (lambda: tome(torch.zeros(1, 4, 4), 1).merge(torch.ones(1, 4, 2).int()), "`x` is a torch.int32 tensor.*float"),
        (lambda: matrix_matching(torch.zeros(1, 3, 4), eps=0), "`eps` is 0; it takes a number above 0"),
        (lambda: greedy_matching(torch.zeros(1, 3, 4), -1), "`r` is -1"),
        (lambda: kmeans(torch.zeros(1, 3, 4), -1), "`r` is -1"),
        (lambda: prune_lowest(torch.zeros(1, 3), -1), "`r` is -1"),
        (
            lambda: tome(torch.zeros(1, 3, 4), 1, size=torch.ones(1, 3)),
            r"`size` has shape \(1, 3\); it takes \(1, 3, 1\)",
        ),
        (lambda: greedy_matching(torch.zeros(1, 3, 4), 1, size=torch.ones(2, 3, 1)), "`size` has shape"),
        (lambda: matrix_matching(torch.zeros(1, 3, 4), size=torch.ones(1, 4, 1)), "`size` has shape"),
        (lambda: prune_lowest(torch.zeros(1, 3), 1, size=torch.ones(1, 3)), "`size` has shape"),
        (lambda: tome(torch.zeros(1, 3, 4), 1, distance="l1"), "`distance` is 'l1'; it takes one of 'cosine', 'eucl"),
        (lambda: greedy_matching(torch.zeros(1, 3, 4), 1, distance="l1"), "`distance` is 'l1'; it takes one of"),
        (lambda: matrix_matching(torch.zeros(1, 3, 4), distance="l1"), "`distance` is 'l1'; it takes one of"),
        (
            lambda: tome(torch.zeros(1, 3, 4), 1, partition="even"),
            "`partition` is 'even'; it takes one of 'alternating'",
        ),
        (lambda: tome(torch.zeros(1, 3, 4), 1, combine="sum"), "`combine` is 'sum'; it takes one of 'weighted_mean'"),
        (
            lambda: matrix_matching(torch.zeros(1, 3, 4), batching="any"),
            "`batching` is 'any'; it takes one of 'pad', 'union'",
        ),
        (
            lambda: matrix_matching(torch.zeros(1, 3, 4), keep_ratio=0.4),
            "`keep_ratio` is 0.4; it takes .* from 0.5 to 1",
        ),
        (
            lambda: kmeans(torch.zeros(1, 3, 4), 1, iterations=0),
            "`iterations` is 0; it takes an integer of at least 1",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@every_matching
def test_bad_tokens(name):
    match = MATCHINGS[name](tokens(0, 2, 6, 4), 2)
    merged = match.num_output
    for shape in [(2, 7, 4), (1, 6, 4), (4, 6, 4), (6, 4)]:
        with pytest.raises(ValueError, match=r"`x` has shape .*; this merge takes \(2, 6, channels\)"):
            match.merge(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"`size` has shape \(2, 6\); it takes \(2, 6, 1\)"):
        match.merge(torch.zeros(2, 6, 4), torch.ones(2, 6))
    for shape in [(2, merged + 1, 4), (1, merged, 4), (merged, 4)]:
        with pytest.raises(ValueError, match=rf"`x` has shape .*; this merge takes \(2, {merged}, channels\)"):
            match.unmerge(torch.zeros(shape))


def test_an_empty_batch_and_no_tokens():
    for name, shape in itertools.product(MATCHINGS, [(0, 5, 4), (2, 0, 4)]):
        match = MATCHINGS[name](torch.zeros(shape), 2)
        merged, size = match.merge(torch.zeros(shape))
        assert merged.shape == (shape[0], match.num_output, 4)
        assert size.shape == (shape[0], match.num_output, 1)
        assert match.unmerge(merged).shape == shape
        assert match.source.shape == shape[:2]


def test_identity_changes_nothing():
    x, size = tokens(0, 2, 5, 3), sizes(0, 2, 5)
    match = identity_merge(2, 5, x.device)
    assert torch.equal(match.merge(x, size)[0], x)
    assert torch.equal(match.merge(x, size)[1], size)
    assert torch.equal(match.unmerge(x), x)
    assert torch.equal(match.source, torch.arange(5).expand(2, -1))


def test_merging_keeps_the_tokens_it_was_given():
    for name in MATCHINGS:
        metric, x, size = tokens(0, 2, 9, 4), tokens(1, 2, 9, 4), sizes(2, 2, 9)
        before = metric.clone(), x.clone(), size.clone()
        match = MATCHINGS[name](metric, 3, 1)
        match.unmerge(match.merge(x, size)[0])
        score = x[..., 0]
        prune_lowest(score, 3, 1)
        assert all(torch.equal(*pair) for pair in zip(before, (metric, x, size)))


def test_matchings_need_no_gradient():
    x = tokens(0, 2, 9, 4).requires_grad_()
    for name in HARD:
        assert not MATCHINGS[name](x, 3).kept.requires_grad
    assert not prune_lowest(x[..., 0], 3).kept.requires_grad
    assert isinstance(tome(x, 3), HardMerge)


@pytest.mark.parametrize("name", MATCHINGS)
@pytest.mark.parametrize("sign", ["same", "both"])
def test_what_is_finite_in_single_precision_is_finite_in_half(name, sign):
    # Tokens near float16's largest value: sums and differences of two are beyond it, their means are not.
    x = tokens(5, 2, 24, 6).float()
    x = torch.sign(x) * (60000 + 5000 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1)))
    x = x.abs() if sign == "same" else x
    size = torch.randint(1, 100, (2, 24, 1), generator=torch.Generator().manual_seed(2)).float()
    match = MATCHINGS[name](tokens(6, 2, 24, 6).float(), 5)
    merged, _ = match.merge(x.half(), size)
    expected, _ = match.merge(x.half().float(), size)
    assert merged.isfinite().all()
    torch.testing.assert_close(merged.float(), expected, atol=200, rtol=4e-3)
    restored = match.unmerge(merged)
    assert restored.isfinite().all()


def test_mame_shares_in_half_precision_stay_a_mean():
    # All sources fuse into few destinations, so that their plain sum is far beyond float16.
    x = torch.full((1, 64, 4), 65504.0).half()
    match = matrix_matching(torch.randn(1, 64, 4, generator=torch.Generator().manual_seed(0)), -0.9)
    merged, _ = match.merge(x)
    assert merged.isfinite().all()
    torch.testing.assert_close(merged.float(), torch.full_like(merged, 65504.0).float(), atol=0, rtol=2e-3)
    assert match.unmerge(merged).isfinite().all()

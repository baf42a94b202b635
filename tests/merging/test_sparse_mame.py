"""MaMe by the few pairs above the threshold gives what its matrices give, decisions included."""

from unittest.mock import patch

import pytest
import torch

from hf_tome.merging import matrix_matching
from hf_tome.merging.mame import matching as mame
from hf_tome.merging.mame.sparse_merge import SparseMatrixMerge


def smooth_tokens(batch_size, num_tokens, channels, noise=0.5, seed=0):
    """Return tokens (B, N, C) of which neighbours are alike, as in images."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randn(batch_size, channels, max(num_tokens // 6, 2), generator=generator)
    field = torch.nn.functional.interpolate(corners, size=num_tokens, mode="linear").transpose(1, 2)
    return field + noise * torch.randn(batch_size, num_tokens, channels, generator=generator)


def dense(*args, **options):
    with patch.object(mame, "_is_eager", lambda metric: False):
        return matrix_matching(*args, **options)


def assert_same(match, expected, x, size=None):
    assert isinstance(match, SparseMatrixMerge), "matrices were used, so nothing is tested"
    assert torch.equal(match.order, expected.order)
    assert torch.equal(match.preserved, expected.preserved)
    torch.testing.assert_close(match.weights, expected.weights, atol=1e-9, rtol=0)
    (merged, merged_size), (other, other_size) = match.merge(x, size), expected.merge(x, size)
    torch.testing.assert_close(merged, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged_size, other_size, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(match.unmerge(merged), expected.unmerge(merged), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("threshold", [0.95, 0.8, 0.6])
@pytest.mark.parametrize(("num_tokens", "channels"), [(80, 48), (41, 8)])
def test_pairs_are_what_matrices_are(num_tokens, channels, threshold):
    for seed in range(4):
        x = smooth_tokens(3, num_tokens, channels, noise=0.4, seed=seed)
        match = matrix_matching(x, threshold, 1)
        if isinstance(match, SparseMatrixMerge):
            assert_same(match, dense(x, threshold, 1), x)
    assert_same(matrix_matching(x, 0.95, 1), dense(x, 0.95, 1), x)


def test_padding_takes_no_part():
    x = smooth_tokens(2, 60, 32)
    size = torch.randint(1, 4, (2, 60, 1), generator=torch.Generator().manual_seed(1)).float()
    size[1, 43:] = 0
    match = matrix_matching(x, 0.8, 1, size=size)
    assert match.weights.any()
    assert_same(match, dense(x, 0.8, 1, size=size), x, size)
    merged, merged_size = match.merge(x, size)
    alone, alone_size = matrix_matching(x[1:, :43], 0.8, 1, size=size[1:, :43]).merge(x[1:, :43], size[1:, :43])
    assert torch.equal(merged[1, : alone.shape[1]], alone[0])
    assert torch.equal(merged_size[1, : alone.shape[1]], alone_size[0])
    assert (merged_size[1, alone.shape[1] :] == 0).all()


@pytest.mark.parametrize("kind", ["equal destinations", "one destination", "at the threshold"])
def test_ties_are_settled_as_in_matrices(kind):
    basis, x = torch.eye(40), torch.zeros(1, 80, 40)
    x[0, ::2] = basis
    x[0, 1::2] = -basis
    if kind == "equal destinations":  # of the same source: every weight is the threshold zeta
        x[0, 1] = x[0, 3] = 3 * basis[0]
    elif kind == "one destination":
        x[0, 1] = 3 * basis[0] + 0.1 * basis[1]
    else:  # 0.8 and a rounding error
        x[0, 1] = x[0, 3] = 0.8 * basis[0] + 0.6 * basis[1]
    for dtype in (torch.float32, torch.float64):
        match = matrix_matching(x.to(dtype), 0.8)
        assert match.preserved.all()
        assert_same(match, dense(x.to(dtype), 0.8), x.to(dtype))


@pytest.mark.parametrize("keep_ratio", [0.5, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("threshold", [0.8, 0.999])
def test_keep_ratio(threshold, keep_ratio):
    x = smooth_tokens(3, 81, 48)
    match = matrix_matching(x, threshold, 1, keep_ratio=keep_ratio)
    assert_same(match, dense(x, threshold, 1, keep_ratio=keep_ratio), x)
    alone = matrix_matching(x[1:2], threshold, 1, keep_ratio=keep_ratio)
    assert torch.equal(alone.merge(x[1:2])[0][0], match.merge(x)[0][1])


def gradients(match, x, weight):
    merged, _ = match.merge(x)
    restored = match.unmerge(merged.sin())
    loss = (merged * weight[:, : merged.shape[1]]).sum() + (restored.sin() * weight).sum()
    return torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("options", [{}, {"keep_ratio": 0.6}, {"keep_ratio": 0.9}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_matrices(dtype, options):
    x = smooth_tokens(3, 81, 24, noise=0.4).to(dtype).requires_grad_()
    weight = torch.randn(x.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    match, expected = matrix_matching(x, 0.8, 1, **options), dense(x, 0.8, 1, **options)
    assert isinstance(match, SparseMatrixMerge)
    assert match.weights.requires_grad
    rounding = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-9, "rtol": 1e-7}
    constant = gradients(match.detach(), x, weight)
    torch.testing.assert_close(constant, gradients(expected.detach(), x, weight), **rounding)
    grad = gradients(match, x, weight)
    torch.testing.assert_close(grad, gradients(expected, x, weight), **rounding)
    assert not torch.allclose(constant, grad, rtol=1e-2)


def test_gradients_of_tokens_alone():
    x = smooth_tokens(2, 60, 32).requires_grad_()
    match, expected = matrix_matching(x.detach(), 0.8, 1), dense(x.detach(), 0.8, 1)
    assert match.weights_of_grad() is None
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(gradients(match, x, weight), gradients(expected, x, weight))


def test_a_token_that_is_no_number_spoils_none_but_those_of_its_own():
    metric = smooth_tokens(1, 60, 32)
    x = metric.clone()
    x[0, 1, 3] = torch.nan
    match = matrix_matching(metric, 0.8, 1)
    merged, _ = match.merge(x)
    rows = match.source[0, 1].item()
    assert merged[0, [row for row in range(merged.shape[1]) if row != rows]].isfinite().all()


@pytest.mark.parametrize("size", [None, torch.full((2, 20, 1), 3.0)], ids=["ones", "sizes"])
def test_nothing_merges(size):
    x = torch.eye(20).expand(2, -1, -1)
    match = matrix_matching(x, 0.8, 1)
    assert_same(match, dense(x, 0.8, 1), x, size)
    assert match.num_output == 20


@pytest.mark.parametrize("keep_ratio", [None, 0.8])
def test_tokens_of_zeros_beside_one_that_is_infinite(keep_ratio):
    x = smooth_tokens(1, 60, 32)
    x[0, 4:7], x[0, 9] = 0, torch.inf
    match = matrix_matching(x, 0.8, 1, keep_ratio=keep_ratio)
    expected = dense(x, 0.8, 1, keep_ratio=keep_ratio)
    assert torch.equal(match.source, expected.source)
    torch.testing.assert_close(match.merge(x)[0], expected.merge(x)[0], equal_nan=True)

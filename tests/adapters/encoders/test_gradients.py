"""Gradients run through MaMe's weights, in merging and in giving the grid back (MaRe), as autograd has them."""

import pytest
import torch
from installed import checkpoint_activations
from transformers import ViTConfig, ViTModel

from hf_tome import MergeConfig, apply
from hf_tome.merging import matrix_matching

THRESHOLD, EPS, TIE = 0.2, 1e-6, 1e-6


def plain_weights(x, num_special, keep):
    """Equations 2 to 8, column by column; `keep` are the sources that stay."""
    rest = x[num_special:]
    sources, destinations = rest[0::2], rest[1::2]
    columns = []
    for j, source in enumerate(sources):
        similarity = torch.stack([(d @ source) / (d.norm() * source.norm()) for d in destinations])
        sparse = torch.relu(similarity - THRESHOLD)
        weights = sparse / (sparse.sum() + EPS)
        zeta = weights.sum() / ((weights / (weights + EPS)).sum() + EPS)
        excess = torch.where(weights - zeta > TIE, weights - zeta, 0)
        columns.append(torch.zeros_like(excess) if j in keep else excess / (excess.sum() + EPS))
    return torch.stack(columns, dim=1), sources, destinations


def plain_merge_and_unmerge(x, num_special, keep=()):
    """Equations 9 and 10 of one image (N, C), a change of its tokens, and MaRe."""
    weights, sources, destinations = plain_weights(x, num_special, keep)
    fused = (destinations + weights @ sources) / (1 + weights.sum(dim=1, keepdim=True))
    preserved = [j for j in range(len(sources)) if weights[:, j].sum() == 0]
    merged = torch.cat([x[:num_special], fused, sources[preserved]]).sin()
    fused, rest = merged[num_special:][: len(destinations)], iter(merged[num_special + len(destinations) :])
    restored = [next(rest) if j in preserved else weights[:, j] @ fused for j in range(len(sources))]
    pairs = [token for pair in zip(restored, fused) for token in pair] + restored[len(fused) :]
    return merged, torch.cat([merged[:num_special], torch.stack(pairs)])


@pytest.mark.parametrize("num_special", [0, 1])
def test_gradients_are_those_of_the_equations(num_special):
    torch.manual_seed(0)
    x = torch.randn(1, 13 + num_special, 5, dtype=torch.float64, requires_grad=True)
    match = matrix_matching(x, THRESHOLD, num_special)
    merged = match.merge(x)[0].sin()
    restored = match.unmerge(merged)
    assert match.num_output < x.shape[1]
    assert match.preserved.any()

    expected = plain_merge_and_unmerge(x[0], num_special)
    for output, plain in zip((merged, restored), expected):
        torch.testing.assert_close(output[0], plain, atol=1e-12, rtol=1e-10)
        (grad,), (plain_grad,) = (torch.autograd.grad(y.square().sum(), x, retain_graph=True) for y in (output, plain))
        torch.testing.assert_close(grad, plain_grad, atol=1e-12, rtol=1e-9)
    (through_weights,) = torch.autograd.grad(restored.square().sum(), x)
    constant = match.detach()
    (without,) = torch.autograd.grad(constant.unmerge(constant.merge(x)[0].sin()).square().sum(), x)
    assert not torch.allclose(through_weights, without, rtol=1e-2)


MAME = MergeConfig(method="mame", threshold=0.2, layers=range(3), restore=True)
FIXED = MergeConfig(method="mame", threshold=0.2, keep_ratio=0.6, layers=range(3), restore=True)


def restored_loss(config, checkpointing=None):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    model = ViTModel(ViTConfig(image_size=16, patch_size=4, hidden_act="tanh", **sizes), add_pooling_layer=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    apply(model.double().train(), config)
    if checkpointing is not None:
        checkpoint_activations(model, **checkpointing)
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    return model, lambda: model(pixels).last_hidden_state.sin().square().sum()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch 2.8, without gradients too
@pytest.mark.parametrize("config", [MAME, FIXED], ids=["threshold", "keep_ratio"])
@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}], ids=str)
def test_a_model_that_gives_the_grid_back_has_exact_gradients(config, checkpointing):
    model, loss = restored_loss(config, checkpointing)
    loss().backward()
    parameters = [p for p in model.parameters() if p.grad is not None]
    directions = [torch.randn_like(p) for p in parameters]
    slope = sum((p.grad * d).sum() for p, d in zip(parameters, directions)).item()
    step, values = 1e-7, []
    with torch.no_grad():
        for sign in (1, -2):  # to one side, then to the other
            for p, d in zip(parameters, directions):
                p.add_(d, alpha=sign * step)
            values.append(loss().item())
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_later_steps_start_afresh():
    """Reentrant checkpointing keeps a gradient between blocks for a moment, never for the next step."""
    (model, loss), (plain, plain_loss) = restored_loss(MAME, {"use_reentrant": True}), restored_loss(MAME)
    for _ in range(2):
        loss().backward()
        plain_loss().backward()
    for p, q in zip(model.parameters(), plain.parameters()):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-10, rtol=1e-8)

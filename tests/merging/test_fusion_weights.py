"""The fusion weights' closed-form gradient is autograd's of the plain form, however images are split into chunks."""

import pytest
import torch

from hf_tome.merging.mame import fusion_weights as module
from hf_tome.merging.mame.fusion_weights import fusion_weights, plain_fusion_weights

EPS = 1e-6


def cosines(batch_size=5, num_destinations=6, num_sources=7):
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.rand(batch_size, num_sources, num_destinations, generator=generator, dtype=torch.float64) - 1
    scores[0, 0] = -torch.inf  # padding
    scores[1, 1] = 0.9  # a tie: no weight is above the mean
    scores[1, 2] = torch.tensor([0.9, *[-0.5] * 5])  # one destination
    return scores.transpose(1, 2)  # as products of matrices come: destinations lie next to each other


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("images_per_chunk", [1, 2, 10])
def test_gradients_are_those_of_the_plain_form(adaptive, images_per_chunk, monkeypatch):
    scores = cosines()
    monkeypatch.setattr(module, "CHUNK_BYTES", images_per_chunk * scores[0].numel() * 8)
    grads, values = [], []
    for function in (fusion_weights, plain_fusion_weights):
        x = scores.clone().requires_grad_()
        weights = function(x, 0.1, EPS, adaptive)
        direction = torch.linspace(-1, 1, weights[0].numel(), dtype=weights.dtype).view(weights[0].shape)
        (weights * direction).sum().backward()
        values.append(weights.detach())
        grads.append(x.grad)
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    assert grads[1].abs().max() > 0.1
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_weights_of_single_precision_keep_the_choices_of_double():
    scores = cosines()
    weights = fusion_weights(scores, 0.1, EPS, True)
    x = scores.clone().requires_grad_()
    single = fusion_weights(x, 0.1, EPS, True, torch.float32)
    assert single.dtype == torch.float32
    assert torch.equal(single > 0, weights > 0)
    torch.testing.assert_close(single.double(), weights, rtol=1e-6, atol=0)
    single[:, 0].sum().backward()
    plain = scores.clone().requires_grad_()
    plain_fusion_weights(plain, 0.1, EPS, True)[:, 0].sum().backward()
    torch.testing.assert_close(x.grad, plain.grad, rtol=1e-4, atol=1e-5)


def test_no_images_and_no_destinations():
    for shape in ((0, 3, 4), (2, 0, 4)):
        x = torch.empty(shape, requires_grad=True)
        fusion_weights(x, 0.1, EPS, True).sum().backward()
        assert x.grad.shape == shape

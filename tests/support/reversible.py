"""What holds for every model: `r=0` keeps its bits, merging changes what it gives, and `remove` is exact."""

from __future__ import annotations

import torch
from installed import checkpoint_activations

from hf_tome import MergeConfig, apply, remove, report
from hf_tome.patching.patch import CONTEXT


def check_reversible(model, run, config: MergeConfig, atol: float) -> None:
    """Check a model with `r=0`, merged and given back; `run(model)` returns what it gives for some inputs."""
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    with torch.no_grad():
        plain = run(model)
        apply(model, MergeConfig(r=0))
        assert torch.equal(run(model), plain)
        assert "nothing merges" in str(report(model))
        apply(model, config)
        merged = run(model)
        assert merged.shape == plain.shape
        assert not torch.allclose(merged, plain, atol=atol)
        assert list(model.state_dict()) == keys
        remove(model)
        assert torch.equal(run(model), plain)
    assert [type(module) for module in model.modules()] == classes
    assert not any(CONTEXT in module.__dict__ for module in model.modules())


@torch.enable_grad()
def check_checkpointed_gradients(make, run, config: MergeConfig) -> None:
    """Check that checkpointing leaves the gradients of a merged model as they are; `make()` builds it anew."""
    gradients = []
    for checkpointing in (None, {"use_reentrant": False}):
        model = apply(make(), config).train()
        if checkpointing is not None:
            checkpoint_activations(model, **checkpointing)
        run(model).square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(plain, checkpointed, atol=1e-6 + 1e-5 * plain.abs().max().item(), rtol=1e-4)

"""Every row of denoisers: a permutation merges nothing, so it must change nothing; and without its row it does."""

import copy
from dataclasses import replace

import pytest
import torch
from denoisers import BY_ROW, DENOISERS

import hf_tome
from hf_tome import MergeConfig, UnsupportedModelError
from hf_tome.adapters.diffusion import denoisers as rows
from hf_tome.merging import Method, methods
from hf_tome.merging.base import HardMerge
from hf_tome.patching.patch import is_patched

pytest.importorskip("diffusers")


def _permute(inputs):
    """Return a merge of nothing that puts the tokens of each image in another order."""
    batch_size, num_tokens, _ = inputs.metric.shape
    generator = torch.Generator().manual_seed(int(inputs.seed))
    order = torch.stack([torch.randperm(num_tokens, generator=generator) for _ in range(batch_size)])
    return HardMerge(order, order[:, :0], order[:, :0], num_tokens)


@pytest.fixture(scope="module", autouse=True)
def permute():
    with pytest.MonkeyPatch.context() as patch:  # the method is gone afterwards: other tests go through all there are
        method = Method("permute_grid", lambda inputs: None, match_grid=_permute)
        patch.setitem(methods._METHODS, method.name, method)
        yield


CASES = [
    (denoiser, modules)
    for denoiser in DENOISERS
    for modules in sorted({name for block in rows.DENOISERS[denoiser.row].blocks for name in block.modules()})
]
IDS = [f"{denoiser.row}-{modules}" for denoiser, modules in CASES]


def config(**fields):
    return MergeConfig(**{"ratio": 0.5, "min_tokens": 0, "tile": None, **fields})


def test_every_row_has_a_small_model():
    assert set(BY_ROW) == set(rows.DENOISERS)


@pytest.mark.parametrize(("denoiser", "modules"), CASES, ids=IDS)
@pytest.mark.parametrize("proportional", [True, False], ids=["proportional", "plain"])
def test_a_permutation_changes_nothing(denoiser, modules, proportional):
    model = denoiser.make()
    expected = denoiser.run(model)
    hf_tome.apply(model, config(method="permute_grid", modules=modules, proportional_attention=proportional))
    torch.testing.assert_close(denoiser.run(model), expected, rtol=1e-4, atol=1e-5)


FOLLOWED = [
    (denoiser, block.name, place, follow.argument)
    for denoiser in DENOISERS
    for block in rows.DENOISERS[denoiser.row].blocks
    for place in ("block", "attention")
    for follow in (getattr(block, place).follows if getattr(block, place) else ())
    if "rot" in follow.argument or "freqs" in follow.argument
]


@pytest.mark.parametrize(
    ("denoiser", "block", "place", "argument"), FOLLOWED, ids=lambda value: getattr(value, "row", value)
)
def test_without_what_follows_a_permutation_changes_the_output(denoiser, block, place, argument, monkeypatch):
    row = rows.DENOISERS[denoiser.row]
    blocks = []
    for entry in row.blocks:
        if entry.name == block:
            call = getattr(entry, place)
            left = tuple(follow for follow in call.follows if follow.argument != argument)
            entry = replace(entry, **{place: replace(call, follows=left)})
        blocks.append(entry)
    monkeypatch.setitem(rows.DENOISERS, denoiser.row, replace(row, blocks=tuple(blocks)))
    model = denoiser.make()
    expected = denoiser.run(model, batch_size=1)
    hf_tome.apply(model, config(method="permute_grid", modules=place))
    assert (denoiser.run(model, batch_size=1) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(("denoiser", "modules"), CASES, ids=IDS)
def test_merging(denoiser, modules):
    model = denoiser.make()
    keys = list(model.state_dict())
    expected = denoiser.run(model)
    hf_tome.apply(model, config(ratio=0.0, modules=modules))
    assert torch.equal(denoiser.run(model), expected)  # a ratio of 0 gives the same bits
    hf_tome.apply(model, config(modules=modules))
    merged = denoiser.run(model)
    assert merged.shape == expected.shape
    assert merged.isfinite().all()
    assert (merged - expected).abs().max() > 1e-4
    assert torch.equal(denoiser.run(model), merged)  # destinations are drawn from seed, step and block
    assert list(model.state_dict()) == keys
    (tower,) = hf_tome.report(model).towers
    assert tower.levels
    assert f"blocks of {denoiser.tokens} tokens -> {denoiser.tokens - denoiser.tokens // 2} ->" in str(tower)
    assert max(level.before for level in tower.levels) == denoiser.tokens
    assert all(level.after == level.before - level.before // 2 for level in tower.levels)
    one = copy.deepcopy(model)
    hf_tome.remove(model)
    assert not any(is_patched(module) for module in model.modules())
    assert torch.equal(denoiser.run(model), expected)
    assert torch.equal(denoiser.run(one), merged)


def test_errors():
    denoiser = BY_ROW["UNet2DConditionModel"]
    model = denoiser.make()
    with pytest.raises(ValueError, match=r"`ratio` is 0.8; .* at most 0.75"):
        hf_tome.apply(model, MergeConfig(ratio=0.8))
    with pytest.raises(ValueError, match="which has no form for denoisers; supported are 'tome'"):
        hf_tome.apply(model, MergeConfig(method="kmeans", ratio=0.5))
    with pytest.raises(UnsupportedModelError, match="in FluxTransformer2DModel merging is supported with 'block'"):
        hf_tome.apply(BY_ROW["FluxTransformer2DModel"].make(), MergeConfig(ratio=0.5, modules="kv"))
    assert not any(is_patched(module) for module in model.modules())
    hf_tome.apply(model, MergeConfig(ratio=0.5))
    with pytest.raises(ValueError, match=r"Nothing merged: .* had 64, 16 tokens, and `min_tokens` is 1,024"):
        denoiser.run(model)

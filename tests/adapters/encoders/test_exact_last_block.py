"""`exact_last_block`: of the last block what a class-token head reads, and no more; the same output to rounding."""

import pytest
import torch
from installed import checkpoint_activations
from zoo import ZOO

import hf_tome
from hf_tome import MergeConfig
from hf_tome.api import targets
from hf_tome.profiling.slice_oracle import make_exact

BY_NAME = {row.name: row for row in ZOO}
EXACT = ("vit", "deit", "deit-cls", "vit_msn", "vivit", "ast", "clip", "clip-projection", "metaclip_2")
CONFIGS = {
    "constant": {"r": 6},
    "early": {"r": [6, 6]},
    "mame": {"method": "mame", "threshold": 0.3},
    "prune": {"method": "attention_prune", "r": 6},
}
ROUNDING = {"atol": 2e-5, "rtol": 2e-5}
rows = [row for row in ZOO if row.name in EXACT]


def both(zoo, model, fields, **options):
    """Return the outputs with the whole last block and with the exact one."""
    outputs = []
    for exact in (False, True):
        hf_tome.apply(model, MergeConfig(**fields, exact_last_block=exact))
        outputs.append(zoo.run(model, inputs={**zoo.inputs(2), **options}))
        last = targets(model)[0].recorder.summary.last_queries
        assert (last is not None) == (exact and not options)
    return outputs


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("zoo", rows, ids=lambda zoo: zoo.name)
def test_the_output_is_the_same(zoo, name, backend):
    with torch.no_grad():
        whole, exact = both(zoo, zoo.make(backend), CONFIGS[name])
    torch.testing.assert_close(exact, whole, **ROUNDING)


def test_a_backend_whose_bias_is_a_channel():
    zoo = BY_NAME["vit"]
    with torch.no_grad():
        whole, exact = both(zoo, zoo.make("flex_attention"), CONFIGS["constant"])
    torch.testing.assert_close(exact, whole, **ROUNDING)


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
def test_what_is_asked_for_is_whole(asked):
    zoo = BY_NAME["vit"]
    whole, exact = both(zoo, zoo.make("eager"), {"r": 6}, **{asked: True})
    assert torch.equal(whole, exact)
    model = hf_tome.apply(zoo.make("eager"), r=6)
    out = model(**zoo.inputs(2), output_hidden_states=True)
    assert out.hidden_states[-1].shape[1] == hf_tome.report(model).towers[0].tokens[-1][1]


@pytest.mark.parametrize("name", [row.name for row in ZOO if row.name not in EXACT])
def test_heads_that_read_more_are_left_alone(name):
    model = BY_NAME[name].make()
    hf_tome.apply(model, r=6)
    for target in targets(model):
        assert target.plan.last_queries is None or "reads the special tokens" in target.plan.outputs[0]
        if target.plan.last_queries is not None:
            assert all("gives out" not in text and "averages" not in text for text in target.plan.outputs)


@pytest.mark.parametrize("fields", [{}, {"r": 6, "restore": True}, {"r": 6, "trace": True}])
def test_where_it_is_off(fields):
    model = BY_NAME["vit"].make()
    assert targets(hf_tome.apply(model, MergeConfig(**fields)))[0].plan.last_queries is None
    tower = model.vit
    hf_tome.remove(model)
    assert targets(hf_tome.apply(tower, r=6))[0].plan.last_queries is None


def test_report_counts_it_and_says_so():
    model = BY_NAME["vit"].make()
    n, c, hidden, k = 65, 32, 48, 1
    whole = hf_tome.report(hf_tome.apply(model, r=[6], exact_last_block=False)).towers[0]
    exact = hf_tome.report(hf_tome.apply(model, r=[6])).towers[0]
    m = n - 6
    saved = 2 * (m - k) * c**2 + 2 * m * (m - k) * c + 2 * (m - k) * c * hidden + 5 * (m - k) * c + 5 * (m - k) * c
    assert (whole.gflops - exact.gflops) * 1e9 == pytest.approx(saved)
    assert exact.tokens == whole.tokens
    assert exact.gflops_unmerged == whole.gflops_unmerged, "the unmerged model is the plain one"
    assert any("the last block computes its 1 special tokens alone" in note for note in exact.notes)
    with torch.no_grad():
        model(**BY_NAME["vit"].inputs(2))
    measured = hf_tome.report(model).towers[0]
    assert measured.measured
    assert measured.gflops == pytest.approx(exact.gflops)
    assert measured.tokens == exact.tokens


def test_the_unmerged_model_with_it():
    zoo = BY_NAME["clip"]
    model = zoo.make()
    with torch.no_grad():
        plain = zoo.run(model)
        torch.testing.assert_close(zoo.run(make_exact(model)), plain, **ROUNDING)
    hf_tome.remove(model)
    assert make_exact(BY_NAME["siglip"].make()) is None


def test_gradients_with_and_without_checkpoints():
    zoo, gradients = BY_NAME["vit"], []
    for exact, checkpoints in ((False, False), (True, False), (True, True)):
        model = zoo.make().train()
        if checkpoints:
            checkpoint_activations(model)
        hf_tome.apply(model, r=6, exact_last_block=exact)
        zoo.run(model).square().sum().backward()
        gradients.append(model.vit.embeddings.patch_embeddings.projection.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradients[2], gradients[1], atol=1e-6, rtol=1e-6)
    model = hf_tome.apply(checkpointed(zoo), r=6)
    model(**zoo.inputs(2), output_hidden_states=True).logits.sum().backward()


def checkpointed(zoo):
    model = zoo.make().train()
    checkpoint_activations(model)
    return model


def test_it_compiles_and_exports():
    zoo = BY_NAME["vit"]
    model = hf_tome.apply(zoo.make(), r=6)
    inputs = zoo.inputs(2)
    with torch.no_grad():
        eager = model(**inputs).logits
        exported = torch.export.export(model, (), inputs)
        torch.testing.assert_close(exported.module()(**inputs).logits, eager, **ROUNDING)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**inputs).logits, eager, **ROUNDING)
    targets(model)[0].recorder.summary = None
    assert hf_tome.report(model).towers[0].notes

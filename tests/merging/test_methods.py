"""A method of one's own: one row, and everything in the library knows it by its name."""

import copy
import dataclasses
import pickle

import pytest
import torch
import transformers as tf
from zoo import IMAGE, SMALL

import hf_tome
from hf_tome import MergeConfig, apply, register_method, report
from hf_tome.config import format_config, parse_config
from hf_tome.config.text import is_unmerged, short_name
from hf_tome.evaluation.reporting.plots import _colour
from hf_tome.evaluation.search.sweep import Grid
from hf_tome.inspection.flops import gflops
from hf_tome.merging import HardMerge, MatchInputs, Merge, Method
from hf_tome.merging import methods as table
from hf_tome.merging.methods import METHODS


def merge_redundant(inputs: MatchInputs) -> Merge:
    """Merge the `r` tokens with the most similar others, each into the closest token that stays (as in PiToMe)."""
    batch_size, num_tokens, _ = inputs.metric.shape
    prefix = inputs.num_prefix_tokens
    x = torch.nn.functional.normalize(inputs.metric[:, prefix:].float(), dim=-1)
    similarity = x @ x.transpose(1, 2)
    energy = similarity.mean(dim=-1)  # (B, N - prefix), high where a token has many that are like it
    order = energy.argsort(dim=1, descending=True, stable=True)
    merged, rest = order[:, : inputs.r], order[:, inputs.r :].sort(dim=1).values
    to_rest = similarity.gather(1, merged[..., None].expand(-1, -1, x.shape[1]))
    to_rest = to_rest.gather(2, rest[:, None].expand(-1, merged.shape[1], -1))
    special = torch.arange(prefix, device=x.device).expand(batch_size, -1)
    kept = torch.cat([special, rest + prefix], dim=1)
    return HardMerge(kept, merged + prefix, to_rest.argmax(dim=-1) + prefix, num_tokens, inputs.fields["combine"])


def all_pairs(before, after, num_prefix_tokens, fields):
    return (before - num_prefix_tokens) ** 2


REDUNDANT = Method(
    "redundant",
    merge_redundant,
    fields=("r", "combine"),
    defaults={"metric": "x", "head_aggregation": "concat"},
    compared_pairs=all_pairs,
    label="redundant tokens",
    colour="#123456",
)


@pytest.fixture
def registered():
    yield register_method(REDUNDANT)
    del table._METHODS["redundant"]


def make_model():
    torch.manual_seed(0)
    return tf.ViTForImageClassification(tf.ViTConfig(**SMALL, **IMAGE)).eval()


def test_a_method_of_ones_own_works_everywhere(registered, tmp_path):
    model, pixels = make_model(), torch.randn(2, 3, 32, 32)
    num_layers = model.config.num_hidden_layers
    config = MergeConfig(method="redundant", r=8)
    with torch.no_grad():
        unmerged = model(pixels).logits
        assert torch.equal(apply(model, MergeConfig(method="redundant"))(pixels).logits, unmerged)
        merged = apply(model, config)(pixels).logits
    assert not torch.equal(merged, unmerged)
    tower = report(model).towers[0]
    assert tower.method == "redundant"
    assert tower.tokens_out == 65 - 8 * num_layers
    # A config does not tell what is read of the last block, so GFLOPs of a config take it whole.
    whole = report(apply(model, MergeConfig(method="redundant", r=8, exact_last_block=False))).towers[0]
    assert gflops(model.config, config) == pytest.approx(whole.gflops)
    assert tower.gflops < whole.gflops
    apply(model, config)
    assert gflops(model.config, config) > gflops(model.config, MergeConfig(method="random_prune", r=8))

    text = format_config(config)
    assert text == "method=redundant,r=8"
    assert short_name(text) == "redundant r=8"
    assert parse_config(text) == MergeConfig.from_dict(config.to_dict()) == config
    assert not is_unmerged(config)
    assert config.choice("metric") == "x"
    assert Grid(methods=["redundant"], r=[4]).configs() == [MergeConfig(method="redundant", r=4)]
    assert _colour({"name": text, "config": config.to_dict()}) == "#123456"
    for refused in ({"distance": "dot"}, {"threshold": 0.5}, {"seed": 3}):
        with pytest.raises(ValueError, match="method 'redundant' does not use it"):
            MergeConfig(method="redundant", **refused)

    hf_tome.save_pretrained(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(hf_tome.from_pretrained(tmp_path).eval()(pixels).logits, merged)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(pixels).logits, merged)


def test_a_ratio_of_ones_own_method(registered):
    model = apply(make_model(), MergeConfig(method="redundant", ratio=0.25))
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    assert [after for _, after in report(model).towers[0].tokens][:2] == [49, 37]  # 64 - 16, 48 - 12, and one


def test_a_row_that_cannot_be_pickled_is_found_by_its_name(registered):
    row = dataclasses.replace(REDUNDANT, match=lambda inputs: merge_redundant(inputs))
    with pytest.raises(ValueError, match="There is a method 'redundant' already"):
        register_method(row)
    assert register_method(row, exist_ok=True) is METHODS["redundant"] is row
    assert pickle.loads(pickle.dumps(row)) is row
    assert copy.deepcopy(row) is row


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "tome"}, "There is a method 'tome' already"),
        ({"name": "My method"}, "`name` is 'My method'; it takes lower-case letters"),
        ({"name": 3}, "`name` is 3; it takes"),
        ({"match": None}, "`match` of method 'own' is None; it takes a function"),
        ({"layers": (0, 1)}, r"`layers` of method 'own' is \(0, 1\); it takes a function"),
        ({"fields": "r"}, "`fields` of 'own' is 'r'; it takes names among r, threshold"),
        ({"fields": ("r", "margin")}, "`fields` of 'own' is .*margin.*; it takes names among r, threshold"),
        ({"defaults": {"metric": "kq"}}, "`defaults` of method 'own' has metric='kq'; it takes one of x_pre, x"),
        ({"defaults": {"margin": "1"}}, "`defaults` of method 'own' has margin='1'; it takes one of metric"),
        ({"metric": "scores"}, "`metric` of method 'own' is 'scores'; it takes None, or one of 'x', 'received'"),
        ({"fields": ("threshold",)}, "`search_field` of method 'own' is 'r'; it takes one of its `fields`"),
        (
            {"fields": ("threshold",), "search_field": "threshold"},
            "`search_field` of method 'own' is 'threshold'; .* and `search_values` from mild to strong",
        ),
    ],
)
def test_a_row_is_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        register_method(dataclasses.replace(REDUNDANT, **{"name": "own", **changes}), exist_ok=True)
    assert "own" not in METHODS


def test_only_rows_are_registered():
    with pytest.raises(TypeError, match=r"`method` is a function; it takes a `hf_tome.merging.Method`"):
        register_method(merge_redundant)
    with pytest.raises(TypeError):
        METHODS["own"] = REDUNDANT


def test_a_config_of_a_method_that_is_not_registered():
    with pytest.raises(ValueError, match=r"`method` is 'redundant'; .*with `hf_tome.register_method`, before configs"):
        MergeConfig.from_dict({"method": "redundant", "r": 8})


def test_each_block_has_its_own_seed():
    seen = {}

    def match(inputs):
        seen.setdefault(inputs.seed, []).append((inputs.layer, inputs.num_layers))
        return METHODS["tome"].match(dataclasses.replace(inputs, fields=MergeConfig().match_fields()))

    row = Method("seeds", match, fields=("r", "seed"))
    register_method(row)
    try:
        model = make_model()
        num_layers = model.config.num_hidden_layers
        for seed in (0, 1):
            with torch.no_grad():
                apply(model, MergeConfig(method="seeds", r=2, seed=seed, exact_last_block=False))(
                    torch.randn(1, 3, 32, 32)
                )
    finally:
        del table._METHODS["seeds"]
    assert len(seen) == 2 * num_layers, "another seed in each block, and with each seed of the config"
    assert sorted(layers[0] for layers in seen.values()) == sorted(2 * [(i, num_layers) for i in range(num_layers)])

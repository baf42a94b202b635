"""`MergeConfig`: schedules, validation, JSON, folders and the Hub."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_tome import MergeConfig
from hf_tome.config import json_file as module
from hf_tome.config.json_file import CONFIG_NAME, FORMAT_VERSION
from hf_tome.config.places import PLACES, applicable_fields, method_fields, why_not
from hf_tome.config.validation import PerBlock
from hf_tome.merging import similarity
from hf_tome.merging.method import CHOICES, MATCH_FIELDS
from hf_tome.merging.methods import METHODS

# One valid value other than the default for every field.
OTHER = {
    "r": 4,
    "method": "greedy",
    "threshold": 0.5,
    "adaptive_pruning": False,
    "keep_ratio": 0.6,
    "batching": "union",
    "layers": (0, 2),
    "proportional_attention": True,
    "metric": "q",
    "distance": "dot",
    "head_aggregation": "concat",
    "combine": "max",
    "partition": "random",
    "protect_attended": 0.1,
    "kmeans_iterations": 5,
    "trace": True,
    "restore": True,
    "exact_last_block": False,
    "seed": 3,
    "where": "projected",
    "towers": ("vision_model",),
    "ratio": 0.25,
    "modules": "block",
    "every": 2,
    "min_tokens": 256,
    "tile": None,
    "stride": (4, 2),
    "steps": (0.5, 1.0),
    "protect": (0, 8),
    "causal": True,
    "destinations": "keydiff",
    "size": "fitted",
}
FIELDS = [field.name for field in dataclasses.fields(MergeConfig)]

# Every kind of `r`, as it is given and as it is kept.
KINDS_OF_R = [
    (0, 0),
    (16, 16),
    (np.int64(16), 16),
    ((16, -1.0), (16, -1.0)),
    ((16, 1), (16, 1.0)),
    ((np.int32(8), np.float32(0.5)), (8, 0.5)),
    ([3], PerBlock([3])),
    ([8, 8], PerBlock([8, 8])),
    ([8, 1], PerBlock([8, 1])),
    ([0, 8, 8, 13], PerBlock([0, 8, 8, 13])),
    ((0, 8, 8), PerBlock([0, 8, 8])),
    ((5,), PerBlock([5])),
    (range(4), PerBlock(range(4))),
    ([np.int64(2), 3, 4], PerBlock([2, 3, 4])),
]
every_kind_of_r = pytest.mark.parametrize(("given_r", "kept"), KINDS_OF_R, ids=lambda value: repr(value))


def test_every_field_is_tested():
    assert list(OTHER) == FIELDS
    used = {name for method in METHODS.values() for place in PLACES for name in applicable_fields(method, place)}
    assert set(FIELDS) == used
    assert set(MATCH_FIELDS) | set(CHOICES) < set(FIELDS)


def test_every_distance_can_be_bounded():
    assert tuple(similarity.DISTANCES) == tuple(similarity.BOUNDED_DISTANCES)


# -------------------------------------------------------------------------------------------------------- schedules


def test_a_constant():
    assert MergeConfig(r=16).schedule(4) == (16, 16, 16, 16)
    assert MergeConfig().schedule(3) == (0, 0, 0)


@settings(deadline=None, derandomize=True, database=None)
@given(st.integers(0, 200), st.floats(-1, 1), st.integers(2, 48))
def test_an_inflection_follows_the_formula(r, inflection, num_layers):
    lo = int(r * (1 - inflection))
    expected = [int(lo + (2 * r - 2 * lo) / (num_layers - 1) * layer) for layer in range(num_layers)]
    schedule = MergeConfig(r=(r, inflection)).schedule(num_layers)
    assert list(schedule) == expected
    assert min(schedule) >= 0
    assert abs(sum(schedule) - r * num_layers) <= num_layers, "every inflection merges as many, up to truncation"


def test_inflections_of_the_paper():
    assert MergeConfig(r=(8, -1.0)).schedule(5) == (16, 12, 8, 4, 0)  # equation 3, falling from 2r to 0
    assert MergeConfig(r=(8, 0.0)).schedule(5) == (8, 8, 8, 8, 8)
    assert MergeConfig(r=(8, 1.0)).schedule(5) == (0, 4, 8, 12, 16)
    assert MergeConfig(r=(8, -1.0)).schedule(1) == (16,)
    assert MergeConfig(r=(8, -1.0)).schedule(0) == ()


def test_a_list_is_filled_with_0():
    assert MergeConfig(r=[0, 8, 4]).schedule(5) == (0, 8, 4, 0, 0)
    assert MergeConfig(r=[1, 2]).schedule(2) == (1, 2)
    assert MergeConfig(r=[8, 1]).schedule(3) == (8, 1, 0), "a list of two is no pair (r, inflection)"


def test_a_list_longer_than_the_model():
    with pytest.raises(ValueError, match="`r` lists 3 blocks, but the model has 2"):
        MergeConfig(r=[1, 2, 3]).schedule(2)


def test_layers_choose_blocks():
    assert MergeConfig(r=8, layers=[3, 1, 1]).schedule(4) == (0, 8, 0, 8)
    assert MergeConfig(r=8, layers=[]).schedule(4) == (0, 0, 0, 0)
    assert MergeConfig(r=[5, 6, 7], layers=[1]).schedule(3) == (0, 6, 0)
    assert MergeConfig(r=(8, -1.0), layers=[0, 4]).schedule(5) == (16, 0, 0, 0, 0)


def test_layers_beyond_the_model():
    config = MergeConfig(r=8, layers=[0, 11, 12, 15])
    with pytest.raises(ValueError, match=r"`layers` names blocks \[12, 15\], but the model has blocks 0 to 11"):
        config.schedule(12)
    with pytest.raises(ValueError, match=r"`layers` names blocks \[12, 15\]"):
        config.merging_layers(12)


EVERYWHERE = [name for name, row in METHODS.items() if row.places is None]


@pytest.mark.parametrize("method", EVERYWHERE)
def test_default_layers(method):
    layers = MergeConfig(method=method).merging_layers(12)
    assert layers == (tuple(range(8)) if method == "mame" else tuple(range(12)))
    assert MergeConfig(method=method, layers=[5]).merging_layers(12) == (5,)


def test_mame_has_no_schedule():
    assert MergeConfig(method="mame").schedule(3) == (0, 0, 0)
    assert MergeConfig(method="mame", keep_ratio=0.5).merging_layers(24) == tuple(range(16))


# --------------------------------------------------------------------------------------------------- what is taken


@every_kind_of_r
def test_r_is_kept_in_one_form(given_r, kept):
    config = MergeConfig(r=given_r)
    assert config.r == kept
    assert type(config.r) is type(kept)
    for number in config.r if isinstance(kept, tuple) else [config.r]:
        assert type(number) in (int, float)


@pytest.mark.parametrize("layers", [[0, 2], (2, 0), {0, 2}, range(0, 4, 2), np.array([2, 0, 2]), iter([2, 0])])
def test_layers_are_kept_as_an_ascending_tuple(layers):
    config = MergeConfig(layers=layers)
    assert config.layers == (0, 2)
    assert all(type(layer) is int for layer in config.layers)


@pytest.mark.parametrize("number", [1, 1.0, np.float32(1), np.float64(1), np.int64(1)])
def test_numbers_are_kept_as_python_floats(number):
    for field in ("threshold", "keep_ratio"):
        config = MergeConfig(method="mame", **{field: number})
        assert type(getattr(config, field)) is float
        assert config == MergeConfig(method="mame", **{field: 1.0})
        json.dumps(config.to_dict())


def test_a_callers_list_is_copied():
    numbers = [1, 2, 3]
    config = MergeConfig(r=numbers)
    numbers.append(4)
    config.to_dict()["r"].append(4)
    assert config.r == [1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": -1}, r"`r` is -1; it takes an integer of at least 0, a pair \(r, inflection\) .*, or a list"),
        ({"r": 1.5}, "`r` is 1.5; it takes an integer"),
        (
            {"where": "blocks"},
            "`where` is 'blocks'; it takes one of 'auto', 'tower', 'groups', 'projected', 'denoiser', 'cache'",
        ),
        ({"r": True}, "`r` is True; it takes an integer"),
        ({"r": "8"}, "`r` is '8'; it takes an integer"),
        ({"r": None}, "`r` is None; it takes an integer"),
        ({"r": []}, r"`r` is \[\]; it takes an integer"),
        ({"r": ()}, r"`r` is \(\); it takes an integer"),
        ({"r": [1, -2, 3]}, r"`r` is \[1, -2, 3\]; it takes an integer"),
        ({"r": [1, 2.5]}, r"`r` is \[1, 2.5\]; it takes an integer"),
        ({"r": (8, 1.5)}, r"`r` is \(8, 1.5\); it takes .*an inflection from -1 to 1,"),
        ({"r": (8, float("nan"))}, r"`r` is \(8, nan\); it takes"),
        ({"r": (8, "1")}, r"`r` is \(8, '1'\); it takes"),
        ({"r": (8, True)}, r"`r` is \(8, True\); it takes"),
        ({"r": (-8, 1.0)}, r"`r` is \(-8, 1.0\); it takes"),
        ({"r": {"a": 1}}, "`r` is {'a': 1}; it takes"),
        ({"method": "tomes"}, "`method` is 'tomes'; it takes one of 'tome', 'mame', 'random_prune'"),
        ({"method": None}, "`method` is None; it takes one of 'tome'"),
        ({"method": ["tome"]}, r"`method` is \['tome'\]; it takes one of 'tome'"),
        ({"method": "mame", "threshold": 1.01}, "`threshold` is 1.01; it takes a number from -1 to 1"),
        ({"method": "mame", "threshold": -2}, "`threshold` is -2; it takes a number from -1 to 1"),
        ({"method": "mame", "threshold": float("nan")}, "`threshold` is nan; it takes a number from -1 to 1"),
        ({"method": "mame", "threshold": float("inf")}, "`threshold` is inf; it takes a number from -1 to 1"),
        ({"method": "mame", "threshold": 10**400}, "`threshold` is 10+[.]+0+; it takes a number from -1 to 1"),
        ({"method": "mame", "threshold": "0.8"}, "`threshold` is '0.8'; it takes a number from -1 to 1"),
        ({"method": "mame", "threshold": True}, "`threshold` is True; it takes a number from -1 to 1"),
        ({"method": "mame", "threshold": None}, "`threshold` is None; it takes a number from -1 to 1"),
        ({"method": "mame", "adaptive_pruning": 1}, "`adaptive_pruning` is 1; it takes True or False"),
        ({"method": "mame", "keep_ratio": 0.4}, "`keep_ratio` is 0.4; it takes None, or a number from 0.5 to 1"),
        ({"method": "mame", "keep_ratio": 1.1}, "`keep_ratio` is 1.1; it takes None, or a number from 0.5 to 1"),
        ({"method": "mame", "keep_ratio": "half"}, "`keep_ratio` is 'half'; it takes None, or a number from 0.5"),
        ({"method": "mame", "batching": "alone"}, "`batching` is 'alone'; it takes one of 'pad', 'union'"),
        (
            {"layers": 3},
            r"`layers` is 3; it takes block numbers from 0 to 9999, as in \[2, 5, 8\], in text also 0-7",
        ),
        ({"layers": "0-3"}, "`layers` is '0-3'; it takes block numbers"),
        ({"layers": b"03"}, "`layers` is b'03'; it takes block numbers"),
        ({"layers": [0, -1]}, r"`layers` is \[0, -1\]; it takes block numbers"),
        ({"layers": [0.5]}, r"`layers` is \[0.5\]; it takes block numbers"),
        ({"layers": [True]}, r"`layers` is \[True\]; it takes block numbers"),
        ({"proportional_attention": "on"}, "`proportional_attention` is 'on'; it takes True, False or 'auto'"),
        ({"proportional_attention": 1}, "`proportional_attention` is 1; it takes True, False or 'auto'"),
        ({"metric": "kq"}, "`metric` is 'kq'; it takes None, or one of 'x_pre', 'x', 'k', 'q', 'v'"),
        ({"distance": "l2"}, "`distance` is 'l2'; it takes None, or one of 'cosine', 'euclidean', 'dot', 'softmax'"),
        ({"head_aggregation": "max"}, "`head_aggregation` is 'max'; it takes None, or one of 'mean', 'concat'"),
        (
            {"combine": "sum"},
            "`combine` is 'sum'; it takes None, or one of 'weighted_mean', 'mean', 'max', 'keep_one'",
        ),
        (
            {"partition": "even"},
            "`partition` is 'even'; it takes None, or one of 'alternating', 'sequential', 'random'",
        ),
        ({"method": "kmeans", "kmeans_iterations": 0}, "`kmeans_iterations` is 0; it takes an integer of at least 1"),
        ({"method": "kmeans", "kmeans_iterations": 2.0}, "`kmeans_iterations` is 2.0; it takes an integer of at"),
        ({"trace": 1}, "`trace` is 1; it takes True or False"),
        ({"restore": "yes"}, "`restore` is 'yes'; it takes True or False"),
        ({"seed": -1}, "`seed` is -1; it takes an integer of at least 0"),
        ({"seed": None}, "`seed` is None; it takes an integer of at least 0"),
        ({"seed": False}, "`seed` is False; it takes an integer of at least 0"),
    ],
)
def test_values_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        MergeConfig(**fields)


def test_an_unknown_field():
    with pytest.raises(TypeError, match="share"):
        MergeConfig(share=0.5)


def options(method, place, name):
    """Return a valid value of a field, and what is valid beside it."""
    return {"method": method, "where": place, name: OTHER[name]}


CASES = [(method, place, name) for method in METHODS for place in PLACES for name in FIELDS[2:] if name != "where"]
VALID = [
    case
    for case in CASES
    if case[2] in applicable_fields(METHODS[case[0]], case[1]) and why_not(METHODS[case[0]], case[1]) is None
]


@pytest.mark.parametrize(("method", "place", "name"), CASES)
def test_a_field_applies_or_is_refused(method, place, name):
    row, fields = METHODS[method], options(method, place, name)
    if (method, place, name) in VALID:
        assert getattr(MergeConfig(**fields), name) == OTHER[name]
        return
    own = [other for other, of in PLACES.items() if name in of.adds]
    if why_not(row, place) is not None:
        message = (
            rf"`where` is '{place}', but method '{method}' (needs the attention|drops tokens|means something with)"
        )
    elif name not in method_fields(row) and place in own:
        message = rf"`{name}` is .*, but it means nothing to method '{method}'"
    elif name not in method_fields(row) and own:
        message = rf"`{name}` is .*, but with `where='{place}'` it means nothing; it applies with `where` {own[0]!r}"
    elif name not in method_fields(row):
        users = ", ".join(repr(user.name) for user in METHODS.values() if name in method_fields(user))
        message = rf"`{name}` is .*, but method '{method}' does not use it; it applies to {users}\."
    else:
        message = rf"`{name}` is .*, but with `where='{place}'` {PLACES[place].merges}"
    with pytest.raises(ValueError, match=message):
        MergeConfig(**fields)


def test_r_applies_or_is_refused():
    for place in ("auto", "tower", "groups", "projected"):
        assert MergeConfig(r=4, where=place).r == 4
    for place in ("denoiser", "cache"):
        with pytest.raises(ValueError, match=f"`r` is 4, but with `where='{place}'`"):
            MergeConfig(r=4, where=place)
    with pytest.raises(ValueError, match="`r` is 4, but method 'mame' does not use it; it applies to 'tome', 'random"):
        MergeConfig(method="mame", r=4)


def test_auto_turns_out_to_be_a_place():
    config = MergeConfig(ratio=0.5, tile=8)
    assert config.at("denoiser") == MergeConfig(ratio=0.5, tile=8, where="denoiser")
    with pytest.raises(ValueError, match="`tile` is 8, but with `where='tower'` it means nothing"):
        config.at("tower")
    with pytest.raises(ValueError, match="`r` is 8, but with `where='denoiser'` each block merges a share"):
        MergeConfig(r=8).at("denoiser")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratio": 1}, "`ratio` is 1; it takes None, or a number from 0 below 1"),
        ({"ratio": -0.1}, "`ratio` is -0.1; it takes None, or a number from 0 below 1"),
        ({"ratio": "half"}, "`ratio` is 'half'; it takes None, or a number from 0 below 1"),
        ({"ratio": 0.5, "r": 8}, "`r` is 8 and `ratio` is 0.5; both say how many tokens merge"),
        ({"where": "cache", "keep_ratio": 0}, "`keep_ratio` is 0; it takes None, or a number above 0 to 1"),
        ({"where": "denoiser", "modules": "mlp"}, "`modules` is 'mlp'; it takes one of 'auto', 'attention'"),
        ({"where": "denoiser", "min_tokens": -1}, "`min_tokens` is -1; it takes an integer of at least 0"),
        ({"where": "denoiser", "tile": 1}, "`tile` is 1; it takes None, or an integer of at least 2"),
        ({"where": "denoiser", "stride": 2}, "`stride` is 2; it takes a pair of integers of at least 1"),
        ({"where": "denoiser", "stride": (0, 2)}, r"`stride` is \(0, 2\); it takes a pair"),
        ({"where": "denoiser", "steps": (0.5, 0.5)}, r"`steps` is \(0.5, 0.5\); it takes None, or a pair of shares"),
        ({"where": "denoiser", "steps": (0, 2)}, r"`steps` is \(0, 2\); it takes None, or a pair of shares"),
        ({"where": "cache", "protect": (1, 2, 3)}, r"`protect` is \(1, 2, 3\); it takes a pair of integers"),
        ({"where": "cache", "causal": 1}, "`causal` is 1; it takes True or False"),
        ({"where": "cache", "destinations": "random"}, "`destinations` is 'random'; it takes one of 'alternating'"),
        ({"where": "cache", "size": "mass"}, "`size` is 'mass'; it takes one of 'count', 'fitted'"),
    ],
)
def test_values_of_places_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        MergeConfig(**fields)


def test_a_ratio_is_a_share_of_what_may_merge():
    config = MergeConfig(ratio=0.29)
    assert [config.tokens_to_merge(0, tokens) for tokens in (0, 1, 3, 4, 100, 196)] == [0, 0, 0, 1, 29, 56]
    assert MergeConfig(ratio=0.9).tokens_to_merge(0, 101) == 50, "a block merges half of its tokens at most"
    assert MergeConfig(r=8).tokens_to_merge(8, 100) == 8
    assert MergeConfig(r=8).tokens_to_merge(8, 5) == 2
    assert MergeConfig(ratio=0.5, layers=[1]).merging_blocks(3) == (False, True, False)
    assert MergeConfig(ratio=0.0).merging_blocks(2) == (False, False)
    assert MergeConfig(r=[0, 3]).merging_blocks(3) == (False, True, False)
    assert MergeConfig(method="mame").merging_blocks(3) == (True, True, False)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"r": (10**400, 0.5)}, "r"),
        ({"r": 10**400}, "r"),
        ({"r": 10**5000}, "r"),
        ({"r": [2**31]}, "r"),
        ({"r": range(10**9)}, "r"),
        ({"r": [1] * 10_001}, "r"),
        ({"layers": range(10**9)}, "layers"),
        ({"layers": [10**5000]}, "layers"),
        ({"method": "mame", "threshold": 10**5000}, "threshold"),
        ({"seed": -(10**5000)}, "seed"),
    ],
    ids=range(10),
)
def test_huge_values_are_one_short_error(fields, field):
    with pytest.raises(ValueError, match=f"^`{field}` is ") as error:
        MergeConfig(**fields)
    assert len(str(error.value)) < 500


def test_union_and_keep_ratio_exclude_each_other():
    with pytest.raises(ValueError, match="`batching` is 'union', but with `keep_ratio`"):
        MergeConfig(method="mame", keep_ratio=0.5, batching="union")


@pytest.mark.parametrize("r", [[4, 4], (4, -1.0)])
def test_projected_tokens_merge_once(r):
    with pytest.raises(ValueError, match=r"`r` is .*tokens merge once, so it takes one integer"):
        MergeConfig(r=r, where="projected")


def test_the_papers_defaults():
    fields = ("metric", "distance", "head_aggregation", "combine", "partition")
    papers = {
        "tome": ("k", "cosine", "mean", "weighted_mean", "alternating"),
        "mame": ("x", "cosine", "concat", "weighted_mean", "alternating"),
    }
    for method in EVERYWHERE:
        found = tuple(MergeConfig(method=method).choice(field) for field in fields)
        assert found == papers.get(method, papers["tome"])
    assert MergeConfig(metric="v").choice("metric") == "v"
    assert MergeConfig(method="mame", metric="k", head_aggregation="mean").choice("head_aggregation") == "mean"
    for field in ("r", "metrics"):
        with pytest.raises(ValueError, match=f"'{field}' is no ablation; those are 'metric', 'distance'"):
            MergeConfig().choice(field)


# ----------------------------------------------------------------------------------------------------- inert data


def test_it_is_frozen():
    config = MergeConfig(r=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.r = 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        del config.r


@every_kind_of_r
def test_it_is_replaced_copied_and_pickled(given_r, kept):
    config = MergeConfig(r=given_r)
    for twin in (dataclasses.replace(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config
        assert hash(twin) == hash(config)
        assert type(twin.r) is type(kept)
    other = dataclasses.replace(config, trace=True, layers=range(2))
    assert (other.r, other.trace, other.layers) == (kept, True, (0, 1))
    assert not config.trace
    with pytest.raises(ValueError, match="`seed` is -1"):
        dataclasses.replace(config, seed=-1)


def test_the_numbers_of_a_list_cannot_be_changed():
    config = MergeConfig(r=[1, 2, 3])
    before = hash(config)
    with pytest.raises((TypeError, AttributeError)):
        config.r[0] = 5
    with pytest.raises(AttributeError):
        config.r.append(4)
    assert hash(config) == before


def test_the_repr_shows_what_is_set():
    assert repr(MergeConfig()) == "MergeConfig()"
    assert repr(MergeConfig(r=16)) == "MergeConfig(r=16)"
    assert repr(MergeConfig(r=[8, 1], trace=True)) == "MergeConfig(r=[8, 1], trace=True)"
    config = MergeConfig(method="mame", threshold=0.5, layers=range(2))
    assert repr(config) == "MergeConfig(method='mame', threshold=0.5, layers=(0, 1))"
    assert eval(repr(config)) == config


def test_equal_configs_have_equal_hashes():
    equal = [
        (MergeConfig(method="mame", threshold=1), MergeConfig(method="mame", threshold=1.0)),
        (MergeConfig(method="mame", threshold=0), MergeConfig(method="mame", threshold=-0.0)),
        (MergeConfig(method="mame", keep_ratio=1), MergeConfig(method="mame", keep_ratio=1.0)),
        (MergeConfig(r=(8, 0)), MergeConfig(r=(8, -0.0))),
        (MergeConfig(layers=[2, 1]), MergeConfig(layers=(1, 2))),
        (MergeConfig(r=np.int64(8)), MergeConfig(r=8)),
    ]
    for one, other in equal:
        assert one == other
        assert hash(one) == hash(other)
    different = [MergeConfig(r=r) for r in (8, [8], [8, 1], (8, 1.0), [8, 0])]
    different += [MergeConfig(layers=[]), MergeConfig(metric="k")]
    assert len(set(different)) == len(different)
    assert MergeConfig() != "MergeConfig()"


# ------------------------------------------------------------------------------------------------------------- JSON


every_config = pytest.mark.parametrize(
    "config",
    [MergeConfig(r=r) for r, _ in KINDS_OF_R]
    + [MergeConfig(**options(*case)) for case in VALID]
    + [MergeConfig(r=(3, 1), layers=range(3), seed=2**70), MergeConfig(layers=[])],
    ids=repr,
)


@every_config
def test_json_round_trip(config, tmp_path):
    values = json.loads(json.dumps(config.to_dict()))
    assert list(values) == FIELDS
    for twin in (MergeConfig.from_dict(values), MergeConfig.from_dict(config.to_dict())):
        assert twin == config
        assert type(twin.r) is type(config.r)
        assert repr(twin) == repr(config)
    path = config.save_pretrained(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / CONFIG_NAME
    for place in (path, path.parent, str(path), str(path.parent)):
        assert MergeConfig.from_pretrained(place) == config


def test_the_file_is_plain_json(tmp_path):
    text = MergeConfig(r=(16, -1), layers=range(2)).save_pretrained(tmp_path).read_text()
    assert text.endswith("}\n")
    values = json.loads(text)
    assert values["format_version"] == FORMAT_VERSION
    assert values["r"] == {"r": 16, "inflection": -1.0}
    assert values["layers"] == [0, 1]


def test_saving_again_replaces_the_file(tmp_path):
    MergeConfig(r=8).save_pretrained(tmp_path)
    MergeConfig(r=4).save_pretrained(tmp_path)
    assert MergeConfig.from_pretrained(tmp_path).r == 4


def test_from_dict_fills_in_defaults():
    assert MergeConfig.from_dict({}) == MergeConfig()
    assert MergeConfig.from_dict({"r": (8, 1)}).r == (8, 1.0)


@pytest.mark.parametrize("inflection", [-1.0, 0.0, 1.0, 0.5])
def test_a_schedule_survives_any_json_tool(inflection):
    """Some write 1.0 as 1, and JSON has no tuples."""
    config = MergeConfig(r=(16, inflection))
    values = json.loads(json.dumps(config.to_dict()).replace(".0}", "}"))
    assert MergeConfig.from_dict(values) == config
    listed = MergeConfig(r=[16, 1])
    assert MergeConfig.from_dict(json.loads(json.dumps(listed.to_dict()))) == listed
    assert MergeConfig.from_dict({"r": [8, 1]}).r == PerBlock([8, 1])


@pytest.mark.parametrize("r", [{}, {"r": 8}, {"r": 8, "inflection": 0.5, "x": 1}, {"r": 8, "inflexion": 1}])
def test_half_a_schedule(r):
    with pytest.raises(ValueError, match=r"`r` is {.*}; a schedule is {'r': 16, 'inflection': -1.0}"):
        MergeConfig.from_dict({"r": r})


def test_from_dict_leaves_its_argument_alone():
    values = {"r": {"r": 8, "inflection": -1.0}, "format_version": 1}
    MergeConfig.from_dict(values)
    assert values == {"r": {"r": 8, "inflection": -1.0}, "format_version": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"r": 8, "share": 0.5, "alpha": 1},
            r"Unknown merge config fields \['alpha', 'share'\]; known are \['r', 'method'",
        ),
        ({1: 2, "share": 3}, r"Unknown merge config fields \[1, 'share'\]"),
        ({"format_version": FORMAT_VERSION + 1, "new": 1}, "format_version 2; this hf_tome reads up to 1. Update"),
        ({"format_version": "1"}, "format_version '1'; it takes an integer of at least 1"),
        ({"format_version": 0}, "format_version 0; it takes an integer of at least 1"),
        ({"format_version": True}, "format_version True; it takes an integer of at least 1"),
        ({"r": -1}, "`r` is -1"),
        ([8], "A merge config is a JSON object; got list"),
        ("r=8", "A merge config is a JSON object; got str"),
        (None, "A merge config is a JSON object; got NoneType"),
    ],
)
def test_from_dict_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        MergeConfig.from_dict(values)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{}", b'{"r": 08}'])
def test_a_broken_file(tmp_path, content):
    (tmp_path / CONFIG_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=f"{CONFIG_NAME} is not valid JSON"):
        MergeConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "JSON object; got list"),
        (b'{"r": -1}', "`r` is -1"),
        (b'{"thresh": 1}', "Unknown merge config fields"),
        (b'{"method": "mame", "threshold": NaN}', "`threshold` is nan"),
        (b'{"r": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "its JSON is nested too deeply"),
        (b'{"r": ' + b"[" * 900 + b"]" * 900 + b"}", "`r` is .*; it takes an integer|its JSON is nested too deeply"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, message):
    path = tmp_path / CONFIG_NAME
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        MergeConfig.from_pretrained(tmp_path)
    assert str(path) in str(error.value)


def test_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"No {CONFIG_NAME} in {tmp_path}; write one with"):
        MergeConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("missing", ["./missing", "a/b/c", "no such folder/merge_config.json", "/missing", "a--b"])
def test_neither_a_folder_nor_a_hub_id(missing):
    with pytest.raises(FileNotFoundError, match="is neither a folder, a file nor a Hub id"):
        MergeConfig.from_pretrained(missing)


# --------------------------------------------------------------------------------------------------------- the Hub


def test_it_comes_from_the_hub(tmp_path, monkeypatch):
    path = MergeConfig(r=(16, -1.0)).save_pretrained(tmp_path)
    calls = []

    def download(repo_id, filename, **kwargs):
        calls.append((repo_id, filename, kwargs))
        return str(path)

    monkeypatch.setattr(module, "hf_hub_download", download)
    assert MergeConfig.from_pretrained("someone/model", revision="v1", token="t").r == (16, -1.0)
    assert calls == [("someone/model", CONFIG_NAME, {"revision": "v1", "token": "t"})]


def test_a_subfolder_means_the_same_in_a_folder_and_on_the_hub(tmp_path, monkeypatch):
    MergeConfig(r=1).save_pretrained(tmp_path)
    path = MergeConfig(r=2).save_pretrained(tmp_path / "sub")
    assert MergeConfig.from_pretrained(tmp_path, subfolder="sub", revision="main").r == 2
    assert MergeConfig.from_pretrained(tmp_path, subfolder="").r == 1
    calls = []
    monkeypatch.setattr(module, "hf_hub_download", lambda *args, **kwargs: calls.append(kwargs) or str(path))
    assert MergeConfig.from_pretrained("someone/model", subfolder="sub").r == 2
    assert calls == [{"subfolder": "sub"}]


def test_offline_and_not_cached_is_an_os_error():
    with pytest.raises(OSError):  # noqa: PT011 - its words are the Hub client's
        MergeConfig.from_pretrained("someone/no-such-model-of-hf-tome", local_files_only=True)


def test_it_goes_to_the_hub(monkeypatch):
    calls = []

    def upload_file(self, **kwargs):
        calls.append(kwargs)
        return "the commit"

    monkeypatch.setattr("huggingface_hub.HfApi.upload_file", upload_file)
    config = MergeConfig(r=[8, 8])
    assert config.push_to_hub("someone/model", revision="v1") == "the commit"
    assert config.push_to_hub("someone/model", commit_message="Less") == "the commit"
    first, second = calls
    content = first.pop("path_or_fileobj")
    assert first == {
        "path_in_repo": CONFIG_NAME,
        "repo_id": "someone/model",
        "commit_message": "Add the merge config",
        "revision": "v1",
    }
    assert second["commit_message"] == "Less"
    assert MergeConfig.from_dict(json.loads(content)) == config


def test_it_uploads_what_it_would_save(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("huggingface_hub.HfApi.upload_file", lambda self, **kwargs: calls.append(kwargs))
    config = MergeConfig(r=[8, 8])
    config.push_to_hub("someone/model")
    assert Path(config.save_pretrained(tmp_path)).read_bytes() == calls[0]["path_or_fileobj"]

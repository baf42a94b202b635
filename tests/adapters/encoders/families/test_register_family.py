"""`register_family`: a family from outside the package is validated, merges, and pickles with the model."""

import pickle
from dataclasses import replace

import pytest
import torch
import transformers as tf
from zoo import IMAGE, IMG, SMALL

import hf_tome
from hf_tome import MergeConfig, UnsupportedModelError, apply, register_family, remove, report
from hf_tome.adapters.encoders import CLASS_TOKEN, TOKENS, VIT
from hf_tome.adapters.encoders.families.registry import TOWERS


class HouseConfig(tf.ViTConfig):
    model_type = "house_vit"


class HouseModel(tf.ViTModel):
    config_class = HouseConfig


HOUSE = replace(
    VIT,
    model_types=("house_vit",),
    tower="HouseModel",
    heads={"HouseModel": (CLASS_TOKEN, TOKENS)},
    num_prefix_tokens=lambda _: 1,
)


@pytest.fixture
def registered(monkeypatch):
    for tower in ("HouseModel", "OtherModel"):
        monkeypatch.delitem(TOWERS, tower, raising=False)
    yield
    for tower in ("HouseModel", "OtherModel"):
        TOWERS.pop(tower, None)


def test_a_family_of_ones_own(registered):
    model = HouseModel(HouseConfig(**SMALL, **IMAGE)).eval()
    with pytest.raises(UnsupportedModelError):
        apply(model, MergeConfig(r=6))
    assert register_family(HOUSE) is HOUSE
    with torch.no_grad():
        plain = model(**IMG(2)).last_hidden_state
        merged = apply(model, MergeConfig(r=6))(**IMG(2)).last_hidden_state
        # Its functions are lambdas, so the row is pickled by name.
        assert torch.equal(pickle.loads(pickle.dumps(model))(**IMG(2)).last_hidden_state, merged)
        assert merged.shape[1] == 65 - 3 * 6
        assert report(model).towers[0].gflops < report(model).towers[0].gflops_unmerged
        assert torch.equal(remove(model)(**IMG(2)).last_hidden_state, plain)


def test_rows_are_not_replaced_by_accident(registered):
    register_family(HOUSE)
    with pytest.raises(ValueError, match="the tower 'HouseModel' already"):
        register_family(HOUSE)
    register_family(HOUSE, exist_ok=True)
    with pytest.raises(ValueError, match=r"model types \['house_vit'\]"):
        register_family(replace(HOUSE, tower="OtherModel"))
    for exist_ok in (False, True):
        with pytest.raises(ValueError, match="the tower 'ViTModel' already"):
            register_family(VIT, exist_ok=exist_ok)
    assert TOWERS["ViTModel"] is VIT


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_types": "house_vit"}, "`model_types` of 'HouseModel' is 'house_vit'; it takes a tuple of names"),
        ({"num_prefix_tokens": 1}, "`num_prefix_tokens` of 'HouseModel' is 1; it takes a function"),
        ({"protected": 1}, "`protected` of 'HouseModel' is 1; it takes a function"),
        ({"layers": ""}, "`layers` of 'HouseModel' is ''; it takes a name"),
        ({"mlp": ["mlp"]}, "`mlp` of 'HouseModel'"),
        ({"heads": {"HouseModel": CLASS_TOKEN}}, "`heads` of 'HouseModel' maps 'HouseModel'"),
        ({"library": "timm"}, "`library` is 'timm'"),
    ],
)
def test_a_row_is_checked(registered, fields, message):
    with pytest.raises(ValueError, match=message):
        register_family(replace(HOUSE, **fields))
    assert "HouseModel" not in TOWERS


def test_only_families_are_registered():
    with pytest.raises(TypeError, match="`family` is a dict"):
        hf_tome.register_family({"tower": "HouseModel"})

"""A pass ends with the pass, and a plan that no longer fits its model is noticed."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from zoo import IMG, ZOO

from hf_tome import MergeConfig, apply, remove, report, trace
from hf_tome.api import targets
from hf_tome.patching.patch import is_patched

BY_NAME = {zoo.name: zoo for zoo in ZOO}
CONFIGS = {"tome": MergeConfig(r=6), "mame": MergeConfig(method="mame", threshold=0.3, layers=range(3))}
LAYERS = {
    "vit": "vit.layers",
    "dinov2": "dinov2.encoder.layer",
    "siglip": "vision_model.encoder.layers",
    "siglip-classifier": "vision_model.encoder.layers",
}


def set_layers(model, name, layers):
    path, _, attribute = LAYERS[name].rpartition(".")
    setattr(model.get_submodule(path), attribute, nn.ModuleList(layers))


def foreign(model, name):
    return next(iter(remove(copy.deepcopy(model)).get_submodule(LAYERS[name])))


CHANGES = {
    "sliced": lambda layers, block: layers[:2],
    "first gone": lambda layers, block: layers[1:],
    "reordered": lambda layers, block: [layers[1], layers[0], *layers[2:]],
    "last ones swapped": lambda layers, block: [layers[0], layers[2], layers[1]],
    "replaced": lambda layers, block: [layers[0], block, *layers[2:]],
    "inserted": lambda layers, block: [layers[0], block, *layers[1:]],
    "appended": lambda layers, block: [*layers, block],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_plan_that_no_longer_fits_is_noticed(name, change):
    zoo = BY_NAME[name]
    model = apply(zoo.make(), MergeConfig(r=6))
    with torch.no_grad():
        zoo.run(model)
        set_layers(model, name, change(list(model.get_submodule(LAYERS[name])), foreign(model, name)))
        with pytest.raises(RuntimeError, match=r"hf_tome\.apply"):
            zoo.run(model)
        expected = zoo.run(apply(zoo_like(model), MergeConfig(r=6)))
        assert torch.equal(zoo.run(apply(model, MergeConfig(r=6))), expected)
    assert not any(is_patched(module) for module in remove(model).modules())


def zoo_like(model):
    return remove(copy.deepcopy(model))


def test_a_compiled_plan_that_no_longer_fits_is_noticed():
    zoo = BY_NAME["siglip"]
    model = apply(zoo.make(), MergeConfig(r=6))
    set_layers(model, "siglip", list(model.get_submodule(LAYERS["siglip"]))[:2])
    torch._dynamo.reset()
    with torch.no_grad(), pytest.raises(RuntimeError, match="the last of them did not run"):
        zoo.run(torch.compile(model, backend="eager"))


def test_blocks_in_wrappers_are_still_those_that_were_planned():
    zoo = BY_NAME["vit"]
    model = apply(zoo.make(), MergeConfig(r=6))
    with torch.no_grad():
        expected = zoo.run(model)
        set_layers(model, "vit", [torch.compile(layer, backend="eager") for layer in model.vit.layers])
        assert torch.equal(zoo.run(model), expected)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", ["vit", "dinov2", "siglip", "siglip2", "beit", "ijepa"])
def test_nothing_of_a_pass_stays_alive(name, config):
    zoo = BY_NAME[name]
    model = apply(zoo.make(), config)
    (target,) = targets(model)
    states = []
    begin = target.recorder.begin
    target.recorder.begin = lambda state: (states.append(weakref.ref(state)), begin(state))
    gc.freeze()  # looking through all that earlier tests left takes a second
    with torch.no_grad():
        zoo.run(model)
    gc.collect()
    gc.unfreeze()
    assert [state() for state in states] == [None]
    assert target.recorder.result() is None
    assert target.recorder.summary.tokens[0] > target.recorder.summary.tokens[-1]


@pytest.mark.parametrize("index", [1, 2])
def test_a_block_outside_a_pass_takes_no_sizes_of_the_last_one(index):
    zoo = BY_NAME["vit"]
    model = apply(zoo.make(), MergeConfig(r=6))
    with torch.no_grad():
        zoo.run(model)
        with pytest.raises(RuntimeError, match=r"ran before the first one.*hf_tome\.remove"):
            model.vit.layers[index](torch.randn(2, 53, 32))


def test_a_head_outside_a_pass_takes_no_sizes_of_the_last_one():
    model, plain = BY_NAME["siglip"].make(), BY_NAME["siglip"].make()
    apply(model, MergeConfig(r=6))
    tokens = torch.randn(2, 46, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        BY_NAME["siglip"].run(model)
        assert torch.equal(model.vision_model.head(tokens), plain.vision_model.head(tokens))


class Outer(nn.Module):
    """A model of the user's own around an encoder."""

    def __init__(self, encoder):
        super().__init__()
        self.config = {"mine": True}
        self.encoder = encoder
        self.head = nn.Linear(32, 3)

    def forward(self, pixels):
        return self.head(self.encoder(pixels).last_hidden_state[:, 0])


def test_report_of_a_model_around_the_one_that_apply_was_called_on():
    outer = Outer(BY_NAME["vit-tower"].make())
    apply(outer.encoder, MergeConfig(r=6))
    assert report(outer).towers[0].path == "encoder"
    with torch.no_grad():
        outer(IMG(2)["pixel_values"])
    inner, around = (report(model).towers[0] for model in (outer.encoder, outer))
    assert around.tokens == ((65, 59), (59, 53), (53, 47))
    assert (around.gflops, around.backend, inner.path) == (inner.gflops, inner.backend, "")
    classifier = apply(BY_NAME["vit"].make(), MergeConfig(r=6))
    assert report(classifier.vit).towers[0].path == ""
    assert report(nn.ModuleDict({"vit": nn.Identity(), "model": classifier})).towers[0].path == "model.vit"


def test_the_trace_of_a_pass_without_merges_has_every_image():
    zoo = BY_NAME["vit"]
    model = apply(zoo.make(), MergeConfig(r=0, trace=True))
    with torch.no_grad():
        zoo.run(model, batch_size=3)
    found = trace(model)
    assert torch.equal(found.source, torch.arange(65).expand(3, -1))
    assert found.size.shape == (3, 65, 1)
    assert (found.size == 1).all()


def test_a_tower_whose_name_begins_like_another_one_is_not_it():
    # "vit" is a prefix of "vit2", which is not inside of it.
    holder = nn.Module()
    holder.vit2, holder.vit = BY_NAME["vit"].make(), nn.Identity()
    apply(holder.vit2, MergeConfig(r=6))
    assert [target.path for target in targets(holder)] == ["vit"]
    with pytest.raises(RuntimeError, match="on a larger model, which holds this tower as 'vit'"):
        apply(holder.vit2.vit, MergeConfig(r=2))
    assert not any(is_patched(module) for module in remove(holder).modules())

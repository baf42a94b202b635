"""What `apply` takes, what it refuses and how, and that a refusal leaves the model as it was."""

import logging
import subprocess
import sys
import threading

import pytest
import torch
import transformers as tf
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_submodules
from torch import nn
from transformers.models.vit.modeling_vit import ViTAttention, ViTLayer
from zoo import IMAGE, IMG, SMALL, ZOO

from hf_tome import MergeConfig, UnsupportedModelError, apply, remove, report, trace
from hf_tome.api import get_config, targets
from hf_tome.patching.patch import is_patched

SPREAD = ("vit", "dinov3", "videomae", "siglip-classifier", "beit")
"""A class token, rotary positions, a mean head, a mean of a norm's output, position biases."""
BY_NAME = {zoo.name: zoo for zoo in ZOO}


def untouched(model):
    return not any(is_patched(module) for module in model.modules())


REFUSED = {
    "resnet": (lambda: tf.ResNetModel(tf.ResNetConfig(hidden_sizes=[8, 8, 8, 8])), "ResNetModel.*convolutions"),
    "swin": (lambda: tf.SwinModel(tf.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 1])), "SwinModel.*windows"),
    "bert": (
        lambda: tf.BertModel(
            tf.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
        ),
        "BertModel.*bert.*supported",
    ),
    "vit_mae-pretraining": (
        lambda: tf.ViTMAEForPreTraining(tf.ViTMAEConfig(**SMALL, **IMAGE)),
        "ViTMAEForPreTraining.*decoder",
    ),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_models_say_what_was_found_and_why(build, message):
    model = build()
    with pytest.raises(UnsupportedModelError, match=rf"(?s){message}.*docs/models.md"):
        apply(model, MergeConfig(r=4))
    assert untouched(model)
    assert issubclass(UnsupportedModelError, ValueError)


def test_a_wrapper_with_a_head_of_its_own_is_refused_and_its_encoder_taken():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = BY_NAME["vit-tower"].make()

    model = Mine()
    with pytest.raises(UnsupportedModelError, match=r"Mine.*not supported.*hf_tome.apply\(model.encoder"):
        apply(model, MergeConfig(r=4))
    assert untouched(model)
    apply(model.encoder, MergeConfig(r=4))
    assert len(targets(model.encoder)) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MergeConfig(r=[1, 2, 3, 4]), "`r` lists 4 blocks, but the model has 3"),
        (MergeConfig(r=4, layers=[3]), r"blocks \[3\], but the model has blocks 0 to 2"),
    ],
)
def test_a_config_that_does_not_fit_leaves_the_earlier_merging(config, message):
    zoo = BY_NAME["vit"]
    model = apply(zoo.make(), MergeConfig(r=6))
    with torch.no_grad():
        before = zoo.run(model)
        with pytest.raises(ValueError, match=message):
            apply(model, config)
        assert torch.equal(zoo.run(model), before)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="`config` is a dict; it takes a MergeConfig"):
        apply(BY_NAME["vit"].make(), {"r": 4})
    with pytest.raises(TypeError, match="`model` is a str"):
        apply("google/vit-base-patch16-224", MergeConfig(r=4))


def test_an_instance_forward_would_be_a_silent_no_op_and_is_refused():
    model = BY_NAME["vit"].make()
    layer = model.vit.layers[1]
    layer.forward = lambda *args, **kwargs: args[0]
    with pytest.raises(UnsupportedModelError, match=r"ViTLayer has been replaced on the instance.*hf_tome\.apply"):
        apply(model, MergeConfig(r=4))
    assert untouched(model)


class OwnLayer(ViTLayer):
    def forward(self, hidden_states, *args, **kwargs):
        return super().forward(hidden_states, *args, **kwargs) * 1.01


class SameLayer(ViTLayer):
    """A subclass that leaves the forward alone."""


class SameAttention(ViTAttention):
    """A subclass that leaves the forward alone."""


def test_blocks_of_the_callers_own_are_refused():
    for own, message in (
        (OwnLayer, "OwnLayer is defined in test_apply"),
        (nn.Identity, "Identity is defined in torch"),
    ):
        model = BY_NAME["vit"].make()
        layer = model.vit.layers[1]
        model.vit.layers[1] = own(layer) if own is nn.Identity else own(model.config)
        with pytest.raises(UnsupportedModelError, match=message):
            apply(model, MergeConfig(r=0))
        assert untouched(model)


def test_subclasses_that_run_as_ever_merge():
    zoo = BY_NAME["vit"]
    expected, model = apply(zoo.make(), MergeConfig(r=6)), zoo.make()
    model.vit.layers[1].__class__ = SameLayer
    model.vit.layers[2].attention.__class__ = SameAttention
    with torch.no_grad():
        assert torch.equal(zoo.run(apply(model, MergeConfig(r=6))), zoo.run(expected))
    assert type(remove(model).vit.layers[1]) is SameLayer


def test_a_block_used_twice_is_refused():
    model = BY_NAME["vit"].make()
    model.vit.layers[2] = model.vit.layers[1]
    with pytest.raises(UnsupportedModelError, match=r"same ViTLayer is used in several layers.*deepcopy"):
        apply(model, MergeConfig(r=4))
    assert untouched(model)


@pytest.mark.parametrize("order", ["hooks first", "merging first"])
def test_accelerates_hooks(order):
    zoo = BY_NAME["vit"]
    model = zoo.make()
    with torch.no_grad():
        plain, expected = zoo.run(model), zoo.run(apply(zoo.make(), MergeConfig(r=6)))
        if order == "merging first":
            apply(model, MergeConfig(r=6))
        for layer in model.vit.layers:
            add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu"))
        assert torch.equal(zoo.run(apply(model, MergeConfig(r=6))), expected)
        assert torch.equal(zoo.run(remove(model)), plain)
        remove_hook_from_submodules(model)
        assert torch.equal(zoo.run(model), plain)


@pytest.mark.parametrize("zoo", [zoo for zoo in ZOO if zoo.name in SPREAD], ids=lambda zoo: zoo.name)
@pytest.mark.parametrize("options", [{}, {"restore": True}], ids=["merged", "restored"])
def test_a_model_over_several_devices(zoo, options):
    # The second device is "meta", whose tensors have shapes alone, and refuse to meet those of another device.
    model = apply(zoo.make(), MergeConfig(r=6, **options))
    modules = list(model.modules())
    blocks = next(module for module in modules if isinstance(module, nn.ModuleList))
    for module in modules[modules.index(blocks[1]) :]:
        add_hook_to_module(module.to("meta"), AlignDevicesHook(execution_device="meta"))
    with torch.no_grad():
        assert zoo.run(model).device.type == "meta"


def test_what_is_part_of_a_merged_model_stays_so():
    siglip, videomae = (apply(BY_NAME[name].make(), MergeConfig(r=6)) for name in ("siglip-classifier", "videomae"))
    changes = (
        lambda: remove(siglip.vision_model.encoder),  # the mean of what the norm behind it gives out is by size
        lambda: apply(siglip.vision_model, MergeConfig(r=2)),
        lambda: apply(videomae.videomae, MergeConfig(r=2)),
    )
    for change in changes:
        with pytest.raises(RuntimeError, match="on a larger model, which holds this tower as 'vi"):
            change()
    assert untouched(remove(siglip))
    assert untouched(remove(videomae.videomae))
    assert untouched(videomae)


def test_a_class_that_was_changed_since_is_not_taken_apart():
    model = apply(BY_NAME["vit"].make(), MergeConfig(r=6))
    layer = model.vit.layers[1]
    merged = type(layer)
    layer.__class__ = type("FSDPViTLayer", (merged,), {})
    for change in (remove, lambda model: apply(model, MergeConfig(r=2))):
        with pytest.raises(RuntimeError, match="FSDPViTLayer has been changed again since"):
            change(model)
    layer.__class__ = merged
    assert untouched(remove(model))


def test_compiled_and_parallel_models_are_unwrapped():
    zoo = BY_NAME["vit"]
    model = zoo.make()
    with torch.no_grad():
        expected = zoo.run(apply(zoo.make(), MergeConfig(r=6)))
        compiled = torch.compile(model, backend="eager")
        plain = zoo.run(compiled)
        assert apply(compiled, MergeConfig(r=6)) is compiled
        torch.testing.assert_close(zoo.run(compiled), expected)
        assert remove(compiled) is compiled
        torch.testing.assert_close(zoo.run(compiled), plain)
    parallel = nn.DataParallel(zoo.make())
    assert apply(parallel, MergeConfig(r=6)) is parallel
    assert len(targets(parallel)) == 1


@pytest.mark.parametrize("order", ["lora first", "merging first"])
def test_lora_on_the_projections(order):
    peft = pytest.importorskip("peft")
    zoo = BY_NAME["vit"]
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    config = MergeConfig(r=6)
    torch.manual_seed(0)
    model = zoo.make() if order == "lora first" else apply(zoo.make(), config)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, lora).eval()
    if order == "lora first":
        assert apply(adapted, config) is adapted
    with torch.no_grad():
        merged = adapted(**IMG(2)).logits
        # The same weights, folded in: what a user deploys.
        folded = remove(adapted).merge_and_unload()
        expected = apply(folded, config)(**IMG(2)).logits
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-5)


def test_threads_do_not_see_each_others_sizes():
    zoo = BY_NAME["dinov2"]  # its head reads the sizes
    model = apply(zoo.make(), MergeConfig(method="mame", threshold=0.3, layers=range(3)))
    inputs = [
        {"pixel_values": torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(n))} for n in (1, 2, 3)
    ]
    with torch.no_grad():
        expected = [model(**one).logits for one in inputs]
    wrong = []

    def serve(index):
        with torch.no_grad():
            for _ in range(20):
                if not torch.allclose(model(**inputs[index]).logits, expected[index], atol=1e-5):
                    wrong.append(index)

    threads = [threading.Thread(target=serve, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_block_alone_says_what_is_wrong():
    model = apply(BY_NAME["vit"].make(), MergeConfig(r=6))
    with pytest.raises(RuntimeError, match=r"ran before the first one.*hf_tome.remove"):
        model.vit.layers[1](torch.randn(1, 65, 32))


def test_text_towers_are_left_alone():
    model = apply(BY_NAME["clip"].make(), MergeConfig(r=6))
    assert untouched(model.text_model)
    assert [tower.path for tower in targets(model)] == ["vision_model"]


def test_report_tells_what_the_user_should_know():
    zoo = BY_NAME["vit"]
    model = zoo.make()
    assert "no tokens are merged" in str(report(model))
    text = str(report(apply(model, MergeConfig(r=30))))
    assert "fewer than the r=30 asked for can merge: 17 of 35" in text
    assert "protected: 1 leading" in text
    assert "attention sdpa, proportional attention on" in text
    apply(model, MergeConfig(method="mame", threshold=1.0))
    assert "depends on the images" in str(report(model))
    with torch.no_grad():
        zoo.run(model)
    assert "nothing merged in the last forward pass" in str(report(model))
    found = report(apply(model, MergeConfig(r=6))).to_dict()["towers"][0]
    assert found["tokens"] == ((65, 59), (59, 53), (53, 47))
    assert found["gflops"] < found["gflops_unmerged"]


def test_trace_needs_a_traced_run():
    zoo = BY_NAME["vit"]
    model = zoo.make()
    with pytest.raises(ValueError, match="No tokens are merged"):
        trace(model)
    with pytest.raises(ValueError, match="trace=False"):
        trace(apply(model, MergeConfig(r=6)))
    with pytest.raises(ValueError, match="has not run"):
        trace(apply(model, MergeConfig(r=6, trace=True)))
    with pytest.raises(ValueError, match=r"`tower` is -1; the model has 1 merged tower"):
        trace(model, -1)


def test_the_library_is_quiet_and_light():
    code = (
        "import sys, transformers; from transformers import PreTrainedModel, Pipeline; before = set(sys.modules)\n"
        "import hf_tome; new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "heavy = new & {'datasets', 'diffusers', 'matplotlib', 'evaluate', 'sklearn', 'PIL', 'av', 'typer', 'rich'}\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert not logging.getLogger("hf_tome").handlers


def test_towers_are_chosen_by_name():
    """By a part of the path too; a name that no tower has is an error that lists those there are."""
    model = apply(BY_NAME["clip"].make(), MergeConfig(r=6, towers="vision_model"))
    assert get_config(model).towers == ("vision_model",)
    (target,) = targets(model)
    for name in ("text_model", "vision", target.path + ".encoder.layers"):
        with pytest.raises(
            ValueError, match=f"`towers` names {name!r}, but the model's towers are at {target.path!r}"
        ):
            apply(model, MergeConfig(r=6, towers=name))
    assert targets(model) == [target]

"""Merging together with what else diffusers does to denoisers: each gives what it gives by itself, merged."""

import copy
import pickle

import pytest
import torch
from denoisers import BY_ROW, randn

import hf_tome
from hf_tome import MergeConfig, UnsupportedModelError
from hf_tome.patching.patch import is_patched

diffusers = pytest.importorskip("diffusers")

UNET, DIT, FLUX, WAN, COG = (
    BY_ROW[name]
    for name in (
        "UNet2DConditionModel",
        "DiTTransformer2DModel",
        "FluxTransformer2DModel",
        "WanTransformer3DModel",
        "CogVideoXTransformer3DModel",
    )
)
COMPILED = [
    pytest.param(denoiser, modules, backend, marks=() if quick else pytest.mark.slow)
    for denoiser, modules in ((UNET, "attention"), (UNET, "block"), (DIT, "kv"), (FLUX, "block"))
    for backend in ("eager", "aot_eager", "inductor")
    for quick in (backend == "aot_eager" and modules == "block",)
]


def row(value):
    return getattr(value, "row", value)


def config(**fields):
    return MergeConfig(**{"ratio": 0.5, "min_tokens": 0, "tile": None, **fields})


def merged_output(denoiser, **fields):
    """Return what a fresh model gives when it merges and nothing else is done to it."""
    return denoiser.run(hf_tome.apply(denoiser.make(), config(**fields)))


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize(("denoiser", "modules", "backend"), COMPILED, ids=row)
def test_repeated_blocks_compile_as_one_graph(denoiser, modules, backend):
    torch._dynamo.reset()
    model = hf_tome.apply(denoiser.make(), config(modules=modules))
    repeated = {"DiTTransformer2DModel": ["BasicTransformerBlock"]}.get(denoiser.row)
    if repeated:
        model._repeated_blocks = repeated
    model.compile_repeated_blocks(fullgraph=True, backend=backend)
    close(denoiser.run(model), merged_output(denoiser, modules=modules), 1e-4)
    # Another step is another seed, which must not compile anything anew.
    inputs = denoiser.inputs(2)
    step = torch.as_tensor(inputs["timestep"])
    inputs["timestep"] = (step / 2).to(step.dtype) if step.ndim else 250
    with torch.no_grad(), torch.compiler.set_stance("fail_on_recompile"):
        model(**inputs)


@pytest.mark.parametrize("first", ["lora", "merging"])
def test_lora(first):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)

    def make(order):
        model = UNET.make()
        for change in order:
            torch.manual_seed(3)
            model.add_adapter(lora) if change == "lora" else hf_tome.apply(model, config())
        return model

    both = UNET.run(make([first, "lora" if first == "merging" else "merging"]))
    assert (both - merged_output(UNET)).abs().max() > 1e-3
    close(both, UNET.run(make(["lora", "merging"])))


CHANGES = {
    "fused": lambda model: model.fuse_qkv_projections(),
    "eager": lambda model: model.set_attn_processor(diffusers.models.attention_processor.AttnProcessor()),
    "default": lambda model: model.set_default_attn_processor(),
    "sliced": lambda model: model.set_attention_slice("max"),
    "native": lambda model: model.set_attention_backend("native"),
}


@pytest.mark.parametrize("modules", ["attention", "block", "kv"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("first", ["change", "merging"])
def test_processors_live_below_merging(change, modules, first):
    model = UNET.make()
    if first == "change":
        CHANGES[change](model)
    hf_tome.apply(model, config(modules=modules))
    if first == "merging":
        CHANGES[change](model)
    if (change, modules) == ("fused", "kv"):
        with pytest.raises(UnsupportedModelError, match=r"one fused projection.*modules='attention'"):
            UNET.run(model)
        return
    close(UNET.run(model), merged_output(UNET, modules=modules))


def test_flux_with_another_attention_backend():
    model = hf_tome.apply(FLUX.make(), config())
    model.set_attention_backend("_native_math")
    close(FLUX.run(model), merged_output(FLUX))


def _ip_adapter(model):
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    torch.manual_seed(5)
    processors = model.attn_processors
    for name in processors:
        if "attn2" in name:
            width = model.get_submodule(name.removesuffix(".processor")).to_q.in_features
            processors[name] = IPAdapterAttnProcessor2_0(width, cross_attention_dim=16, num_tokens=(4,))
    model.set_attn_processor(processors)
    return model


def _run_ip_adapter(model, **kwargs):
    torch.manual_seed(1)
    inputs = UNET.inputs(2)
    inputs["encoder_hidden_states"] = (inputs["encoder_hidden_states"], [randn(2, 1, 4, 16)])
    with torch.no_grad():
        return model(**inputs, **kwargs).sample


@pytest.mark.parametrize("modules", ["attention", "block"])
def test_ip_adapter(modules):
    first = _ip_adapter(hf_tome.apply(UNET.make(), config(modules=modules)))
    second = hf_tome.apply(_ip_adapter(UNET.make()), config(modules=modules))
    out = _run_ip_adapter(first)
    assert out.isfinite().all()
    assert torch.equal(out, _run_ip_adapter(second))


def test_masks_of_an_ip_adapter():
    masks = {"cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(1, 1, 8, 8)]}}
    model = _ip_adapter(hf_tome.apply(UNET.make(), config(modules="attention")))
    close(_run_ip_adapter(model, **masks), _run_ip_adapter(model))
    hf_tome.apply(model, config(modules="block"))
    with pytest.raises(UnsupportedModelError, match=r"`ip_adapter_masks` .*modules='attention'"):
        _run_ip_adapter(model, **masks)


@pytest.mark.parametrize("modules", ["attention", "block"])
@pytest.mark.parametrize("name", ["PAGIdentitySelfAttnProcessor2_0", "CrossAttnStoreProcessor"])
def test_guidance_that_reads_queries_is_refused(name, modules):
    from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0

    model = hf_tome.apply(UNET.make(), config(modules=modules))
    attention = model.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.processor = (
        PAGIdentitySelfAttnProcessor2_0() if name.startswith("PAG") else type(name, (), {"__call__": None})()
    )
    with pytest.raises(UnsupportedModelError, match=rf"mid_block.* has the processor {name}"):
        UNET.run(model)


HOOKS = {
    "casting": lambda model: model.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32),
    "offload": lambda model: model.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    ),
    "leaves": lambda model: model.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level"),
}


@pytest.mark.parametrize("modules", ["attention", "block"])
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_set_before_and_after(hook, modules):
    before, after, plain = UNET.make(), UNET.make(), UNET.make()
    HOOKS[hook](before)
    HOOKS[hook](plain)
    hf_tome.apply(before, config(modules=modules))
    hf_tome.apply(after, config(modules=modules))
    HOOKS[hook](after)
    expected, unmerged = UNET.run(before), UNET.run(plain)
    assert (expected - unmerged).abs().max() > 1e-4
    assert torch.equal(UNET.run(after), expected)
    for model in (before, after):
        hf_tome.remove(model)
        assert not any(is_patched(module) for module in model.modules())
        assert torch.equal(UNET.run(model), unmerged)


def _cached(denoiser, model, batch_size=2):
    outs = []
    for _ in range(2):
        with model.cache_context("cond"):
            outs.append(denoiser.run(model, batch_size))
    return torch.stack(outs)


def _caches():
    import diffusers.hooks as hooks

    callback = {"current_timestep_callback": lambda: 500}
    broadcast = hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, cross_attention_block_skip_range=2, **callback
    )
    return {
        "first-block-never": hooks.FirstBlockCacheConfig(threshold=-1.0),
        "first-block-always": hooks.FirstBlockCacheConfig(threshold=1e9),
        "broadcast": broadcast,
        "mag": hooks.MagCacheConfig(mag_ratios=[1.0] * 28, num_inference_steps=28),
        "taylor": hooks.TaylorSeerCacheConfig(),
    }


@pytest.mark.parametrize("cache", ["first-block-never", "first-block-always", "broadcast", "mag", "taylor"])
@pytest.mark.parametrize("denoiser", [FLUX, COG, WAN], ids=row)
def test_caches_set_before_and_after(cache, denoiser):
    before, after = denoiser.make(), denoiser.make()
    before.enable_cache(_caches()[cache])
    hf_tome.apply(before, config(modules="block"))
    hf_tome.apply(after, config(modules="block"))
    after.enable_cache(_caches()[cache])
    if cache == "broadcast" and denoiser is not WAN:
        for model in (before, after):
            with pytest.raises(UnsupportedModelError, match=r"images one by one.*'pyramid_attention_broadcast'"):
                _cached(denoiser, model)
    outs = _cached(denoiser, before, batch_size=1)
    assert torch.equal(_cached(denoiser, after, batch_size=1), outs)
    expected = denoiser.run(hf_tome.apply(denoiser.make(), config(modules="block")), batch_size=1)
    close(outs[0], expected)
    if cache == "first-block-never":
        close(outs[1], expected)
    for model in (before, after):
        hf_tome.remove(model)
        model.disable_cache()
        close(denoiser.run(model), denoiser.run(denoiser.make()))


@pytest.mark.parametrize("modules", ["attention", "block"])
@pytest.mark.parametrize("first", ["offload", "merging"])
def test_model_offload(first, modules):
    """What `enable_model_cpu_offload` sets on a pipeline's models; it itself wants an accelerator."""
    accelerate = pytest.importorskip("accelerate")
    model = UNET.make()
    if first == "merging":
        hf_tome.apply(model, config(modules=modules))
    model, hook = accelerate.cpu_offload_with_hook(model, torch.device("cpu"))
    if first == "offload":
        hf_tome.apply(model, config(modules=modules))
    close(UNET.run(model), merged_output(UNET, modules=modules))
    hook.offload()
    hf_tome.remove(model)
    assert torch.equal(UNET.run(model), UNET.run(UNET.make()))


def test_residuals_of_a_t2i_adapter():
    """They come in between the blocks of the encoder, where every token has been given back."""
    torch.manual_seed(4)
    more = {"down_intrablock_additional_residuals": [randn(2, 16, 8, 8), randn(2, 32, 4, 4)]}
    model = UNET.make()

    def run():
        torch.manual_seed(1)
        residuals = {name: list(values) for name, values in more.items()}  # the UNet takes them off the list
        with torch.no_grad():
            return model(**UNET.inputs(2), **residuals).sample

    unmerged = run()
    hf_tome.apply(model, config(modules="block"))
    merged = run()
    assert merged.shape == unmerged.shape
    assert (merged - unmerged).abs().max() > 1e-4
    assert (merged - merged_output(UNET, modules="block")).abs().max() > 1e-2  # the residuals count


@pytest.mark.parametrize("modules", ["attention", "block"])
def test_guidance_as_one_batch_and_as_two_calls(modules):
    model = hf_tome.apply(UNET.make(), config(modules=modules))
    torch.manual_seed(1)
    sample, texts = randn(1, 4, 8, 8), randn(2, 5, 16)
    with torch.no_grad():
        together = model(sample.expand(2, -1, -1, -1), 500, texts).sample
        apart = [model(sample, torch.tensor(500), text[None]).sample for text in texts]
    close(torch.cat(apart), together)


@pytest.mark.parametrize("size", [(12, 20), (9, 7), (64, 2)])
def test_sizes_that_change_between_calls(size):
    model = hf_tome.apply(UNET.make(), config(tile=4, modules="block"))
    first = UNET.run(model)
    with torch.no_grad():
        out = model(randn(1, 4, *size), 500, randn(1, 5, 16)).sample
    assert out.shape[-2:] == size
    (tower,) = hf_tome.report(model).towers
    assert tower.levels[0].before == size[0] * size[1]
    assert tower.levels[0].after < tower.levels[0].before
    assert torch.equal(UNET.run(model), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("denoiser", "modules"), [(UNET, "attention"), (UNET, "block"), (FLUX, "block")], ids=row)
def test_half_precision(denoiser, modules, dtype):
    model = hf_tome.apply(denoiser.make(), config(modules=modules)).to(dtype)
    torch.manual_seed(1)
    inputs = {
        name: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in denoiser.inputs(2).items()
    }
    with torch.no_grad():
        out = model(**inputs, return_dict=False)[0]
    assert out.dtype == dtype
    assert out.isfinite().all()
    # Which tokens are most alike may differ by rounding; most of the picture is the same.
    assert (out.float() - merged_output(denoiser, modules=modules)).abs().median() < 0.05


def test_copies_and_pickles():
    model = hf_tome.apply(FLUX.make(), config())
    expected = FLUX.run(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(FLUX.run(other), expected)
        hf_tome.remove(other)
        assert not hf_tome.is_merged(other)
    assert hf_tome.is_merged(model)


def test_within_a_context():
    model = UNET.make()
    unmerged = UNET.run(model)
    with hf_tome.merged(model, config(modules="block")):
        assert torch.equal(UNET.run(model), merged_output(UNET, modules="block"))
    assert torch.equal(UNET.run(model), unmerged)


@pytest.mark.parametrize(("steps", "merges"), [((0.0, 0.5), False), ((0.5, 1.0), True), ((0.25, 0.75), True)])
def test_steps(steps, merges):
    model = hf_tome.apply(UNET.make(), config(steps=steps))  # timestep 500 of 1000 is half way
    expected = merged_output(UNET) if merges else UNET.run(UNET.make())
    assert torch.equal(UNET.run(model), expected)


@pytest.mark.parametrize(("fields", "numbers"), [({"every": 2}, [0, 2, 4, 6]), ({"layers": [1, 3]}, [1, 3])])
def test_some_blocks(fields, numbers):
    model = hf_tome.apply(UNET.make(), config(modules="block", **fields))
    blocks = [module for module in model.modules() if type(module).__name__ == "BasicTransformerBlock"]
    assert [number for number, block in enumerate(blocks) if is_patched(block)] == numbers


def test_a_seed_draws_other_destinations():
    assert (merged_output(UNET, seed=1) - merged_output(UNET)).abs().max() > 1e-4
    with pytest.raises(ValueError, match=r"`seed` is 'a'; it takes an integer"):
        config(seed="a")


def test_gradients_reach_all_parameters():
    model = hf_tome.apply(DIT.make(), config(modules="block")).train()
    model(**DIT.inputs(2)).sample.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.transformer_blocks.parameters())


METHODS = [
    {"method": "mame", "threshold": 0.0, "ratio": None},
    {"method": "mame", "keep_ratio": 0.5, "ratio": None},
    {"method": "random_prune"},
    {"method": "downsample"},
]


@pytest.mark.parametrize(("denoiser", "modules"), [(UNET, "attention"), (UNET, "kv"), (FLUX, "block")], ids=row)
@pytest.mark.parametrize("fields", METHODS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_other_methods(fields, denoiser, modules):
    model = denoiser.make()
    expected = denoiser.run(model)
    hf_tome.apply(model, config(modules=modules, tile=4, **fields))
    out = denoiser.run(model)
    assert out.isfinite().all()
    assert (out - expected).abs().max() > 1e-4
    assert torch.equal(denoiser.run(model), out)
    (tower,) = hf_tome.report(model).towers
    assert all(level.after < level.before for level in tower.levels)


def test_downsampling_is_refused_in_an_encoder():
    from transformers import ViTConfig, ViTModel

    sizes = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    with pytest.raises(ValueError, match="'downsample' means something with `where` 'auto' or 'denoiser' alone"):
        hf_tome.apply(ViTModel(sizes), MergeConfig(method="downsample", ratio=0.5))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, True), ({"method": "mame", "keep_ratio": 0.5, "ratio": None}, True), ({"method": "random_prune"}, False),
     ({"method": "downsample"}, False), ({"proportional_attention": False}, False)],
)  # fmt: skip
def test_which_methods_add_log_size_by_default(fields, expected):
    model = hf_tome.apply(UNET.make(), config(**fields))
    assert hf_tome.report(model).towers[0].proportional_attention is expected

"""Proportional attention on every backend, positions that follow merged tokens, and reduced precision."""

import pytest
import torch
import transformers as tf
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from zoo import IMG, ZOO

from hf_tome import MergeConfig, UnsupportedModelError, apply, remove
from hf_tome.adapters.encoders.attention import CHANNEL_BACKENDS, log_size, with_bias_channel
from hf_tome.api import targets

BY_NAME = {zoo.name: zoo for zoo in ZOO}


def attend(query, key, value, bias=None, scaling=None):
    mask = None if bias is None else bias[:, None, None, :].to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 5e-6), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)],
)
@pytest.mark.parametrize("head_dim", [64, 62, 80, 128])
def test_bias_channel_equals_the_mask(dtype, tolerance, head_dim):
    # Half precision: one ulp of outputs of size 1 to 4 is 2^-7 to 2^-6 in bfloat16, an eighth of that in float16.
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 17, head_dim, dtype=dtype) for _ in range(3))
    size = torch.randint(1, 40, (2, 17, 1)).float()
    size[:, -3:] = 0
    bias = log_size(size, proportional=True)
    wide = with_bias_channel(query, key, value, bias, head_dim**-0.5)
    assert all(part.shape[-1] % 8 == 0 for part in wide)
    out = attend(*wide, scaling=head_dim**-0.5)[..., :head_dim]
    expected = attend(query.double(), key.double(), value.double(), bias.double(), head_dim**-0.5)
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_low_channel_keeps_what_rounding_the_bias_loses(dtype):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 17, 64, dtype=dtype) for _ in range(3))
    bias = log_size(torch.randint(100, 4000, (2, 17, 1)).float(), proportional=True)
    wide = [part.double() for part in with_bias_channel(query, key, value, bias, 0.125)]
    expected = attend(query.double(), key.double(), value.double(), bias.double(), 0.125)
    # In double precision nothing but the bias is rounded: to 2^-9 of up to 66 in one channel of bfloat16.
    torch.testing.assert_close(attend(*wide, scaling=0.125)[..., :64], expected, atol=1e-4, rtol=0)


def test_log_size_weighs_a_key_as_that_many_copies():
    # ToMe, equation 1: the same as having s copies of the key.
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 5, 8, dtype=torch.float64) for _ in range(3))
    copies = torch.tensor([1, 3, 2, 5, 1])
    bias = log_size(copies[None, :, None].double(), proportional=True)
    repeated = attend(query, key.repeat_interleave(copies, dim=2), value.repeat_interleave(copies, dim=2))
    torch.testing.assert_close(attend(query, key, value, bias), repeated, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "config", [MergeConfig(r=6), MergeConfig(method="mame", threshold=0.3, layers=range(3))], ids=str
)
@pytest.mark.parametrize("name", ["vit", "dinov3", "clip-projection"])
@pytest.mark.parametrize("backend", CHANNEL_BACKENDS)
def test_backends_without_masks(monkeypatch, backend, name, config):
    # Stands in for kernels that this machine cannot run: like them it takes no additive mask, and heads of 8 k
    # channels.
    def kernel(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        assert attention_mask is None
        assert query.shape[-1] == key.shape[-1] == value.shape[-1]
        assert query.shape[-1] % 8 == 0
        return attend(query, key, value, scaling=scaling).transpose(1, 2), None

    zoo = BY_NAME[name]
    with torch.no_grad():
        expected = zoo.run(apply(zoo.make("sdpa"), config))
        model = apply(zoo.make("sdpa"), config)
        for module in model.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = backend
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, backend, kernel)
        import transformers.masking_utils as masking

        monkeypatch.setitem(masking.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, backend, lambda **kwargs: None)
        torch.testing.assert_close(zoo.run(model), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "dinov3"])
def test_flex_attention(name):
    zoo = BY_NAME[name]
    with torch.no_grad():
        expected = zoo.run(apply(zoo.make("sdpa"), MergeConfig(r=6)))
        model = zoo.make("flex_attention")
        torch.testing.assert_close(zoo.run(apply(model, MergeConfig(r=6))), expected, atol=1e-5, rtol=1e-5)


def test_unknown_backend_is_refused_and_named():
    model = BY_NAME["vit"].make()
    ALL_ATTENTION_FUNCTIONS.register("my_attention", lambda *args, **kwargs: None)
    model.config._attn_implementation = "my_attention"
    with pytest.raises(UnsupportedModelError, match=r"my_attention.*Supported are.*set_attn_implementation"):
        apply(model, MergeConfig(r=4))
    model.set_attn_implementation("sdpa")
    apply(model, MergeConfig(r=4))
    model.config._attn_implementation = "my_attention"
    with pytest.raises(UnsupportedModelError, match="my_attention"):
        BY_NAME["vit"].run(model)


def run_with_hidden_keys(model, blocks, hidden, hide, **kwargs):
    """Run upstream blocks, whose own attention cannot see the tokens `hide` from block 1 on."""
    mask = torch.zeros(1, 1, 1, hidden.shape[1])
    mask[..., hide] = -torch.inf
    for index, block in enumerate(blocks):
        hidden = block(hidden, attention_mask=mask if index else torch.zeros_like(mask), **kwargs)
    return hidden


@pytest.mark.parametrize("name", ["dinov3", "beit", "beit-shared"])
def test_positions_follow_the_tokens(name):
    # Pruning in block 0 is the same as hiding the pruned tokens from attention ever after. Upstream's blocks do the
    # latter with their own rotary tables and position biases, so a wrong row of ours would show.
    zoo = BY_NAME[name]
    model = zoo.make("eager")
    tower = next(module for module in model.modules() if type(module).__name__ == zoo.tower)
    pixels = IMG(2)["pixel_values"]
    config = MergeConfig(method="random_prune", r=20, layers=[0], trace=True)
    with torch.no_grad():
        hidden = tower.embeddings(pixels)
        if name == "dinov3":
            blocks, kwargs = tower.model.layer, {"position_embeddings": tower.rope_embeddings(pixels)}
        else:
            blocks, kwargs = tower.layers, {"resolution": pixels.shape[2:]}
        apply(model, config)
        out = model(pixels, output_hidden_states=True).hidden_states[-1]
        source = targets(model)[0].recorder.summary.state.source[-1]
        remove(model)
        kept, hide = (source[0] >= 0).nonzero()[:, 0], (source[0] < 0).nonzero()[:, 0]
        if name == "beit-shared":
            shared = tower.shared_position_bias((8, 8))
            expected = hidden
            for index, block in enumerate(blocks):
                mask = shared.clone()
                mask[..., hide] = -torch.inf if index else mask[..., hide]
                expected = block(expected, attention_mask=mask, **kwargs)
        else:
            expected = run_with_hidden_keys(model, blocks, hidden, hide, **kwargs)
    assert len(hide) == 20
    torch.testing.assert_close(out, expected[:, kept], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["vit", "dinov3", "beit", "beit-shared"])
def test_pruning_goes_by_the_models_own_attention(name):
    zoo = BY_NAME[name]
    model = zoo.make("eager")
    with torch.no_grad():
        weights = model(**IMG(2), output_attentions=True).attentions[0]  # (B, H, N, N)
        zoo.run(apply(model, MergeConfig(method="attention_prune", r=12, layers=[0], trace=True)))
    tower = targets(model)[0]
    received = weights.mean(dim=(1, 2))[:, tower.plan.num_prefix_tokens :]
    lowest = received.argsort(dim=1)[:, :12].sort(dim=1).values + tower.plan.num_prefix_tokens
    pruned = [(source < 0).nonzero()[:, 0] for source in tower.recorder.summary.state.source[-1]]
    assert torch.equal(torch.stack(pruned), lowest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("zoo", [zoo for zoo in ZOO if zoo.output == "logits"], ids=lambda zoo: zoo.name)
def test_half_precision(zoo, dtype):
    model = zoo.make().to(dtype)
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in zoo.inputs(2).items()}
    for config in (MergeConfig(r=6, trace=True), MergeConfig(method="mame", threshold=0.3, trace=True)):
        with torch.no_grad():
            out = zoo.run(apply(model, config), inputs=inputs)
        assert out.dtype == dtype
        assert torch.isfinite(out).all()
        size = targets(model)[0].recorder.summary.state.size[-1]
        assert size.dtype == torch.float32, "counts beyond 256 are not exact in bfloat16"


@pytest.mark.parametrize("name", ["vit", "dinov2", "siglip", "videomae"])
def test_autocast(name):
    zoo = BY_NAME[name]
    model = zoo.make()
    with torch.no_grad():
        expected = zoo.run(apply(model, MergeConfig(r=6)))
        with torch.autocast("cpu", torch.bfloat16):
            out = zoo.run(model)
    assert (out.float() - expected).abs().mean() < 0.1 * expected.std()


def test_bfloat16_chooses_the_same_tokens_as_float32_keys():
    # Scores in float32 even for a bfloat16 model: bfloat16 scores change 4 % of the chosen tokens and tie often.
    torch.manual_seed(0)
    keys = torch.randn(4, 197, 64, dtype=torch.bfloat16)
    from hf_tome.merging import bipartite_soft_matching

    half = bipartite_soft_matching(keys, 16, class_token=True)
    full = bipartite_soft_matching(keys.float(), 16, class_token=True)
    assert torch.equal(half.source, full.source)


def test_output_attentions_and_hidden_states_have_each_blocks_length():
    model = apply(BY_NAME["vit"].make("eager"), MergeConfig(r=6))
    with torch.no_grad():
        out = model(**IMG(2), output_attentions=True, output_hidden_states=True)
    assert [tuple(weights.shape[-2:]) for weights in out.attentions] == [(65, 65), (59, 59), (53, 53)]
    assert [hidden.shape[1] for hidden in out.hidden_states] == [65, 59, 53, 47]


def test_dropout_and_training_mode_run():
    config = tf.ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=4,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.2,
    )
    model = apply(tf.ViTForImageClassification(config).train(), MergeConfig(r=6))
    one, two = (model(**IMG(2)).logits for _ in range(2))
    assert not torch.equal(one, two)
    one.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())

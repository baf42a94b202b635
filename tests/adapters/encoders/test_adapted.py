"""Models that were quantised or adapted, before or after `apply`: the order makes no difference."""

import pytest
import torch
from transformers import BitsAndBytesConfig, ViTConfig, ViTForImageClassification
from zoo import ZOO

from hf_tome import MergeConfig, apply, from_pretrained, remove, report

CONFIGS = {
    "tome": MergeConfig(r=6),
    "mame": MergeConfig(method="mame", threshold=0.3, layers=range(3)),
    "mame-union": MergeConfig(method="mame", threshold=0.2, layers=range(3), batching="union"),
    "mame-fixed": MergeConfig(method="mame", keep_ratio=0.6, layers=[0, 2]),
}
ZOOS = {zoo.name: zoo for zoo in ZOO}

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def output(zoo, model):
    with torch.no_grad():
        return zoo.run(model)


@every_config
@pytest.mark.filterwarnings("ignore:.*Deprecation:UserWarning")  # torchao before 0.18, of itself
@pytest.mark.parametrize("name", ["vit", "clip-projection"])
def test_int8_weights(name, config):
    quantization = pytest.importorskip("torchao.quantization")
    zoo = ZOOS[name]

    def quantized(model):
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        return model

    before, after = apply(quantized(zoo.make()), config), quantized(apply(zoo.make(), config))
    exact = output(zoo, apply(zoo.make(), config))
    assert torch.equal(output(zoo, before), output(zoo, after))
    # Weights of 8 bits are off by up to 1/256 of a row's largest; a few per cent after three blocks.
    assert not torch.equal(output(zoo, before), exact)
    torch.testing.assert_close(output(zoo, before), exact, atol=0.05, rtol=0.05)
    assert torch.equal(output(zoo, remove(before)), output(zoo, quantized(zoo.make())))


BITS = {
    "8": {"load_in_8bit": True},
    "4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}


@every_config
@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
def test_bitsandbytes(bits, config, tmp_path):
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=4, **sizes)).eval()
    model.save_pretrained(tmp_path)
    # Blocks of 4 bits need an even number of rows, which a small head does not have.
    quantization = BitsAndBytesConfig(**bits, llm_int8_skip_modules=["classifier"])
    options = {"quantization_config": quantization, "device_map": "cpu"}
    pixels = torch.randn(2, 3, 32, 32)

    quantized = ViTForImageClassification.from_pretrained(tmp_path, **options).eval()
    with torch.no_grad():
        unmerged = quantized(pixels).logits
        merged = apply(quantized, config)(pixels).logits
        exact = apply(model, config)(pixels).logits
        tokens = report(quantized).towers[0].tokens
        assert tokens[-1][1] < tokens[0][0]
        # The rounding of the weights, relative to the scale of the logits, after three blocks.
        assert 0 < (merged - exact).abs().max() < 0.5 * exact.abs().max()
        assert torch.equal(remove(quantized)(pixels).logits, unmerged)
        loaded = from_pretrained(tmp_path, config, auto_class=ViTForImageClassification, **options).eval()
        assert torch.equal(loaded(pixels).logits, merged)


@every_config
def test_lora_on_queries_keys_and_values(config):
    peft = pytest.importorskip("peft")
    zoo = ZOOS["vit"]
    lora = peft.LoraConfig(target_modules=["q_proj", "k_proj", "v_proj"], r=2, init_lora_weights=False)

    def adapted(model):
        torch.manual_seed(5)
        return peft.get_peft_model(model, lora).eval()

    before = apply(adapted(zoo.make()), config)
    after = adapted(apply(zoo.make(), config))
    exact = output(zoo, apply(adapted(zoo.make()).merge_and_unload(), config))
    torch.testing.assert_close(output(zoo, before), exact, atol=1e-5, rtol=1e-4)
    assert torch.equal(output(zoo, before), output(zoo, after))
    tokens = report(before).towers[0].tokens
    assert tokens[-1][1] < tokens[0][0]

    zoo.run(before.train()).sum().backward()
    assert all(p.grad is not None for name, p in before.named_parameters() if "lora" in name)

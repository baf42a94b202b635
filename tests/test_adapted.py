"""Models that were quantised or adapted, before or after `apply`: the order makes no difference."""

import pytest
import torch
from zoo import ZOO

from hf_tome import MergeConfig, apply, remove, report

CONFIGS = {"tome": MergeConfig(r=6), "mame": MergeConfig(method="mame", threshold=0.3, layers=range(3))}
ZOOS = {zoo.name: zoo for zoo in ZOO}

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def output(zoo, model):
    with torch.no_grad():
        return zoo.run(model)


@every_config
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

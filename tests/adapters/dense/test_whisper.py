"""Whisper: frames merge in the encoder, and the decoder attends to those that are left."""

import copy
import pickle

import pytest
import torch
import transformers as tf
from installed import checkpoint_activations
from small import larger

from hf_tome import MergeConfig, UnsupportedModelError, apply, from_pretrained, remove, report, save_pretrained
from hf_tome.api import targets
from hf_tome.patching.patch import is_patched

SIZES = {
    **{"vocab_size": 99, "num_mel_bins": 16, "d_model": 32, "max_source_positions": 50, "max_target_positions": 32},
    **{"encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 48},
    **{"decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 48},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    **{"suppress_tokens": None, "begin_suppress_tokens": None},
}
EVEN = {
    "tome": MergeConfig(r=5),
    "union": MergeConfig(method="mame", threshold=0.3, batching="union"),
    "mame-fixed": MergeConfig(method="mame", keep_ratio=0.6, layers=[0, 2]),
    "attention_prune": MergeConfig(method="attention_prune", r=5),
    "random_prune": MergeConfig(method="random_prune", r=5),
    "kmeans": MergeConfig(method="kmeans", r=5),
    "greedy": MergeConfig(method="greedy", r=5),
}
MAME = MergeConfig(method="mame", threshold=0.9, layers=range(3))


def whisper(cls="WhisperForConditionalGeneration", backend="sdpa", **options):
    torch.manual_seed(0)
    config = tf.WhisperConfig(**{**SIZES, **options})
    return larger(getattr(tf, cls)._from_config(config, attn_implementation=backend))


def recordings(batch_size=2):
    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor([[1, 5, 7], [1, 8, 9]])[:batch_size]
    features = torch.randn(2, 16, 100, generator=generator)[:batch_size]
    return {"input_features": features, "decoder_input_ids": ids}


@torch.no_grad()
def run(model, inputs=None):
    return model(**(recordings() if inputs is None else inputs))


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_r0_is_bit_identical_and_remove_is_exact(backend):
    model = whisper(backend=backend)
    classes = [type(module) for module in model.modules()]
    plain = run(model).logits
    assert torch.equal(run(apply(model, MergeConfig(r=0))).logits, plain)
    merged = run(apply(model, MergeConfig(r=5)))
    assert merged.encoder_last_hidden_state.shape[1] == 35
    assert not torch.allclose(merged.logits, plain, atol=1e-4)
    assert torch.equal(run(remove(model)).logits, plain)
    assert [type(module) for module in model.modules()] == classes


def test_half_precision_is_clamped_as_the_model_does():
    model = whisper().half()
    with torch.no_grad():
        for layer in model.model.encoder.layers:
            layer.fc2.bias.fill_(6e4)
    inputs = recordings()
    inputs["input_features"] = inputs["input_features"].half()
    plain = run(model, inputs).encoder_last_hidden_state
    assert torch.isfinite(plain).all()
    assert torch.equal(run(apply(model, MergeConfig(r=0)), inputs).encoder_last_hidden_state, plain)


@pytest.mark.parametrize("config", EVEN.values(), ids=EVEN.keys())
def test_fewer_frames_reach_the_decoder(config):
    model = apply(whisper(), config)
    out = run(model)
    tokens = report(model).towers[0].computed
    assert out.encoder_last_hidden_state.shape[1] == tokens[-1][1] < 50
    eager = run(apply(whisper(backend="eager"), config))
    torch.testing.assert_close(out.logits, eager.logits, atol=1e-4, rtol=1e-4)


def test_unequal_numbers_of_frames_are_given_back():
    model = apply(whisper(), MAME)
    out = run(model)
    assert out.encoder_last_hidden_state.shape[1] == 50
    assert len(set(targets(model)[0].recorder.summary.real[-1].tolist())) == 2, "they were to be unequal"
    for row in range(2):
        one = {name: value[row : row + 1] for name, value in recordings().items()}
        torch.testing.assert_close(run(model, one).logits[0], out.logits[row], atol=1e-5, rtol=1e-5)


def test_restore_puts_frames_in_their_places():
    # Only equal frames merge, which proportional attention takes as one (ToMe, section 3).
    model = whisper("WhisperModel")
    with torch.no_grad():
        model.encoder.embed_positions.weight.zero_()
        model.encoder.conv1.weight[..., [0, 2]] = 0
        model.encoder.conv2.weight[..., [0, 2]] = 0
    inputs = recordings()
    inputs["input_features"] = inputs["input_features"][..., :50].repeat_interleave(2, dim=-1)
    inputs["input_features"][..., 2::4] = inputs["input_features"][..., ::4]  # frames in pairs
    plain = run(model, inputs).encoder_last_hidden_state
    config = MergeConfig(method="greedy", r=6, restore=True, proportional_attention=True)
    merged = run(apply(model, config), inputs).encoder_last_hidden_state
    torch.testing.assert_close(merged, plain, atol=1e-4, rtol=1e-4)


def test_generate():
    model, features = whisper(), recordings()["input_features"]
    options = {"input_features": features, "max_new_tokens": 6, "do_sample": False}
    plain = model.generate(**options)
    assert torch.equal(apply(model, MergeConfig(r=0)).generate(**options), plain)
    for extra in ({}, {"num_beams": 2}):
        assert apply(model, MergeConfig(r=5)).generate(**options, **extra).shape[0] == 2
    assert torch.equal(remove(model).generate(**options), plain)


def test_timestamps_of_words_need_every_frame():
    model, features = whisper(), recordings()["input_features"]
    model.generation_config.alignment_heads = [[0, 0], [1, 1]]
    model.generation_config.no_timestamps_token_id = 90
    options = {"input_features": features, "max_new_tokens": 6, "return_token_timestamps": True}
    with pytest.raises(ValueError, match=r"Timestamps of words .* `restore=True`"):
        apply(model, MergeConfig(r=5)).generate(**options)
    assert "token_timestamps" in apply(model, MergeConfig(r=5, restore=True)).generate(**options)
    assert "token_timestamps" in apply(model, MergeConfig(r=0)).generate(**options)
    model.generation_config.return_token_timestamps = True
    apply(model, MergeConfig(r=5))
    with pytest.raises(ValueError, match="Timestamps of words"):
        model.generate(input_features=features)


def test_classification_averages_by_size():
    model = whisper("WhisperForAudioClassification", num_labels=5)
    inputs = {"input_features": recordings()["input_features"]}
    direct, restored = (
        run(apply(model, MergeConfig(r=5, restore=restore)), inputs).logits for restore in (False, True)
    )
    torch.testing.assert_close(direct, restored, atol=1e-5, rtol=1e-5)


def test_a_sum_over_all_blocks_is_unsupported():
    model = whisper("WhisperForAudioClassification", use_weighted_layer_sum=True)
    with pytest.raises(UnsupportedModelError, match="use_weighted_layer_sum"):
        apply(model, MergeConfig(r=5))
    assert not any(is_patched(module) for module in model.modules())


def test_saves_loads_pickles_and_copies(tmp_path):
    model = apply(whisper(), MergeConfig(r=5))
    expected = run(model).logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(twin).logits, expected)
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path, auto_class=tf.WhisperForConditionalGeneration, attn_implementation="sdpa")
    assert torch.equal(run(loaded.eval()).logits, expected)


def test_checkpointed_gradients_equal_plain_ones():
    gradients = []
    for checkpointing in (None, {"use_reentrant": False}):
        model = apply(whisper(dropout=0.2, activation_dropout=0.2), MergeConfig(r=5)).train()
        if checkpointing is not None:
            checkpoint_activations(model, **checkpointing)
        torch.manual_seed(3)
        model(**recordings()).logits.square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, atol=1e-6 + 1e-5 * one.abs().max().item(), rtol=1e-4)


def test_training_drops_out_as_the_model_does():
    outputs = []
    for config in (None, MergeConfig(r=0)):
        model = whisper(dropout=0.3, activation_dropout=0.3).train()
        if config is not None:
            apply(model, config)
        torch.manual_seed(3)
        outputs.append(model(**recordings()).logits)
    assert torch.equal(*outputs)

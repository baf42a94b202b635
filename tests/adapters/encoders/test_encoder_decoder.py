"""Towers in `VisionEncoderDecoderModel` and `VisionTextDualEncoderModel`."""

import pytest
import torch
import transformers as tf
from vlms import smooth
from zoo import IMAGE, IMG, SMALL

from hf_tome import MergeConfig, apply, remove, report
from hf_tome.api import targets


def make_captioner(width: int = 32) -> tf.VisionEncoderDecoderModel:
    text = tf.BertConfig(
        vocab_size=50,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        is_decoder=True,
    )
    text.add_cross_attention = True
    torch.manual_seed(0)
    encoder = tf.ViTModel(tf.ViTConfig(**SMALL, **IMAGE))
    return tf.VisionEncoderDecoderModel(encoder=encoder, decoder=tf.BertLMHeadModel(text)).eval()


@pytest.mark.parametrize("width", [32, 48])  # as wide as the encoder, and behind a projection
@pytest.mark.parametrize("beams", [1, 3])
def test_a_decoder_does_not_attend_to_padding(width, beams):
    captioner = make_captioner(width)
    with torch.no_grad():
        for name, parameter in captioner.named_parameters():
            if "crossattention" in name:
                parameter.mul_(20)  # freshly built, it hardly looks at the image
    apply(captioner, MergeConfig(method="mame", threshold=0.5))
    pixels = smooth(3, 3, 32, 32)
    settings = {"max_new_tokens": 6, "num_beams": beams, "decoder_start_token_id": 1, "pad_token_id": 0}
    with torch.no_grad():
        logits = captioner(pixel_values=pixels, decoder_input_ids=torch.ones(3, 2, dtype=torch.long)).logits
        assert len(set(targets(captioner)[0].recorder.summary.real[-1].tolist())) > 1, "no image was padded"
        together = captioner.generate(pixels, **settings)
        for row in range(3):
            one = {"pixel_values": pixels[row : row + 1], "decoder_input_ids": torch.ones(1, 2, dtype=torch.long)}
            torch.testing.assert_close(logits[row : row + 1], captioner(**one).logits, atol=1e-5, rtol=1e-5)
            alone = captioner.generate(pixels[row : row + 1], **settings)
            assert torch.equal(together[row : row + 1, : alone.shape[1]], alone)


def test_any_tower_in_an_encoder_decoder_and_a_dual_encoder():
    captioner = make_captioner()
    inputs = {**IMG(2), "decoder_input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}
    with torch.no_grad():
        plain = captioner(**inputs).logits
        assert not torch.equal(captioner(**inputs).logits, apply(captioner, MergeConfig(r=8))(**inputs).logits)
        assert report(captioner).towers[0].tokens_out == 41
        assert torch.equal(remove(captioner)(**inputs).logits, plain)
    text = tf.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    vit = tf.ViTConfig(**SMALL, **IMAGE)
    dual = tf.VisionTextDualEncoderModel(vision_model=tf.ViTModel(vit), text_model=tf.BertModel(text)).eval()
    apply(dual, MergeConfig(r=8))
    with torch.no_grad():
        out = dual(**IMG(2), input_ids=torch.tensor([[1, 2], [3, 4]]))
    assert out.logits_per_image.shape == (2, 2)
    assert [tower.path for tower in targets(dual)] == ["vision_model"]

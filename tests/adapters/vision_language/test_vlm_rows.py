"""Every vision-language model with a row: fewer image tokens, from a merged tower or merged behind the projector."""

import copy
import io
import pickle

import pytest
import torch
from vlms import CASES, CLOSE, CONFIGS, FEW, IMAGE_TOKEN, IMAGES, VLMS, labels_of, merged

from hf_tome import MergeConfig, apply, from_pretrained, remove, save_pretrained
from hf_tome.adapters.vision_language.connectors import CONNECTORS
from hf_tome.patching.patch import CONTEXT, is_patched

every_case = pytest.mark.parametrize(("vlm", "where"), CASES, ids=[f"{vlm.name}-{where}" for vlm, where in CASES])


def every_method(test):
    return pytest.mark.product(pytest.mark.parametrize("method", ["tome", "mame"])(test))


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_every_row_has_a_model_and_every_model_a_row():
    assert [f"{vlm.name}Model" for vlm in VLMS] == list(CONNECTORS)
    assert {"Llava", "VipLlava", "PaliGemma", "DeepseekVL", "Janus"} == FEW


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@every_method
@every_case
def test_generates_what_the_features_alone_give(vlm, where, method, backend):
    unmerged, model = merged(vlm, method, where, backend)
    inputs = vlm.inputs(unmerged, IMAGES)
    length = inputs["input_ids"].shape[1]
    out = model.generate(**inputs)
    assert torch.equal(out[:, :length], inputs["input_ids"])
    for row, alone in enumerate(vlm.rows_by_themselves(model, IMAGES)):
        fewer, full = ((ids == IMAGE_TOKEN).sum() for ids in (alone["input_ids"], inputs["input_ids"][row]))
        assert 0 < fewer < full or not IMAGES[row]
        expected = unmerged.generate(**alone)[:, alone["input_ids"].shape[1] :]
        assert torch.equal(out[row : row + 1, length:], expected)


@pytest.mark.parametrize("side", ["left", "right"])
@every_method
@every_case
def test_logits_are_those_of_the_right_number_of_placeholders(vlm, where, method, side):
    unmerged, model = merged(vlm, method, where)
    inputs = vlm.inputs(unmerged, IMAGES, side)
    logits = model(**inputs).logits
    for row, alone in enumerate(vlm.rows_by_themselves(model, IMAGES)):
        expected = unmerged(**alone).logits[0]
        found = logits[row, -len(expected) :] if side == "left" else logits[row, : len(expected)]
        torch.testing.assert_close(found, expected, **CLOSE)


@every_method
@every_case
def test_an_image_gives_the_same_alone_and_in_a_batch(vlm, where, method):
    _, model = merged(vlm, method, where)
    together = vlm.features(model, [[0, 1, 2, 3]])
    apart = [rows for index in range(4) for rows in vlm.features(model, [[index]])]
    assert len(together) == len(apart)
    for one, other in zip(together, apart):
        torch.testing.assert_close(one, other, **CLOSE)


@every_case
def test_r0_is_bit_identical_and_remove_is_exact(vlm, where):
    model = vlm.make()
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    inputs = vlm.inputs(model, IMAGES)
    logits, tokens = model(**inputs).logits, model.generate(**inputs)
    apply(model, MergeConfig(r=0, where=where))
    assert torch.equal(model(**inputs).logits, logits)
    assert torch.equal(model.generate(**inputs), tokens)
    apply(model, CONFIGS[where, "tome"])
    assert model(**inputs).logits.shape[1] < logits.shape[1]
    assert list(model.state_dict()) == keys
    remove(model)
    assert torch.equal(model(**inputs).logits, logits)
    assert torch.equal(model.generate(**inputs), tokens)
    assert [type(module) for module in model.modules()] == classes
    assert not any(CONTEXT in module.__dict__ for module in model.modules())


@every_case
def test_saves_loads_pickles_and_copies(vlm, where, tmp_path):
    unmerged, model = merged(vlm, "tome", where)
    inputs = vlm.inputs(unmerged, IMAGES)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)]
    expected = model(**inputs).logits
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path, attn_implementation=unmerged.config._attn_implementation).eval()
    assert loaded.config.architectures == [f"{vlm.name}ForConditionalGeneration"]
    for twin in (*twins, loaded):
        assert torch.equal(twin(**inputs).logits, expected)
        assert not any(is_patched(module) for module in remove(twin).modules())


@every_case
def test_labels_follow_their_tokens(vlm, where):
    unmerged, model = merged(vlm, "tome", where)
    losses, weights = [], []
    for alone in vlm.rows_by_themselves(model, IMAGES):
        labels = labels_of(alone)
        losses.append(unmerged(**alone, labels=labels).loss)
        weights.append((labels[:, 1:] != -100).sum())
    expected = sum(loss * weight for loss, weight in zip(losses, weights)) / sum(weights)
    for side in ("left", "right"):
        inputs = vlm.inputs(unmerged, IMAGES, side)
        torch.testing.assert_close(model(**inputs, labels=labels_of(inputs)).loss, expected, **CLOSE)

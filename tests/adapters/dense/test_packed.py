"""Packed towers (Qwen-VL, GLM-V and others): merging within each image, with every token given back."""

import copy
import itertools
import pickle
import sys

import pytest
import torch
import transformers as tf
from reversible import check_checkpointed_gradients, check_reversible
from segment_zoo import ALL_PACKED, GRIDS, PACKED_ZOO
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_tome import MergeConfig, UnsupportedModelError, apply, remove, report
from hf_tome.adapters.dense.packed.rows import PACKED_TOWERS
from hf_tome.adapters.dense.packed.segments import Segments, shared_out
from hf_tome.api import targets
from hf_tome.inspection.tracing import trace

CONFIGS = {
    "tome": MergeConfig(r=4),
    "tome-exhausted": MergeConfig(r=100),
    "ratio": MergeConfig(ratio=0.4, layers=[0, 2]),
    "x": MergeConfig(r=4, metric="x", proportional_attention=False),
    "mame": MergeConfig(method="mame", threshold=0.3, layers=range(3)),
    "mame-union": MergeConfig(method="mame", threshold=0.3, layers=[1], batching="union"),
    "kmeans": MergeConfig(method="kmeans", r=4),
    "greedy": MergeConfig(method="greedy", r=4),
    "attended": MergeConfig(r=4, protect_attended=0.5),
    "keep-norm": MergeConfig(r=4, combine="keep_norm"),
}
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
BY_NAME = {zoo.module: zoo for zoo in PACKED_ZOO}
DESIGNS = [BY_NAME[name] for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "exaone4_5", "glm_ocr", "inkling2")]

every_tower = pytest.mark.parametrize("zoo", PACKED_ZOO, ids=BY_NAME.keys())
each_design = pytest.mark.parametrize("zoo", DESIGNS, ids=lambda zoo: zoo.module)


def pairs(zoos):
    """Pair towers with configs; all but one config for each tower are slow."""
    return [
        pytest.param(
            zoo,
            CONFIGS[name],
            id=f"{zoo.module}-{name}",
            marks=() if column == row % len(CONFIGS) else pytest.mark.slow,
        )
        for row, zoo in enumerate(zoos)
        for column, name in enumerate(CONFIGS)
    ]


design_pair = pytest.mark.parametrize(("zoo", "config"), pairs(DESIGNS))
every_pair = pytest.mark.parametrize(("zoo", "config"), pairs(PACKED_ZOO))


def test_every_row_has_a_tower():
    assert {zoo.tower for zoo in ALL_PACKED} == set(PACKED_TOWERS)


@pytest.mark.parametrize("backend", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
@every_tower
def test_r0_is_bit_identical_and_remove_is_exact(zoo, backend):
    check_reversible(zoo.make(backend), zoo.run, MergeConfig(r=4), atol=1e-3)


@every_pair
def test_images_of_a_batch_are_as_if_alone(zoo, config):
    model, images = apply(zoo.make(), config), zoo.inputs()
    with torch.no_grad():
        together = zoo.run(model, images)
        tokens = [after for _, after in report(model).towers[0].tokens]
        alone = torch.cat([zoo.run(model, [image]) for image in images])
    assert torch.isfinite(together).all()
    assert tokens[-1] < sum(rows * columns for _, rows, columns in GRIDS) / len(GRIDS)
    torch.testing.assert_close(together, alone, **CLOSE)
    (target,) = targets(model)
    assert target.recorder.current() is None


@design_pair
def test_the_order_of_images_changes_nothing(zoo, config):
    model, images = apply(zoo.make(), config), zoo.inputs()
    with torch.no_grad():
        counts = [len(zoo.run(model, [image])) for image in images]
        forward = zoo.run(model, images).split(counts)
        backward = zoo.run(model, images[::-1]).split(counts[::-1])
    for one, other in zip(forward, backward[::-1]):
        torch.testing.assert_close(one, other, **CLOSE)


@design_pair
def test_eager_agrees_with_sdpa(zoo, config):
    with torch.no_grad():
        sdpa, eager = (zoo.run(apply(zoo.make(backend), config)) for backend in ("sdpa", "eager"))
    torch.testing.assert_close(sdpa, eager, atol=1e-3, rtol=1e-3)  # MaMe magnifies what differs


@pytest.mark.parametrize("backend", ["flash_attention_2", "flex_attention"])
@each_design
def test_backends_without_masks(zoo, backend, monkeypatch):
    # Stands in for kernels that this machine cannot run: no mask, and cumulative lengths for flash attention.
    def kernel(
        module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, max_length_q=None, **kwargs
    ):
        assert attention_mask is None
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        bounds = [0, query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
        lengths = [end - start for start, end in itertools.pairwise(bounds)]
        assert max_length_q in (None, max(lengths))
        outs = [
            F.scaled_dot_product_attention(*states, scale=scaling)
            for states in zip(*(states.split(lengths, dim=2) for states in (query, key, value)))
        ]
        return torch.cat(outs, dim=2).transpose(1, 2), None

    with torch.no_grad():
        expected = zoo.run(apply(zoo.make(), MergeConfig(r=4)))
        model = apply(zoo.make(), MergeConfig(r=4))
        model.config._attn_implementation = backend
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, backend, kernel)
        torch.testing.assert_close(zoo.run(model), expected, **CLOSE)


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_values_follow_the_coherence_of_tokens_that_keep_their_norm(name, monkeypatch):
    """A merged token of full length gives to others what its members would: less, the less they agree."""
    zoo, config = BY_NAME[name], MergeConfig(r=[4, 4, 0, 4], combine="keep_norm")
    model, given, projected = apply(zoo.make(), config), [], []
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(module, query, key, value, *args, **kwargs):
        given.append(value.transpose(1, 2).flatten(0, 1))  # (G, H, N, d) -> (G * N, H, d)
        return attend(module, query, key, value, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", spy)
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(lambda module, args, out: projected.append(out[:, 64:].view(-1, 2, 16)))
    with torch.no_grad():
        zoo.run(model, zoo.inputs([[1, 4, 4]]))
    scales = [(one / other).flatten(1) for one, other in zip(given, projected)]
    for scale in scales:
        torch.testing.assert_close(scale, scale[:, :1].expand_as(scale), **CLOSE)
    assert [round(scale.max().item(), 4) for scale in scales] == [1] * 4
    assert scales[0].min() == 1
    assert all(0 < scale.min() < 0.99 for scale in scales[1:])
    torch.testing.assert_close(scales[3], scales[2], **CLOSE)  # block 2 merges nothing, and hands it on


# --- what is read is in its place ---------------------------------------------------------------------------------


def without_positions(zoo):
    """Return a tower that knows no places, so that equal patches stay equal."""
    model = zoo.make()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "pos_embed" in name or "inv_freq" in name:
                tensor.zero_()
    return model


WHOLE_GROUPS = [BY_NAME[name] for name in ("qwen2_vl", "qwen3_vl", "qwen3_5", "glm_ocr")]


@pytest.mark.parametrize(
    "config",
    [
        MergeConfig(method="greedy", r=4),
        MergeConfig(r=8, layers=[1]),
        MergeConfig(method="mame", threshold=0.3, layers=[1]),
    ],
    ids=["greedy", "tome", "mame"],
)
@pytest.mark.parametrize("zoo", WHOLE_GROUPS, ids=lambda zoo: zoo.module)
def test_the_map_moves_with_the_groups(zoo, config):
    model = apply(without_positions(zoo), config)
    images = zoo.inputs()
    moved = [(patches.roll(12, dims=0), grid) for patches, grid in images]  # by three groups of 2 x 2
    with torch.no_grad():
        counts = [len(patches) // 4 for patches, _ in images]
        plain, after = zoo.run(model, images).split(counts), zoo.run(model, moved).split(counts)
    for one, other in zip(plain, after):
        torch.testing.assert_close(other, one.roll(3, dims=0), **CLOSE)


@pytest.mark.parametrize("zoo", [*WHOLE_GROUPS, BY_NAME["qwen2_5_vl"]], ids=lambda zoo: zoo.module)
def test_merging_equal_patches_changes_nothing(zoo):
    # Every group has the same four patches, so that tokens of equal patches merge, within windows as well, and a
    # merged one counts for all of them (ToMe, equation 1).
    model = without_positions(zoo)
    images = [(patches[:4].repeat(len(patches) // 4, 1), grid) for patches, grid in zoo.inputs([[1, 8, 8], [1, 8, 4]])]
    with torch.no_grad():
        plain = zoo.run(model, images)
        merged = zoo.run(apply(model, MergeConfig(method="greedy", r=4)), images)
    tokens = report(model).towers[0].tokens
    assert tokens[-1][1] < tokens[0][0] - 8
    torch.testing.assert_close(merged, plain, atol=1e-3, rtol=1e-3)


def test_windows_stay_apart():
    """A token merges within its window, whose tokens are all that it attends to in most blocks."""
    zoo = BY_NAME["qwen2_5_vl"]
    model = apply(zoo.make(), MergeConfig(r=16, layers=[1], trace=True))
    with torch.no_grad():
        zoo.run(model, zoo.inputs([[1, 8, 8]]))
    source = trace(model).source[0]  # four windows of 4 x 4 patches, one after the other
    holders = [set(part.tolist()) for part in source.split(16)]
    assert [len(rows) for rows in holders] == [12] * 4
    assert sum(map(len, holders)) == len(set().union(*holders))


@pytest.mark.parametrize(("total", "lengths"), [(7, [16] * 4), (3, [5, 0, 9, 2]), (0, [4, 4]), (100, [30, 70])])
def test_shares_add_up(total, lengths):
    shares = shared_out(total, lengths)
    assert sum(shares) == total
    assert all(abs(share - total * length / sum(lengths)) <= 1 for share, length in zip(shares, lengths))


@pytest.mark.parametrize(
    ("name", "config", "count"),
    [
        ("qwen3_vl", MergeConfig(r=4), 1),  # of images
        ("qwen2_5_vl", MergeConfig(r=4), 2),  # and of windows
        ("qwen3_vl", MergeConfig(method="mame", threshold=0.3, layers=[1]), 1 + 1),  # and what the merge left
    ],
)
def test_lengths_are_read_from_the_device_once(name, config, count, monkeypatch):
    """Each read waits for the device; what a merge leaves is known without, but where the images decide."""
    zoo, readers, read = BY_NAME[name], [], torch.Tensor.tolist
    model = apply(zoo.make(), config)

    def spy(tensor):
        readers.append(sys._getframe(1).f_globals["__name__"])
        return read(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", spy)
    with torch.no_grad():
        zoo.run(model, zoo.inputs([[1, 8, 8], [1, 8, 8], [1, 4, 4]]))
    assert len([module for module in readers if ".packed." in module]) == count


def test_segments_go_there_and_back():
    segments = Segments([3, 5, 3, 2], torch.device("cpu"))
    x = torch.arange(13)
    assert [tuple(part.shape) for part in segments.split(x)] == [(2, 3), (1, 5), (1, 2)]
    assert segments.split(x)[0].tolist() == [[0, 1, 2], [8, 9, 10]]
    assert torch.equal(segments.join(segments.split(x)), x)


# --- frames, odd sizes, whole models ------------------------------------------------------------------------------


@each_design
def test_frames_merge_by_themselves(zoo):
    """A clip's frames are segments of their own, as are images."""
    model = apply(zoo.make(), MergeConfig(r=4))
    grids = [[2, 4, 6], [1, 2, 2], [1, 10, 2]]
    images = zoo.inputs(grids if zoo.module != "inkling2" else grids[1:])
    with torch.no_grad():
        out = zoo.run(model, images)
        torch.testing.assert_close(out, torch.cat([zoo.run(model, [image]) for image in images]), **CLOSE)
    assert torch.isfinite(out).all()


def build_qwen2_5_vl():
    torch.manual_seed(0)
    text = {
        **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 120},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512},
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
    }
    vision = BY_NAME["qwen2_5_vl"].options
    tokens = {"image_token_id": 100, "video_token_id": 101, "vision_start_token_id": 102, "vision_end_token_id": 103}
    config = tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
    return tf.Qwen2_5_VLForConditionalGeneration(config).eval()


def test_a_whole_model_generates():
    model, zoo = build_qwen2_5_vl(), BY_NAME["qwen2_5_vl"]
    (patches, grid), ids = zoo.inputs()[0], [5, 102, *[100] * 16, 103, 7, 8]
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "mm_token_type_ids": torch.tensor([[int(token == 100) for token in ids]]),
        "pixel_values": patches,
        "image_grid_thw": torch.tensor([grid]),
    }
    with torch.no_grad():
        plain = model(**inputs).logits
        merged = model.generate(**inputs, max_new_tokens=3, do_sample=False)  # runs unmerged
        apply(model, MergeConfig(r=8))
        out = model(**inputs).logits
        assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape == merged.shape
        assert out.shape == plain.shape
        assert not torch.allclose(out, plain, atol=1e-4)
        assert torch.equal(remove(model)(**inputs).logits, plain)


# --- around a tower ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm_ocr"])
def test_gflops_are_those_that_run(name):
    zoo = BY_NAME[name]
    model, images = zoo.make("eager"), zoo.inputs([[1, 8, 8], [1, 4, 6]])
    with torch.no_grad():
        with FlopCounterMode(display=False) as plain:
            zoo.run(model, images)
        apply(model, MergeConfig(r=8))
        with FlopCounterMode(display=False) as counted:
            zoo.run(model, images)
    (tower,) = report(model).towers
    for reported, flops in ((tower.gflops_unmerged, plain), (tower.gflops, counted)):
        assert 2 * reported == pytest.approx(flops.get_total_flops() / 2e9, rel=1e-3)  # of two images


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_checkpointed_gradients_equal_plain_ones(name):
    zoo = BY_NAME[name]
    check_checkpointed_gradients(zoo.make, zoo.run, MergeConfig(r=4))


@pytest.mark.parametrize("name", ["qwen3_vl", pytest.param("qwen2_5_vl", marks=pytest.mark.slow)])
@torch._dynamo.config.patch(recompile_limit=2)  # each length of an image would be a graph more, and seconds
def test_compiles(name):
    zoo = BY_NAME[name]
    model, images = apply(zoo.make(), MergeConfig(r=4)), zoo.inputs([[1, 8, 8], [1, 4, 4]])
    torch._dynamo.reset()
    with torch.no_grad():
        eager = zoo.run(model, images)
        torch.testing.assert_close(zoo.run(torch.compile(model, backend="eager"), images), eager, **CLOSE)
        assert report(model).towers[0].measured


def test_copies_and_pickles():
    zoo = BY_NAME["qwen3_vl"]
    model = apply(zoo.make(), MergeConfig(r=4))
    with torch.no_grad():
        expected = zoo.run(model)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(zoo.run(twin), expected)


def test_trace_tells_where_tokens_went():
    zoo = BY_NAME["qwen3_vl"]
    model = apply(zoo.make(), MergeConfig(r=4, trace=True))
    with torch.no_grad():
        zoo.run(model)
    traced = trace(model)
    assert traced.source.shape == (3, 64)
    assert traced.size.shape == (3, 48, 1)
    assert traced.size.sum(dim=(1, 2)).tolist() == [64, 60, 16]
    for source, size in zip(traced.source, traced.size[..., 0]):
        held = source[source >= 0].bincount(minlength=len(size))
        assert torch.equal(held.float(), size[: len(held)])


@pytest.mark.parametrize("name", ["random_prune", "attention_prune"])
def test_pruning_is_unsupported(name):
    model = BY_NAME["qwen3_vl"].make()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(UnsupportedModelError, match="needs every token after the last block"):
        apply(model, MergeConfig(method=name, r=4))
    assert [type(module) for module in model.modules()] == classes


def test_blocks_that_changed_are_told():
    zoo = BY_NAME["qwen3_vl"]
    model = apply(zoo.make(), MergeConfig(r=4))
    model.blocks = model.blocks[:-1]
    with pytest.raises(RuntimeError, match="there are 3, and there were 4"), torch.no_grad():
        zoo.run(model)

"""Towers of SAM's kind: tokens merge in their windows, and every one is given back before the neck."""

import copy
import pickle

import pytest
import torch
import transformers as tf
from reversible import check_checkpointed_gradients, check_reversible
from segment_zoo import SAM, WINDOW_ZOO, with_weights
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_tome import MergeConfig, UnsupportedModelError, apply, remove, report
from hf_tome.adapters.dense.sam import attention
from hf_tome.adapters.dense.sam.attention import RelativePositions
from hf_tome.adapters.dense.sam.family import WINDOW_TOWERS
from hf_tome.adapters.dense.sam.grid import WindowGrid
from hf_tome.api import targets
from hf_tome.inspection.tracing import trace

CONFIGS = {
    "tome": MergeConfig(r=10),
    "tome-exhausted": MergeConfig(r=100),
    "ratio": MergeConfig(ratio=0.4, layers=[1]),
    "mame": MergeConfig(method="mame", threshold=0.3, layers=range(3)),
    "kmeans": MergeConfig(method="kmeans", r=10),
    "greedy": MergeConfig(method="greedy", r=10),
    "attended": MergeConfig(r=10, protect_attended=0.5),
    "keep-norm": MergeConfig(r=10, combine="keep_norm"),
}
BY_NAME = {zoo.module: zoo for zoo in WINDOW_ZOO}
NAMES = [zoo.tower for zoo in WINDOW_ZOO]
DESIGNS = [BY_NAME[name] for name in ("sam", "sam_hq", "sam3")]

every_tower = pytest.mark.parametrize("zoo", WINDOW_ZOO, ids=NAMES)
each_design = pytest.mark.parametrize("zoo", DESIGNS, ids=lambda zoo: zoo.module)


def pairs(zoos):
    """Pair towers with configs; all but one config for each tower are slow."""
    return [
        pytest.param(
            zoo,
            CONFIGS[name],
            id=f"{zoo.tower}-{name}",
            marks=() if column == row % len(CONFIGS) else pytest.mark.slow,
        )
        for row, zoo in enumerate(zoos)
        for column, name in enumerate(CONFIGS)
    ]


every_pair = pytest.mark.parametrize(("zoo", "config"), pairs(WINDOW_ZOO))
KEEP_ALL = MergeConfig(ratio=0.001)
"""Runs through every merged forward, and merges nothing."""


def test_every_row_has_a_tower():
    assert {zoo.tower for zoo in WINDOW_ZOO} == set(WINDOW_TOWERS)


@every_tower
def test_r0_is_bit_identical_and_remove_is_exact(zoo):
    for backend in zoo.backends:
        check_reversible(zoo.make(backend), zoo.run, MergeConfig(r=10), atol=1e-3)


@every_tower
def test_keeping_all_tokens_is_exact(zoo):
    """Positions as one product, pads as constant keys and windows in other orders are what the model computes."""
    for size in ((40, 40), (24, 48)) if "ocr2" in zoo.module and zoo.module != "got_ocr2" else ((40, 40),):
        model, pixels = zoo.make(), zoo.inputs(size=size)
        with torch.no_grad():
            plain = zoo.run(model, pixels)
            kept = zoo.run(apply(model, KEEP_ALL), pixels)
        torch.testing.assert_close(kept, plain, atol=1e-4, rtol=1e-4)
        assert report(model).towers[0].tokens[-1][1] == size[0] * size[1] / 16


@every_pair
def test_images_of_a_batch_are_as_if_alone(zoo, config):
    model, pixels = apply(zoo.make(), config), zoo.inputs()
    with torch.no_grad():
        together = zoo.run(model, pixels)
        assert report(model).towers[0].tokens[-1][1] < 80
        alone = torch.cat([zoo.run(model, image[None]) for image in pixels])
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)
    (target,) = targets(model)
    assert target.recorder.current() is None
    assert target.recorder.result() is None, "tensors of a pass that nobody reads any more"


@pytest.mark.parametrize("name", ["sam", "sam3"])
def test_values_follow_the_coherence_of_tokens_that_keep_their_norm(name, monkeypatch):
    """A merged token of full length gives to others what its members would: less, the less they agree."""
    zoo, given, projected = BY_NAME[name], [], []
    model = apply(zoo.make(), MergeConfig(r=[10, 0, 10], combine="keep_norm"))
    attend = F.scaled_dot_product_attention

    def spy(query, key, value, **kwargs):
        given.append(value)
        return attend(query, key, value, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    layers = model.get_submodule(targets(model)[0].path).layers
    attention = getattr(layers[-1], "attn" if name == "sam" else "attention")  # over the whole grid, without pads
    attention.get_submodule("qkv" if name == "sam" else "v_proj").register_forward_hook(
        lambda module, args, out: projected.append(out)
    )
    with torch.no_grad():
        zoo.run(model, zoo.inputs()[:1])
    values = given[-1][0].transpose(0, 1).flatten(1)  # (1, H, M, d) -> (M, H * d)
    scale = values / projected[0][:, -values.shape[1] :]
    torch.testing.assert_close(scale, scale[:, :1].expand_as(scale), atol=1e-4, rtol=1e-4)
    assert scale.shape[0] == 80
    assert scale.max().item() == pytest.approx(1, abs=1e-4)
    assert 0 < scale.min() < 0.99


def test_positions_of_any_places_are_exact():
    """Against SAM's own bias for whole grids."""
    attention = BY_NAME["sam"].make().layers[1].attn
    query = torch.randn(2, 2, 100, 16)  # (B, H, N, d)
    place, some = torch.arange(100).expand(2, -1), torch.tensor([3, 99, 40])
    with torch.no_grad():
        own = attention.get_decomposed_rel_pos(
            query.flatten(0, 1), attention.rel_pos_h, attention.rel_pos_w, (10, 10), (10, 10)
        ).reshape(2, 2, 100, 100)
        bias = torch.randn(2, 100)
        whole = RelativePositions(place, place, (10, 10)).bias(attention, query)
        torch.testing.assert_close(whole, own, atol=1e-5, rtol=1e-5)
        chosen = RelativePositions(place[:, some], place, (10, 10), bias).bias(attention, query[:, :, some])
        torch.testing.assert_close(chosen, own[:, :, some] + bias[:, None, None], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", [1, 2000, 10**9])
def test_a_bias_may_be_made_in_parts(part, monkeypatch):
    """Of one query, of some, or of all queries of all heads: the same attention."""
    zoo, seen, attend = BY_NAME["sam"], [], F.scaled_dot_product_attention
    model, pixels = apply(zoo.make(), MergeConfig(ratio=0.4, layers=[0])), zoo.inputs()

    def spy(query, *args, **kwargs):
        seen.append(tuple(query.shape[1:3]))  # heads and queries
        return attend(query, *args, **kwargs)

    with torch.no_grad():
        expected = zoo.run(model, pixels)
        monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
        monkeypatch.setattr(attention, "BIAS_PART", part)
        torch.testing.assert_close(zoo.run(model, pixels), expected, atol=1e-5, rtol=1e-5)
    heads = {heads for heads, _ in seen}
    assert heads == {1} if part == 1 else 2 in heads
    assert any(heads == 1 and queries > 1 for heads, queries in seen) == (part == 2000)


def test_windows_go_there_and_back():
    grid = WindowGrid((2, 5, 6), 4, torch.device("cpu"))
    x = torch.randn(2, 5, 6, 3)
    assert torch.equal(grid.to_grid(grid.to_windows(x)), x)
    assert grid.window_bounds.diff().tolist() == [16, 8, 4, 2] * 2
    assert [len(pads) for pads in grid.pads] == [0, 8, 12, 14]
    assert torch.equal(grid.to_windows(x)[16:24], x[0, :4, 4:].reshape(8, 3))


def test_tokens_merge_within_their_window():
    zoo = BY_NAME["sam"]
    model = apply(zoo.make(), MergeConfig(r=30, trace=True))
    with torch.no_grad():
        zoo.run(model)
    grid = WindowGrid((1, 10, 10), 4, torch.device("cpu"))
    for source in trace(model).source:
        holders = [set(part.tolist()) for part in source.split(grid.window_bounds.diff().tolist())]
        assert sum(map(len, holders)) == len(set().union(*holders))


# --- what is read is in its place ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        MergeConfig(method="greedy", r=20),
        MergeConfig(r=24, layers=[1]),  # six in each window
        MergeConfig(method="mame", threshold=0.3, layers=[1]),
    ],
    ids=["greedy", "tome", "mame"],
)
@pytest.mark.parametrize("name", ["sam", "sam_hq"])
def test_the_map_moves_with_the_windows(name, config):
    """Without positions, moving the picture by a window moves what comes out; 8 x 8 patches fill four windows."""
    zoo = BY_NAME[name]
    model = apply(zoo.make(image_size=32, use_rel_pos=False, use_abs_pos=False), config)
    pixels = zoo.inputs(size=(32, 32))
    with torch.no_grad():
        maps = read_maps(model, pixels)
        moved = read_maps(model, pixels.roll((16, 16), dims=(2, 3)))
    for one, other in zip(maps, moved):
        torch.testing.assert_close(other, one.roll((4, 4), dims=(1, 2)), atol=1e-3, rtol=1e-3)


def read_maps(model, pixels):
    """Return what the blocks hand to the neck, and what global blocks give out, (B, H, W, C)."""
    seen = []
    hook = model.neck.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    out = model(pixels)
    hook.remove()
    return [*seen, *(out.get("intermediate_embeddings") or ())]


@each_design
def test_merging_equal_patches_changes_nothing(zoo):
    """Each patch stands four times in its window; a merged token counts for all of them (ToMe, equation 1)."""
    options = {"image_size": 32} if zoo.module == "sam3" else {"image_size": 32, "use_rel_pos": False}
    model = zoo.make(**options)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "pos_embed" in name or "position_embeddings" in name or "inv_freq" in name:
                tensor.zero_()
    patches = zoo.inputs(size=(16, 16)).unflatten(-1, (4, 4)).unflatten(-3, (4, 4))
    twice = patches.repeat_interleave(2, dim=-4).repeat_interleave(2, dim=-2)  # (B, C, 8, 4, 8, 4)
    pixels = twice.flatten(-4, -3).flatten(-2)
    with torch.no_grad():
        plain = zoo.run(model, pixels)
        merged = zoo.run(apply(model, MergeConfig(method="greedy", r=8)), pixels)
    assert report(model).towers[0].tokens[-1][1] == 32
    torch.testing.assert_close(merged, plain, atol=1e-3, rtol=1e-3)


# --- around a tower ------------------------------------------------------------------------------------------------


def build_sam(prefix):
    torch.manual_seed(0)
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
    if prefix == "SamHQ":
        decoder["vit_dim"] = 32
    prompt = {"hidden_size": 32, "image_size": 40, "patch_size": 4, "image_embedding_size": 10}
    config = getattr(tf, f"{prefix}Config")(
        vision_config={**SAM, "output_channels": 32, "num_pos_feats": 16},
        prompt_encoder_config=prompt,
        mask_decoder_config=decoder,
    )
    return with_weights(getattr(tf, f"{prefix}Model")(config).eval())


@pytest.mark.parametrize("prefix", ["Sam", "SamHQ"])
def test_a_whole_model_gives_masks(prefix):
    model = build_sam(prefix)
    inputs = {"pixel_values": BY_NAME["sam"].inputs(), "input_points": torch.tensor([[[[9.0, 20.0]]]] * 2)}
    with torch.no_grad():
        plain = model(**inputs)
        merged = apply(model, MergeConfig(r=10))(**inputs)
        assert merged.pred_masks.shape == plain.pred_masks.shape
        assert not torch.equal(merged.pred_masks, plain.pred_masks)
        (tower,) = report(model).towers
        assert tower.tokens[-1][1] == 60
        assert torch.equal(remove(model)(**inputs).pred_masks, plain.pred_masks)


def test_gflops_are_those_that_run():
    zoo = BY_NAME["sam"]
    model, pixels = zoo.make("eager", use_rel_pos=False), zoo.inputs(1)
    seen = []

    def counted():
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            zoo.run(model, pixels)
        by_module = counter.get_flop_counts()
        return sum(
            sum(flops.values()) for name, flops in by_module.items() if name.count(".") == 2 and "layers" in name
        )

    with torch.no_grad():
        seen.append(counted())
        apply(model, MergeConfig(r=10, layers=[0, 2]))
        seen.append(counted())
    (tower,) = report(model).towers
    assert tower.gflops_unmerged == pytest.approx(seen[0] / 2e9, rel=1e-3)
    assert tower.gflops == pytest.approx(seen[1] / 2e9, rel=0.03)  # what projections make of a pad is counted there


@pytest.mark.parametrize("name", ["sam", "sam_hq"])
def test_checkpointed_gradients_equal_plain_ones(name):
    zoo = BY_NAME[name]
    check_checkpointed_gradients(zoo.make, zoo.run, MergeConfig(r=10))


@pytest.mark.parametrize("name", ["sam", pytest.param("sam3", marks=pytest.mark.slow)])
@torch._dynamo.config.patch(recompile_limit=2)  # each window's size would be a graph more, and seconds
def test_compiles(name):
    zoo = BY_NAME[name]
    model = apply(zoo.make(), MergeConfig(r=10))
    torch._dynamo.reset()
    with torch.no_grad():
        eager = zoo.run(model)
        torch.testing.assert_close(zoo.run(torch.compile(model, backend="eager")), eager, atol=1e-4, rtol=1e-4)


def test_copies_and_pickles():
    zoo = BY_NAME["sam_hq"]
    model = apply(zoo.make(), MergeConfig(r=10))
    with torch.no_grad():
        expected = zoo.run(model)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(zoo.run(twin), expected)


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random_prune", "attention_prune"])
def test_pruning_is_unsupported(name):
    model = BY_NAME["sam"].make()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(UnsupportedModelError, match="needs every token after the last block"):
        apply(model, MergeConfig(method=name, r=4))
    assert [type(module) for module in model.modules()] == classes


def test_windows_of_one_token_are_unsupported():
    with pytest.raises(UnsupportedModelError, match=r"windows of side 1; .* at least two tokens"):
        apply(BY_NAME["sam"].make(window_size=1), MergeConfig(r=4))


def test_convolutions_between_the_blocks_are_unsupported():
    model = BY_NAME["vitdet"].make(residual_block_indices=[1])
    with pytest.raises(UnsupportedModelError, match="Convolutions follow some of the blocks of this VitDet"):
        apply(model, MergeConfig(r=4))

"""Whole pipelines of small random parts: what is found in them, and that all of them go on working."""

import numpy as np
import pytest
import torch
from denoisers import BY_ROW, UNET
from PIL import Image

import hf_tome
from hf_tome import MergeConfig, UnsupportedModelError
from hf_tome.patching.patch import is_patched

diffusers = pytest.importorskip("diffusers")

CONFIG = MergeConfig(ratio=0.5, min_tokens=64, tile=8)
TEXT = {"prompt_embeds": torch.ones(1, 5, 16), "negative_prompt_embeds": torch.zeros(1, 5, 16)}


def parts():
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
                                  down_block_types=("DownEncoderBlock2D",) * 2,
                                  up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    none = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    return {"vae": vae, "unet": BY_ROW["UNet2DConditionModel"].make(), "scheduler": scheduler, **none}


def pipeline(name="StableDiffusionPipeline", **more):
    pipe = getattr(diffusers, name)(**parts(), **more, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **inputs):
    sizes = {} if "image" in inputs else {"height": 16, "width": 24}
    values = {**TEXT, **sizes, "num_inference_steps": 3, "output_type": "np", **inputs}
    return torch.from_numpy(pipe(generator=torch.Generator().manual_seed(0), **values).images)


def test_a_pipeline_before_and_after():
    pipe = pipeline()
    expected = draw(pipe)
    assert hf_tome.apply(pipe, CONFIG) is pipe
    merged = draw(pipe)
    assert merged.shape == expected.shape == (1, 16, 24, 3)
    assert (merged - expected).abs().max() > 1e-3
    assert torch.equal(draw(pipe), merged)
    assert is_patched(pipe.unet)
    assert not any(is_patched(module) for module in pipe.vae.modules())
    seen = []
    draw(pipe, callback_on_step_end=lambda pipe, step, time, values: seen.append(step) or values)
    assert seen == [0, 1, 2]
    assert hf_tome.remove(pipe) is pipe
    assert torch.equal(draw(pipe), expected)


def test_a_controlnet_is_found_too():
    pipe = pipeline("StableDiffusionControlNetPipeline", controlnet=BY_ROW["ControlNetModel"].make())
    control = Image.fromarray(np.tile(np.arange(24, dtype=np.uint8)[None, :, None] * 10, (16, 1, 3)))
    expected = draw(pipe, image=control, height=16, width=24)
    hf_tome.apply(pipe, CONFIG)
    assert [tower.tower for tower in hf_tome.report(pipe).towers] == ["UNet2DConditionModel", "ControlNetModel"]
    assert (draw(pipe, image=control, height=16, width=24) - expected).abs().max() > 1e-3
    hf_tome.remove(pipe)
    assert torch.equal(draw(pipe, image=control, height=16, width=24), expected)


@pytest.mark.parametrize(("towers", "merges"), [("unet", 0), (["controlnet"], 1)])
def test_one_of_several_denoisers_is_chosen(towers, merges):
    pipe = pipeline("StableDiffusionControlNetPipeline", controlnet=BY_ROW["ControlNetModel"].make())
    hf_tome.apply(pipe, where="denoiser", ratio=0.5, min_tokens=0, towers=towers)
    merged = [any(is_patched(module) for module in part.modules()) for part in (pipe.unet, pipe.controlnet)]
    assert merged == [index == merges for index in range(2)]
    with pytest.raises(ValueError, match="`towers` names 'vae', but the model's towers are at 'unet', 'controlnet'"):
        hf_tome.apply(pipe, where="denoiser", ratio=0.5, towers="vae")
    assert merged == [any(is_patched(module) for module in part.modules()) for part in (pipe.unet, pipe.controlnet)]


@pytest.mark.parametrize("name", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"])
def test_pictures_that_start_from_one(name):
    pipe = hf_tome.apply(pipeline(name), CONFIG)
    picture = Image.fromarray(np.full((32, 32, 3), 99, dtype=np.uint8))
    more = {"mask_image": picture.convert("L")} if "Inpaint" in name else {}
    out = draw(pipe, image=picture, strength=0.9, **more, **({"height": 32, "width": 32} if more else {}))
    assert out.isfinite().all()
    assert hf_tome.report(pipe).towers[0].levels


def test_a_saved_pipeline_loads_unmerged(tmp_path):
    pipe = pipeline()
    expected = draw(pipe)
    hf_tome.apply(pipe, CONFIG).save_pretrained(tmp_path)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path,
        **dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")),
    )
    loaded.set_progress_bar_config(disable=True)
    assert not hf_tome.is_merged(loaded)
    torch.testing.assert_close(draw(loaded), expected)
    torch.testing.assert_close(draw(hf_tome.apply(loaded, CONFIG)), draw(pipe))


def test_a_picture_too_small_to_merge_is_an_error():
    pipe = hf_tome.apply(pipeline(), MergeConfig(ratio=0.5))
    with pytest.raises(ValueError, match=r"Nothing merged: .* `min_tokens` is 1,024"):
        draw(pipe)


def test_a_pipeline_without_a_denoiser_that_is_known():
    unet = diffusers.UNet2DModel(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    )
    pipe = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    with pytest.raises(UnsupportedModelError, match="UNet2DModel is not supported"):
        hf_tome.apply(pipe, CONFIG)
    convolutions = {**UNET, "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    model = diffusers.UNet2DConditionModel(**convolutions, mid_block_type=None)
    with pytest.raises(UnsupportedModelError, match="has no block in which tokens can merge"):
        hf_tome.apply(model, CONFIG)


BAD_CONFIGS = {
    "a ratio that the cells do not allow": ({"ratio": 0.8}, r"`ratio` is 0\.8; .* at most 0\.75"),
    "a ratio below zero": ({"ratio": -0.1}, r"`ratio` is -0\.1"),
    "a ratio of one": ({"ratio": 1.0}, r"`ratio` is 1"),
    "a seed that is no integer": ({"seed": 0.5}, r"`seed` is 0\.5; it takes an integer"),
    "a tile that is no side": ({"tile": 0}, "`tile` is 0"),
    "a stride of one number": ({"stride": 2}, "`stride` is 2"),
    "steps that end before they begin": ({"steps": (0.8, 0.2)}, r"`steps` is \(0\.8, 0\.2\)"),
    "modules that there are none of": ({"modules": "mlp"}, "`modules` is 'mlp'"),
    "a method without a form for grids": ({"method": "kmeans"}, "has no form for denoisers"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_input_leaves_a_pipeline_as_it_was(case):
    fields, message = BAD_CONFIGS[case]
    pipe = pipeline()
    classes = [type(module) for module in pipe.unet.modules()]
    with pytest.raises(ValueError, match=message):
        hf_tome.apply(pipe, **{"ratio": 0.5, "min_tokens": 64, **fields})
    assert [type(module) for module in pipe.unet.modules()] == classes
    hf_tome.apply(pipe, CONFIG)  # and one that is merged stays merged as it was
    with pytest.raises(ValueError, match=message):
        hf_tome.apply(pipe, **{"ratio": 0.5, "min_tokens": 64, **fields})
    assert hf_tome.get_config(pipe) == CONFIG


def test_after_a_picture_that_is_too_small_the_pipeline_draws_on():
    pipe = hf_tome.apply(pipeline(), CONFIG)
    expected = draw(pipe)
    with pytest.raises(ValueError, match="Nothing merged"):
        draw(pipe, height=8, width=8)
    assert torch.equal(draw(pipe), expected)
    hf_tome.remove(pipe)
    assert torch.equal(draw(pipe), draw(pipeline()))

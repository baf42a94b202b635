"""`hf-tome generate` and the demo that draws digits: pictures, comparison, resuming, errors."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import hf_tome
from hf_tome import MergeConfig
from hf_tome.cli.app import run
from hf_tome.cli.commands.generate import show_pictures
from hf_tome.cli.common import Format
from hf_tome.evaluation.data.digits import MODELS
from hf_tome.evaluation.metrics.pictures import psnr, ssim
from hf_tome.evaluation.pictures import PictureJob, clip_scorer, compare_pictures, frechet_distance

pytest.importorskip("diffusers")

HALF = "ratio=0.5,min_tokens=0,tile=8"


def generate(out, *more):
    return run(["generate", "--out", str(out), "--count", "2", "--steps", "2", "--format", "json", *more])


def test_digits_unmerged_and_merged(tmp_path, capsys):
    assert generate(tmp_path / "drawn", "--config", HALF, "--config", f"{HALF},modules=block") == 0
    results = json.loads(capsys.readouterr().out)
    unmerged, attention, block = results["rows"]
    assert "psnr" not in unmerged
    assert 100 > attention["psnr"] > block["psnr"] > 0
    assert 1 > attention["ssim"] > 0
    assert all(row["seconds"] > 0 and 0 <= row["right"] <= 100 for row in results["rows"])
    assert len(list((tmp_path / "drawn").rglob("0000?.png"))) == 6
    assert Image.open(tmp_path / "drawn" / "sheet.png").width > 2 * 96
    report = (tmp_path / "drawn" / "report.md").read_text()
    assert "PSNR dB" in report
    assert unmerged["gflops"] > attention["gflops"] > block["gflops"] > 0
    assert Image.open(tmp_path / "drawn" / "plot.png").width > 400
    card = (tmp_path / "drawn" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: hf_tome\n")
    for text in ("token-merging", "# digits-dit with token merging", HALF, "plot.png", "sheet.png", "seed 0, steps 2"):
        assert text in card
    # The same command draws nothing again; other settings do not mix with these pictures.
    assert generate(tmp_path / "drawn", "--config", HALF) == 0
    again = json.loads(capsys.readouterr().out)["rows"]
    assert [row["seconds"] for row in again] == [None, None]
    assert again[1]["psnr"] == attention["psnr"]
    assert generate(tmp_path / "drawn", "--seed", "3") == 1
    assert "holds pictures of another model, other prompts or other settings" in capsys.readouterr().err


def test_a_run_that_was_stopped_goes_on(tmp_path):
    drawn = []

    def draw(numbers):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.extend(numbers)
        return [Image.fromarray(np.full((16, 16, 3), 40 * number, dtype=np.uint8)) for number in numbers]

    job = PictureJob("stub", torch.nn.Identity(), ["a", "b", "c", "d", "e"], draw)
    with pytest.raises(KeyboardInterrupt):
        compare_pictures(job, [], tmp_path)
    job.draw = lambda numbers: drawn.extend(numbers) or [Image.new("RGB", (16, 16)) for _ in numbers]
    results = compare_pictures(job, [], tmp_path)
    assert drawn == [0, 1, 2, 3, 4]
    assert results["pictures"] == 5


def test_a_pipeline_is_drawn_from_a_file_of_prompts(tmp_path, monkeypatch, capsys):
    import diffusers

    class Pipe:
        unet = torch.nn.Identity()

        def to(self, device):
            return self

        def set_progress_bar_config(self, disable):
            assert disable

        def __call__(self, prompt, generator, num_inference_steps):
            assert num_inference_steps == 2
            noise = [torch.randn((), generator=one).item() for one in generator]
            return type("Out", (), {"images": [Image.new("L", (16, 16), int(90 + 30 * one)) for one in noise]})

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda *args, **kwargs: Pipe())
    monkeypatch.setattr("hf_tome.evaluation.pictures.remove", lambda *args: None)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n\n a dog \n")
    assert generate(tmp_path / "out", "--model", "folder", "--prompts", str(prompts)) == 0
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["prompts"] == ["a cat", "a dog"]
    prompts.write_text("\n")
    assert generate(tmp_path / "none", "--model", "folder", "--prompts", str(prompts)) == 1
    assert "has no prompts" in capsys.readouterr().err
    assert generate(tmp_path / "none", "--model", "folder") == 2
    assert generate(tmp_path / "none", "--prompts", str(prompts)) == 2


def test_results_are_written_as_those_of_other_commands(capsys):
    rows = [{"name": "unmerged", "seconds": 0.5}, {"name": "=r", "seconds": 0.25, "psnr": 30.123, "levels": ["a"]}]
    results = {"model": "a", "rows": rows}
    written = {}
    for form in Format:
        show_pictures(results, form)
        written[form.value] = capsys.readouterr().out
    assert json.loads(written["json"]) == results
    assert written["csv"] == "name,psnr,seconds\nunmerged,,0.5\n'=r,30.123,0.25\n"
    assert written["table"].splitlines()[1:] == [
        "unmerged  -        0.5",
        "=r        30.12    0.25",
    ]
    assert written["md"].startswith("| config | PSNR dB | seconds a picture |\n")


def test_measures_of_pictures():
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(2, 3, 32, 32, generator=generator)
    assert psnr(one, one).tolist() == [100, 100]
    torch.testing.assert_close(ssim(one, one), torch.ones(2))
    shifted = (one * 0.9).clamp(0, 1)
    expected = -10 * (one - shifted).square().flatten(1).mean(dim=1).log10()
    torch.testing.assert_close(psnr(shifted, one), expected)
    assert (ssim(torch.rand(2, 3, 32, 32, generator=generator), one) < 0.2).all()


def test_the_clip_score_is_100_times_the_cosine():
    from transformers import AutoProcessor, CLIPModel

    folder = MODELS / "digits-clip"
    prompts = ["a picture of a three", "a picture of a seven"]
    pictures = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    scores = clip_scorer(str(folder), prompts, "cpu")(pictures, [0, 1])
    arrays = [(picture.permute(1, 2, 0) * 255).round().byte().numpy() for picture in pictures]
    inputs = AutoProcessor.from_pretrained(folder)(text=prompts, images=arrays, return_tensors="pt", padding=True)
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**inputs).logits_per_image / model.logit_scale.exp()
    assert scores["clip"] == pytest.approx(100 * logits.diagonal().clamp(min=0).mean().item(), abs=1e-3)
    # A score of picture and prompt in other places is another one.
    assert clip_scorer(str(folder), prompts[::-1], "cpu")(pictures, [0, 1]) != scores


def test_ssim_and_fid_are_those_of_torchmetrics():
    functional = pytest.importorskip(
        "torchmetrics.functional.image", reason="SSIM and FID are compared with torchmetrics (the extra fid)"
    )
    first, second = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32) ** 2
    theirs = functional.structural_similarity_index_measure(
        first, second, data_range=1.0, gaussian_kernel=True, sigma=1.5, kernel_size=11, reduction="none"
    )
    # Theirs fills up the edges; in the middle both are the same.
    assert (ssim(first, second) - theirs).abs().max() < 0.05

    class Feature(torch.nn.Module):
        num_features = 4

        def forward(self, pictures):
            return pictures.float().flatten(1)[:, :4] / 255

    distance = frechet_distance(first, second, Feature())
    assert distance > frechet_distance(first, first, Feature())


def test_fid_without_torchmetrics_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    assert generate(tmp_path, "--config", HALF, "--fid") == 1
    assert "pip install 'hf_tome[fid]'" in capsys.readouterr().err


def test_the_demo_draws(tmp_path, capsys):
    assert run(["demo", "--task", "class-to-image", "--limit", "1", "--out", str(tmp_path), "--format", "json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert len(results["rows"]) == 8
    assert (tmp_path / "sheet.png").exists()


def test_the_model_gives_back_what_merging_took(tmp_path):
    from hf_tome.demo.digits_drawn import digits_job

    job = digits_job(1, steps=1)
    compare_pictures(job, [MergeConfig(ratio=0.5, min_tokens=0)], tmp_path)
    assert not hf_tome.is_merged(job.model)

    def fail(numbers):
        raise KeyboardInterrupt

    job.draw = fail
    with pytest.raises(KeyboardInterrupt):
        compare_pictures(job, [MergeConfig(ratio=0.5, min_tokens=0), MergeConfig(ratio=0.25)], tmp_path)
    assert not hf_tome.is_merged(job.model)

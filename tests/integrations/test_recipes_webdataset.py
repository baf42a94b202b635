"""integrations/webdataset: every image once; what cannot be read is listed, and a killed run goes on."""

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import small
import torch
import transformers
from PIL import Image
from test_shards import write_shard

import hf_tome

pq = pytest.importorskip("pyarrow.parquet", reason="label_shards.py needs pyarrow, which comes with datasets")

RECIPE = Path(__file__).resolve().parents[2] / "integrations" / "webdataset" / "label_shards.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("label_shards", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def png(seed):
    buffer = io.BytesIO()
    small.picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        samples = [(f"{shard}/{n}", {"png": png(5 * shard + n), "cls": "0"}) for n in range(5)]
        write_shard(folder / f"{shard:05}.tar", samples)
    write_shard(folder / "00002.tar", [("2/0", {"png": png(10)}), ("2/1", {"png": b"no image"})])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.vit(tmp_path_factory.mktemp("model"))


def run(recipe, shards, model, out, *options):
    return recipe.main(
        [f"{shards}/*.tar", "--model", str(model), "--out", str(out), "--batch-size", "3", "--device", "cpu", *options]
    )


def rows(out):
    return {row["key"]: row for file in sorted(out.glob("*.parquet")) for row in pq.read_table(file).to_pylist()}


def test_labels_are_those_of_the_merged_model(recipe, shards, model, tmp_path):
    summary = run(recipe, shards, model, tmp_path, "--config", "r=8")
    assert (summary["images"], summary["failed"]) == (11, [])
    assert [(item["shard"], item["key"]) for item in summary["skipped"]] == [("00002.tar", "2/1")]
    listed = (tmp_path / "00002.skipped.jsonl").read_text().splitlines()
    assert json.loads(listed[0])["reason"].startswith("ImageError")

    pipe = hf_tome.pipeline("image-classification", str(model), merge_config=hf_tome.MergeConfig(r=8))
    found = rows(tmp_path)
    assert len(found) == 11
    for key, row in found.items():
        shard, number = map(int, key.split("/"))
        best = pipe(small.picture(5 * shard + number))[0]
        assert row["label"] == best["label"]
        assert row["probability"] == pytest.approx(best["score"], abs=1e-5)  # alone, and in batches of 3


def test_a_run_goes_on_shard_by_shard(recipe, shards, model, tmp_path):
    run(recipe, shards, model, tmp_path)
    whole = rows(tmp_path)
    (tmp_path / "00001.parquet").unlink()
    (tmp_path / "00001.part").write_bytes(b"cut short")
    again = run(recipe, shards, model, tmp_path)
    assert (again["done_before"], again["images"]) == (2, 5)
    assert rows(tmp_path) == whole
    with pytest.raises(SystemExit, match=r"of another run.*give another --out"):
        run(recipe, shards, model, tmp_path, "--config", "r=4")


def test_processes_share_the_shards(recipe, shards, model, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    counts = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        counts.append(run(recipe, shards, model, tmp_path)["images"])
    assert counts == [6, 5]
    assert len(rows(tmp_path)) == 11


def test_a_shard_that_is_cut_short_is_said(recipe, shards, model, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "cut.tar").write_bytes((shards / "00000.tar").read_bytes()[:1200])
    (folder / "whole.tar").write_bytes((shards / "00000.tar").read_bytes())
    summary = run(recipe, folder, model, tmp_path / "out")
    assert [item["shard"] for item in summary["failed"]] == ["cut.tar"]
    assert summary["images"] == 5
    assert not (tmp_path / "out" / "cut.parquet").exists()
    with pytest.raises(SystemExit, match=r"No files match"):
        run(recipe, tmp_path / "nothing", model, tmp_path / "out")


def test_embeddings(recipe, shards, model, tmp_path):
    run(recipe, shards, model, tmp_path / "vit", "--what", "embeddings", "--config", "r=0")
    vit = transformers.AutoModel.from_pretrained(model).eval()
    pixels = transformers.AutoImageProcessor.from_pretrained(model)(small.picture(3), return_tensors="pt")
    with torch.no_grad():
        expected = vit(**pixels).last_hidden_state[0, 0]
    torch.testing.assert_close(
        torch.tensor(rows(tmp_path / "vit")["0/3"]["embedding"]), expected, atol=1e-5, rtol=1e-5
    )

    clip = small.dual(tmp_path / "clip")
    run(recipe, shards, clip, tmp_path / "dual", "--what", "embeddings", "--config", "r=8")
    assert {len(row["embedding"]) for row in rows(tmp_path / "dual").values()} == {16}


def test_pack(tmp_path, recipe):
    for number in range(3):
        (tmp_path / "photos" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "cat" / f"{number}.jpg")
    command = [sys.executable, RECIPE.with_name("pack.py"), tmp_path / "photos", tmp_path / "out", "--per-shard", "2"]
    subprocess.run(command, check=True, capture_output=True)
    assert [key for shard in sorted((tmp_path / "out").glob("*.tar")) for key, _ in recipe.samples(str(shard))] == [
        "cat/0",
        "cat/1",
        "cat/2",
    ]

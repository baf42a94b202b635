"""integrations/webdataset: every image once; what cannot be read is listed, and a killed run goes on."""

import importlib.util
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small
import torch
import transformers
from PIL import Image

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
        small.write_shard(folder / f"{shard:05}.tar", samples)
    small.write_shard(folder / "00002.tar", [("2/0", {"png": png(10)}), ("2/1", {"png": b"no image"})])
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


def test_shards_of_the_same_name_have_outputs_of_their_own(recipe, shards, model, tmp_path):
    for day, shard in (("day[1]", "00000.tar"), ("day2", "00001.tar")):
        (tmp_path / "in" / day).mkdir(parents=True)
        shutil.copy(shards / shard, tmp_path / "in" / day / "00000.tar")
    out = tmp_path / "out"
    summary = recipe.main([f"{tmp_path}/in/*/*.tar", "--model", str(model), "--out", str(out), "--device", "cpu"])
    assert (summary["images"], summary["failed"]) == (10, [])
    written = sorted(file.relative_to(out).as_posix() for file in out.rglob("*.parquet"))
    assert written == ["day2/00000.parquet", "day[1]/00000.parquet"]
    assert sum(pq.read_table(out / name).num_rows for name in written) == 10
    again = recipe.main([f"{tmp_path}/in/**/*.tar", "--model", str(model), "--out", str(out), "--device", "cpu"])
    assert (again["done_before"], again["images"]) == (2, 0)


def test_an_output_of_another_shard_is_not_taken_for_done(recipe, shards, model, tmp_path):
    for day, shard in (("day1", "00000.tar"), ("day2", "00001.tar")):
        (tmp_path / day).mkdir()
        shutil.copy(shards / shard, tmp_path / day / "00000.tar")
    run(recipe, tmp_path / "day1", model, tmp_path / "out")
    before = (tmp_path / "out" / "00000.parquet").read_bytes()
    with pytest.raises(SystemExit, match=r"00000\.parquet is of another shard than .*another --out"):
        run(recipe, tmp_path / "day2", model, tmp_path / "out")
    assert (tmp_path / "out" / "00000.parquet").read_bytes() == before
    (tmp_path / "day1").rename(tmp_path / "moved")  # the same shards elsewhere are done
    assert run(recipe, tmp_path / "moved", model, tmp_path / "out")["done_before"] == 1


def test_two_shards_for_one_output_are_refused(recipe, tmp_path):
    for name in ("a.tar", "a.tgz"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SystemExit, match=r"would be written to one file, a\.parquet"):
        recipe.main([f"{tmp_path}/*", "--model", "model", "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("text", ["", '{"model": "x', "[1]"])
def test_a_run_file_that_was_cut_short_is_said(recipe, shards, model, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(SystemExit, match=r"run\.json is of another run.*give another --out"):
        run(recipe, shards, model, tmp_path)


def test_nothing_is_written_through_a_link(recipe, shards, model, tmp_path):
    for name in ("run.json", "00000.parquet", "00002.skipped.jsonl"):
        (tmp_path / f"my {name}").write_text("")
        (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "00002.skipped.jsonl").symlink_to(tmp_path / "my 00002.skipped.jsonl")
    run(recipe, shards, model, tmp_path / "out")
    assert (tmp_path / "my 00002.skipped.jsonl").read_text() == ""
    assert not list((tmp_path / "out").glob("*.part"))


def pack(*arguments):
    command = [sys.executable, RECIPE.with_name("pack.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def packed(recipe, folder):
    return [key for shard in sorted(folder.glob("*.tar")) for key, _ in recipe.samples(str(shard))]


def test_pack(tmp_path, recipe):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "cat" / f"{number}.jpg")
    done = pack(tmp_path / "photos", tmp_path / "out[1]", "--per-shard", "2")
    assert done.stdout.strip() == f"3 images -> {tmp_path / 'out[1]'}"
    assert packed(recipe, tmp_path / "out[1]") == ["cat/0", "cat/1", "cat/2"]
    again = pack(tmp_path / "photos", tmp_path / "out[1]")
    assert again.returncode == 1
    assert "holds shards already" in again.stderr


def test_pack_counts_what_it_leaves_out_and_doubles_no_key(tmp_path, recipe):
    names = ("a.jpg", "a.JPG", "a.jpeg", "b.c.jpg", "b_c.jpg", ".hidden.jpg", ".git/x.jpg", "x.train/1.jpg")
    for name in (*names, "1.png", "2.gif", "3.PNG", "notes"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / "photos" / name).open("wb") as file:
            Image.new("RGB", (8, 8)).save(file, "JPEG")
    done = pack(tmp_path / "photos", tmp_path / "out")
    assert done.stdout.strip().endswith("; left out: 2 .png, 1 .gif, 1 without extension")
    assert done.stdout.startswith("6 images")
    assert sorted(packed(recipe, tmp_path / "out")) == ["a", "a_2", "a_3", "b_c", "b_c_2", "x_train/1"]
    none = pack(tmp_path / "photos", tmp_path / "other", "--extension", "webp")
    assert (none.returncode, "No .webp files" in none.stderr) == (1, True)

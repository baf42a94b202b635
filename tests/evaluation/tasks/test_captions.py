"""Captions: scores against cases computed by hand, and the task from its files to its rows on a small random LLaVA."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import datasets
import pytest
import small
import speaking
import torch

from hf_tome import MergeConfig
from hf_tome.cli.app import run as run_command
from hf_tome.evaluation.data.image_text import Question, first_texts
from hf_tome.evaluation.data.samples import Sample
from hf_tome.evaluation.data.splits import DataError
from hf_tome.evaluation.metrics.text_metrics import CaptionScores, SameText, caption_tokens
from hf_tome.evaluation.options import JobOptions
from hf_tome.evaluation.reporting.tables import FORMATS, notes
from hf_tome.evaluation.running.runner import evaluate
from hf_tome.evaluation.tasks.generation.captioning import captioning_job
from hf_tome.evaluation.tasks.generation.generation import Generator, read_by_language_model
from hf_tome.evaluation.tasks.generation.prompts import Prompts, image_token_id
from hf_tome.evaluation.tasks.registry import build_job

pytestmark = pytest.mark.usefixtures("costs_hardly_measured")

R8 = MergeConfig(r=8)
TASK = "image-to-text"
SENTENCES = {
    "A man's dog isn't here, they're sad.": "a man 's dog is n't here they 're sad",
    "A black-and-white T-shirt; it's 10:30 a.m.!": "a black-and-white t-shirt it 's 10:30 a.m.",
    'The "red" cat (cannot) cost $3.50...': "the red cat -lrb- can not -rrb- cost $ 3.50",
    "two cats , one dog": "two cats one dog",
    "Five o'clock and/or 2,000 kites - 50% off": "five o'clock and/or 2,000 kites 50 % off",
    "": "",
}


def scores(predictions, references):
    return CaptionScores(keep_in_memory=True).compute(predictions=predictions, references=references)


@pytest.mark.parametrize(("text", "tokens"), SENTENCES.items())
def test_tokens(text, tokens):
    assert caption_tokens(text) == tokens


def test_tokens_are_those_of_the_java_tokenizer(data):
    if shutil.which("java") is None:
        pytest.skip("needs Java, for the tokenizer that ours stands in for")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    coco = json.loads((data / "coco_captions_sample" / "captions.json").read_text())
    texts = [*(one["caption"] for one in coco["annotations"]), *(text for text in SENTENCES if text)]
    theirs = PTBTokenizer().tokenize({index: [{"caption": text}] for index, text in enumerate(texts)})
    assert [theirs[index][0] for index in range(len(texts))] == [caption_tokens(text) for text in texts]


def test_bleu_and_rouge_by_hand():
    found = scores(["A cat on a mat.", "a dog"], [["A cat sat on the mat."], ["a dog", "the dog runs"]])
    # 6 of 7 words are right, and 2 of 5 pairs; 7 words against the closest references' 6 + 2.
    brevity = math.exp(1 - 8 / 7)
    assert found["bleu1"] == pytest.approx(100 * brevity * 6 / 7)
    assert found["bleu2"] == pytest.approx(100 * brevity * math.sqrt(6 / 7 * 2 / 5))
    assert found["bleu3"] == pytest.approx(0, abs=0.01)  # none of 3; the scorer adds 1e-15 to each count
    # 4 words in order out of 5 said and 6 right, with beta 1.2; the second is exact.
    precision, recall = 4 / 5, 4 / 6
    rouge = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert found["rouge_l"] == pytest.approx(100 * (rouge + 1) / 2)


def test_cider_by_hand():
    # Every word is said of one image of two, so all weigh log 2. An exact pair of words has similarity 1 for n = 1 and
    # 2, and 0 for 3 and 4; times 10, the mean over n is 5. One word of two: 1/2 for n = 1.
    exact, half = 10 * (1 + 1) / 4, 10 * (1 / 2) / 4
    found = scores(["red cat", "blue dog"], [["red cat"], ["green dog"]])
    assert found["cider"] == pytest.approx(100 * (exact + half) / 2)
    # CIDEr-D clips the second "cat", and has a penalty for a length that is off by one (sigma 6).
    longer = 10 * math.exp(-1 / 72) * (2 / (math.sqrt(5) * math.sqrt(2)) + 1 / math.sqrt(2)) / 4
    found = scores(["red cat cat", "blue dog"], [["red cat"], ["green dog"]])
    assert found["cider"] == pytest.approx(100 * (longer + half) / 2)
    # Of two references each counts for half.
    found = scores(["red cat", "blue dog"], [["red cat", "tall tree"], ["green dog"]])
    assert found["cider"] == pytest.approx(100 * (exact / 2 + half) / 2)


def test_perfect_empty_and_different_captions():
    perfect = scores(
        ["a red cat sat here", "one big dog ran off"], [["A red cat sat here."], ["One big dog ran off!"]]
    )
    assert all(perfect[f"bleu{n}"] == pytest.approx(100) for n in range(1, 5))
    assert (perfect["rouge_l"], perfect["cider"]) == (pytest.approx(100), pytest.approx(1000))
    nothing = scores(["", ""], [["a cat"], ["a dog"]])
    assert all(value == pytest.approx(0, abs=1e-4) for value in nothing.values())
    same = SameText(keep_in_memory=True).compute(predictions=["a", "b", "c"], unmerged=["a", "b", "C"])
    assert same == {"agreement": pytest.approx(200 / 3)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return speaking.llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Seven images in COCO's format, of which one is broken, one absent and one has no caption."""
    folder = tmp_path_factory.mktemp("data") / "coco"
    (folder / "images").mkdir(parents=True)
    images = [{"id": index, "file_name": f"{index}.png"} for index in range(7)]
    for image in images[:6]:
        small.picture(image["id"]).save(folder / "images" / image["file_name"])
    (folder / "images" / "1.png").write_bytes(b"not an image")
    captions = {index: [f"a photo of the cat {index}", "what is it?"] for index in (0, 1, 2, 3, 5, 6)}
    annotations = [{"image_id": index, "caption": text} for index, texts in captions.items() for text in texts]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder


def job_on(model, coco, **options):
    return build_job(TASK, JobOptions(str(model), str(coco), **{"max_new_tokens": 5, **options}))


def test_captions_merged_beside_unmerged(model, coco, tmp_path):
    results = evaluate(job_on(model, coco), [MergeConfig(), R8], batch_size=3, out=tmp_path)
    assert results.data["num_samples"] == 4
    reasons = {one["sample"]: one["reason"] for one in results.data["skipped"]}
    assert reasons["images/1.png"] == "ImageError: cannot identify image file"
    assert reasons["images/4.png"] == "it has no caption"
    assert reasons["coco/6.png"] == "there is no file 6.png in the folder of the data"
    unmerged, merged = results.rows
    # LLaVA reads the last layer but one, so two of the three blocks merge.
    assert (unmerged["tokens"], merged["tokens"]) == (speaking.PATCHES, speaking.PATCHES - 16)
    assert unmerged["agreement"] == 100
    assert unmerged["gflops"] > merged["gflops"]
    assert {"bleu1", "bleu4", "rouge_l", "cider", "speedup", "samples_per_second", "peak_memory_mib"} <= set(merged)
    assert 0 < unmerged["new_tokens"] <= 5
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    records = [line for line in lines if line.get("variant") == "unmerged" and "text" in line]
    assert len(records) == 4
    assert records[0]["right"] == ["a photo of the cat 0", "what is it?"]
    right = scores([one["text"] for one in records[:4]], [one["right"] for one in records[:4]])
    assert {name: unmerged[name] for name in right} == right


def test_every_format_shows_the_columns(model, coco):
    results = evaluate(job_on(model, coco), [R8])
    for name, write in FORMATS.items():
        text = write(results)
        assert "cider" in text.lower(), name
        assert "new" in text.lower(), name
    assert "image tokens" in FORMATS["md"](results)
    assert "image tokens: those that the language model reads" in notes(results)
    assert "top-1" not in notes(results)


def test_what_is_said_is_what_generate_says(model, coco):
    job = job_on(model, coco, prompt="what is it ?")
    samples = list(job.data)[:2]
    inputs = job.prepare(samples)
    assert inputs["input_ids"].shape[1] == speaking.PATCHES + 8  # USER : what is it ? ASSISTANT :
    said = job.scorer.records(samples, job.run(job.model, inputs))
    for sample, record in zip(samples, said):
        alone = job.prepare([sample])
        ids = job.model.generate(**alone, max_new_tokens=5)[0, alone["input_ids"].shape[1] :]
        assert record["text"] == job.scorer.processor.decode(ids, skip_special_tokens=True).strip()
    assert {record["tokens"] for record in said} == {speaking.PATCHES}


def test_texts_end_where_the_model_ends_them(model, coco):
    job = job_on(model, coco)
    samples = list(job.data)
    said = [one.ids for one in job.run(job.model, job.prepare(samples))]
    end = said[0][2]
    job.model.generation_config.eos_token_id = [end]
    cut = [one.ids for one in job.run(job.model, job.prepare(samples))]
    assert cut[0] == said[0][: said[0].index(end) + 1]
    assert all(ids == whole[: len(ids)] for ids, whole in zip(cut, said))


def test_mame_reads_fewer_tokens_of_smooth_images(model, coco):
    # Rows of a batch have different numbers of tokens; each is counted by itself.
    job = job_on(model, coco)
    results = evaluate(job, [MergeConfig(method="mame", threshold=0.7)], batch_size=4)
    alone = evaluate(job, [MergeConfig(method="mame", threshold=0.7)], batch_size=1)
    assert results.rows[1]["tokens"] == alone.rows[1]["tokens"] < speaking.PATCHES
    assert results.rows[1]["tokens"] % 1  # not the same for all images


def test_the_first_call_alone_is_watched():
    model, processor = speaking.build()
    inputs = Prompts(processor, image_token_id(model))([Sample("a", Question(small.picture(), "what"), [])])
    with read_by_language_model(model, inputs) as count:
        assert count() == []
        model.generate(**inputs, max_new_tokens=3)
        assert count() == [speaking.PATCHES]
    assert not model.get_decoder()._forward_pre_hooks


def written(ids, processor):
    return processor.decode(ids).replace("<image>", "").replace("<pad>", "").split()


def test_prompts():
    for template, prompt, expected in (
        (speaking.TEMPLATE, "what is it ?", "USER : what is it ? ASSISTANT :"),
        (speaking.TEMPLATE, "the <image> a photo", "the a photo"),
        (None, "what is it ?", "what is it ?"),
    ):
        model, processor = speaking.build(template)
        question = Sample("a", Question(small.picture(), prompt), [])
        longer = Sample("b", Question(small.picture(1), f"{prompt} big red cat"), [])
        inputs = Prompts(processor, image_token_id(model))([question, longer])
        assert written(inputs["input_ids"][0], processor) == expected.split()
        assert inputs["attention_mask"][0, 0] == 0 == inputs["input_ids"][0, 0]  # padded on the left
        assert (inputs["input_ids"] == image_token_id(model)).sum(1).tolist() == [speaking.PATCHES] * 2


def test_a_template_without_images():
    model, processor = speaking.build("USER : {{ messages[0]['content'][1]['text'] }}")
    sample = Sample("a", Question(small.picture(), "what"), [])
    with pytest.raises(ValueError, match="0 <image> tokens and 1 images"):  # the processor's own words
        Prompts(processor, image_token_id(model))([sample])
    with pytest.raises(DataError, match=r"wrote no image token \(id 99\) for the prompt 'what'.*--prompt"):
        Prompts(speaking.build()[1], 99)([sample])


def test_the_processor_of_another_model(coco, tmp_path):
    folder = speaking.llava(tmp_path / "other", patch_size=8)
    with pytest.raises(DataError, match=r"64.*The first prompt has 16 image tokens.*processor is the model's own"):
        evaluate(job_on(folder, coco), [])


def test_models_that_say_nothing(coco, tmp_path):
    with pytest.raises(ValueError, match="generates no text about images"):
        job_on(small.vit(tmp_path / "vit"), coco)
    speaking.build()[0].save_pretrained(tmp_path / "bare")
    with pytest.raises((ValueError, OSError), match="processor"):
        job_on(tmp_path / "bare", coco)


BAD_FILES = {
    "broken.json": ('[{"image": ', "cannot be read: JSONDecodeError"),
    "numbers.json": ("[1, 2]", "does not hold samples"),
    "instances.json": ('{"images": [{"file_name": "a"}], "annotations": [{"bbox": []}]}', "does not hold samples"),
    "bare.jsonl": ('{"image": "a.png"}', "no column of captions.*The columns are image"),
    "blind.csv": ("caption\na cat\n", "no column of images"),
    "notes.txt": ("a cat", r"is no \.json, \.jsonl, \.csv file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(name, model, tmp_path):
    text, message = BAD_FILES[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        build_job(TASK, JobOptions(str(model), str(tmp_path / name)))


def test_no_such_file(model, tmp_path):
    with pytest.raises(DataError, match=r"There is no file .*absent\.json"):
        build_job(TASK, JobOptions(str(model), str(tmp_path / "absent.json")))


def test_no_image_can_be_read(model, tmp_path):
    (tmp_path / "test.jsonl").write_text('{"image": "absent.png", "caption": "a cat"}')
    with pytest.raises(DataError, match=r"None of the 1 samples.*there is no file"):
        evaluate(build_job(TASK, JobOptions(str(model), str(tmp_path))), [])


def test_the_same_captions_from_files_and_data_sets(model, tmp_path):
    pictures = [small.picture(seed) for seed in range(3)]
    captions = [[f"a photo {index}", "the cat"] for index in range(3)]
    folder = tmp_path / "files"
    folder.mkdir()
    for index, picture in enumerate(pictures):
        picture.save(folder / f"{index}.png")
    rows = [{"image": f"{index}.png", "captions": texts} for index, texts in enumerate(captions)]
    (folder / "val.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "test.json").write_text(json.dumps(rows))
    lines = "\n".join(f"{row['image']},{';'.join(row['captions'])}" for row in rows)
    (folder / "train.csv").write_text(f"image,captions\n{lines}\n")
    stored = datasets.Dataset.from_dict(
        {"image": pictures, "sentences": [[{"raw": text} for text in texts] for texts in captions]},
        features=datasets.Features(
            {"image": datasets.Image(), "sentences": datasets.List({"raw": datasets.Value("string")})}
        ),
    )
    datasets.DatasetDict({"validation": stored}).save_to_disk(str(tmp_path / "stored"))
    found = [
        [(sample.label, sample.content.image.size) for sample in build_job(TASK, options).data]
        for options in (
            JobOptions(str(model), str(folder)),  # val.jsonl is the validation split
            JobOptions(str(model), str(folder), split="test"),
            JobOptions(str(model), str(folder / "train.csv")),
            JobOptions(str(model), str(tmp_path / "stored")),
        )
    ]
    assert found == [[(texts, (48, 48)) for texts in captions]] * 4
    assert len(build_job(TASK, JobOptions(str(model), str(folder), limit=2)).data) == 2
    with pytest.raises(DataError, match="no split 'hard'"):
        build_job(TASK, JobOptions(str(model), str(folder), split="hard"))


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (None, []),
        (" a cat ", ["a cat"]),
        (3, ["3"]),
        (["a", "", None, "b"], ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ([{"raw": "a"}], ["a"]),
        ("[a cat]", ["[a cat]"]),
    ],
)
def test_texts(value, texts):
    assert first_texts({"texts": value}, ("absent", "texts"), "raw") == texts


def test_captions_in_memory():
    model, processor = speaking.build()
    rows = [{"image": small.picture(seed), "captions": ["a photo"]} for seed in range(3)]
    results = evaluate(captioning_job(model, processor, rows, name="tiny", max_new_tokens=3), [R8])
    assert results.run["model"] == "tiny"
    assert results.data == {"id": "in memory", "split": "test", "num_samples": 3, "skipped": []}


def test_a_batch_of_tiles_is_not_cut():
    # Rows of pixels that are not one a sample cannot be given out to parts of the batch.
    model, processor = speaking.build()
    rows = [{"image": small.picture(seed), "captions": ["a photo"]} for seed in range(4)]
    job = captioning_job(model, processor, rows, max_new_tokens=3)
    run = job.run

    def small_gpu(model, inputs):
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(model, inputs)

    job.run = small_gpu
    assert evaluate(job, [R8], batch_size=4).data["num_samples"] == 4
    prepare = job.prepare
    job.prepare = lambda samples: {**prepare(samples), "tiles": torch.zeros(9)}
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(job, [R8], batch_size=4)


def test_a_run_that_fails_goes_on(model, coco, tmp_path):
    whole = evaluate(job_on(model, coco), [R8], batch_size=2)
    job = job_on(model, coco)
    run, calls = job.run, iter(range(7))

    def mortal(model, inputs):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return run(model, inputs)

    job.run = mortal
    with pytest.raises(KeyboardInterrupt):
        evaluate(job, [R8], batch_size=2, out=tmp_path)
    before = (tmp_path / "samples.jsonl").read_text()
    assert 0 < before.count('"text"') < 8
    resumed = evaluate(job_on(model, coco), [R8], batch_size=2, out=tmp_path)
    assert (tmp_path / "samples.jsonl").read_text().startswith(before)
    measured = ("samples_per_second", "speedup", "speedup_low", "speedup_high", "peak_memory_mib")
    for row, expected in zip(resumed.rows, whole.rows):
        assert {name: row[name] for name in row if name not in measured} == {
            name: expected[name] for name in expected if name not in measured
        }


@pytest.mark.slow
def test_a_killed_run_goes_on(model, coco, tmp_path):
    options = ["--task", TASK, "--max-new-tokens", 40, "--batch-size", 1, "--config", "r=8", "--format", "json"]
    run = [sys.executable, "-m", "hf_tome", "eval", *map(str, options), "--model", str(model), "--data", str(coco)]
    run += ["--out", str(tmp_path), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    file = tmp_path / "samples.jsonl"
    while process.poll() is None and not (file.exists() and file.read_text().count('"text"') >= 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = file.read_text()
    done = subprocess.run(run, capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout)["data"]["num_samples"] == 4
    text = file.read_text()
    assert text.startswith(before.rsplit("\n", 1)[0])  # nothing is rewritten
    records = [json.loads(line) for line in text.splitlines() if '"text"' in line and line.endswith("}")]
    pairs = [(record["variant"], record["sample"]) for record in records]
    assert len(pairs) == len(set(pairs)) == 8


def test_another_prompt_is_another_run(model, coco, tmp_path):
    evaluate(job_on(model, coco), [], out=tmp_path)
    job = job_on(model, coco)
    job.run = Generator(0)  # would fail if it ran
    evaluate(job, [], out=tmp_path)
    with pytest.raises(ValueError, match="another run: prompt"):
        evaluate(job_on(model, coco, prompt="what is it ?"), [], out=tmp_path)


def test_sweep_plots_and_cards(model, coco, tmp_path, capsys):
    sweep = ["sweep", "--task", TASK, "--model", str(model), "--data", str(coco), "--out", str(tmp_path / "sweep")]
    options = ["--method", "tome", "--r", "8", "--max-new-tokens", "4", "--device", "cpu", "--format", "json"]
    assert run_command([*sweep, *options]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in results["rows"]] == ["unmerged", "r=8", "method=random_prune,r=8"]
    assert (tmp_path / "sweep" / "pareto.png").stat().st_size > 10_000
    report = (tmp_path / "sweep" / "report.md").read_text()
    assert "prompt: 'Provide a one-sentence caption" in report
    card = ["card", str(tmp_path / "sweep"), "--config", "r=8", "--out", str(tmp_path / "card")]
    assert run_command(card) == 0, capsys.readouterr().err
    assert "points of CIDEr-D (95 % interval" in (tmp_path / "card" / "README.md").read_text()


def test_real_photographs(model, data):
    job = build_job(TASK, JobOptions(str(model), str(data / "coco_captions_sample"), max_new_tokens=8))
    assert job.prepare(list(job.data)[:2])["pixel_values"].shape == (2, 3, 32, 32)
    results = evaluate(job, [R8])
    assert results.data["num_samples"] == 25
    assert not results.data["skipped"]
    assert [row["tokens"] for row in results.rows] == [64, 48]

"""integrations/serve: answers as the merged model does, in batches, and says what is wrong with a request."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import small
from PIL import Image

import hf_tome

for package in ("fastapi", "httpx", "python_multipart"):
    pytest.importorskip(package, reason=f"integrations/serve needs {package}: pip install 'hf_tome[serve]'")
from fastapi.testclient import TestClient  # noqa: E402

RECIPE = Path(__file__).resolve().parents[2] / "integrations" / "serve"


@pytest.fixture(scope="module")
def recipe():
    sys.path.insert(0, str(RECIPE))
    import app

    yield app
    sys.path.remove(str(RECIPE))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small.vit(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def client(recipe, model):
    # A long wait, so that requests of a busy machine still meet in one batch.
    settings = recipe.Settings(str(model), "r=8", device="cpu", max_batch=4, max_wait_ms=300, max_bytes=20_000)
    with TestClient(recipe.create_app(settings)) as client:
        yield client


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def classify(client, content, **params):
    return client.post("/classify", files={"image": ("photo.png", content)}, params=params)


def test_concurrent_requests_run_in_batches_and_answer_as_the_model(client, model):
    pipe = hf_tome.pipeline("image-classification", str(model), merge_config=hf_tome.MergeConfig(r=8))
    images = [small.picture(seed) for seed in range(8)]
    before = client.get("/health").json()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda image: classify(client, png(image)).json()["labels"], images))
    after = client.get("/health").json()
    assert after["images"] - before["images"] == 8
    assert after["batches"] - before["batches"] < 8
    for image, labels in zip(images, answers):
        expected = pipe(image)
        assert [label["label"] for label in labels] == [label["label"] for label in expected]
        assert [label["score"] for label in labels] == pytest.approx([e["score"] for e in expected], abs=1e-5)


def test_health_and_top(client, model):
    health = client.get("/health").json()
    assert (health["status"], health["model"], health["config"]) == ("ok", str(model), "r=8")
    assert len(classify(client, png(small.picture()), top=1).json()["labels"]) == 1


@pytest.mark.parametrize(
    ("content", "params", "status", "words"),
    [
        (b"no image", {}, 400, "photo.png is no image that can be read: cannot identify image file"),
        (png(small.picture())[:200], {}, 400, "no image that can be read"),
        (b"", {}, 400, "no image that can be read"),
        (b"x" * 20_001, {}, 413, "larger than 20000 bytes"),
        (png(Image.new("1", (10_000, 10_000))), {}, 413, "too many pixels"),
        (png(small.picture()), {"top": 0}, 422, "greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_said(client, content, params, status, words):
    answer = classify(client, content, **params)
    assert answer.status_code == status
    assert words in answer.text


def test_no_upload_and_a_full_queue(client, recipe, model, monkeypatch):
    assert client.post("/classify").status_code == 422
    settings = recipe.Settings(str(model), "r=8", device="cpu", max_queue=1)

    async def idle(batcher):
        """Take nothing from the queue."""

    monkeypatch.setattr(recipe.Batcher, "run", idle)
    with TestClient(recipe.create_app(settings)) as stuck:
        stuck.app.state.batcher.queue.put_nowait(None)
        answer = classify(stuck, png(small.picture()))
    assert answer.status_code == 503
    assert "try again later" in answer.text


def test_settings_come_from_the_command_line_and_the_environment(recipe, model, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOME_MODEL", "from-environment")
    monkeypatch.setenv("HF_TOME_MAX_BATCH", "3")
    settings, where = recipe.read_settings(["--config", "r=4", "--port", "9000"])
    assert (settings.model, settings.max_batch, settings.config, where.port) == ("from-environment", 3, "r=4", 9000)
    with pytest.raises(ValueError, match="without a merge config"):
        recipe.Classifier(recipe.Settings(str(model), device="cpu"))
    merged = hf_tome.from_pretrained(model, hf_tome.MergeConfig(r=5))
    hf_tome.save_pretrained(merged, tmp_path)
    small.image_processor().save_pretrained(tmp_path)
    assert recipe.Classifier(recipe.Settings(str(tmp_path), device="cpu")).config == "r=5"

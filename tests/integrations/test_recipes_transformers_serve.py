"""integrations/serve/transformers_serve.py: `transformers serve` answers as the merged model does."""

import base64
import io
import socket
import sys
import time
from pathlib import Path

import pytest
import small
import speaking
import torch

import hf_tome

for package in ("fastapi", "httpx", "uvicorn", "openai"):
    pytest.importorskip(package, reason=f"transformers serve needs {package}: pip install 'transformers[serving]'")
import httpx  # noqa: E402

RECIPE = Path(__file__).resolve().parents[2] / "integrations" / "serve"
WORDS = 6  # of each answer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = speaking.llava(tmp_path_factory.mktemp("llava"))
    merged = hf_tome.from_pretrained(folder, hf_tome.MergeConfig(r=12))
    hf_tome.save_pretrained(merged, folder)
    return folder


@pytest.fixture
def recipe(monkeypatch):
    from transformers.cli.serving import model_manager

    monkeypatch.setattr(model_manager, "ModelManager", model_manager.ModelManager)  # put back afterwards
    monkeypatch.syspath_prepend(str(RECIPE))
    sys.modules.pop("transformers_serve", None)
    import transformers_serve

    return transformers_serve


@pytest.fixture
def server(recipe, model):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    served = recipe.serve()(str(model), device="cpu", host="127.0.0.1", port=port, non_blocking=True)
    url = f"http://127.0.0.1:{port}"
    for _ in range(100):
        try:
            assert httpx.get(f"{url}/health").status_code == 200
            break
        except httpx.TransportError:
            time.sleep(0.1)
    yield url, served
    served.kill_server()


def answer(model, merge_config):
    """Return what the model says, asked directly."""
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(model)
    loaded = hf_tome.from_pretrained(model, merge_config).eval()
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it ?"}]}]
    prompt = processor.apply_chat_template(message, add_generation_prompt=True)
    inputs = processor(images=small.picture(3), text=prompt, return_tensors="pt")
    with torch.no_grad():
        ids = loaded.generate(**inputs, max_new_tokens=WORDS, do_sample=False)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_names_with_and_without_a_revision(recipe, tmp_path):
    folder = tmp_path / "a@b"
    folder.mkdir()
    assert recipe.split_revision("org/model@main") == ("org/model", "main")
    assert recipe.split_revision(str(folder)) == (str(folder), None)  # transformers 5.24
    assert recipe.split_revision(f"{folder}@main") == (str(folder), "main")  # transformers 5.23
    assert recipe.split_revision("org/model") == ("org/model", None)


def test_it_serves_the_merged_model(server, model):
    url, served = server
    buffer = io.BytesIO()
    small.picture(3).save(buffer, "PNG")
    image = {"url": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()}
    content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": "what is it ?"}]
    request = {
        "model": str(model),
        "messages": [{"role": "user", "content": content}],
        "max_tokens": WORDS,
        "temperature": 0,
    }
    said = httpx.post(f"{url}/v1/chat/completions", json=request, timeout=60).json()
    (timed,) = served._model_manager.loaded_models.values()
    measured = hf_tome.report(timed.model).towers[0]
    assert measured.config["r"] == 12
    assert measured.measured, "no image went through the merged tower"
    merged, unmerged = answer(model, None), answer(model, hf_tome.MergeConfig(r=0))
    assert merged != unmerged, "this model says the same merged, so that the test could not fail"
    assert said["choices"][0]["message"]["content"] == merged

"""Hostile uploads to integrations/serve and to the Gradio Space: each is answered, and no other client notices."""

import importlib.util
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import small
from hostile import encoded, hostile_files
from watch import only, watching

for package in ("av", "matplotlib", "fastapi", "httpx", "python_multipart"):
    pytest.importorskip(package)
from fastapi.testclient import TestClient  # noqa: E402

INTEGRATIONS = Path(__file__).resolve().parents[2] / "integrations"
SECONDS = 60
few_and_many = pytest.mark.parametrize("hostile", [100, pytest.param(1000, marks=pytest.mark.slow)], indirect=True)


@pytest.fixture(scope="module")
def hostile(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    bait = small.write_clip(folder / "bait.mp4")
    with watching(folder, bait) as watch:
        yield hostile_files(folder, request.param, bait, watch.port), watch


def load_recipe(name, module):
    folder = INTEGRATIONS / name
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location(f"hostile_{name}", folder / f"{module}.py")
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = loaded
        spec.loader.exec_module(loaded)
    finally:
        sys.path.remove(str(folder))
    return loaded


@few_and_many
def test_no_other_client_notices(hostile, tmp_path):
    files, watch = hostile
    contents = [(file.name, file.read_bytes()) for file in files]
    app = load_recipe("serve", "app")
    settings = app.Settings(str(small.vit(tmp_path / "model")), "r=8", device="cpu", max_batch=4)
    good, answers, ended = encoded(small.picture()), [], threading.Event()

    with TestClient(app.create_app(settings), raise_server_exceptions=False) as client:

        def ask(name, content):
            return client.post("/classify", files={"image": (name, content)})

        expected = {label["label"]: label["score"] for label in ask("photo.png", good).json()["labels"]}

        def keep_asking():
            while not ended.is_set():
                answers.append(ask("photo.png", good))
                time.sleep(0.05)

        def attack(upload):
            begun = time.monotonic()
            answer = ask(*upload)
            return answer, time.monotonic() - begun

        with only(watch), ThreadPoolExecutor(4) as clients:
            asking = clients.submit(keep_asking)
            attacks = list(clients.map(attack, contents))
            ended.set()
            asking.result()
    assert answers
    for answer in answers:
        assert answer.status_code == 200
        scores = {label["label"]: label["score"] for label in answer.json()["labels"]}
        assert scores == pytest.approx(expected, abs=1e-5)
    for answer, seconds in attacks:
        assert answer.status_code in (200, 400, 413)
        assert seconds < SECONDS
        if answer.status_code != 200:
            detail = answer.json()["detail"]
            assert detail.endswith(".")
            assert "\n" not in detail
    assert sum(answer.status_code != 200 for answer, _ in attacks) > len(files) / 2


@few_and_many
def test_the_space_refuses_in_one_sentence(hostile, monkeypatch):
    files, watch = hostile
    merging = load_recipe("gradio_space", "merging")
    monkeypatch.setattr(merging, "ROUNDS", 1)
    schedule = next(iter(merging.SCHEDULES))
    merging.load("digits-vit")
    for file in files[::4]:
        begun = time.monotonic()
        with only(watch, file):
            try:
                merging.merge("digits-vit", str(file), "ToMe", 8, schedule, 0.8)
            except ValueError as error:
                sentence = merging.in_words(error)
                assert sentence.endswith(".")
                assert "\n" not in sentence
                assert str(file.parent) not in sentence
        assert time.monotonic() - begun < SECONDS

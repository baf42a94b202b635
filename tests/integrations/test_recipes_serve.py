"""integrations/serve: answers as the merged model does, in batches, and says what is wrong with a request."""

import asyncio
import http.client
import io
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from hostile import hostile_files
from PIL import Image

import hf_tome

for package in ("fastapi", "httpx", "python_multipart"):
    pytest.importorskip(package, reason=f"integrations/serve needs {package}: pip install 'hf_tome[serve]'")
import httpx  # noqa: E402
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
        (b"no image", {}, 400, "photo.png: Cannot read the upload as an image: cannot identify image file"),
        (png(small.picture())[:200], {}, 400, "Cannot read the upload as an image"),
        (b"", {}, 400, "cannot identify image file"),
        (b"x" * 20_001, {}, 413, "larger than 20000 bytes"),
        (png(Image.new("1", (9_000, 9_000))), {}, 413, "9000 x 9000 pixels, above the limit image_pixels=25000000"),
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


def test_images_of_unequal_shapes_fail_nobody(recipe):
    """Images of one shape share a batch; one that the model refuses fails alone."""
    batches = []

    def classify(pixels):
        batches.append([tuple(one.shape) for one in pixels])
        if any(one.isnan().any() for one in pixels):
            raise RuntimeError("this one cannot be classified")
        return torch.stack(pixels).flatten(1).mean(1)

    async def ask():
        batcher = recipe.Batcher(classify, recipe.Settings("model", max_wait_ms=100))
        running = asyncio.create_task(batcher.run())
        pixels = [torch.full((3, 4, 4 + index % 2), float(index)) for index in range(10)]
        pixels[4] = torch.full((3, 4, 4), float("nan"))
        answers = await asyncio.gather(*map(batcher.submit, pixels), return_exceptions=True)
        running.cancel()
        return answers

    answers = asyncio.run(ask())
    assert isinstance(answers.pop(4), RuntimeError)
    assert answers == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert all(len(set(shapes)) == 1 for shapes in batches)
    assert max(map(len, batches)) == 5


def test_thin_images_are_not_blown_up(recipe, model):
    classifier = recipe.Classifier(recipe.Settings(str(model), "r=8", device="cpu"))
    thin = png(Image.new("RGB", (1, 250)))
    assert classifier.prepare(thin).shape == (3, 32, 32)
    classifier.processor.size = {"shortest_edge": 512}
    with pytest.raises(recipe.BadImage, match="1 x 250 pixels has 65536000 once it is resized") as refused:
        classifier.prepare(thin)
    assert refused.value.status == 413


# A real server, and clients that mean it harm


@pytest.fixture(scope="module")
def server(model):
    """The port and the process of a server with small limits."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    limits = ["--max-queue", "4", "--upload-seconds", "2", "--shutdown-seconds", "1"]
    limits += ["--head-seconds", "1"]
    served = ["--model", str(model), "--config", "r=8", "--device", "cpu", "--port", str(port)]
    command = [sys.executable, str(RECIPE / "app.py"), *served, *limits]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            httpx.get(f"http://127.0.0.1:{port}/health")
            break
        except httpx.TransportError:
            assert process.poll() is None
            time.sleep(0.1)
    yield port, process
    process.kill()
    process.wait()


def ask(port, content):
    return httpx.post(f"http://127.0.0.1:{port}/classify", files={"image": ("a.png", content)}, timeout=60)


PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'


def begin_upload(port, *headers, body=PART):
    """Return a connection on which an upload was begun, and not ended."""
    lines = ["POST /classify HTTP/1.1", "Host: x", "Content-Type: multipart/form-data; boundary=x", *headers, "", ""]
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall("\r\n".join(lines).encode() + body)
    return connection


def test_a_declared_size_is_refused_before_it_is_sent(server):
    with begin_upload(server[0], "Content-Length: 200000000") as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_size_that_is_not_declared_is_refused_while_it_is_sent(server):
    block, sent = b"100000\r\n" + bytes(0x100000) + b"\r\n", 0
    body = f"{len(PART):x}\r\n".encode() + PART + b"\r\n"
    with begin_upload(server[0], "Transfer-Encoding: chunked", body=body) as chunked:
        try:
            while sent < 200:
                chunked.sendall(block)
                sent += 1
        except OSError:
            closed = True  # by the server, which has answered
        else:
            closed = False
    assert closed
    assert sent < 100
    assert ask(server[0], png(small.picture())).status_code == 200


def test_a_slow_client_costs_one_slot(server):
    port = server[0]
    slow = [begin_upload(port, "Content-Length: 5000") for _ in range(3)]
    time.sleep(0.3)
    assert ask(port, png(small.picture())).status_code == 200  # the fourth slot
    slow.append(begin_upload(port, "Content-Length: 5000"))
    time.sleep(0.3)
    assert ask(port, png(small.picture())).status_code == 503
    begun = time.monotonic()
    for connection in slow:
        with connection:
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - begun < 4
    assert ask(port, png(small.picture())).status_code == 200


@pytest.mark.parametrize("head", [b"", b"POST /classify HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_without_a_request_is_closed(server, head):
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", server[0]), timeout=10) as connection:
        connection.sendall(head)
        assert connection.recv(4096) == b""
    assert 0.9 < time.monotonic() - begun < 4


def test_the_next_request_of_a_connection_has_its_own_time(server):
    with closing(http.client.HTTPConnection("127.0.0.1", server[0], timeout=10)) as client:
        for _ in range(3):
            client.request("GET", "/health")
            response = client.getresponse()
            assert (response.status, bool(response.read())) == (200, True)
            time.sleep(0.5)
        connection = client.sock
        connection.sendall(b"GET /health HTTP/1.1")
        begun, closed = time.monotonic(), False
        while not closed and time.monotonic() - begun < 10:
            try:
                connection.sendall(b"x")  # slowly, byte by byte, for ever
                time.sleep(0.2)
            except OSError:
                closed = True
        assert closed
        assert time.monotonic() - begun < 4


def memory(process, name):
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024  # MB


def processor_seconds(process):
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


SIDE = 5000  # 25 megapixels, as many as the limits admit
RAW = (2550, 2600)  # of 3 bytes, just below the 20 MB of an upload
LARGEST = {
    "jpeg": lambda: (Image.new("RGB", (SIDE, SIDE), "red"), {"format": "JPEG", "progressive": True, "subsampling": 0}),
    "alpha": lambda: (Image.new("RGBA", (SIDE, SIDE), (9, 9, 9, 99)), {"format": "PNG", "compress_level": 1}),
    "16 bits": lambda: (Image.fromarray(np.zeros((SIDE, SIDE), dtype=np.uint16)), {"format": "PNG"}),
    "webp": lambda: (Image.new("RGB", (3900, 4000)), {"format": "WEBP", "lossless": True, "method": 0}),
}
OTHERS = {
    "cmyk": lambda: (Image.new("CMYK", (SIDE, SIDE)), {"format": "JPEG", "progressive": True, "subsampling": 0}),
    "palette": lambda: (Image.new("P", (SIDE, SIDE)), {"format": "PNG", "transparency": 0}),
    "grey and alpha": lambda: (Image.new("LA", (SIDE, SIDE), (9, 9)), {"format": "PNG", "compress_level": 1}),
    "one bit": lambda: (Image.new("1", (SIDE, SIDE)), {"format": "TIFF", "compression": "group4"}),
    "floats": lambda: (Image.new("F", (SIDE, SIDE)), {"format": "TIFF", "compression": "tiff_lzw"}),
    "gif": lambda: (Image.new("P", (SIDE, SIDE)), {"format": "GIF"}),
    "tiff": lambda: (Image.new("RGB", (SIDE, SIDE)), {"format": "TIFF", "compression": "tiff_lzw"}),
    "raw bmp": lambda: (Image.new("RGB", RAW), {"format": "BMP"}),
    "raw tiff": lambda: (Image.new("RGB", RAW), {"format": "TIFF"}),
    "turned": lambda: (Image.new("RGB", (SIDE, SIDE)), {"format": "JPEG", "exif": turned()}),
    "webp alpha": lambda: (Image.new("RGBA", (3900, 4000), (9, 9, 9, 9)), {"format": "WEBP", "method": 0}),
    "thin": lambda: (Image.new("RGB", (280, 84_000), "red"), {"format": "PNG", "compress_level": 1}),
}
KINDS = [*LARGEST, *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)]


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # by a quarter
    return exif


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the memory of a process from /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_images_take_little_memory(server, kind):
    port, process = server
    ask(port, png(small.picture()))
    image, options = {**LARGEST, **OTHERS}[kind]()
    buffer = io.BytesIO()
    image.save(buffer, **options)
    idle = memory(process, "VmRSS")
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # forgets the peak
    assert ask(port, buffer.getvalue()).status_code == 200
    assert memory(process, "VmHWM") - idle < 300


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the time of a process from /proc")
@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_hostile_uploads_are_refused_quickly(server, tmp_path, count):
    pytest.importorskip("av")
    port, process = server
    folder = tmp_path / "hostile"
    folder.mkdir()
    refused = 0
    for file in hostile_files(folder, count, folder / "bait.mp4", port=9):
        begun = processor_seconds(process)
        answer = ask(port, file.read_bytes())
        taken = processor_seconds(process) - begun
        assert answer.status_code in (200, 400, 413)
        if answer.status_code != 200:
            assert answer.json()["detail"].endswith(".")
            assert "\n" not in answer.json()["detail"]
            assert taken < 2
            refused += 1
    assert refused > count / 2


def test_sigterm_ends_half_open_uploads(server):
    port, process = server
    with begin_upload(port, "Content-Length: 5000"), socket.create_connection(("127.0.0.1", port)):
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=10)

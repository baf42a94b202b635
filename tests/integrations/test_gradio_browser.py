"""The Gradio page in a real browser: `make test-browser`. Skipped where gradio, playwright or Chromium is missing."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from small import picture, write_clip

APP = Path(__file__).resolve().parents[2] / "integrations" / "gradio_space" / "app.py"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
PATIENCE = 30_000  # milliseconds; a page on a busy machine, not a measurement

pytestmark = pytest.mark.skipif(
    bool(MISSING) and os.environ.get("HF_TOME_TEST_BROWSER") != "1",
    reason=f"needs {', '.join(MISSING)}; `make test-browser` installs them",
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page, served by a process of its own as in a Space."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    log = tmp_path_factory.mktemp("page") / "log.txt"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, str(APP)], env={**os.environ, **settings}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        found = f"http://127.0.0.1:{port}"
        for _ in range(2 * PATIENCE // 500):
            assert server.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(found, timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        yield found
    finally:
        server.terminate()
        server.wait(timeout=20)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        opened = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address):
    """The page as a visitor finds it: the first example has been run."""
    opened = browser.new_page(viewport={"width": 1280, "height": 1200})
    opened.set_default_timeout(PATIENCE)
    opened.goto(address, wait_until="domcontentloaded")
    opened.wait_for_selector("#merged img")
    opened.locator("#table [role=gridcell]").first.wait_for()
    yield opened
    opened.close()


def wait_for_cell(page, text: str) -> None:
    page.locator("#table [role=gridcell]", has_text=text).first.wait_for()


def clear(page, place: str) -> None:
    page.locator(f"{place} button[aria-label^=Remove]").click()


def test_a_photograph_and_the_slider(page, tmp_path):
    """Upload, read the result, move the slider, and read that the result has followed."""
    picture(side=96).save(tmp_path / "photograph.png")
    first = page.get_attribute("#merged img", "src")
    clear(page, "#image")
    page.locator("#image input[type=file]").set_input_files(str(tmp_path / "photograph.png"))
    page.wait_for_function("before => document.querySelector('#merged img')?.src != before", arg=first)
    wait_for_cell(page, "129 of 257")  # 16 in each of 8 blocks
    assert page.locator("#problem").count() == 0 or not page.locator("#problem").is_visible()

    handle = page.locator("#r input[type=range]")
    handle.focus()
    for _ in range(4):
        handle.press("ArrowRight")
    wait_for_cell(page, "97 of 257")  # 20 in each
    assert page.locator("#top-unmerged").inner_text().count("%") == 5
    assert page.locator("#top-tome").inner_text().count("%") == 5
    assert page.locator("#curve img").count() == 1


def test_errors_are_words_on_the_page(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    clear(page, "#image")
    page.locator("#problem", has_text="Drop an image or a clip first").wait_for()
    page.locator("#image input[type=file]").set_input_files(str(tmp_path / "broken.png"))
    page.locator("#problem", has_text="Cannot read broken.png as an image").wait_for()
    assert page.locator("#merged img").count() == 0  # no result of another input is left standing

    page.fill("#model input", "./absent")
    page.press("#model input", "Enter")
    page.locator("#problem", has_text="'./absent' is neither a model of this page").wait_for()


def test_a_model_of_clips_asks_for_a_clip(page, tmp_path):
    page.fill("#model input", "digits-videomae")
    page.press("#model input", "Enter")
    page.locator("#video input[type=file]").wait_for(state="attached")
    page.locator("#video input[type=file]").set_input_files(str(write_clip(tmp_path / "clip.mp4")))
    wait_for_cell(page, "of 392")
    assert not page.locator("#image").is_visible()
    assert not page.locator("#problem").is_visible()


def test_a_digit_is_drawn(page):
    page.get_by_role("tab", name="Diffusion").click()
    page.click("#draw button, button#draw")
    page.wait_for_selector("#drawn-merged img")
    page.locator("#table-drawn [role=gridcell]", has_text="0.5 merged").first.wait_for()
    assert not page.locator("#problem-drawn").is_visible()

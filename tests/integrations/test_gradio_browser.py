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
START_SECONDS = 240  # for imports on a busy machine
PATIENCE = 60_000  # milliseconds; a page on a busy machine, not a measurement

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
        address = f"http://127.0.0.1:{port}"
        for _ in range(START_SECONDS):
            assert server.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(1)
        else:
            pytest.fail(f"The page did not start within {START_SECONDS} s: {log.read_text()}")
        yield address
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
def opened(browser, address):
    """What opens the page as a visitor finds it: the first example has been run."""
    contexts = []

    def open_page(width=1280, colours="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 1000}, color_scheme=colours))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(address, wait_until="domcontentloaded")
        page.wait_for_selector("#merged img")
        page.wait_for_selector("#curve img")
        page.locator("#table td").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def page(opened):
    return opened()


def wait_for_cell(page, text: str) -> None:
    page.locator("#table td", has_text=text).first.wait_for()


def overflow(page) -> int:
    """Return by how many pixels the page, or something that scrolls on it, is wider than its place."""
    return page.evaluate(
        """() => Math.max(...[document.documentElement, ...document.querySelectorAll('body *')]
            .filter(element => element === document.documentElement ||
                element.clientWidth && /auto|scroll/.test(getComputedStyle(element).overflowX))
            .map(element => element.scrollWidth - element.clientWidth))"""
    )


CORNER_PIXELS = """async () => {
    const pixels = async (selector) => {
        const image = document.querySelector(selector);
        await image.decode();
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const context = canvas.getContext('2d');
        context.drawImage(image, 0, 0);
        return context.getImageData(0, 0, canvas.width, canvas.height).data;
    };
    const [merged, curve] = [await pixels('#merged img'), await pixels('#curve img')];
    const opaque = [];  // red + green + blue of what is black, grey or white: text, and the axes
    for (let i = 0; i < curve.length; i += 4)
        if (curve[i + 3] === 255 && curve[i] === curve[i + 1] && curve[i] === curve[i + 2]) opaque.push(3 * curve[i]);
    const ink = opaque.reduce((sum, value) => sum + value, 0) / opaque.length;
    return {merged: [...merged.slice(0, 4)], curve: [...curve.slice(0, 4)], curve_ink: ink};
}"""


def clear(page, place: str) -> None:
    page.locator(f"{place} button:is([aria-label^=Remove], [aria-label=Clear])").click()


def test_a_photograph_and_the_slider(page, tmp_path):
    """Upload, read the result, move the slider, and read that the result has followed."""
    picture(side=96).save(tmp_path / "photograph.png")
    first = page.get_attribute("#merged img", "src")
    clear(page, "#image")
    page.locator("#image input[type=file]").set_input_files(str(tmp_path / "photograph.png"))
    page.wait_for_function("before => document.querySelector('#merged img')?.src != before", arg=first)
    wait_for_cell(page, "101 of 197")  # 16 in each of 6 blocks
    assert page.locator("#problem").count() == 0 or not page.locator("#problem").is_visible()

    handle = page.locator("#r input[type=range]")
    handle.focus()
    for _ in range(4):
        handle.press("ArrowRight")
    wait_for_cell(page, "77 of 197")  # 20 in each
    assert page.locator("#top-unmerged").inner_text().count("%") == 5
    assert page.locator("#top-tome").inner_text().count("%") == 5
    assert page.locator("#curve img").count() == 1


def test_errors_are_words_on_the_page(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    clear(page, "#image")
    page.locator("#problem", has_text="Drop an image, a clip or a sound first").wait_for()
    page.locator("#image input[type=file]").set_input_files(str(tmp_path / "broken.png"))
    page.locator("#problem", has_text="Cannot read broken.png as an image").wait_for()
    assert page.locator("#merged img").count() == 0  # no result of another input is left standing

    page.fill("#model input", "./absent")
    page.press("#model input", "Enter")
    page.locator("#problem", has_text="'./absent' is neither a model of this page").wait_for()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_model_of_clips_starts_with_its_example(opened, tmp_path, width):
    page = opened(width)
    page.fill("#model input", "digits-videomae")
    page.press("#model input", "Enter")
    wait_for_cell(page, "of 392")
    assert page.locator("#video video").count() == 1
    assert not page.locator("#image").is_visible()
    assert not page.locator("#problem").is_visible()
    assert overflow(page) == 0
    clear(page, "#video")
    page.locator("#problem", has_text="Drop an image, a clip or a sound first").wait_for()
    page.locator("#video input[type=file]").set_input_files(str(write_clip(tmp_path / "clip.mp4")))
    wait_for_cell(page, "of 392")
    page.locator("#problem").wait_for(state="hidden")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_page_fits_its_width_and_colours(opened, width, colours):
    page = opened(width, colours)
    assert overflow(page) == 0
    assert page.locator("#table").bounding_box()["y"] < page.locator("#merged").bounding_box()["y"]
    headers = page.locator("#table th").all_inner_texts()
    assert [text for text in ("tokens", "GFLOPs", "ms, batch of 8") if not any(text in seen for seen in headers)] == []
    corner = page.evaluate(CORNER_PIXELS)
    assert (max(corner["merged"][:3]) < 80) == (colours == "dark")
    assert corner["curve"][3] == 0  # transparent: on the background of the page
    assert (corner["curve_ink"] > 384) == (colours == "dark")
    page.get_by_role("tab", name="Diffusion").click()
    page.click("button#draw")
    page.locator("#table-drawn td", has_text="0.5 merged").first.wait_for()
    assert overflow(page) == 0


def test_a_digit_is_drawn(page):
    page.get_by_role("tab", name="Diffusion").click()
    page.click("button#draw")
    page.wait_for_selector("#drawn-merged img")
    page.locator("#table-drawn td", has_text="0.5 merged").first.wait_for()
    assert not page.locator("#problem-drawn").is_visible()

"""Photograph the page of `integrations/gradio_space` for the docs: `python scripts/space_screenshot.py`.

Wants what `make test-browser` installs. The page shows its first example, a digit on a photograph of scikit-learn.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "space.png"
PORT = 7899
PATIENCE = 60  # seconds


def main() -> None:
    settings = {"GRADIO_SERVER_PORT": str(PORT), "GRADIO_ANALYTICS_ENABLED": "False"}
    app = ROOT / "integrations" / "gradio_space" / "app.py"
    server = subprocess.Popen([sys.executable, str(app)], env={**os.environ, **settings}, stdout=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{PORT}"
        wait_for(address)
        photograph(address)
    finally:
        server.terminate()
        server.wait()
    with Image.open(PICTURE) as picture:
        # Of the methods this one keeps small coloured things, such as the borders of the tokens.
        small = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=5)
    small.save(PICTURE, optimize=True)
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1000:.0f} kB")


def wait_for(address: str) -> None:
    for _ in range(PATIENCE):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(1)
    raise TimeoutError(f"The page did not start within {PATIENCE} s.")


def photograph(address: str) -> None:
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1240, "height": 900})
        page.goto(address, wait_until="domcontentloaded")
        page.wait_for_selector("#merged img", timeout=1000 * PATIENCE)
        page.wait_for_selector("#curve img", timeout=1000 * PATIENCE)
        page.wait_for_timeout(2000)  # until the bars of the classes have grown
        page.screenshot(path=str(PICTURE), full_page=True)
        browser.close()


if __name__ == "__main__":
    main()

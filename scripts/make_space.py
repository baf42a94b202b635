"""Put the page of `integrations/gradio_space` and the package together in one folder, to push as a Hugging Face Space.

A Space installs what its requirements.txt names before it sees its other files, so hf_tome goes along as a folder.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = shutil.ignore_patterns("__pycache__", "*.pyc", ".gradio")


def make_space(folder: Path) -> Path:
    """Write the Space to `folder`, which is emptied first if it holds an earlier one."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "app.py").is_file():
        raise FileExistsError(f"{folder} holds something else than a Space; name an empty or a new folder.")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "integrations" / "gradio_space", folder, ignore=SKIPPED)
    shutil.copytree(ROOT / "src" / "hf_tome", folder / "hf_tome", ignore=SKIPPED)
    shutil.copy(ROOT / "LICENSE", folder)
    readme = folder / "README.md"
    picture = "docs/images/space.png"
    readme.write_text(readme.read_text().replace(f"../../{picture}", "space.png"))
    if (ROOT / picture).is_file():
        shutil.copy(ROOT / picture, folder)
    return folder


if __name__ == "__main__":
    print(make_space(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "space")))

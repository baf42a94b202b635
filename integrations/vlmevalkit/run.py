"""Run VLMEvalKit's own `run.py` with `HfTomeVlm` among its models: `python run.py VLMEvalKit/run.py --config ...`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Register the model and hand over to the kit's script, the first argument."""
    if not arguments or not Path(arguments[0]).is_file():
        raise SystemExit("Give the path of VLMEvalKit's run.py, then its own arguments: --config llava.json")
    from hf_tome_vlm import register

    register()
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Run transformers' common model tests on merged models, and compare with the same tests of the plain ones.

    python scripts/transformers_tests/run.py --models vit,clip,siglip

The tests are those of the source distribution of the installed transformers, and run three times: on the plain models,
with `r=0`, where every test that passes plain has to pass, and with `r=2`, where those of `expected.json` may fail.
`make test-transformers` does it for all models, with the locked release and the latest one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path

import torch
import transformers
from sdist import install_tools, unpack

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MERGED = ("0", "2")


def run_tests(r: str | None, models: list[str], folder: Path, workers: int) -> dict[str, str]:
    """Return the outcome of each test, by the name of its class and its own."""
    out = folder / f"outcomes-{'plain' if r is None else r}.json"
    paths = (ROOT / "src", ROOT / "tests" / "support", HERE, folder, folder.parent / "packages")
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "OUTCOMES": str(out),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TEST_MODELS": ",".join(models),
    }
    if r is not None:
        env["MERGE_TOKENS"] = r
    # Without the settings of the project, under which warnings are errors.
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "outcomes", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, "--rootdir", str(HERE), "--disable-warnings", str(HERE / "cases.py")]
    command += ["-n", str(workers), "--dist", "worksteal"] if workers > 1 else []
    code = subprocess.run(command, env=env, stdout=(folder / f"{out.stem}.log").open("w")).returncode
    if code not in (0, 1):
        raise SystemExit(f"The tests did not run; see {folder / out.stem}.log.")
    return json.loads(out.read_text())


def compare(plain: dict[str, str], merged: dict[str, str], expected: list[dict[str, str]]) -> tuple[list, list]:
    """Return the tests that pass on plain models and not on merged ones: the unexpected, and the expected."""
    lost = sorted(name for name, outcome in plain.items() if outcome == "passed" and merged.get(name) != "passed")
    unexpected = [name for name in lost if not any(fnmatchcase(name, row["tests"]) for row in expected)]
    return unexpected, [name for name in lost if name not in unexpected]


def main() -> int:
    """Run the tests and print what differs; the status is 1 where something unexpected does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="names of rows of tests/support/zoo.py and others; default all")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "transformers-tests")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    install_tools(args.folder.resolve() / "packages")
    folder = unpack(transformers.__version__, args.folder.resolve())
    models = [name for name in args.models.split(",") if name]
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, {date.today()}")
    plain = run_tests(None, models, folder, args.workers)
    passed = sum(outcome == "passed" for outcome in plain.values())
    print(f"plain: {passed} of {len(plain)} pass, {sum(outcome == 'skipped' for outcome in plain.values())} skipped")
    status = 0
    for r in MERGED:
        expected = json.loads((HERE / "expected.json").read_text())[f"r={r}"]
        unexpected, differing = compare(plain, run_tests(r, models, folder, args.workers), expected)
        kept = passed - len(unexpected) - len(differing)
        print(f"r={r}: {kept} of these {passed} pass, {len(differing)} differ as expected")
        for name in unexpected:
            print(f"  r={r} fails unexpectedly: {name}")
        status |= bool(unexpected)
    return status


if __name__ == "__main__":
    sys.exit(main())

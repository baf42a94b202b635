"""What all tests share: no network, one thread a core, where real data lies, and which tests a run has."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, too
# Bits of MKL's products depend on where memory happens to be aligned, unless it is told to be strict.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

from pathlib import Path

import pairwise
import pytest
import torch

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parent.parent / "shared"

# The models are tiny: a second thread costs more than it brings, and each pytest-xdist worker has a core to itself.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--pairwise",
        action="store_true",
        help="of tests marked `product`, run a part of the product in which each value of each parameter appears",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--pairwise"):
        left_out = pairwise.left_out(items)
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
    if os.environ.get("RUN_SLOW") != "1":
        skip = pytest.mark.skip(reason="slow; run with RUN_SLOW=1")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


@pytest.fixture
def costs_hardly_measured(monkeypatch):
    """Let evaluations time two rounds and measure no memory: for tests that do not look at either."""
    from hf_tome.evaluation.running import loop

    monkeypatch.setattr(loop, "ROUNDS", 2)
    monkeypatch.setattr(loop, "peak_memory_mib", lambda run, model, device: 0.0)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data and weights.

    Without it the test is skipped; on CI it fails, unless HF_TOME_TEST_DATA is set to nothing, which says that there
    is none on purpose.
    """
    place = os.environ.get("HF_TOME_TEST_DATA", str(SHARED / "data"))
    if not place:
        pytest.skip("HF_TOME_TEST_DATA says that there is no real data here")
    if not Path(place).is_dir():
        absent = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        absent(f"needs real data in {place} (or in the folder that HF_TOME_TEST_DATA names)")
    return Path(place)


@pytest.fixture(scope="session")
def conformance() -> Path:
    """The folder of vectors that the papers' authors' code returned."""
    return TESTS / "data" / "conformance"


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory) -> Path:
    """A folder with a dozen held-out digits, test/<digit>/<position>.png."""
    from hf_tome.evaluation.data.digits import load_digits

    folder = tmp_path_factory.mktemp("data") / "digits"
    for position, sample in enumerate(load_digits("test").select(range(12))):
        place = folder / "test" / str(sample["label"])
        place.mkdir(parents=True, exist_ok=True)
        sample["image"].save(place / f"{position:02}.png")
    return folder

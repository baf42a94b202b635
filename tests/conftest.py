"""What all tests share: no network, one thread a core, and where the shared test data lies."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# Bits of MKL's products depend on where memory happens to be aligned, unless it is told to be strict.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

# The models are tiny: a second thread costs more than it brings, and each pytest-xdist worker has a core to itself.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if os.environ.get("RUN_SLOW") == "1":
        return
    skip = pytest.mark.skip(reason="slow; run with RUN_SLOW=1")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data and weights, or skip."""
    folder = Path(os.environ.get("HF_TOME_TEST_DATA", SHARED / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the shared test data in {folder} (or the folder in HF_TOME_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def conformance() -> Path:
    """The folder of vectors that the papers' authors' code returned, or skip."""
    folder = Path(os.environ.get("HF_TOME_TEST_SHARED", SHARED)) / "conformance"
    if not folder.is_dir():
        pytest.skip(f"needs the shared conformance vectors in {folder} (or in HF_TOME_TEST_SHARED)")
    return folder


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

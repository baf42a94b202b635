"""The locks hold what the code says that it was checked against, and what `pyproject.toml` admits."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from hf_tome.adapters.diffusion import unsupported as denoisers
from hf_tome.adapters.encoders import unsupported as encoders

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("lock", "oldest", "browser")


def locked(name: str) -> dict[str, list[Version]]:
    """Return the versions of each package in a lock; markers give some of them several."""
    versions: dict[str, list[Version]] = {}
    for line in (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if pin := re.match(r"([\w.-]+)==([\w.+!]+)", line):
            versions.setdefault(pin[1].lower().replace("_", "-"), []).append(Version(pin[2]))
    return versions


@pytest.mark.parametrize(
    ("package", "checked"), [("transformers", encoders.CHECKED), ("diffusers", denoisers.CHECKED)]
)
def test_what_was_checked_is_what_is_locked(package, checked):
    """A new lock needs a look at the models that the new release brings: a row, or a reason, for each."""
    (version,) = locked("lock")[package]
    assert version.release[: len(Version(checked).release)] == Version(checked).release


@pytest.mark.parametrize("name", LOCKS)
def test_locks_are_within_the_bounds(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = locked(name)
    compared = 0
    for text in [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]:
        requirement = Requirement(text)
        for version in versions.get(requirement.name.lower().replace("_", "-"), []):
            assert version in requirement.specifier, f"{name}.txt has {requirement.name} {version}; {text}"
            compared += 1
    assert compared > 15

"""transformers' common model tests, unpacked from the source distribution that a package registry has."""

from __future__ import annotations

import ast
import subprocess
import sys
import tarfile
from pathlib import Path

COMMON = "test_modeling_common.py"
TOOLS = "parameterized==0.9.0"
"""What the common tests import beside what the tests of hf_tome need."""


def unpack(version: str, folder: Path) -> Path:
    """Return the folder that holds `tests/` of this version, downloaded unless it is there already.

    The source distribution has the mixins of the common tests, and neither the tests of each model nor the mixins of
    export and generation; what is imported from those is made an empty class.
    """
    unpacked = folder / version
    if not (unpacked / "tests" / COMMON).exists():
        pip = [sys.executable, "-m", "pip"]
        # Without isolation, as the environment of the Makefile has setuptools.
        options = ["--no-deps", "--no-binary", "transformers", "--no-build-isolation", "--dest", str(folder)]
        subprocess.run([*pip, "download", "--quiet", *options, f"transformers=={version}"], check=True)
        with tarfile.open(folder / f"transformers-{version}.tar.gz") as archive:
            members = [member for member in archive if member.name.startswith(f"transformers-{version}/tests/")]
            archive.extractall(folder / "part", members, filter="data")
        unpacked.mkdir(parents=True, exist_ok=True)
        (folder / "part" / f"transformers-{version}" / "tests").rename(unpacked / "tests")
    (unpacked / "tests" / "__init__.py").touch()
    _fill_gaps(unpacked / "tests")
    return unpacked


def install_tools(folder: Path) -> Path:
    """Return a folder of the packages that only these tests need, which no environment of the Makefile has."""
    if not (folder / "parameterized").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), TOOLS]
        subprocess.run(command, check=True)
    return folder


def _fill_gaps(tests: Path) -> None:
    """Write empty classes for the mixins that the common tests import and the source distribution lacks."""
    for node in ast.walk(ast.parse((tests / COMMON).read_text())):
        if not (isinstance(node, ast.ImportFrom) and node.level == 1 and node.module):
            continue
        file = tests.joinpath(*node.module.split(".")).with_suffix(".py")
        if file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text("".join(f"class {alias.name}:\n    pass\n\n\n" for alias in node.names))

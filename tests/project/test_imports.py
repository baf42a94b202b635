"""`import hf_tome` and `hf-tome --help` load nothing heavy, and the lazily imported public names are all there."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_tome
from hf_tome.cli.app import COMMANDS

HEAVY = {"torch", "transformers", "datasets", "numpy", "PIL", "matplotlib", "sklearn", "huggingface_hub"}
HELP = "import sys\nfrom hf_tome.cli.app import run\nstatus = run({arguments!r})\n"
IMPORTED = "import sys\nprint(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"


def imported_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has imported after the code."""
    done = subprocess.run([sys.executable, "-c", code + IMPORTED], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["eval", "--no-such-option"], *([command, "--help"] for command in COMMANDS)],
    ids=" ".join,
)
def test_help_and_wrong_usage_import_nothing_heavy(arguments):
    assert not imported_by(HELP.format(arguments=arguments)) & HEAVY


def test_importing_the_package_imports_nothing_heavy():
    assert not imported_by("import hf_tome\n") & HEAVY


def test_public_names_are_imported_when_first_used():
    used = "import hf_tome\nassert hf_tome.MergeConfig(r=8).r == 8\nassert hf_tome.merging.Merge\n"
    assert "torch" in imported_by(used)
    assert "torch" in imported_by("from hf_tome import *\nassert apply and pipeline\n")


def test_type_checkers_see_the_public_names():
    tree = ast.parse(Path(hf_tome.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == hf_tome._DEFINED_IN
    assert sorted([*seen, "__version__"]) == sorted(hf_tome.__all__)


def test_unknown_names_are_attribute_errors():
    assert set(hf_tome.__all__) <= set(dir(hf_tome))
    with pytest.raises(AttributeError, match="no attribute 'aply'"):
        _ = hf_tome.aply
    with pytest.raises(ImportError, match="aply"):
        exec("from hf_tome import aply")

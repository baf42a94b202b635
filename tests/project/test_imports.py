"""`import hf_tome` and `hf-tome --help` load nothing heavy, public names are all there, and rooms import one way."""

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
    used = "assert hf_tome.MergeConfig(r=8).r == 8\nassert hf_tome.merging.Merge\nassert 'torch' in sys.modules\n"
    used += "assert 'torch._dynamo' not in sys.modules, 'it takes a second'\n"
    all_names = "from hf_tome import *\nassert apply and pipeline\n"
    assert "torch" in imported_by(f"import sys, hf_tome\nassert 'torch' not in sys.modules\n{used}{all_names}")


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


PACKAGE = Path(hf_tome.__file__).parent
SPLIT = ("adapters", "evaluation")
"""Folders whose sub-folders, and files beside them, are rooms of their own."""
ORDER = [
    ["version", "files", "media", "escaping", "verbosity"],
    ["errors"],
    ["merging"],
    ["config", "models"],
    ["patching"],
    ["adapters"],  # what an adapter is; its folders follow
    ["adapters/encoders"],
    ["adapters/vision_language", "adapters/diffusion", "adapters/dense", "adapters/kv_cache"],
    ["adapters/groups"],
    ["api"],
    ["inspection"],
    ["profiling"],
    ["hub"],
    ["pipelines", "contexts", "visualize", "training"],
    ["evaluation/options", "evaluation/distributed", "evaluation/environment"],
    ["evaluation/variants", "evaluation/model_state"],
    ["evaluation/data"],
    ["evaluation/store"],
    ["evaluation/metrics"],
    ["evaluation/job"],
    ["evaluation/loading"],
    ["evaluation/running"],
    ["evaluation/tasks", "evaluation/merge_evaluator"],
    ["evaluation/reporting"],
    ["evaluation/picture_report"],
    ["evaluation/pictures"],
    ["evaluation/sources"],
    ["evaluation/search"],
    ["evaluation/functions"],
    ["evaluation"],
    ["demo"],
    ["cli"],
    ["__main__"],
]
"""The rooms from the lowest up (DESIGN.md, "The house"): each imports only rooms of lower lines."""


def room_of(parts: tuple[str, ...]) -> str:
    path = PACKAGE.joinpath(*parts[:2])
    is_room = path.is_dir() or (parts[0] == "evaluation" and path.with_suffix(".py").is_file())
    splits = parts[0] in SPLIT and len(parts) > 1 and parts[1] != "__init__"
    return "/".join(parts[:2]) if splits and is_room else parts[0]


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms that a file imports when it runs; blocks under TYPE_CHECKING import nothing then."""
    package = path.relative_to(PACKAGE).with_suffix("").parts
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    rooms = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in hidden:
            base = (*package[: len(package) - node.level], *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                target = PACKAGE.joinpath(*base, alias.name)
                parts = (*base, alias.name) if target.with_suffix(".py").is_file() or target.is_dir() else base
                rooms |= {room_of(parts)} if parts else set()
    return rooms


def test_rooms_import_one_way():
    height = {room: index for index, line in enumerate(ORDER) for room in line}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        room = room_of(parts)
        for other in imported_rooms(path) - {room}:
            assert height[other] < height[room], f"{path.relative_to(PACKAGE)} imports {other}"

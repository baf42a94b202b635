"""The sizes of folders and files, and the imports of scripts that no other test runs."""

import ast
from pathlib import Path

import hf_tome

PACKAGE = Path(hf_tome.__file__).parent
ROOT = Path(__file__).resolve().parents[2]
MAX_FILES, MAX_LINES = 15, 350


def test_folders_hold_at_most_15_files():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    counts = {str(folder.relative_to(PACKAGE)): len(list(folder.glob("*.py"))) for folder in folders}
    assert counts
    too_full = {folder: count for folder, count in counts.items() if count > MAX_FILES}
    assert not too_full, f"move files that belong together into a sub-folder: {too_full}"


def test_files_have_at_most_350_lines():
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    too_long = {path: length for path, length in lengths.items() if length > MAX_LINES}
    assert not too_long, f"split them by subject: {too_long}"


def names_of(module: str) -> set[str] | None:
    """Return what a module of the package defines or imports, and its submodules; None if there is no module."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return None
    names = {child.stem for child in path.glob("*") if child.suffix == ".py" or child.is_dir()}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_scripts_import_what_there_is():
    """Nothing runs the scripts and recipes after every change, but what they import of the package must be there."""
    missing, checked = [], 0
    for folder in ("benchmarks", "integrations", "scripts"):
        for path in sorted(ROOT.joinpath(folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] != "hf_tome":
                    continue
                names = names_of(node.module)
                checked += 1
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                if names is None:
                    missing.append(f"{where} has no module {node.module}")
                else:
                    missing += [f"{where} has no {node.module}.{a.name}" for a in node.names if a.name not in names]
    assert checked > 100
    assert not missing

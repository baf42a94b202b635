"""No loader of hf_tome or its recipes leaves open whether code of a repository runs: unset asks on standard input."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for folder in ("src", "integrations") for path in (ROOT / folder).rglob("*.py"))


def loads_by_name(call):
    """Tell whether a call is `Auto*.from_pretrained`, or that of a class in a variable such as `auto_class`."""
    function = call.func
    if not (isinstance(function, ast.Attribute) and function.attr == "from_pretrained"):
        return False
    owner = function.value.attr if isinstance(function.value, ast.Attribute) else getattr(function.value, "id", "")
    return owner.startswith("Auto") or owner == "auto_class"


def says_whose_code(call):
    """Tell whether a call has `trust_remote_code`, or passes the arguments of its caller on, who has it."""
    return any(keyword.arg in (None, "trust_remote_code") for keyword in call.keywords)


@pytest.mark.parametrize("folder", ["src", "integrations"])
def test_loaders_say_whose_code_may_run(folder):
    files = [file for file in FILES if file.is_relative_to(ROOT / folder)]
    nodes = [(file, node) for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    loaders = [(file, node) for file, node in nodes if isinstance(node, ast.Call) and loads_by_name(node)]
    assert len(loaders) >= 5
    silent = [f"{file.relative_to(ROOT)}:{call.lineno}" for file, call in loaders if not says_whose_code(call)]
    assert not silent


def test_nobody_runs_remote_code_by_himself():
    calls = [node for file in FILES for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    keywords = [keyword for node in calls if isinstance(node, ast.Call) for keyword in node.keywords]
    passed = [keyword.value for keyword in keywords if keyword.arg == "trust_remote_code"]
    assert passed
    assert not [value for value in passed if isinstance(value, ast.Constant) and value.value is not False]

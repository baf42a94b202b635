"""Every cell of the table in docs/deploy.md has its tests."""

import ast
from functools import cache
from pathlib import Path

import pytest
from composition import CELLS, DESIGNS, FEATURES, REFUSED, Cell, table

TESTS = Path(__file__).resolve().parents[1]


@cache
def functions(path):
    """Return the source of each test function of a file, by its name."""
    source = (TESTS / path).read_text(encoding="utf-8")
    return {
        node.name: ast.get_source_segment(source, node)
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def check(cell):
    assert cell.design in DESIGNS
    assert cell.feature in FEATURES
    assert cell.tests
    for test in cell.tests:
        path, name = test.split("::")
        assert name in functions(path), f"{test} is gone: mend the cell {cell.design}, {cell.feature}"
        assert cell.configured in (TESTS / path).read_text(encoding="utf-8"), f"{test} has no {cell.configured}"
        raises = "pytest.raises" in functions(path)[name]
        assert raises or cell.result != REFUSED, f"{test} asserts no error"


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.design}-{cell.feature}")
def test_a_cell_has_its_tests(cell):
    check(cell)


def test_one_cell_for_each_pair():
    pairs = [(cell.design, cell.feature) for cell in CELLS]
    assert len(pairs) == len(set(pairs))
    assert {design for design, _ in pairs} == set(DESIGNS)
    untested = len(DESIGNS) * len(FEATURES) - len(CELLS)
    assert table().count("not tested") == untested


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Cell("tome", "lora", ("hub/test_export.py::test_nothing",), "r=6"), "test_nothing is gone"),
        (Cell("tome", "onnx", ("hub/test_export.py::test_onnx",), "r=6", REFUSED), "asserts no error"),
        (Cell("tome", "onnx", ("hub/test_export.py::test_onnx",), '"recent"'), 'has no "recent"'),
    ],
)
def test_cells_that_hold_nothing_are_noticed(cell, message):
    with pytest.raises(AssertionError, match=message):
        check(cell)

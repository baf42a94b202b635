"""Which part of the product of parameters runs with `--pairwise`: one column a row, and another one in the next test.

The values of a test's longest parameter are the rows of a table, the combinations of the others its columns. A test
runs on one diagonal of the table, so that each row and each column appears in it; the tests of a file take diagonals
side by side, so that as many tests as there are columns run every pair of row and column between them.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable

import pytest


def on_diagonal(row: int, column: int, rows: int, columns: int, shift: int) -> bool:
    """Tell whether a cell lies on a diagonal that wraps around; it meets every row and every column."""
    if rows >= columns:
        return column == (row + shift) % columns
    return row == (column + shift) % rows


def left_out(items: Iterable[pytest.Item]) -> set[pytest.Item]:
    """Return the items of tests marked `product` that lie on none of their test's diagonals."""
    files = defaultdict(lambda: defaultdict(list))
    for item in items:
        if item.get_closest_marker("product"):
            files[item.path][item.originalname].append(item)
    numbered = [numbered for tests in files.values() for numbered in enumerate(tests.values())]
    return {item for number, test in numbered for item in _off_diagonal(test, number)}


def _off_diagonal(test: list[pytest.Item], number: int) -> list[pytest.Item]:
    """Return the items of one test, the `number`-th of its file, that do not run."""
    parameters = sorted((_places(test, names) for names in _parameters(test[0])), key=lambda places: -max(places))
    rows, columns = parameters[0], _in_order(zip(*parameters[1:])) if parameters[1:] else [0] * len(test)
    size = max(rows) + 1, max(columns) + 1
    return [item for item, row, column in zip(test, rows, columns) if not on_diagonal(row, column, *size, number)]


def _parameters(item: pytest.Item) -> list[list[str]]:
    """Return the parameters of a test, each as the names that one `parametrize` gives values to."""
    names = [mark.args[0] for mark in item.iter_markers("parametrize")]
    return [
        [name.strip() for name in (names_given.split(",") if isinstance(names_given, str) else names_given)]
        for names_given in names
    ]


def _places(test: list[pytest.Item], names: list[str]) -> list[int]:
    """Return which of a parameter's values each item has; a parameter hands the same objects to all items."""
    return _in_order(tuple(id(item.callspec.params[name]) for name in names) for item in test)


def _in_order(values: Iterable[Hashable]) -> list[int]:
    """Number values by their first appearance."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(value, len(numbers)) for value in values]

"""Which part of the product of parameters runs with `--pairwise`: one column a row, and another one in the next test.

The values of a test's longest parameter are the rows of a table, the combinations of the others its columns. A test
runs on one diagonal of the table, so that each row and each column appears in it; the tests of a file take diagonals
side by side, so that as many tests as there are columns run every pair of row and column between them.
"""

from collections import defaultdict
from collections.abc import Iterable

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
    indices = [item.callspec.indices for item in test]
    names = sorted(indices[0], key=lambda name: (-len({index[name] for index in indices}), name))
    rows = _numbers([index[names[0]] for index in indices])
    columns = _numbers([tuple(index[name] for name in names[1:]) for index in indices])
    size = max(rows) + 1, max(columns) + 1
    return [item for item, row, column in zip(test, rows, columns) if not on_diagonal(row, column, *size, number)]


def _numbers(values: list) -> list[int]:
    """Return the place of each value among the distinct ones in order."""
    places = {value: place for place, value in enumerate(sorted(set(values)))}
    return [places[value] for value in values]

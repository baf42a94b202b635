"""`--pairwise` leaves out much of a product, but no row, no column and, over enough tests, no pair."""

from itertools import product
from types import SimpleNamespace

import pairwise
import pytest


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 1), (5, 5), (7, 3), (3, 7), (38, 10)])
def test_a_diagonal_meets_every_row_and_column(rows, columns):
    for shift in range(max(rows, columns)):
        cells = {
            cell
            for cell in product(range(rows), range(columns))
            if pairwise.on_diagonal(*cell, rows=rows, columns=columns, shift=shift)
        }
        assert {row for row, _ in cells} == set(range(rows))
        assert {column for _, column in cells} == set(range(columns))
        assert len(cells) == max(rows, columns)


class Item(SimpleNamespace):
    __hash__ = object.__hash__

    def get_closest_marker(self, name):
        return name if name in self.marks else None


def items(name, *sizes, marks=("product",)):
    names = "abc"[: len(sizes)]
    return [
        Item(path="file", originalname=name, marks=marks, callspec=SimpleNamespace(indices=dict(zip(names, cell))))
        for cell in product(*map(range, sizes))
    ]


def cells(chosen):
    return {tuple(item.callspec.indices.values()) for item in chosen}


def test_as_many_tests_as_columns_run_every_pair():
    tests = [items(f"test_{number}", 7, 3) for number in range(3)]
    left_out = pairwise.left_out(item for test in tests for item in test)
    run = [cells(set(test) - left_out) for test in tests]
    assert [len(chosen) for chosen in run] == [7, 7, 7]
    assert set.union(*run) == set(product(range(7), range(3)))


def test_the_columns_are_the_product_of_the_shorter_parameters():
    test = items("test", 2, 9, 3)
    run = cells(set(test) - pairwise.left_out(test))
    assert {b for _, b, _ in run} == set(range(9))
    assert {(a, c) for a, _, c in run} == set(product(range(2), range(3)))


def test_what_is_not_marked_runs_whole():
    assert not pairwise.left_out(items("test", 4, 4, marks=("slow",)))

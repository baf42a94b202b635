"""`--pairwise` leaves out much of a product, but no row, no column and, over enough tests, no pair."""

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pairwise
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("tests", "tests/support", "src")


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


TESTS = """
import pytest

models = pytest.mark.parametrize("model", [object() for _ in range(7)], ids="abcdefg")
configs = pytest.mark.parametrize("config", [{"r": r} for r in range(3)], ids="xyz")
backends = pytest.mark.parametrize("backend", ["sdpa", "eager"])
cases = pytest.mark.parametrize(("model", "where"), [("m", 1), ("m", 2), ("n", 1)], ids=["m1", "m2", "n1"])

@pytest.mark.product
@configs
@models
def test_first(model, config): pass

@pytest.mark.product
@configs
@models
def test_second(model, config): pass

@pytest.mark.product
@configs
@models
def test_third(model, config): pass

@pytest.mark.product
@backends
@models
@configs
def test_three_parameters(config, model, backend): pass

@pytest.mark.product
@backends
@cases
def test_named_together(model, where, backend): pass

@configs
@models
def test_not_marked(model, config): pass
"""


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """The ids of parameters, test by test, that `--pairwise` leaves of TESTS."""
    folder = tmp_path_factory.mktemp("tests")
    (folder / "test_it.py").write_text(TESTS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--pairwise", "-p", "no:cacheprovider"]
    options = ["-c", ROOT / "pyproject.toml", "--rootdir", folder, "--confcutdir", folder, "-p", "conftest"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in FOLDERS)}
    done = subprocess.run([*command, *options, folder], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for test, parameters in re.findall(r"::test_(\w+)\[(.*)\]", done.stdout):
        found.setdefault(test, []).append(tuple(parameters.split("-")))
    return found


def test_as_many_tests_as_columns_run_every_pair(chosen):
    run = [chosen[name] for name in ("first", "second", "third")]
    assert [len(set(cells)) for cells in run] == [7, 7, 7]
    assert set().union(*run) == set(product("abcdefg", "xyz"))


def test_the_columns_are_the_product_of_the_shorter_parameters(chosen):
    cells = chosen["three_parameters"]
    assert {model for _, model, _ in cells} == set("abcdefg")
    assert {(config, backend) for config, _, backend in cells} == set(product("xyz", ["sdpa", "eager"]))
    assert len(cells) == 7


def test_names_that_are_parametrised_together_are_one_parameter(chosen):
    cells = chosen["named_together"]
    assert len(cells) == 3
    assert {case for case, _ in cells} == {"m1", "m2", "n1"}
    assert {backend for _, backend in cells} == {"sdpa", "eager"}


def test_what_is_not_marked_runs_whole(chosen):
    assert len(chosen["not_marked"]) == 21

"""Tables that fit the terminal: several where one is too wide, each with what names the rows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_tome.evaluation.reporting.tables import to_table
from hf_tome.evaluation.reporting.writers import fit_columns, plain_table
from hf_tome.evaluation.store.results import Results

VALUES = {
    **{"top1": 90.62, "top5": 100.0, "agreement": 93.75, "drop": 6.25, "drop_low": -10.89, "drop_high": 15.625},
    **{"tokens": 257.0, "gflops": 0.17, "samples_per_second": 1159.3, "peak_memory_mib": 1400.0},
    **{"speedup": 2.75, "speedup_low": 2.63, "speedup_high": 2.8},
}
NAMES = ("unmerged", "r=8", "method=mame,threshold=0.8,layers=0-7,adaptive_pruning=false,metric=x_pre")
SHOWN = ("90.62", "100.00", "93.75", "6.25 (-10.89 to 15.62)", "257.0", "0.170", "1159.3", "2.75 (2.63 to 2.80)")


def results():
    run = {"task": "image-classification", "model": "m" * 60, "warnings": ["not to be trusted " * 9]}
    data = {"id": "d" * 30, "split": "test", "num_samples": 3, "skipped": []}
    return Results({"packages": {}}, run, data, [{"config": {}, "name": name, **VALUES} for name in NAMES])


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_results_fit_the_terminal_and_hide_nothing(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = to_table(results()).splitlines()
    assert max(map(len, lines)) <= columns
    for value in SHOWN:
        assert sum(line.count(value) for line in lines) == len(NAMES)


def test_what_is_piped_is_as_wide_as_a_plain_terminal(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda _: (_ for _ in ()).throw(OSError))
    assert max(map(len, to_table(results()).splitlines())) <= 80
    header, row = [f"column {i}" for i in range(20)], [str(i) * 5 for i in range(20)]
    table = plain_table(header, [row])
    assert max(map(len, table.splitlines())) <= 80
    assert all(cell in table for cell in (*header, *row))


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(20, 90))
def test_columns_are_split_into_the_fewest_tables(widths, width):
    tables = fit_columns(widths, width, gap=2)
    assert all(table[0] == 0 for table in tables)
    assert [column for table in tables for column in table[1:]] == list(range(1, len(widths)))
    used = [sum(widths[column] for column in table) + 2 * (len(table) - 1) for table in tables]
    can_fit = len(widths) < 2 or widths[0] + 2 + max(widths[1:]) <= width
    assert max(used) <= width if can_fit and len(widths) > 1 else len(tables) == 1
    if sum(widths) + 2 * (len(widths) - 1) <= width:
        assert len(tables) == 1

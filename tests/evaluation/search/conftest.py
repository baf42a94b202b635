"""Searches run many evaluations; none of their tests looks at the speed or the memory of one."""

import pytest


@pytest.fixture(autouse=True)
def _costs_hardly_measured(costs_hardly_measured):
    """Use the fixture in every test of this folder."""

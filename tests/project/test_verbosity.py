"""`hf_tome.set_verbosity_*`: what is logged, and where."""

import logging
import subprocess
import sys

import pytest

import hf_tome

LOGGING = """
import logging
import hf_tome
{setup}
logging.getLogger("hf_tome.hub").info("a message")
"""


@pytest.fixture(autouse=True)
def as_before():
    logger = logging.getLogger("hf_tome")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers = handlers


@pytest.mark.parametrize("name", ["debug", "info", "warning", "error"])
def test_levels(name, caplog):
    getattr(hf_tome, f"set_verbosity_{name}")()
    level = getattr(logging, name.upper())
    assert hf_tome.get_verbosity() == level
    hf_tome.set_verbosity(name.upper())
    assert hf_tome.get_verbosity() == level
    logger = logging.getLogger("hf_tome.hub")
    logger.log(level - 1, "below")
    logger.log(level, "at")
    assert [record.message for record in caplog.records] == ["at"]


@pytest.mark.parametrize("level", ["loud", "", None, 1.5, True])
def test_levels_that_do_not_exist(level):
    before = hf_tome.get_verbosity()
    with pytest.raises(ValueError, match=r"takes a number or one of 'debug', 'info', 'warning', 'error'"):
        hf_tome.set_verbosity(level)
    assert hf_tome.get_verbosity() == before


@pytest.mark.parametrize(
    ("setup", "messages"),
    [
        ("", 0),
        ("hf_tome.set_verbosity_info()", 1),
        ("hf_tome.set_verbosity_info(); hf_tome.set_verbosity('info')", 1),
        ("hf_tome.set_verbosity_info(); logging.basicConfig()", 1),
        ("logging.basicConfig(); hf_tome.set_verbosity_info()", 1),
        ("hf_tome.set_verbosity_warning()", 0),
    ],
)
def test_messages_come_once(setup, messages):
    done = subprocess.run(
        [sys.executable, "-c", LOGGING.format(setup=setup)], capture_output=True, text=True, check=True
    )
    assert done.stderr.count("a message") == messages

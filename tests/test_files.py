"""Files are written whole or not at all, and never through a symbolic link."""

import os

import pytest

from hf_tome.files import open_to_append, replacing, write_whole


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "results.json"
    write_whole(path, "old ä")
    with pytest.raises(ZeroDivisionError), replacing(path) as unfinished:
        unfinished.write_text(f"half {1 / 0}")
    assert path.read_text(encoding="utf-8") == "old ä"
    write_whole(path, b"new\n")
    assert path.read_bytes() == b"new\n"
    assert os.listdir(tmp_path) == ["results.json"]


def test_the_mode_is_that_of_any_new_file(tmp_path):
    write_whole(tmp_path / "one", "")
    (tmp_path / "other").write_text("")
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_names_as_long_as_the_system_takes_them(tmp_path):
    write_whole(tmp_path / ("x" * 255), "whole")
    assert (tmp_path / ("x" * 255)).read_text() == "whole"


def test_links_are_not_written_through(tmp_path):
    secret, link = tmp_path / "secret", tmp_path / "results.json"
    secret.write_text("mine")
    link.symlink_to(secret)
    with pytest.raises(OSError, match=r"A symbolic link is not written through.*results\.json"):
        open_to_append(link)
    write_whole(link, "results")
    assert (secret.read_text(), link.read_text(), link.is_symlink()) == ("mine", "results", False)

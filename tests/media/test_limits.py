"""Limits of media as text."""

import pytest

from hf_tome.media.limits import Deadline, MediaLimitError, MediaLimits, parse_limits


def test_limits_as_text():
    assert parse_limits("") == MediaLimits()
    assert parse_limits("image_pixels=7, frames = 9") == MediaLimits(image_pixels=7, frames=9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pixels=7", "no media limit 'pixels'; the limits are file_bytes, image_pixels"),
        ("frames", "frames is ''; it takes an integer"),
        ("frames=-1", "frames is '-1'"),
        ("frames=" + "9" * 5000, "it takes an integer"),
        ("frames=0", "frames is 0; it takes an integer of at least 1"),
    ],
)
def test_wrong_limits_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_limits(text)


def test_a_deadline():
    deadline = Deadline(MediaLimits(decoding_seconds=1))
    deadline.check()
    deadline.end -= 2
    with pytest.raises(MediaLimitError, match="longer than the limit decoding_seconds=1"):
        deadline.check()

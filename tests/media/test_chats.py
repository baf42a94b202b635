"""What `image-text-to-text` reads, alone and in chats, has the limits of all media."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import small
from PIL import Image

from hf_tome import MergeConfig
from hf_tome.media.audio import AudioError
from hf_tome.media.chats import open_messages
from hf_tome.media.image import ImageError
from hf_tome.media.limits import DEFAULT_LIMITS, MediaLimitError, MediaLimits
from hf_tome.media.video import VideoError
from hf_tome.pipelines import pipeline

PROMPT = "<image> a photo of"
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> "
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = small.llava(tmp_path_factory.mktemp("llava"))
    made = pipeline("image-text-to-text", folder, merge_config=MergeConfig(r=8), device="cpu")
    made.processor.chat_template = TEMPLATE
    return made


@pytest.fixture
def bomb(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    return tmp_path / "bomb.png"


def chat(**part):
    return [{"role": "user", "content": [{"type": "image", **part}, {"type": "text", "text": "a photo of"}]}]


def text_of(result):
    return result[0]["generated_text"]


def test_images_give_the_same_wherever_they_lie(pipe, tmp_path):
    photo = small.picture()
    photo.save(tmp_path / "photo.png")
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    expected = text_of(pipe(photo, text=PROMPT, max_new_tokens=4))
    for image in (str(tmp_path / "photo.png"), encoded):
        assert text_of(pipe(image, text=PROMPT, max_new_tokens=4)) == expected
    for part in ({"image": photo}, {"path": str(tmp_path / "photo.png")}, {"base64": encoded}):
        asked = chat(**part)
        (answer,) = pipe(asked, max_new_tokens=4, return_full_text=False)
        assert expected.endswith(answer["generated_text"])
        assert answer["input_text"][0]["content"][0] == {"type": "image", **part}, "the chat as it was asked"


def test_images_are_checked_before_they_are_decoded(pipe, bomb):
    for call in (lambda: pipe(str(bomb), text=PROMPT), lambda: pipe(chat(path=str(bomb)))):
        with pytest.raises(MediaLimitError, match="9000 x 9000 pixels, above the limit"):
            call()
    with pytest.raises(MediaLimitError, match="above the limit image_pixels=100"):
        pipe(chat(image=str(bomb)), media_limits=MediaLimits(image_pixels=100))
    photos = [[small.picture(), str(bomb)]]
    with pytest.raises(MediaLimitError, match="9000 x 9000 pixels"):
        pipe(photos, text=[PROMPT])


@pytest.mark.parametrize("name", ["file:///etc/hostname", "tcp://127.0.0.1:9/a", "/dev/zero", "missing.png"])
def test_names_that_are_no_files_are_refused(pipe, name):
    for call in (lambda: pipe(name, text=PROMPT), lambda: pipe(chat(url=name))):
        with pytest.raises(ImageError, match=r"^Cannot read [^\n]*\.$"):
            call()


def opened(part, limits=DEFAULT_LIMITS):
    with open_messages([{"role": "user", "content": [part]}], 16_000, limits) as messages:
        return messages[0]["content"][0]


def test_clips_and_recordings_of_chats(tmp_path):
    pytest.importorskip("av")
    clip, sound = small.write_clip(tmp_path / "clip.mp4"), small.write_sound(tmp_path / "sound.wav")
    assert opened({"type": "video", "path": str(clip)}) == {"type": "video", "video": str(clip)}
    samples = opened({"type": "audio", "url": str(sound)})["audio"]
    assert samples.dtype == np.float32
    assert samples.shape == (8000,)
    message = {"role": "user", "content": [{"type": "video", "video": clip.read_bytes()}]}
    with open_messages([message], 16_000, DEFAULT_LIMITS) as messages:
        file = Path(messages[0]["content"][0]["video"])
        assert file.read_bytes() == clip.read_bytes()
    assert not file.exists()
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXTINF:5,\n{clip}\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError, match=r"^Cannot read list\.m3u8: "):
        opened({"type": "video", "path": str(playlist)})
    with pytest.raises(VideoError, match="above the limit frames=3"):
        opened({"type": "video", "path": str(clip)}, MediaLimits(frames=3))
    with pytest.raises(AudioError, match=r"^Cannot read list\.m3u8: "):
        opened({"type": "audio", "path": str(playlist)})


def test_what_is_no_medium_stays():
    for content in ("a text", [{"type": "text", "text": "a text"}], ["odd"], [{"type": "image"}]):
        with open_messages([{"role": "user", "content": content}], 16_000, DEFAULT_LIMITS) as messages:
            assert messages == [{"role": "user", "content": content}]

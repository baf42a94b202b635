"""Clips are upright, and read from themselves alone, within the limits."""

import os
import re
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
import small

av = pytest.importorskip("av")

from hf_tome.media.limits import MediaLimits  # noqa: E402
from hf_tome.media.video import VideoError, read_frames, read_views, stack_frames  # noqa: E402

CORNERS = np.array([[250, 170], [90, 10]], dtype=np.uint8)  # by the corners of a frame, its greys


def write_corners(path, rotation=None, hflip=False):
    """Write a clip of 64 x 48 pixels with a grey of its own in each quarter."""
    pixels = CORNERS.repeat(24, axis=0).repeat(32, axis=1)[..., None].repeat(3, axis=2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=hflip)
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def corners(frame):
    height, width = frame.shape[:2]
    return frame[:: height - 1, :: width - 1, 0].round(-1) // 10


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_clips_are_upright(tmp_path, suffix, turns, hflip):
    path = write_corners(tmp_path / f"phone{suffix}", 90 * turns, hflip)
    frames = read_frames(path, 2)
    assert frames.shape == (2, *((48, 64) if turns % 2 == 0 else (64, 48)), 3)
    shown = np.rot90(CORNERS, turns)
    shown = shown[:, ::-1] if hflip else shown
    assert np.abs(frames[0][:: frames.shape[1] - 1, :: frames.shape[2] - 1, 0].astype(int) - shown).max() < 20
    assert np.array_equal(read_views(path, 2, 2)[0], frames)


def write_song(path, cover=True, clip=False):
    """Write a tone with a cover picture, as music shops do, and maybe a clip after it."""
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else None) as container:
        sound = container.add_stream("flac" if path.suffix == ".flac" else "aac", rate=16000, layout="mono")
        moving = None
        if cover:
            picture = container.add_stream("png", rate=1)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "rgb24"
            picture.disposition = av.stream.Disposition.attached_pic
        if clip:
            moving = container.add_stream("mpeg4", rate=10)
            moving.width, moving.height, moving.pix_fmt = 64, 48, "yuv420p"
        if cover:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 200, dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = 0, Fraction(1, 1)
            container.mux(picture.encode(frame))
            container.mux(picture.encode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
        if moving is not None:
            for _ in range(3):
                grey = np.full((48, 64, 3), 60, dtype=np.uint8)
                container.mux(moving.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(moving.encode())
    return path


@pytest.mark.parametrize("suffix", [".m4a", ".flac", ".mp4"])
def test_a_cover_is_no_clip(tmp_path, suffix):
    path = write_song(tmp_path / f"song{suffix}")
    with av.open(str(path)) as container:
        assert container.streams.video, "the file has no cover, so that the test could not fail"
    with pytest.raises(VideoError, match=r"it has no video stream but a cover picture\.$"):
        read_frames(path, 4)


def test_the_clip_beside_a_cover_is_read(tmp_path):
    frames = read_frames(write_song(tmp_path / "clip.mp4", clip=True), 2)
    assert frames.shape == (2, 48, 64, 3)
    assert abs(int(frames[0, 0, 0, 0]) - 60) < 8


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
def test_frames_in_memory_are_bytes(dtype):
    values = np.arange(256, dtype=dtype).repeat(3).reshape(1, 16, 16, 3)
    assert stack_frames(values).dtype == np.uint8
    assert np.array_equal(stack_frames(values), values)


def test_floats_up_to_1_are_scaled_once():
    values = np.linspace(0, 1, 256, dtype=np.float32).repeat(3).reshape(1, 16, 16, 3)
    assert np.array_equal(stack_frames(values)[..., 0].ravel(), np.arange(256))
    assert np.array_equal(read_frames(list(values), 1), stack_frames(values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((1, 4, 4, 3), -1.0), "values from -1 to -1; a clip holds 0 to 255"),
        (np.full((1, 4, 4, 3), 256), "values from 256 to 256"),
        (np.full((1, 4, 4, 3), np.nan), "values from nan to nan"),
        (np.full((1, 4, 4, 3), 1j), "of type complex128"),
    ],
)
def test_other_values_are_refused(values, message):
    with pytest.raises(VideoError, match=message):
        stack_frames(values)


# Hostile files

PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{secret}\n#EXT-X-ENDLIST\n",
    "list.mp4": "ffconcat version 1.0\nfile {secret}\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "dash.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:'
    'isoff-on-demand:2011"><Period><AdaptationSet><Representation><BaseURL>{secret}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
}


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_open_nothing(tmp_path, monkeypatch, name, as_bytes):
    small.write_clip(tmp_path / "secret.mp4")
    monkeypatch.chdir(tmp_path)
    for secret in ("secret.mp4", str(tmp_path / "secret.mp4")):
        (tmp_path / name).write_text(PLAYLISTS[name].format(secret=secret))
        begun = time.monotonic()
        with pytest.raises(VideoError, match=r"^Cannot read [^\n]*\.$"):
            read_frames((tmp_path / name).read_bytes() if as_bytes else tmp_path / name, 4)
        assert time.monotonic() - begun < 2


def test_playlists_connect_to_nothing(tmp_path):
    import socket

    connected = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        server.settimeout(0.5)
        names = [f"tcp://{address}", f"http://{address}/a.mp4", f"concat:http://{address}/a.mp4"]
        sources = names + [text.format(secret=names[1]).encode() for text in PLAYLISTS.values()]

        def accept():
            try:
                server.accept()[0].close()
                connected.set()
            except TimeoutError:
                pass

        thread = threading.Thread(target=accept)
        thread.start()
        for source in sources:
            with pytest.raises(VideoError, match="Cannot read"):
                read_frames(source, 4)
        thread.join()
    assert not connected.is_set()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"frame_pixels": 64 * 48 - 1}, "frames above the limit frame_pixels=3071"),
        ({"frames": 19}, "it has at least 20 frames, above the limit frames=19"),
        ({"clip_pixels": 10_000}, "4 frames of it have 12288 pixels, above the limit clip_pixels=10000"),
        ({"file_bytes": 100}, "bytes, above the limit file_bytes=100"),
    ],
)
def test_declared_sizes_are_checked_before_decoding(tmp_path, limits, message):
    path = small.write_clip(tmp_path / "clip.mp4")
    for source in (path, path.read_bytes()):
        with pytest.raises(VideoError, match=rf"Cannot read .*: .*{message}\.$"):
            read_frames(source, 4, limits=MediaLimits(**limits))


def test_reading_ends_in_time(tmp_path, monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            self.now += 0.5
            return self.now

    monkeypatch.setattr("hf_tome.media.limits.time", Clock())
    with pytest.raises(VideoError, match="longer than the limit decoding_seconds=2"):
        read_frames(small.write_clip(tmp_path / "clip.mp4"), 4, limits=MediaLimits(decoding_seconds=2))


def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match=r"Cannot read pipe\.mp4: it is not a regular file"):
        read_frames(tmp_path / "pipe.mp4", 4)


def outcome(content):
    try:
        return "read" if len(read_frames(content, 4)) == 4 else "wrong length"
    except VideoError as error:
        return str(error)


def test_cut_and_changed_clips_are_read_or_refused(tmp_path):
    content = small.write_clip(tmp_path / "clip.mp4").read_bytes()
    generator = np.random.default_rng(0)
    begun = time.monotonic()
    outcomes = []
    for trial in range(60):
        changed = bytearray(content[: generator.integers(1, len(content))] if trial % 2 else content)
        for position in generator.integers(0, len(changed), 20):
            changed[position] = generator.integers(256)
        outcomes.append(outcome(bytes(changed)))
    assert time.monotonic() - begun < 60
    assert any(result == "read" for result in outcomes)
    refused = [result for result in outcomes if result != "read"]
    assert refused
    assert all(re.fullmatch(r"Cannot read a clip: [^\n]+\.", result) for result in refused)


def test_torchcodec_gets_no_playlists(monkeypatch):
    from hf_tome.media import video_decoders

    monkeypatch.setattr(video_decoders, "import_module", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "torchcodec.decoders", type("Empty", (), {"VideoDecoder": None}))
    for text in PLAYLISTS.values():
        with pytest.raises(VideoError, match="it is no MP4, MOV, Matroska"):
            read_frames(text.encode(), 4, decoder="torchcodec")

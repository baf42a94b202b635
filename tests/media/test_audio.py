"""Recordings keep their loudness in every layout and format, and are read within the limits."""

import io
import wave

import numpy as np
import pytest
import small

av = pytest.importorskip("av")

from hf_tome.media.audio import AudioError, read_audio, resample  # noqa: E402
from hf_tome.media.limits import MediaLimits  # noqa: E402

CHANNELS = {"mono": 1, "stereo": 2, "5.1": 6, "7.1": 8}
TONE = (0.5 * np.sin(np.arange(16000) * 440 * 2 * np.pi / 16000)).astype(np.float32)


def written(samples, layout="mono", codec="flac", kind="flac", rate=16000, sample_format="s16"):
    """Encode samples (channels, n) of `float32`."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.format = sample_format
        packed = np.ascontiguousarray(samples.T).reshape(1, -1)  # (channels, n) -> (1, n * channels)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate = rate
        to_format = av.AudioResampler(format=sample_format, layout=layout, rate=rate, frame_size=4096)
        for part in (*to_format.resample(frame), *to_format.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize("layout", CHANNELS)
def test_equal_channels_keep_their_loudness(layout):
    content = written(np.stack([TONE] * CHANNELS[layout]), layout)
    for rate in (16000, 8000):
        assert np.abs(read_audio(content, rate)).max() == pytest.approx(0.5, abs=0.02)
    assert np.abs(read_audio(content, 16000)[: len(TONE)] - TONE).max() < 1e-3


@pytest.mark.parametrize("layout", CHANNELS)
def test_planar_channels_are_averaged_too(layout):
    content = written(np.stack([TONE] * CHANNELS[layout]), layout, "aac", "adts", sample_format="fltp")
    samples = read_audio(content, 16000)[2000:14000]
    if layout in ("mono", "stereo"):  # AAC filters what it takes for the bass channel
        assert np.abs(samples).max() == pytest.approx(0.5, abs=0.05)
    assert np.abs(samples).max() < 0.6


def test_channels_are_averaged():
    content = written(np.stack([TONE, np.zeros_like(TONE)]), "stereo")
    assert np.abs(read_audio(content, 16000) - TONE / 2).max() < 1e-3


@pytest.mark.parametrize(
    ("codec", "sample_format"),
    [("pcm_u8", "u8"), ("pcm_s16le", "s16"), ("pcm_s32le", "s32"), ("pcm_f32le", "flt"), ("pcm_f64le", "dbl")],
)
def test_every_format_has_the_same_scale(codec, sample_format):
    content = written(np.stack([TONE, TONE]), "stereo", codec, "wav", sample_format=sample_format)
    assert np.abs(read_audio(content, 16000) - TONE).max() < 0.01


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8, np.float64])
def test_samples_in_memory_have_the_same_scale(dtype):
    kind = np.dtype(dtype)
    half = 1 if kind.kind == "f" else 2.0 ** (8 * kind.itemsize - 1)
    values = (TONE.astype(np.float64) * half + (half if kind.kind == "u" else 0)).astype(dtype)
    for rate in (16000, 8000):
        samples = resample(values, 16000, rate)
        assert samples.dtype == np.float32
        assert np.abs(samples).max() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros((2, 100)), 16000, r"The samples have the shape \(2, 100\); a recording is one channel"),
        (np.zeros((100, 2)), 8000, r"the shape \(100, 2\)"),
        (np.zeros(0), 8000, "The recording has no samples"),
        (np.float32(1), 8000, r"the shape \(\)"),
        (np.zeros(100), 0, "The sampling rate is 0; it takes a number of samples per second, 1 to 768000"),
        (np.zeros(100), -8000, "The sampling rate is -8000"),
        (np.zeros(100), None, "The sampling rate is None"),
        (np.zeros(100), float("nan"), "The sampling rate is nan"),
        (np.array(["a"]), 8000, "of type <U1"),
        (np.zeros(8000), 1, "too long: it has 8000 seconds of sound, above the limit recording_seconds=3600"),
    ],
)
def test_what_is_no_recording(samples, rate, message):
    with pytest.raises(AudioError, match=message):
        resample(samples, rate, 16000)


def test_sound_without_samples():
    with pytest.raises(AudioError, match=r"Cannot read a recording: .*\.$"):
        read_audio(sound_at(16000, 0), 16000)


def sound_at(rate, count):
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * count))
    return buffer.getvalue()


def test_a_low_rate_is_no_bomb():
    """A thousand samples, at one a second, would become 16 million."""
    with pytest.raises(AudioError, match="it has 5000 seconds of sound, above the limit recording_seconds=3600"):
        read_audio(sound_at(1, 5000), 16000)
    assert len(read_audio(sound_at(16000, 1600), 16000)) == 1600
    with pytest.raises(AudioError, match="above the limit recording_seconds=1"):
        read_audio(sound_at(16000, 48000), 16000, MediaLimits(recording_seconds=1))


@pytest.mark.parametrize("text", [b"#EXTM3U\n#EXTINF:5,\na.wav\n", b"ffconcat version 1.0\nfile a.wav\n", b""])
def test_playlists_open_nothing(tmp_path, monkeypatch, text):
    small.write_sound(tmp_path / "a.wav")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.mp3").write_bytes(text)
    for source in (text, tmp_path / "list.mp3"):
        with pytest.raises(AudioError, match=r"^Cannot read [^\n]*\.$"):
            read_audio(source, 16000)

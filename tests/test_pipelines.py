"""`hf_tome.pipeline` for its tasks, and the clips and sounds that two of them read."""

import sys
import types

import numpy as np
import pytest
import small
import torch
import transformers as tf
from PIL import Image

from hf_tome import MergeConfig, UnsupportedModelError, report
from hf_tome.api import targets
from hf_tome.media.audio import AudioError, read_audio, resample
from hf_tome.media.video import VideoError, read_frames, read_views, spatial_crops, uniform_indices
from hf_tome.pipelines import PIPELINE_CLASSES, pipeline

R8 = MergeConfig(r=8)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder a task, made when it is first asked for."""
    makers = {
        "image-classification": small.vit,
        "zero-shot-image-classification": small.dual,
        "video-classification": small.videomae,
        "image-feature-extraction": small.vit,
        "audio-classification": small.ast,
        "automatic-speech-recognition": small.whisper,
        "depth-estimation": small.depth,
        "image-segmentation": small.segmenter,
        "object-detection": small.lw_detr,
        "zero-shot-object-detection": small.owl,
        "image-text-to-text": small.llava,
    }
    folder = tmp_path_factory.mktemp("models")
    return lambda task: folder / task if (folder / task).exists() else makers[task](folder / task)


CALLS = {
    "image-classification": lambda pipe: pipe(small.picture()),
    "zero-shot-image-classification": lambda pipe: pipe(small.picture(), candidate_labels=["cat", "dog"]),
    "video-classification": lambda pipe: pipe(small.frames(20)),
    "image-feature-extraction": lambda pipe: pipe(small.picture()),
    "audio-classification": lambda pipe: pipe(np.random.default_rng(0).normal(size=8000).astype(np.float32)),
    "automatic-speech-recognition": lambda pipe: pipe(
        np.random.default_rng(0).normal(size=8000).astype(np.float32), generate_kwargs={"max_new_tokens": 5}
    ),
    "depth-estimation": lambda pipe: pipe(small.picture())["predicted_depth"].tolist(),
    "image-segmentation": lambda pipe: [
        {**entry, "mask": np.asarray(entry["mask"]).sum().item()} for entry in pipe(small.picture())
    ],
    "object-detection": lambda pipe: pipe(small.picture(), threshold=0.0),
    "zero-shot-object-detection": lambda pipe: pipe(small.picture(), candidate_labels=["cat", "dog"], threshold=0.0),
    "image-text-to-text": lambda pipe: pipe(small.picture(), text="<image> a photo of", max_new_tokens=4),
}


@pytest.mark.parametrize("task", PIPELINE_CLASSES)
def test_every_task_merges(models, task):
    pipe = pipeline(task, models(task), merge_config=R8, device="cpu")
    assert pipe.task == task
    assert CALLS[task](pipe)
    (tower,) = report(pipe).towers
    assert tower.measured
    assert tower.tokens[0][0] - tower.tokens[0][1] == 8


@pytest.mark.parametrize("labels", [[], None, ""])
@pytest.mark.parametrize("task", ["zero-shot-image-classification", "zero-shot-object-detection"])
def test_an_image_needs_labels_to_be_compared_with(models, task, labels):
    pipe = pipeline(task, models(task), merge_config=R8, device="cpu")
    with pytest.raises(ValueError, match="candidate_labels"):
        pipe(small.picture(), candidate_labels=labels)


def test_shipped_models_go_by_name():
    pipe = pipeline("image-classification", "digits-vit", merge_config=R8, device="cpu")
    assert pipe(small.picture())
    assert report(pipe).towers[0].measured


@pytest.mark.parametrize("task", PIPELINE_CLASSES)
def test_r_0_gives_what_transformers_gives(models, task):
    ours = CALLS[task](pipeline(task, models(task), merge_config=MergeConfig(r=0), device="cpu"))
    plain = tf.pipeline(task, str(models(task)), device="cpu", pipeline_class=PIPELINE_CLASSES[task])
    assert rounded(ours) == rounded(CALLS[task](plain))


def test_timestamps_of_words_are_refused(models):
    pipe = pipeline("automatic-speech-recognition", models("automatic-speech-recognition"), merge_config=R8)
    with pytest.raises(ValueError, match="Timestamps of words"):
        pipe(np.zeros(8000, dtype=np.float32), return_timestamps="word")
    with pytest.raises(AudioError):
        pipe(b"no sound")


def rounded(result):
    """Leave out the last digits: a mean over tokens that lie differently in memory is summed in another order."""
    if isinstance(result, dict):
        return {key: rounded(value) for key, value in result.items()}
    if isinstance(result, list):
        return [rounded(value) for value in result]
    return round(result, 5) if isinstance(result, float) else result


# Where the config comes from


def test_argument_beats_file_beats_key(tmp_path):
    folder = small.vit(tmp_path)
    with pytest.raises(ValueError, match=r"no merge config: .* neither a merge_config.json nor the key"):
        pipeline("image-classification", folder)
    config = tf.AutoConfig.from_pretrained(folder)
    config.merge_config = MergeConfig(r=2).to_dict()
    config.save_pretrained(folder)
    assert applied(folder).r == 2
    small.write_merge_config(folder, r=4)
    assert applied(folder).r == 4
    assert applied(folder, merge_config=MergeConfig(r=6)).r == 6


def applied(model, **options):
    return targets(pipeline("image-classification", model, device="cpu", **options))[0].config


def test_model_objects(models):
    folder = models("image-classification")
    model = tf.AutoModelForImageClassification.from_pretrained(folder)
    processor = tf.AutoImageProcessor.from_pretrained(folder)
    with pytest.raises(ValueError, match="no merge config: this ViTForImageClassification"):
        pipeline("image-classification", model, image_processor=processor)
    pipe = pipeline("image-classification", model, image_processor=processor, merge_config=R8, device="cpu")
    assert pipe.model is model
    assert applied(model, image_processor=processor) == R8  # what it was given is kept
    with pytest.raises(ValueError, match=r"`dtype` is torch.float16.*torch.float32 already"):
        pipeline("image-classification", model, image_processor=processor, dtype=torch.float16)


def test_dtype_of_a_folder_is_taken(models):
    pipe = pipeline("image-classification", models("image-classification"), merge_config=R8, dtype=torch.bfloat16)
    assert pipe.model.dtype == torch.bfloat16


def test_other_tasks_and_models_are_refused(models, tmp_path):
    with pytest.raises(ValueError, match=r"'fill-mask'; it takes one of 'image-classification', .*'image-text-to"):
        pipeline("fill-mask", models("image-classification"), merge_config=R8)
    with pytest.raises(ValueError, match=r"\./absent is not a folder"):
        pipeline("image-classification", "./absent", merge_config=R8)
    config = tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=2)
    small.save(tmp_path, tf.ResNetForImageClassification(config), small.image_processor())
    with pytest.raises(UnsupportedModelError, match="ResNet"):
        pipeline("image-classification", tmp_path, merge_config=R8)


# Clips


def test_uniform_indices_cover_the_clip():
    assert uniform_indices(32, 4).tolist() == [4, 12, 20, 28]
    assert uniform_indices(8, 8).tolist() == list(range(8))
    views = np.stack([uniform_indices(300, 16, clip, 10) for clip in range(10)])
    assert len(np.unique(views)) == views.size  # no view looks at what another has seen
    assert views[:, 0].max() < views[:, 1].min()
    assert uniform_indices(3, 8).tolist() == [0, 1, 2, 2, 2, 2, 2, 2]


def test_files_bytes_and_arrays_give_the_same_frames(tmp_path):
    path = small.write_clip(tmp_path / "clip.mp4", 20)
    everything = read_frames(path, 20)
    assert np.diff(everything[:, 0, 0, 0].astype(int)).min() > 5  # in order, and each once
    for source in (str(path), path.read_bytes(), everything, list(everything)):
        assert np.array_equal(read_frames(source, 4), everything[uniform_indices(20, 4)])
    views = read_views(path, 4, 3)
    assert [view[:, 0, 0, 0].tolist() for view in views] == [
        everything[uniform_indices(20, 4, clip, 3), 0, 0, 0].tolist() for clip in range(3)
    ]


def test_video_pipeline_takes_every_kind_of_clip(models, tmp_path):
    pipe = pipeline("video-classification", models("video-classification"), merge_config=R8, device="cpu")
    path = small.write_clip(tmp_path / "clip.mp4", 20)
    frames = read_frames(path, 20)
    expected = pipe(str(path))
    images = [Image.fromarray(frame) for frame in frames]
    for clip in (path, path.read_bytes(), frames, list(frames), images):
        assert scores(pipe(clip)) == pytest.approx(scores(expected), abs=1e-5)
    both = pipe([str(path), frames], batch_size=2, top_k=1)
    assert [len(result) for result in both] == [1, 1]
    assert scores(both[0]) == pytest.approx(scores(expected)[:1], abs=1e-5)
    (one,) = pipe(clip for clip in (frames,))
    assert scores(one) == pytest.approx(scores(expected), abs=1e-5)


def scores(result):
    return [entry["score"] for entry in result]


def test_short_clips_repeat_their_last_frame(models):
    pipe = pipeline("video-classification", models("video-classification"), merge_config=R8, device="cpu")
    short = small.frames(3) * 60
    padded = np.concatenate([short, np.repeat(short[-1:], 5, axis=0)])
    assert pipe(short) == pipe(padded)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_corrupt_clip_costs_only_its_own_result(models, tmp_path, batch_size):
    pipe = pipeline("video-classification", models("video-classification"), merge_config=R8, device="cpu")
    good = small.write_clip(tmp_path / "good.mp4")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(good.read_bytes()[:300])
    results = pipe([str(good), str(bad), str(good)], batch_size=batch_size)
    assert [result[0]["label"] is None for result in results] == [False, True, False]
    assert results[1][0]["error"].startswith("Cannot read bad.mp4: ")
    assert str(tmp_path) not in results[1][0]["error"]
    assert scores(results[0]) == pytest.approx(scores(pipe(str(good))), abs=1e-5)
    with pytest.raises(VideoError, match=r"Cannot read bad\.mp4"):
        pipe(str(bad))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_clip_that_the_processor_refuses_costs_only_its_own_result(models, batch_size):
    pipe = pipeline("video-classification", models("video-classification"), merge_config=R8, device="cpu")
    good, thin = small.frames(8), small.frames(8, height=1, width=1)
    results = pipe([good, thin, good], batch_size=batch_size)
    assert [result[0]["label"] is None for result in results] == [False, True, False]
    assert results[1][0]["error"].startswith("Cannot process a clip of 1 x 1 pixels: mean must have 1 elements")
    assert scores(results[0]) == pytest.approx(scores(pipe(good)), abs=1e-5)
    with pytest.raises(VideoError, match="Cannot process a clip of 1 x 1 pixels"):
        pipe(thin)


def test_frames_of_different_sizes_are_said_to_be(models):
    pipe = pipeline("video-classification", models("video-classification"), merge_config=R8, device="cpu")
    with pytest.raises(VideoError, match=r"cannot be stacked .*a clip is an array \(T, H, W, 3\)"):
        pipe([np.zeros((8, 8, 3)), np.zeros((9, 9, 3))])
    mixed = [np.zeros((8, 8, 3)), np.zeros((9, 9, 3))]
    results = pipe([mixed, small.frames(8)])
    assert [result[0]["label"] is None for result in results] == [True, False]


@pytest.mark.parametrize("task", ["video-classification", "audio-classification"])
def test_a_dead_link_costs_only_its_own_result(models, task, monkeypatch):
    from huggingface_hub.utils import httpx

    def get(*args, **kwargs):
        raise httpx.ConnectError("no network")

    monkeypatch.setattr(httpx, "stream", get)
    pipe = pipeline(task, models(task), merge_config=R8, device="cpu")
    good = small.frames(8) if task.startswith("video") else np.zeros(8000, dtype=np.float32)
    link = "https://example.org/a.mp4"
    results = pipe([good, link])
    assert [result[0].get("error") for result in results] == [None, f"Cannot fetch {link}: no network."]
    with pytest.raises(VideoError if task.startswith("video") else AudioError, match="Cannot fetch"):
        pipe(link)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (b"no clip", "Cannot read a clip"),
        ("absent.mp4", r"Cannot read absent\.mp4: .*No such file"),
        (np.zeros((4, 3, 8, 8)), r"shape \(4, 3, 8, 8\); a clip is an array \(T, H, W, 3\)"),
        ([np.zeros((8, 8, 3)), np.zeros((9, 9, 3))], "cannot be stacked"),
        ([], "cannot be stacked"),
    ],
)
def test_what_is_no_clip(clip, message):
    with pytest.raises(VideoError, match=message):
        read_frames(clip, 4)


def test_sound_alone_is_no_clip(tmp_path):
    with pytest.raises(VideoError, match=r"tone\.wav: it has no video stream"):
        read_frames(small.write_sound(tmp_path / "tone.wav"), 4)


def test_decoders(tmp_path, monkeypatch):
    """torchcodec is used where it is asked for, or where PyAV is missing; a broken one is said to be."""
    path = small.write_clip(tmp_path / "clip.mp4")

    class VideoDecoder:
        def __init__(self, source, dimension_order):
            self.frames = torch.from_numpy(small.frames(40))
            self.metadata = types.SimpleNamespace(width=32, height=24)

        def __len__(self):
            return 40

        def get_frames_at(self, indices):
            return types.SimpleNamespace(data=self.frames[indices])

    decoders = types.SimpleNamespace(VideoDecoder=VideoDecoder)
    monkeypatch.setitem(sys.modules, "torchcodec", types.SimpleNamespace(decoders=decoders))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    assert read_frames(path, 4, decoder="torchcodec")[:, 0, 0, 0].tolist() == [5, 15, 25, 35]
    assert read_frames(path, 4)[:, 0, 0, 0].tolist() != [5, 15, 25, 35]
    monkeypatch.setitem(sys.modules, "av", None)
    assert read_frames(path, 4)[:, 0, 0, 0].tolist() == [5, 15, 25, 35]
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(ImportError, match=r"No video decoder works \(av: .*; torchcodec: .*pip install"):
        read_frames(path, 4)
    with pytest.raises(ValueError, match="'opencv'; it takes one of 'av', 'torchcodec'"):
        read_frames(path, 4, decoder="opencv")


def test_spatial_crops_lie_along_the_longer_side():
    frames = np.broadcast_to(np.arange(10)[None, None, :, None], (2, 4, 10, 3))
    columns = [crop[0, 0, :, 0].tolist() for crop in spatial_crops(frames, 3)]
    assert columns == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert [crop.shape for crop in spatial_crops(frames.transpose(0, 2, 1, 3), 2)] == [(2, 4, 4, 3)] * 2
    assert spatial_crops(frames, 1)[0] is frames


def test_real_clips(models, data):
    pipe = pipeline("video-classification", models("video-classification"), merge_config=R8, device="cpu")
    clips = sorted((data / "kinetics_sample" / "validation").glob("*/*"))[:2]  # one without a frame count
    for result in pipe([str(clip) for clip in clips], top_k=1):
        assert result[0]["label"] in pipe.model.config.label2id


# Sound


def test_sound_is_read_and_resampled(tmp_path):
    samples = read_audio(small.write_sound(tmp_path / "tone.wav", 440, rate=44100), 16000)
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(8000, abs=32)
    spectrum = np.abs(np.fft.rfft(samples[:8000]))
    assert spectrum.argmax() * 2 == pytest.approx(440, abs=4)
    again = resample(samples, 16000, 8000)
    assert len(again) == pytest.approx(4000, abs=32)
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    with pytest.raises(AudioError, match=r"Cannot read bad\.wav: Invalid data"):
        read_audio(tmp_path / "bad.wav", 16000)
    with pytest.raises(AudioError, match="it has no sound"):
        read_audio(small.write_clip(tmp_path / "silent.mp4"), 16000)


def test_audio_pipeline_takes_paths_bytes_and_other_rates(models, tmp_path):
    pipe = pipeline("audio-classification", models("audio-classification"), merge_config=R8, device="cpu")
    path = small.write_sound(tmp_path / "tone.wav", rate=44100)
    expected = scores(pipe(str(path)))
    samples = read_audio(path, 44100)
    assert scores(pipe(path.read_bytes())) == pytest.approx(expected, abs=1e-5)
    assert scores(pipe({"array": samples, "sampling_rate": 44100})) == pytest.approx(expected, abs=1e-4)
    assert scores(pipe({"raw": samples, "sampling_rate": 44100})) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_corrupt_sound_costs_only_its_own_result(models, tmp_path, batch_size):
    pipe = pipeline("audio-classification", models("audio-classification"), merge_config=R8, device="cpu")
    good, short = small.write_sound(tmp_path / "tone.wav"), np.zeros(10, dtype=np.float32)
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    results = pipe([str(good), str(tmp_path / "bad.wav"), short, str(good)], batch_size=batch_size)
    assert [result[0]["label"] is None for result in results] == [False, True, True, False]
    assert results[1][0]["error"].startswith("Cannot read bad.wav: Invalid data")
    assert results[2][0]["error"] == "Cannot process a recording: negative dimensions are not allowed."
    assert scores(results[3]) == pytest.approx(scores(pipe(str(good))), abs=1e-5)
    with pytest.raises(AudioError, match=r"Cannot read bad\.wav"):
        pipe(str(tmp_path / "bad.wav"))
    with pytest.raises(AudioError, match="Cannot process a recording: negative dimensions"):
        pipe(short)


def test_real_sound(models, data):
    pipe = pipeline("audio-classification", models("audio-classification"), merge_config=R8, device="cpu")
    assert len(pipe(str(next((data / "audio").glob("cat*"))))) == 3


@pytest.mark.parametrize("return_tensors", [False, True])
def test_features_of_a_batch_are_those_of_each_image(models, return_tensors):
    config = MergeConfig(method="mame", threshold=0.7, layers=[0, 1])
    pipe = pipeline("image-feature-extraction", models("image-feature-extraction"), merge_config=config, device="cpu")
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    images = [Image.fromarray(noise), Image.new("RGB", (32, 32), (200, 30, 30))]
    alone = [pipe(image, return_tensors=return_tensors) for image in images]
    batch = pipe(images, batch_size=2, return_tensors=return_tensors)
    counts = [len(features[0]) for features in alone]
    assert counts[0] > counts[1]
    assert [len(features[0]) for features in batch] == counts
    for one, other in zip(alone, batch):
        torch.testing.assert_close(torch.as_tensor(other), torch.as_tensor(one), atol=1e-5, rtol=1e-5)
    pooled = pipe(images, batch_size=2, pool=True)
    assert len(pooled) == 2
    assert len(pooled[0][0]) == len(alone[0][0][0])

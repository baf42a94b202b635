"""The task `automatic-speech-recognition`: transcripts, scored by word errors; see `data.transcripts`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, AutoTokenizer

from ....hub.sources import public_name
from ....media.audio import read_audio
from ...data.media_files import stored_source
from ...data.samples import Sample, SkipSample
from ...data.transcripts import open_transcripts
from ...job import Inputs, Job
from ...loading import load_processor, load_task_model
from ...metrics.texts import TextScorer
from ...metrics.words import score_words
from ...options import JobOptions
from ...store.fingerprint import processor_settings
from ..task import GENERATED_WORDS, Task
from .transcriber import Transcriber

MAX_NEW_TOKENS = 128


def speech_recognition(options: JobOptions) -> Job:
    """Load a model that writes what it hears (Whisper), and recordings with transcripts, which it hears whole.

    Raises:
        ValueError: there are no transcripts, or the model writes none.
        OSError: there is no such model.
    """
    model = load_task_model(AutoModelForSpeechSeq2Seq, options, "write what is said")
    extractor = load_processor(AutoFeatureExtractor, options)
    tokenizer, rate = load_processor(AutoTokenizer, options), extractor.sampling_rate

    def decode(stored: Any) -> np.ndarray:
        samples, longest = read_audio(stored_source(stored), rate, options.media_limits), extractor.n_samples
        if len(samples) > longest:
            raise SkipSample(f"it lasts {len(samples) / rate:.1f} s, longer than the model's {longest / rate:g} s")
        return samples

    def prepare(samples: Sequence[Sample]) -> Inputs:
        return dict(extractor([sample.content for sample in samples], sampling_rate=rate, return_tensors="pt"))

    data = open_transcripts(options, decode)
    length = options.max_new_tokens or MAX_NEW_TOKENS
    depends_on = {"extractor": processor_settings(extractor)}
    common = (TASK.name, public_name(options.model), model, data, prepare, Transcriber(length))
    settings = {"max_new_tokens": length}
    return Job(*common, TextScorer(tokenizer, score_words), settings=settings, depends_on=depends_on)


WORDS = {**GENERATED_WORDS, "unit": "recordings", "tokens": "frames\nat end"}
NOTES = {"tokens": "frames at end: those that the decoder attends to, the mean over the recordings."}
TASK = Task("automatic-speech-recognition", speech_recognition, frozenset({"max_new_tokens"}), WORDS, NOTES)

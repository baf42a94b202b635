"""Metrics of generated text as metrics of the `evaluate` library, without a network and without Java; in percent.

`predictions` are texts, `references` the texts that are right, one list a sample, and `unmerged` what the unmerged
model says. BLEU, ROUGE-L and CIDEr-D are those of the COCO caption evaluation (Chen et al. 2015, Vedantam et al. 2015)
from `pycocoevalcap`, whose scorers are plain Python; only its tokenizer needs Java, and is replaced here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from .classification import info, percent

CONSENSUS = 10
"""Answers that a question of VQA has, of which three make a right answer."""
AGREEING = 3
NEEDS = "Captions are scored by pycocoevalcap: pip install 'hf_tome[captions]'."

_TEXT = datasets.Value("string")
_TEXTS = datasets.Sequence(_TEXT)
_CLITIC = r"'(?:s|re|ve|ll|d|m)\b"
_TOKENS = re.compile(
    r"[a-z](?:\.[a-z])+\.?"  # t.v.
    r"|\d+(?:[.,:/]\d+)+"  # 10:30
    r"|\w+?(?=n't\b)|n't\b"  # do n't
    rf"|{_CLITIC}"  # dog 's
    rf"|\w+(?:[-/]\w+|(?!{_CLITIC})'\w+)*"  # black-and-white, o'clock
    r"|[$%#&*+=@()]"
)
_WRITTEN = {"(": "-lrb-", ")": "-rrb-", "cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na"}

ARTICLES = ("a", "an", "the")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
CONTRACTIONS = (
    "ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't he's how's i'm i've isn't it'll mightn't "
    "mustn't needn't o'clock oughtn't she's shouldn't somebody's someone's that's there's they'd they'll they're "
    "they've wasn't we've weren't what's where's who'd who'll who's won't wouldn't y'all you'd you'll you're you've"
)
"""Those that can be told from another word where their apostrophe is missing."""
_WORDS = {
    **dict.fromkeys(ARTICLES, ""),
    **{word: str(number) for number, word in enumerate(NUMBERS)},
    "none": "0",
    **{word.replace("'", ""): word for word in CONTRACTIONS.split()},
}


def caption_tokens(text: str) -> str:
    """Return a caption in lower case, its tokens between single spaces, without punctuation.

    As the Penn Treebank tokenizer of the COCO evaluation does, `don't` is `do n't` and `dog's` is `dog 's`. Unlike
    there, `mr.`, `st.`, `etc.` and initials lose their dot, `w/` its slash, and web addresses come apart.
    """
    text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return " ".join(_WRITTEN.get(token, token) for token in _TOKENS.findall(text))


def normal_answer(text: str) -> str:
    """Return an answer as the VQA evaluation compares it: case, articles, punctuation and numerals do not matter.

    Lower case; full stops only within numbers, no comma within numbers, other punctuation but apostrophes and colons
    becomes a space; number words become digits; articles go; contractions get their apostrophe back (Antol et al.
    2015, visualqa.org/evaluation.html).
    """
    text = re.sub(r"\s+", " ", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    text = re.sub(r"(?<=\d),(?=\d)|(?<!\d)\.|\.(?!\d)", "", text)
    words = re.sub(r"[^\w\s':.]|_", " ", text).split()
    # An answer that is nothing but an article is a letter, as on a sign or of an option.
    return " ".join(word for word in (_WORDS.get(word, word) for word in words) if word) or " ".join(words)


class CaptionScores(evaluate.Metric):
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D of captions, times 100: `{"bleu1": ..., "rouge_l": ..., "cider": ...}`.

    CIDEr weighs words by how few images they are said of, so it is 0 for a single image and depends on which images
    are scored together.
    """

    def _info(self) -> evaluate.MetricInfo:
        return info(self, {"predictions": _TEXT, "references": _TEXTS})

    def _compute(self, predictions: Any, references: Any, **_: Any) -> dict[str, float]:
        try:
            from pycocoevalcap.bleu.bleu import Bleu
            from pycocoevalcap.rouge.rouge import Rouge
        except ImportError as error:
            raise ImportError(NEEDS) from error

        predicted, right = _tokenized(predictions, references)
        bleu = Bleu(4).compute_score(right, predicted, verbose=0)[0]
        return {
            **{f"bleu{n}": 100 * float(value) for n, value in enumerate(bleu, start=1)},
            "rouge_l": 100 * float(Rouge().compute_score(right, predicted)[0]),
            "cider": float(np.mean(cider_scores(predictions, references))),
        }


class AnswerAccuracy(evaluate.Metric):
    """How often an answer is one of the right ones, both as `normal_answer` writes them: `{"accuracy": ...}`.

    Where every question has ten people's answers also VQA's own `vqa_accuracy`, by which an answer that three people
    gave is right and one that fewer gave is right in part: the mean over the sets of nine people.
    """

    def _info(self) -> evaluate.MetricInfo:
        return info(self, {"predictions": _TEXT, "references": _TEXTS})

    def _compute(self, predictions: Any, references: Any, **_: Any) -> dict[str, float]:
        values = {"accuracy": percent(np.array(hits(predictions, references)))}
        if all(len(texts) == CONSENSUS for texts in references):
            shares = [_consensus(predicted, texts) for predicted, texts in zip(predictions, references)]
            values["vqa_accuracy"] = 100 * sum(shares) / len(shares)
        return values


class SameText(evaluate.Metric):
    """How often the merged and the unmerged model say the same, to the letter: `{"agreement": ...}`."""

    def _info(self) -> evaluate.MetricInfo:
        return info(self, {"predictions": _TEXT, "unmerged": _TEXT})

    def _compute(self, predictions: Any, unmerged: Any, **_: Any) -> dict[str, float]:
        return {
            "agreement": percent(np.array([prediction == other for prediction, other in zip(predictions, unmerged)]))
        }


def cider_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the CIDEr-D of each caption, times 100; words are weighed by the references of all.

    Raises:
        ImportError: pycocoevalcap is missing.
    """
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise ImportError(NEEDS) from error
    predicted, right = _tokenized(predictions, references)
    return 100 * np.asarray(Cider().compute_score(right, predicted)[1])


def _tokenized(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    predicted = {index: [caption_tokens(text)] for index, text in enumerate(predictions)}
    right = {index: [caption_tokens(text) for text in texts] for index, texts in enumerate(references)}
    return predicted, right


def hits(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[bool]:
    """Tell of each answer whether it is one of the right ones."""
    return [
        normal_answer(answer) in {normal_answer(text) for text in texts}
        for answer, texts in zip(predictions, references)
    ]


def _consensus(prediction: str, answers: Sequence[str]) -> float:
    same = [normal_answer(answer) == normal_answer(prediction) for answer in answers]
    return sum(min((sum(same) - left_out) / AGREEING, 1) for left_out in same) / len(same)

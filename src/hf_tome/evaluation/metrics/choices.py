"""Multiple choice: which option the data say is right, and which one a model's words choose.

Reading is conservative: words that could mean two options, or name none plainly, choose nothing. A letter counts where
it stands alone or marks what follows (`B`, `(b)`, `B. dog`, `**B**`), where it is given as the answer (`I think it's
B`), and before its own option's text (`B dog`). Before other words a capital A is an article. Without a letter, an
option counts word for word, alone or given as the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from string import ascii_uppercase as LETTERS
from typing import Any

from ..data.samples import SkipSample
from .text_metrics import normal_answer

_QUOTE = "['\N{RIGHT SINGLE QUOTATION MARK}]"
_CHARACTERS = str.maketrans("[]_", "() ", '*`"${}\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}')
_COMMANDS = re.compile(r"\\(?:boxed|text|mathrm)")  # of LaTeX

_GIVEN = (
    rf"\b(?i:answer|option|choice|letter|choose|pick|select|say|with|is|be|it{_QUOTE}?s)\b(?:\s+(?i:is)\b)?\s*:?\s*"
)
"""Words after which a letter or an option is the answer."""
_DENIED = r"\s+(?:is|was|can|could)\b(?!\s+(?:the\s+)?(?:right|correct|best|answer)\b)"
_END = (
    r"(?=\s*(?:$|\n|[.:,;!?](?:\s|$)|[-\N{EN DASH}\N{EM DASH}]\s|(?:because|since)\b"
    r"|is\s+(?:the\s+)?(?:right|correct|best|answer)\b))"
)
"""What follows a letter that is meant as one, and not as a word or the beginning of one."""
_LETTER = rf"\(?\b([A-Z])(?:\)(?!{_DENIED})|{_END})"
_NEGATED = re.compile(rf"\b(?:not|never|cannot|neither|nor|rather)\b|n{_QUOTE}t\b", re.I)
_MINUS = re.compile(r"(?<!\w)[-\N{MINUS SIGN}](?=\d)")

_ALONE = re.compile(rf"{_QUOTE}?\(?([A-Za-z])\)?{_QUOTE}?[.:,;!]?")
_FIRST = re.compile(rf"{_LETTER}|\(?([a-z])(?:\)|[.:](?=\s))")
_LATER = tuple(re.compile(pattern) for pattern in (rf"\(([A-Z])\)(?!{_DENIED})", _GIVEN + _LETTER))
_BEFORE_WORDS = re.compile(rf"(?:^|{_GIVEN})([A-Z])(?:\s+|[.:])(?=\w)")
_MARKED = re.compile(r"\b([A-Z])[.):]\s*")
_GIVEN_WORDS = re.compile(rf"{_GIVEN}(?!\s*[A-Z]\b)")


def right_letter(answer: Any, choices: Sequence[Any]) -> str:
    """Return the letter of the right option: a number in the data is an index from 0, a text is an option or a letter.

    Raises:
        SkipSample: it is none of the options, or could be two of them.
    """
    letters, texts = LETTERS[: len(choices)], [str(choice) for choice in choices]
    if isinstance(answer, Integral) and not isinstance(answer, bool):
        # Options that are numbers themselves may be meant by value; that is known only where both mean one option.
        if answer in choices and choices.index(answer) != answer:
            raise SkipSample(f"its answer {answer} may be an index from 0 or one of the options, which are numbers")
        if 0 <= int(answer) < len(choices):
            return letters[int(answer)]
    text = str(answer)
    if texts.count(text) > 1:
        raise SkipSample(f"its answer {text!r} is more than one of the options")
    if text in texts and not isinstance(answer, Integral):
        return letters[texts.index(text)]
    letter = text.strip("(). ").upper()
    if len(letter) == 1 and letter in letters:
        return letter
    if text.isdigit() and int(text) < len(choices):
        return letters[int(text)]
    raise SkipSample(f"its answer {text!r} is none of the {len(choices)} options, by text, letter or index from 0")


def read_choice(text: str, choices: Sequence[str]) -> str:
    """Return the letter of the option that a text chooses, or "" if none can be read."""
    options = {letter: _normal(choice) for letter, choice in zip(LETTERS, choices)}
    text = _COMMANDS.sub("", text).translate(_CHARACTERS).strip()
    alone = _ALONE.fullmatch(text)
    if alone and alone[1].upper() in options:
        return alone[1].upper()
    letters = set(_by_letter(text, options)) or _by_words(text, options)
    return letters.pop() if len(letters) == 1 else ""


def _by_letter(text: str, options: Mapping[str, str]) -> Iterator[str]:
    """Yield the letters that a text gives as its choice, and those of other options that it ties to them."""
    first = _FIRST.match(text)
    later = [match for pattern in _LATER for match in pattern.finditer(text)]
    for match in [*([first] if first else []), *(mark for mark in later if not _NEGATED.search(text[: mark.start()]))]:
        letter = (match[1] or match[2]).upper() if match is first else match[1]
        if letter in options:
            named = _beginning(text[match.end() :], options) | _same(text[: match.start()], options)
            yield from {letter} if letter in named else {letter} | named
    for match in _BEFORE_WORDS.finditer(text):
        if match[1] in _beginning(text[match.end() :], options) and not _NEGATED.search(text[: match.start()]):
            yield match[1]
    yield from _listed(text, options)


def _by_words(text: str, options: Mapping[str, str]) -> set[str]:
    """Return the options that the whole text is, or else what it gives as the answer."""
    given = [match for match in _GIVEN_WORDS.finditer(text) if not _NEGATED.search(text[: match.start()])]
    for words in (text, *(text[match.end() :] for match in given)):
        if letters := _same(words, options):
            return letters
    return set()


def _beginning(text: str, options: Mapping[str, str]) -> set[str]:
    """Return the options that a text is, or begins with; an option's letter counts too."""
    text = text.strip(" \n.):,;-\N{EN DASH}\N{EM DASH}")
    clause = re.split(r"[.\n;,]", text)[0].strip()
    return _same(text, options) | _same(clause, options) | ({clause} & set(options))


def _listed(text: str, options: Mapping[str, str]) -> set[str]:
    """Return the options of which the text repeats letter and words, where these are several."""
    marks = [match for match in _MARKED.finditer(text) if options.get(match[1])]
    letters = {match[1] for match in marks if _normal(text[match.end() :]).startswith(options[match[1]])}
    return letters if len(letters) > 1 else set()


def _same(text: str, options: Mapping[str, str]) -> set[str]:
    normal = _normal(text)
    return {letter for letter, option in options.items() if normal and option == normal}


def _normal(text: str) -> str:
    """Return a text as answers are compared, but with the sign of numbers."""
    return normal_answer(_MINUS.sub(" minus ", text))

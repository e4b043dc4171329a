"""Names as Microsoft Presidio finds them, with spaCy's small English model."""

from __future__ import annotations

import pickle
from importlib.util import find_spec

import pytest

from flywheel.redaction import Redactor, redactor
from flywheel.types import Record

pytestmark = [
    pytest.mark.services,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
if not find_spec("presidio_analyzer"):
    pytest.skip("the extra presidio is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def mask() -> Redactor:
    in_a_worker: Redactor = pickle.loads(pickle.dumps(redactor("presidio")))  # noqa: S301 -- ours
    return in_a_worker


def masked(mask: Redactor, query: str) -> tuple[str, dict[str, int]]:
    request = {"messages": [{"role": "user", "content": query}]}
    response = {"choices": [{"message": {"role": "assistant", "content": "Done."}}]}
    found, counts = mask(Record(1767225600.0, "w", "c", request, response))
    return found.messages[0]["content"], dict(counts)


def test_people_places_and_organisations_are_masked(mask: Redactor) -> None:
    query = "John Smith works for Microsoft in London; write to john@example.com."
    assert masked(mask, query) == (
        "<PERSON_1> works for <ORGANIZATION_1> in <LOCATION_1>; write to <EMAIL_1>.",
        {"PERSON": 1, "ORGANIZATION": 1, "LOCATION": 1, "EMAIL": 1},
    )


def test_a_sentence_without_names_is_left_alone(mask: Redactor) -> None:
    query = "Where is my order? It was due on Monday and cost 12.50."
    assert masked(mask, query) == (query, {})

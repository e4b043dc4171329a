"""What the Elasticsearch store decides without a server."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from flywheel.errors import DataError
from flywheel.stores import Query, open_store
from flywheel.stores.elasticsearch import ElasticsearchStore, mapping
from flywheel.stores.elasticsearch.mapping import TEMPLATE
from flywheel.stores.elasticsearch.paging import PAGE_BYTES, _fitting
from flywheel.types import Json

URL = "elasticsearch://localhost:9200/logs"
OURS: Json = {"logs": {"mappings": TEMPLATE["mappings"]}}
BLUEPRINT: Json = {
    "flywheel": {
        "mappings": {
            "properties": {
                "timestamp": {"type": "date"},
                "workload_id": {"type": "keyword"},
                "client_id": {"type": "keyword"},
            }
        }
    }
}


def where(query: Query, mappings: Json) -> tuple[list[Json], list[Json]]:
    """What must be there, and what must not."""
    found = mapping.where(query, mappings)["bool"]
    return [f["bool"]["should"][0] for f in found["filter"]], found["must_not"]


def test_a_store_travels_as_its_url() -> None:
    store = open_store(URL)
    assert isinstance(store, ElasticsearchStore)
    copy: Any = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert copy.url == URL


@pytest.mark.parametrize(
    "url",
    [
        "elasticsearch://jane:s3cret@localhost:9200/logs",
        "elasticsearch://s3cret@localhost:9200/logs",
        "elasticsearch+https://localhost:9200/logs?api_key=s3cret",
        "elasticsearch://localhost:9200/logs?s3cret",
    ],
)
def test_a_secret_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(DataError, match="ELASTICSEARCH_API_KEY") as error:
        open_store(url)
    assert "s3cret" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "elasticsearch://",
        "elasticsearch://host:9200",
        "elasticsearch:///logs",
        "elasticsearch://host:x/l",
    ],
)
def test_a_url_without_host_port_or_index_is_refused(url: str) -> None:
    with pytest.raises(DataError, match=r"elasticsearch://host:9200/index"):
        open_store(url)


def test_what_is_surely_outside_the_window_is_left_out() -> None:
    query = Query(since=100.5, until=200.5)
    assert [r["range"]["timestamp"] for r in where(query, OURS)[1]] == [
        {"lt": 100},
        {"gte": 10**11, "lt": 100_500},
        {"gte": 201, "lt": 10**11},
        {"gte": 10**11},
    ]
    (seconds, _) = where(Query(since=100), BLUEPRINT)[1]
    assert seconds["range"]["timestamp"] == {"lt": 100, "format": "epoch_millis"}
    plain: Json = {"a": {"mappings": {"properties": {"timestamp": {"type": "long"}}}}}
    (_, milliseconds) = where(Query(until=10**9), plain)[1]
    assert milliseconds["range"]["timestamp"] == {"gte": 10**12}


def test_names_are_looked_up_where_the_whole_text_is_indexed() -> None:
    text: Json = {"type": "text", "fields": {"keyword": {"type": "keyword"}}}
    dynamic: Json = {"a": {"mappings": {"properties": {"workload_id": text}}}}
    query = Query(workload="w")
    assert where(query, OURS) == ([{"term": {"workload_id": "w"}}], [])
    assert where(query, dynamic) == ([{"term": {"workload_id.keyword": "w"}}], [])
    text["fields"]["keyword"]["ignore_above"] = 256
    assert where(Query(workload="w" * 257), dynamic) == ([], [])


@pytest.mark.parametrize(
    "mappings",
    [
        {"a": {"mappings": {}}},
        {**OURS, "other": {"mappings": {}}},
        {"a": {"mappings": {"properties": {"timestamp": {"type": "date", "format": "yyyy"}}}}},
    ],
)
def test_what_cannot_be_told_by_the_mapping_is_left_to_the_reader(mappings: Json) -> None:
    assert where(Query("w", "c", 1, 2), mappings) == ([], [])


def test_pages_grow_by_steps_and_shrink_at_once() -> None:
    assert _fitting(50, 50 * 2_000) == 400
    assert _fitting(400, 400 * 10) == 3_200
    assert _fitting(3_200, 3_200 * 10) == 5_000
    assert _fitting(1_000, 1_000 * 80_000) == PAGE_BYTES // 80_000
    assert _fitting(10, 10 * 50_000_000) == 1

"""What an index's mapping lets a query leave to the server; `TEMPLATE` is that of our own."""

from __future__ import annotations

import math

from flywheel.stores import Query
from flywheel.types import Json

FIELDS = ["timestamp", "workload_id", "client_id", "request", "response"]
"""What is read of a document."""

TEMPLATE: Json = {
    "settings": {"index.mapping.ignore_malformed": True},
    "mappings": {
        "dynamic": False,
        "properties": {
            "timestamp": {"type": "date", "format": "epoch_second||strict_date_optional_time"},
            "workload_id": {"type": "keyword"},
            "client_id": {"type": "keyword"},
            "request": {"type": "object", "enabled": False},
            "response": {"type": "object", "enabled": False},
        },
    },
}
"""How an index made here is mapped. Further fields, and timestamps that are none, do no harm."""

_MILLISECONDS_FROM = 10**11
"""From here on a timestamp is in milliseconds, as `flywheel.records` has it."""


def where(query: Query, mappings: Json) -> Json:
    """The query for the server.

    It leaves no line out that the same query would meet in a file: documents that name no workload
    or client, or have no time, are found too, so that their rejection can be counted. Fields that
    are not mapped so that this can be told are left to the reader.
    """
    properties = _properties(mappings)
    named = [
        *_named(properties, "workload_id", query.workload),
        *_named(properties, "client_id", query.client),
    ]
    return {"bool": {"filter": named, "must_not": _outside(mappings, query)}}


def _properties(mappings: Json) -> list[Json]:
    return [index["mappings"].get("properties", {}) for index in mappings.values()]


def _named(properties: list[Json], field: str, value: str | None) -> list[Json]:
    if value is None:
        return []
    names = {_exact(field, mapped.get(field, {}), value) for mapped in properties}
    name = names.pop()
    if name is None or names:
        return []
    absent = {"bool": {"must_not": [{"exists": {"field": field}}]}}
    return [{"bool": {"should": [{"term": {name: value}}, absent], "minimum_should_match": 1}}]


def _exact(field: str, mapping: Json, value: str) -> str | None:
    """The field, or the part of it, by which a text as long as this one is found whole."""
    part = mapping.get("fields", {}).get("keyword", {})
    for name, kind in ((field, mapping), (f"{field}.keyword", part)):
        if kind.get("type") == "keyword" and len(value) <= kind.get("ignore_above", math.inf):
            return name
    return None


def _outside(mappings: Json, query: Query) -> list[Json]:
    """Times before ``since`` and from ``until`` on, logged in seconds or in milliseconds."""
    form = form_of_time(mappings)
    if form is None:
        return []
    spans: list[Json] = []
    if query.since is not None:
        spans.append({"lt": math.floor(query.since)})
        spans.append({"gte": _MILLISECONDS_FROM, "lt": math.floor(query.since * 1000)})
    if query.until is not None:
        spans.append({"gte": math.ceil(query.until), "lt": _MILLISECONDS_FROM})
        spans.append({"gte": max(math.ceil(query.until * 1000), _MILLISECONDS_FROM)})
    return [{"range": {"timestamp": {**span, **form}}} for span in spans]


def form_of_time(mappings: Json) -> Json | None:
    """How to tell the server a time as it was logged; None where it is no number to it."""
    forms = [_form(mapped.get("timestamp", {})) for mapped in _properties(mappings)]
    return forms[0] if all(form == forms[0] for form in forms) else None


def _form(mapping: Json) -> Json | None:
    named = mapping.get("format", "epoch_millis")
    match mapping.get("type"):
        case "long":
            return {}
        case "date" if "epoch_millis" in named:
            # Seconds were taken for milliseconds, as in the blueprint's own index.
            return {"format": "epoch_millis"}
        case "date" if "epoch_second" in named:
            return {}
    return None

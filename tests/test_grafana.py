"""The dashboard asks for metrics and labels that there are, and for all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flywheel import metrics

BOARD = json.loads((Path(__file__).parents[1] / "cluster/grafana/flywheel.json").read_text())
SERIES = {
    series: metric
    for metric in metrics.ALL
    for series in (
        [metric.exported.replace("_bucket", end) for end in ("_bucket", "_sum", "_count")]
        if metric.kind == "Histogram"
        else [metric.exported]
    )
}


def queries() -> Iterator[tuple[str, str]]:
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"] + " " + target["legendFormat"]
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["definition"]


def asked(query: str) -> set[str]:
    return set(re.findall(r"ray_\w+", query))


@pytest.mark.parametrize(("title", "query"), list(queries()))
def test_a_query_names_what_is_exported(title: str, query: str) -> None:
    assert asked(query)
    assert asked(query) <= SERIES.keys()
    labels = {name for lists in re.findall(r"by \(([^)]*)\)", query) for name in lists.split(", ")}
    labels |= set(re.findall(r"\{(\w+)=", query)) | set(re.findall(r"\{\{(\w+)\}\}", query))
    known = {tag for series in asked(query) for tag in SERIES[series].tags} | {"le"}
    assert labels <= known


def test_every_metric_is_shown() -> None:
    shown = {SERIES[series] for _, query in queries() for series in asked(query)}
    assert shown == set(metrics.ALL)


def test_panels_have_their_own_places() -> None:
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in BOARD["panels"]]
    assert len(set(places)) == len({p["id"] for p in BOARD["panels"]}) == len(BOARD["panels"])

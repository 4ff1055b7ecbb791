from __future__ import annotations

import json
from itertools import combinations, pairwise

import pytest
import yaml

from equipoise.control.controller import State
from equipoise.control.metric_families import DESCRIPTIONS, DETAILS
from equipoise.report.grafana import dashboard
from tests.prometheus import promtool
from tests.report.test_prometheus import metrics_of

BOARD = json.loads(dashboard())
PANELS = BOARD["panels"]
QUERIES = [
    *(target["expr"] for panel in PANELS for target in panel["targets"]),
    *(annotation["expr"] for annotation in BOARD["annotations"]["list"]),
]


def test_every_query_asks_for_metrics_that_there_are_in_the_chosen_job():
    exported = {f"equipoise_{name}" for name in (*DESCRIPTIONS, *DETAILS)}
    for query in QUERIES:
        assert metrics_of(query)
        assert metrics_of(query) <= exported
        assert query.count('{job=~"$job"}') == query.count("equipoise_")


def test_panels_fill_rows_and_do_not_overlap():
    places = [panel["gridPos"] for panel in PANELS]
    assert all(p["x"] >= 0 and p["x"] + p["w"] <= 24 and p["h"] > 0 for p in places)
    for a, b in combinations(places, 2):
        apart_x = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        apart_y = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart_x or apart_y
    for a, b in pairwise(places):
        assert b["y"] == a["y"] or (b["x"] == 0 and a["x"] + a["w"] == 24)


def test_panels_say_what_they_show():
    assert [panel["id"] for panel in PANELS] == list(range(1, len(PANELS) + 1))
    assert all(panel["description"].endswith(".") for panel in PANELS)
    kinds = {"stat", "timeseries", "heatmap", "status-history", "state-timeline"}
    assert {panel["type"] for panel in PANELS} == kinds
    for panel in PANELS:
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        assert all(t["datasource"] == panel["datasource"] for t in panel["targets"])


def test_the_timeline_has_a_colour_for_every_state():
    (timeline,) = (panel for panel in PANELS if panel["type"] == "state-timeline")
    (mapping,) = timeline["fieldConfig"]["defaults"]["mappings"]
    told = [mapping["options"][str(number)]["text"] for number, _ in enumerate(State)]
    assert told == [state.value for state in State]
    assert len({option["color"] for option in mapping["options"].values()}) == len(State)


@pytest.mark.prometheus
def test_promtool_takes_every_query(tmp_path):
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(QUERIES)
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(QUERIES)} rules found" in promtool("check", "rules", path)

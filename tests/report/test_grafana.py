from __future__ import annotations

import json
import re
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


# --- what Grafana publishes of a dashboard's form (kinds/dashboard in its repository) ---------


def test_the_head_has_the_types_that_grafana_reads():
    assert 8 <= len(BOARD["uid"]) <= 40
    assert isinstance(BOARD["schemaVersion"], int)
    assert 36 <= BOARD["schemaVersion"] < 1 << 16
    assert re.fullmatch(r"\d+[smhd]", BOARD["refresh"])
    assert set(BOARD["time"]) == {"from", "to"}
    assert all(isinstance(tag, str) for tag in BOARD["tags"])
    assert "id" not in BOARD, "a number would name a dashboard of the Grafana that imports it"


def test_every_source_and_variable_that_is_named_is_declared():
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    kinds = {"query", "adhoc", "constant", "datasource", "interval", "textbox", "custom"}
    assert {variable["type"] for variable in variables.values()} <= kinds
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == (
        "datasource", "prometheus"
    )  # fmt: skip
    named = [
        *(part["datasource"] for panel in PANELS for part in (panel, *panel["targets"])),
        *(part["datasource"] for part in BOARD["annotations"]["list"]),
        *(v["datasource"] for v in variables.values() if v["type"] == "query"),
    ]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in named)
    used = {name for query in QUERIES for name in re.findall(r"\$(\w+)", query)}
    assert used <= {"__rate_interval", *variables}


def test_annotations_have_what_grafana_needs():
    for annotation in BOARD["annotations"]["list"]:
        assert isinstance(annotation["enable"], bool)
        assert annotation["name"]
        assert annotation["iconColor"]


def test_fields_have_colours_thresholds_and_mappings_as_grafana_reads_them():
    for panel in PANELS:
        assert set(panel["gridPos"]) == {"x", "y", "w", "h"}
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["fieldConfig"]["overrides"] == []
        assert defaults["unit"] in {"none", "short", "percentunit", "s", "Bps"}
        assert defaults["color"]["mode"] in {"thresholds", "palette-classic", "fixed"}
        first, *later = defaults["thresholds"]["steps"]
        assert defaults["thresholds"]["mode"] in {"absolute", "percentage"}
        assert first["value"] is None, "the first stands for everything below the second"
        assert [s["value"] for s in later] == sorted(s["value"] for s in later)
        assert all(isinstance(step["color"], str) for step in (first, *later))
        for mapping in defaults["mappings"]:
            assert mapping["type"] == "value"
            assert all(
                set(x) <= {"text", "color", "icon", "index"} for x in mapping["options"].values()
            )
        assert {target["format"] for target in panel["targets"]} <= {
            "time_series",
            "table",
            "heatmap",
        }


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

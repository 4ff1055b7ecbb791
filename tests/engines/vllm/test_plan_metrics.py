"""What became of the plans: the file that says so, and the metrics made of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import REGISTRY

from equipoise.engines._shared.hook import Decision, PlanStatus
from equipoise.engines.vllm.plan_metrics import DESCRIPTIONS, PlanMetrics, PlanRecord
from equipoise.engines.vllm.plugin_options import PluginOptions, read_options
from equipoise.engines.vllm.policy import Policy
from equipoise.errors import EquipoiseError
from equipoise.plan import Situation

ROOT = Path(__file__).parents[3]
OLD = np.array([[0, 1, 2, 3, 0, 1]])
NEW = np.array([[0, 1, 2, 3, 0, 2]])
LOAD = np.array([[4.0, 2.0, 6.0, 0.0]])


def asked(load=LOAD, slots=OLD):
    return Situation(load=load, num_slots=6, num_ranks=2, slots=slots)


def decided(status=PlanStatus.TAKEN, slots=NEW, moves=1):
    return Decision(slots=slots, moves=moves, status=status, reason="Because.", seconds=0.25)


def shown(path):
    registry = CollectorRegistry()
    registry.register(PlanMetrics(path))
    lines = generate_latest(registry).decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def test_decisions_add_up(tmp_path):
    path = tmp_path / "status.json"
    record = PlanRecord(path)
    record.add(asked(), decided())
    record.add(asked(), decided(PlanStatus.LATE, OLD, 0))
    record.add(asked(np.stack([LOAD / 2, LOAD / 2])), decided(moves=3))
    metrics = shown(path)
    assert metrics['equipoise_plans_total{status="taken"}'] == "2.0"
    assert metrics['equipoise_plans_total{status="late"}'] == "1.0"
    assert metrics['equipoise_plans_total{status="failed"}'] == "0.0"
    assert metrics["equipoise_plan_moves_total"] == "4.0"
    assert metrics["equipoise_plan_seconds"] == "0.25"
    assert metrics['equipoise_plan_peak{when="before"}'] == str(9 / 6)
    assert metrics['equipoise_plan_peak{when="after"}'] == str(7 / 6)
    assert float(metrics["equipoise_plan_timestamp_seconds"]) > 1e9
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]


def test_plans_for_no_traffic_do_not_count(tmp_path):
    PlanRecord(tmp_path / "status.json").add(asked(0 * LOAD), decided())
    assert not list(tmp_path.iterdir())


def test_slots_that_cannot_serve_have_no_peak(tmp_path):
    PlanRecord(tmp_path / "status.json").add(asked(slots=None), decided())
    metrics = shown(tmp_path / "status.json")
    assert 'equipoise_plan_peak{when="before"}' not in metrics
    assert 'equipoise_plan_peak{when="after"}' in metrics


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", "{}", '{"plans": 3}', '{"plans": {"taken": "many"}}']
)
def test_a_file_that_cannot_be_read_shows_nothing(tmp_path, content):
    path = tmp_path / "status.json"
    if content is not None:
        path.write_text(content)
    assert not shown(path)


def test_every_metric_has_a_description(tmp_path):
    PlanRecord(tmp_path / "status.json").add(asked(), decided())
    families = PlanMetrics(tmp_path / "status.json").collect()
    assert {family.name.removeprefix("equipoise_") for family in families} == set(DESCRIPTIONS)
    page = (ROOT / "docs" / "howto" / "plugins.md").read_text(encoding="utf-8")
    assert all(f"`equipoise_{name}" in page for name in DESCRIPTIONS)


def test_a_process_registers_them_once(tmp_path):
    before = set(REGISTRY._collector_to_names)
    try:
        for _ in range(2):
            PlanMetrics(tmp_path / "status.json").register()
        assert len(set(REGISTRY._collector_to_names) - before) == 1
    finally:
        for known in set(REGISTRY._collector_to_names) - before:
            REGISTRY.unregister(known)


def test_the_policy_keeps_a_record_where_it_is_asked_to(tmp_path):
    options = read_options(json.dumps({"status": str(tmp_path / "status.json")}))
    Policy(options, record=PlanRecord(options.status)).decide(asked())
    assert shown(tmp_path / "status.json")['equipoise_plans_total{status="taken"}'] == "1.0"


def test_a_record_that_cannot_be_written_harms_no_plan(tmp_path, caplog):
    policy = Policy(PluginOptions(), record=PlanRecord(tmp_path / "gone" / "status.json"))
    for _ in range(2):
        assert policy.decide(asked()).status is PlanStatus.TAKEN
    assert caplog.text.count("keeps no record of its plans any more") == 1


@pytest.mark.parametrize("value", [3, "/nowhere/at/all.json"])
def test_a_file_that_cannot_be_written_is_refused(value):
    with pytest.raises(EquipoiseError):
        read_options(json.dumps({"status": value}))

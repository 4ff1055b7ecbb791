from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from equipoise.control.metric_families import DESCRIPTIONS
from equipoise.report.prometheus import ALERTS, EXCESS, alert_rules
from tests.control.test_metrics import Clock, full
from tests.prometheus import promtool, scraping

DOCS = Path(__file__).parents[2] / "docs"
EXPORTED = {f"equipoise_{name}" for name in DESCRIPTIONS}


def metrics_of(expression: str) -> set[str]:
    """Names of our metrics in PromQL, without what counters and histograms add."""
    names = re.findall(r"equipoise_\w+", expression)
    return {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in names}


def test_every_alert_has_a_runbook_and_every_runbook_an_alert():
    page = (DOCS / "howto" / "runbooks.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", page, flags=re.MULTILINE) == [a.name for a in ALERTS]
    for alert in ALERTS:
        section = page.partition(f"## {alert.name}\n")[2].partition("\n## ")[0]
        assert [f"**{part}:**" in section for part in ("It says", "Look at", "Do")] == 3 * [True]
    assert f"above {EXCESS:g} for ten minutes" in page


def test_alerts_ask_for_metrics_that_there_are():
    for alert in ALERTS:
        assert metrics_of(alert.expression)
        assert metrics_of(alert.expression) <= EXPORTED


def test_the_file_has_all_of_an_alert():
    (group,) = yaml.safe_load(alert_rules())["groups"]
    assert [rule["alert"] for rule in group["rules"]] == [alert.name for alert in ALERTS]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["runbook_url"].endswith(f"#{rule['alert'].lower()}")


# --- with Prometheus's own tools ---------------------------------------------------------------

MINUTES = 40
LABELS = 'instance="r0",job="equipoise"'

FAIR = {
    f'equipoise_excess{{phase="decode",{LABELS}}}': f"0.01+0x{MINUTES}",
    f'equipoise_excess{{phase="prefill",{LABELS}}}': "_ 0.3 0.3 0.3 0.02 0.3 -0.01+0x30",
    f"equipoise_last_look_timestamp_seconds{{{LABELS}}}": f"0+60x{MINUTES}",
    f"equipoise_look_interval_seconds{{{LABELS}}}": f"60+0x{MINUTES}",
    f"equipoise_failures_total{{{LABELS}}}": f"3+0x{MINUTES}",
    f"equipoise_ranks{{{LABELS}}}": f"4+0x{MINUTES}",
    f"equipoise_ranks_wanted{{{LABELS}}}": f"4+0x{MINUTES}",
    f'equipoise_alarm{{name="maps_disagree",{LABELS}}}': f"0+0x{MINUTES}",
    f'equipoise_alarm{{name="map_not_kept",{LABELS}}}': f"1+0x{MINUTES}",
}
"""A system in order, its short excess and old failures included, by the minute."""

FAULTS = {
    "EquipoiseExcess": ({f'equipoise_excess{{phase="decode",{LABELS}}}': "0.01x9 0.2+0x30"}, 22),
    "EquipoiseLookOverdue": (
        {f"equipoise_last_look_timestamp_seconds{{{LABELS}}}": "0+60x9 540+0x30"}, 15,
    ),
    "EquipoiseFailuresRising": ({f"equipoise_failures_total{{{LABELS}}}": "3x9 4+0x30"}, 12),
    "EquipoiseRanksMissing": ({f"equipoise_ranks{{{LABELS}}}": "4x9 3+0x30"}, 13),
    "EquipoiseMapsDisagree": (
        {f'equipoise_alarm{{name="maps_disagree",{LABELS}}}': "0x9 1+0x30"}, 12,
    ),
}  # fmt: skip
"""What an alert is for, from the tenth minute, and the minute by which it has to fire."""


def check_firing(folder: Path, series: dict[str, str], expected: dict[int, list[str]]) -> None:
    """Ask promtool whether these alerts, and no others, fire at these minutes."""
    (folder / "rules.yml").write_text(alert_rules())
    test: dict[str, Any] = {
        "interval": "1m",
        "input_series": [{"series": key, "values": text} for key, text in series.items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": f'{{alertname="{n}"}}', "value": 1} for n in names],
            }
            for minute, names in expected.items()
        ],
    }
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}
    (folder / "test.yml").write_text(yaml.safe_dump(document))
    assert "SUCCESS" in promtool("test", "rules", folder / "test.yml")


@pytest.mark.prometheus
def test_promtool_takes_the_rules(tmp_path):
    (tmp_path / "rules.yml").write_text(alert_rules())
    assert "5 rules found" in promtool("check", "rules", tmp_path / "rules.yml")


@pytest.mark.prometheus
def test_fair_traffic_is_silent(tmp_path):
    check_firing(tmp_path, FAIR, {minute: [] for minute in range(MINUTES)})


@pytest.mark.prometheus
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fires_its_alert_and_no_other(tmp_path, name):
    fault, minute = FAULTS[name]
    check_firing(tmp_path, FAIR | fault, {9: [], minute: [name]})


@pytest.mark.prometheus
def test_promtool_takes_the_metrics():
    said = promtool("check", "metrics", text=full(with_details=True).text())
    assert said == ""


@pytest.mark.prometheus
def test_a_real_prometheus_reads_all_of_it_and_raises_the_alert(tmp_path):
    metrics = full(Clock(time.time() - 3), with_details=True)
    port = metrics.listen(0)
    with scraping([port], tmp_path, rules=alert_rules()) as scraper:
        assert scraper.wait_for("equipoise_tokens_total")[0][1] == 18
        found = scraper.series('{job="equipoise",__name__=~"equipoise_.+"}')
        assert set().union(*(metrics_of(m["__name__"]) for m, _ in found)) >= EXPORTED
        scraper.wait_for('ALERTS{alertname="EquipoiseMapsDisagree",alertstate="firing"}')
        groups = scraper.ask("rules")["groups"]
        assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}

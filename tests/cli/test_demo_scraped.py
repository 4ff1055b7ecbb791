"""A real run that a real Prometheus scrapes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from equipoise.control.metric_families import DESCRIPTIONS, DETAILS
from equipoise.report.prometheus import alert_rules
from tests.prometheus import free_ports, promtool, scraping

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.prometheus
def test_a_demo_is_scraped_and_no_alert_fires(tmp_path):
    port = free_ports(2)
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    command = [sys.executable, "-m", "equipoise", "demo", "--processes", "2", "--seconds", "600"]
    process = subprocess.Popen(
        [*command, "--metrics-port", str(port), "--metrics-details"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with scraping([port, port + 1], tmp_path, rules=alert_rules()) as scraper:
            scraper.wait_for("equipoise_rank_load", most=120)
            scraper.wait_for("equipoise_tpot_avg", most=60)
            found = scraper.series('{__name__=~"equipoise_.+"}')
            alerts = scraper.series('ALERTS{alertstate="firing"}')
            (tokens,) = scraper.wait_for("sum(rate(equipoise_tokens_total[10s]))")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            text = page.read().decode()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert promtool("check", "metrics", text=text) == ""
    assert alerts == []
    assert tokens[1] > 0
    names = {labels["__name__"] for labels, _ in found}
    missing = {
        name
        for name in (*DESCRIPTIONS, *DETAILS)
        if not any(one.startswith(f"equipoise_{name}") for one in names)
    }
    gains = {f"{name}_gain_assignments" for name in ("predicted", "achieved")}
    of_moves = {*gains, "last_move_timestamp_seconds"}  # two ranks may have nothing to move yet
    timed = {"predicted_gain_seconds", "achieved_gain_seconds"}  # the demo knows no times
    assert timed <= missing <= timed | of_moves
    assert len([1 for labels, _ in found if labels["instance"].endswith(f":{port}")]) < 160
    (info,) = {
        (labels["model"], labels["dispatch"], labels.get("planner"))
        for labels, _ in found
        if labels["__name__"] == "equipoise_info" and "planner" in labels
    }
    assert info == ("balance-5m", "minmax", "GatedRepair")

from __future__ import annotations

import json

from equipoise.cli import main
from equipoise.report.grafana import dashboard
from equipoise.report.prometheus import alert_rules


def test_both_files_are_written(tmp_path, capsys):
    folder = tmp_path / "watch"
    assert main(["grafana", "-o", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out == f"{folder}: grafana-dashboard.json and prometheus-alerts.yml written.\n"
    assert (folder / "grafana-dashboard.json").read_text() == dashboard()
    assert (folder / "prometheus-alerts.yml").read_text() == alert_rules()


def test_a_folder_with_content_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    assert main(["grafana", "-o", str(tmp_path)]) == 2
    assert "is not an empty directory; name a new one" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_one_document(tmp_path, capsys):
    assert main(["grafana", "-o", str(tmp_path / "watch"), "--json"]) == 0
    files = ["grafana-dashboard.json", "prometheus-alerts.yml"]
    told = json.loads(capsys.readouterr().out)
    assert told == {"output": str(tmp_path / "watch"), "files": files}

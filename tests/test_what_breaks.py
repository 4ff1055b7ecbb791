"""Every row of the page what-breaks, planted: the command that it names says what it quotes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.control.controller import Controller, Follower
from equipoise.control.metrics import Metrics
from equipoise.control.settings import Settings
from equipoise.control.watchdog import Watchdog
from equipoise.placement import Placement

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "what-breaks.md"
LAYERS = (7, 9)
FAIR = np.full((6, 2, 64), 1000)


@dataclass(frozen=True)
class Row:
    """One thing that breaks, as the page has it."""

    what: str
    command: str
    says: str


def rows() -> list[Row]:
    table = re.findall(r"^\| (?!what \||-)(.*) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    cells = [[cell.strip() for cell in line.split(" | ")] for line in table]
    return [Row(what, command.strip("`"), says.strip("`")) for what, _, command, says, *_ in cells]


def write(folder: Path, counts: np.ndarray, **values: object) -> str:
    path = folder / "run.safetensors"
    eq.write_trace(eq.Trace(counts=counts, layer_ids=LAYERS, top_k=8, **values), path)
    return str(path)


def checklist(folder: Path, counts: np.ndarray, *options: str) -> list[str]:
    model = {
        "model_type": "deepseek_v3", "num_hidden_layers": 10, "n_routed_experts": 64,
        "first_k_dense_replace": 7, "num_experts_per_tok": 8, "hidden_size": 7168,
        "moe_intermediate_size": 2048, "torch_dtype": "bfloat16",
        "architectures": ["DeepseekV3ForCausalLM"],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(model))
    told = ("--ranks", "16", "--model", str(folder / "config.json"), "--hardware", "h100")
    return ["checklist", write(folder, counts), *told, *options]


def hot_rank(folder: Path) -> list[str]:
    counts = FAIR.copy()
    counts[3, 1, 20:24] *= 5  # the experts of rank 5
    return checklist(folder, counts)


def straggler(folder: Path) -> list[str]:
    times = ["0.8"] * 8
    times[2] = "1.6"
    recording = write(folder, FAIR)
    return ["report", recording, "--ranks", "8", "--rank-seconds", ",".join(times)]


def hot_expert(folder: Path) -> list[str]:
    counts = FAIR.copy()
    counts[:, 1, 17] *= 15
    return ["report", write(folder, counts), "--ranks", "8"]


def drift(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    popularity = rng.dirichlet(np.full(64, 0.5), size=(2, 2))
    counts = np.stack([rng.multinomial(20_000, popularity[n // 6]) for n in range(12)])
    labels = {"domain": np.repeat(["code", "wiki"], 6)}
    return ["report", write(folder, counts, labels=labels), "--ranks", "8"]


def uneven_requests(folder: Path) -> list[str]:
    share = np.array([7, 1, 1, 1, 1, 1, 2, 2])  # of 16: the fullest has 3.5 times the mean
    source = np.random.default_rng(0).poisson(50 * share[:, None, None], (6, 8, 2, 64))
    return ["report", write(folder, source.sum(axis=1), source_counts=source)]


def padding(folder: Path) -> list[str]:
    return checklist(folder, np.full((6, 2, 64), 8))  # rows of 8 in tiles of 128


def slow_link(folder: Path) -> list[str]:
    known = {"value": 2e9, "uncertainty": 0.1, "source": "planted", "date": "2026-11"}
    profile = {
        "format": "equipoise link 1", "name": "slow", "bytes_per_second": known,
        "latency_seconds": known | {"value": 1e-4},
    }  # fmt: skip
    (folder / "slow.json").write_text(json.dumps(profile))
    return checklist(folder, FAIR, "--link", str(folder / "slow.json"))


def stall() -> str:
    metrics = Metrics()
    for _ in range(3):
        metrics.take_step(0.03, stall_seconds=0.4)
    return metrics.text()


def dead_balancer() -> str:
    settings = Settings(window=8, update_interval=16, warm_up_steps=4, wait_steps=4)
    start = Placement([[0, 1, 2, 3]], num_ranks=2, num_experts=4)
    controller, follower = Controller(start, settings), Follower(start)
    watchdog, metrics = Watchdog(settings), Metrics()
    for _ in range(200):  # nobody answers what is asked
        order = controller.step()
        follower.follow(order)
        watchdog.see_order(order, follower)
    metrics.take_alarms(watchdog.alarms)
    return metrics.text()


TYPED: dict[str, Callable[[Path], list[str]]] = {
    "hot rank out of memory": hot_rank,
    "straggler GPU": straggler,
    "hot expert": hot_expert,
    "drift": drift,
    "attention-DP imbalance": uneven_requests,
    "padding": padding,
    "slow link": slow_link,
}
SERVED: dict[str, Callable[[], str]] = {
    "stall of a rebalance": stall,
    "dead balancer": dead_balancer,
}


def test_every_row_is_planted_and_nothing_else():
    assert [row.what for row in rows()] == [*TYPED, *SERVED]


@pytest.mark.parametrize("row", [r for r in rows() if r.what in TYPED], ids=lambda r: r.what)
def test_the_command_says_so(row, tmp_path, capsys):
    command = TYPED[row.what](tmp_path)
    assert row.command.split()[:2] == ["equipoise", command[0]]
    for option in re.findall(r"--[a-z-]+", row.command):
        assert option in command
    assert main(command) == 0
    assert row.says in capsys.readouterr().out


@pytest.mark.parametrize("row", [r for r in rows() if r.what in SERVED], ids=lambda r: r.what)
def test_the_metrics_say_so(row):
    assert row.command.endswith("/metrics")
    assert row.says in SERVED[row.what]()


@pytest.mark.parametrize("row", [r for r in rows() if r.what in TYPED], ids=lambda r: r.what)
def test_without_the_fault_it_does_not(row, tmp_path, capsys):
    command = TYPED[row.what](tmp_path)
    write(tmp_path, FAIR)  # over the recording that has the fault
    healthy = [x for x in command if x not in ("--rank-seconds", "--link")]
    if len(healthy) < len(command):
        healthy = healthy[:-1]  # its value
    if "report" in command and "--ranks" not in command:
        healthy += ["--ranks", "8"]
    assert main(healthy) == 0
    assert row.says not in capsys.readouterr().out


def test_metrics_without_a_fault_say_nothing():
    metrics = Metrics()
    metrics.take_step(0.03)
    for row in rows():
        if row.what in SERVED:
            assert row.says not in metrics.text()

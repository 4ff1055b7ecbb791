"""What decides needs neither torch nor the runtime, nor the packages that come with them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import equipoise.control

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "prometheus_client") or name.startswith(
            "equipoise.runtime"
        ):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""

DRIVEN = """
import numpy as np
from equipoise.control import (
    Action, Alarms, Controller, Follower, Outcome, Report, Settings, State, Watchdog, plain_advisor,
)
from equipoise.dispatch import MinMax
from equipoise.placement import Placement
from equipoise.simulate.routers import lognormal, sample_trace, steady
from equipoise.topology import Topology

topology, settings = Topology(4), Settings(window=32, update_interval=64, warm_up_steps=10)
popularity = steady(lognormal(16, sigma=1.0, num_layers=2), num_steps=600)
traffic = sample_trace(popularity, num_tokens=256, top_k=2, seed=1)
start = Placement([[*range(16), *range(4)]] * 2, num_ranks=4, num_experts=16)
advisor = plain_advisor(MinMax(), settings, topology, start.num_slots)
controller, follower, report = Controller(start, settings), Follower(start), Report()
watchdog, states, outcome = Watchdog(settings, Alarms()), [], None
for step in range(traffic.num_steps):
    order = controller.step(report)
    follower.follow(order)
    watchdog.see_order(order, follower)
    states += [order.state.value] if states[-1:] != [order.state.value] else []
    outcome, answer = order.outcome, None
    if outcome is not None:
        break
    if order.action is Action.LOOK:
        window = traffic.select(steps=np.arange(step + 1 - settings.window, step + 1))
        answer = advisor(controller.question, window)
    if order.action is Action.MOVE:
        follower.commit(order.layers)
    report = Report(answer=answer, moved=order.layers)
print(*states, outcome.name, controller.placement != start, watchdog.alarms == frozenset())
"""


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_controller_goes_from_warm_up_to_an_outcome():
    said = run(BLOCKED + DRIVEN)
    assert said == "warm-up observe plan move settle observe KEPT True True\n"


def test_importing_it_loads_no_compiler_and_no_solver():
    names = ", ".join(name for name in equipoise.control.__all__ if name != "Metrics")
    heavy = "print({'numba', 'scipy', 'torch', 'prometheus_client'} & set(sys.modules))"
    assert run(f"import sys\nfrom equipoise.control import {names}\n{heavy}") == "set()\n"


@pytest.mark.parametrize("name", equipoise.control.__all__)
def test_every_name_is_there(name):
    assert getattr(equipoise.control, name).__name__ == name
    assert name in dir(equipoise.control)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'Controler'"):
        _ = equipoise.control.Controler

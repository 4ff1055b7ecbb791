"""Decisions while serving: when to look at the loads, when to plan, which layers move next.

Needs neither torch nor processes that serve. A simulator, a dashboard and an engine's plug-in drive
the same controller as the runtime: ``equipoise explain live-runtime``, "Deciding".

==================  ================================================================================
``Controller``      Makes one ``Order`` per step from a ``Report`` on the last one.
``Follower``        Keeps track of the orders on each rank.
``GatedRepair``     Answers a ``Question`` about the loads with a ``Finding`` (an ``Advisor``).
``PlanningProcess`` Runs an advisor in its own process; a ``Failure`` is an answer too.
``Settings``        Says when to look and plan, and how much to move at a time.
``Watchdog``        Notices faults that would stay silent, and reports them in ``Alarms``.
``Metrics``         Exports metrics to Prometheus (needs prometheus-client).
``Status``          Describes a serving process to monitors.
==================  ================================================================================

A name loads its module on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.control.advisor import GatedRepair as GatedRepair
    from equipoise.control.advisor import plain_advisor as plain_advisor
    from equipoise.control.controller import Action as Action
    from equipoise.control.controller import Controller as Controller
    from equipoise.control.controller import Follower as Follower
    from equipoise.control.controller import Order as Order
    from equipoise.control.controller import Outcome as Outcome
    from equipoise.control.controller import Report as Report
    from equipoise.control.controller import State as State
    from equipoise.control.findings import Advisor as Advisor
    from equipoise.control.findings import Balance as Balance
    from equipoise.control.findings import Failure as Failure
    from equipoise.control.findings import Finding as Finding
    from equipoise.control.findings import Question as Question
    from equipoise.control.metrics import Metrics as Metrics
    from equipoise.control.process import PlanningProcess as PlanningProcess
    from equipoise.control.settings import Settings as Settings
    from equipoise.control.status import Status as Status
    from equipoise.control.watchdog import Alarms as Alarms
    from equipoise.control.watchdog import Watchdog as Watchdog

_HOME = {
    "Action": "controller",
    "Advisor": "findings",
    "Alarms": "watchdog",
    "Balance": "findings",
    "Controller": "controller",
    "Failure": "findings",
    "Finding": "findings",
    "Follower": "controller",
    "GatedRepair": "advisor",
    "Metrics": "metrics",
    "Order": "controller",
    "Outcome": "controller",
    "PlanningProcess": "process",
    "Question": "findings",
    "Report": "controller",
    "Settings": "settings",
    "State": "controller",
    "Status": "status",
    "Watchdog": "watchdog",
    "plain_advisor": "advisor",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

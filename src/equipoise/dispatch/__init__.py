"""Dispatching: sharing one batch's load over the copies of each expert."""

from __future__ import annotations

from equipoise.dispatch.auto import Auto
from equipoise.dispatch.base import Dispatcher, Shares
from equipoise.dispatch.even import Even
from equipoise.dispatch.fewest import FewestExperts
from equipoise.dispatch.minmax import MinMax
from equipoise.dispatch.nearest import Nearest
from equipoise.dispatch.registry import DISPATCHERS, dispatcher
from equipoise.dispatch.split import Split

__all__ = [
    "DISPATCHERS",
    "Auto",
    "Dispatcher",
    "Even",
    "FewestExperts",
    "MinMax",
    "Nearest",
    "Shares",
    "Split",
    "dispatcher",
]

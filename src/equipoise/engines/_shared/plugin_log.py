"""Messages of a plug-in in its engine's log."""

from __future__ import annotations

import logging

import numpy as np

from equipoise import __version__
from equipoise.engines._shared.hook import Decision, Hook, PlanStatus, warm_up
from equipoise.engines._shared.plugin_options import PluginOptions
from equipoise.plan import Situation


def log_decision(log: logging.Logger, decision: Decision) -> None:
    """Log the fate of a plan, as a warning if it was not taken."""
    taken = decision.status is PlanStatus.TAKEN
    log.log(
        logging.INFO if taken else logging.WARNING,
        "equipoise (%s, %.0f ms): %s",
        decision.status.value,
        1000 * decision.seconds,
        decision.reason,
    )


def make_ready(log: logging.Logger, hook: Hook, situation: Situation) -> None:
    """Let a hook compile for the sizes of a situation, and log how long that took."""
    decision = warm_up(
        hook,
        num_experts=np.shape(situation.load)[-1],
        num_slots=situation.num_slots,
        num_ranks=situation.num_ranks,
        num_nodes=situation.num_nodes,
    )
    if decision.status is PlanStatus.TAKEN:
        log.info("equipoise was made ready in %.1f seconds.", decision.seconds)
    else:
        log.warning("equipoise could not be made ready: %s", decision.reason)


def balancing_words(options: PluginOptions) -> str:
    """Describe the options that every plug-in has."""
    return (
        f"a rebalance changes at most {options.max_moves_share:.0%} of the slots, and only if the "
        f"mean peak falls by more than {options.gate:g} mean rank loads. After a change of ranks a "
        f"search takes at most {options.time_budget_seconds:g} seconds."
    )


def log_unknown_release(log: logging.Logger, engine: str, known: str, version: str) -> None:
    """Warn that a version of the engine is unknown, so that its own policy stays."""
    log.warning(
        "equipoise %s supports %s %s, but this is %s: %s balances by its own policy.",
        *(__version__, engine, known, version, engine),
    )

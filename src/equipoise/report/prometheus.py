"""Alert rules for Prometheus over the metrics that ``equipoise explain metrics`` lists."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from equipoise.control.settings import Settings

EXCESS = 2 * Settings().excess_on
"""Excess from which an alert is raised: twice that from which the balancer plans."""

_RUNBOOKS = "docs/howto/runbooks.md"


@dataclass(frozen=True, kw_only=True)
class Alert:
    """An alert rule.

    Parameters
    ----------
    name
        Name of the alert, and of its section in ``equipoise explain runbooks``.
    expression
        PromQL expression that has a result while something is wrong.
    lasting
        Time for which the expression must have a result.
    severity
        Urgency: ``warning`` for working hours, ``critical`` for now.
    summary
        Sentence for the person on call, with ``$value`` and labels as Prometheus's templates have.
    """

    name: str
    expression: str
    lasting: str
    severity: str
    summary: str


ALERTS = (
    Alert(
        name="EquipoiseExcess",
        expression=f"equipoise_excess > {EXCESS:g}",
        lasting="10m",
        severity="warning",
        summary="{{ $labels.phase }}: the busiest rank has had {{ $value | humanizePercentage }} "
        "of a mean rank's load more than chance explains, for ten minutes.",
    ),
    Alert(
        name="EquipoiseLookOverdue",
        expression="time() - equipoise_last_look_timestamp_seconds "
        "> 2 * equipoise_look_interval_seconds",
        lasting="1m",
        severity="warning",
        summary="The loads were last looked at {{ $value | humanizeDuration }} ago, more than two "
        "intervals.",
    ),
    Alert(
        name="EquipoiseFailuresRising",
        expression="increase(equipoise_failures_total[15m]) > 0",
        lasting="0m",
        severity="warning",
        summary="{{ $labels.instance }}: planning, moving or keeping a map has failed in the last "
        "15 minutes. Serving goes on.",
    ),
    Alert(
        name="EquipoiseRanksMissing",
        expression="min by (job) (equipoise_ranks) < max by (job) (equipoise_ranks_wanted)",
        lasting="1m",
        severity="critical",
        summary="{{ $value }} ranks serve, fewer than were wanted.",
    ),
    Alert(
        name="EquipoiseMapsDisagree",
        expression='equipoise_alarm{name="maps_disagree"} == 1',
        lasting="0m",
        severity="critical",
        summary="{{ $labels.instance }} serves another map than rank 0 expects.",
    ),
)


def alert_rules() -> str:
    """Write the rules as a file for Prometheus's ``rule_files``."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expression,
            "for": alert.lasting,
            "labels": {"severity": alert.severity},
            "annotations": {
                "summary": alert.summary,
                "runbook_url": f"{_RUNBOOKS}#{alert.name.lower()}",
            },
        }
        for alert in ALERTS
    ]
    document = {"groups": [{"name": "equipoise", "rules": rules}]}
    return yaml.safe_dump(document, sort_keys=False, width=100)

"""The parts of a step in words."""

from __future__ import annotations

from collections.abc import Mapping

from equipoise.simulate.forecast import Forecast

PARTS = {
    "experts": "experts",
    "rereading": "reading their weights again",
    "chance": "waiting by chance",
    "skew": "waiting for skew",
    "drift": "waiting for drift",
    "own": "attention and the rest",
    "own_wait": "waiting there",
    "exposed": "exchanges",
}
"""The parts that add up to a step, and what they are called."""

_ALWAYS = ("experts", "chance", "skew", "drift")


def spent(result: Forecast) -> list[str]:
    """Describe the parts of an unseen step, now and with the best plan; nothing if unknown."""
    if result.parts is None or result.planned_parts is None:
        return []
    best = result.best
    return [
        f"An unseen step takes {_listed(result.parts, result.counts)}.",
        f"Planned, {best.redundant} redundant slots and {best.dispatch} split, it takes "
        f"{_listed(result.planned_parts, result.counts)}.",
    ]


def shares(parts: Mapping[str, float]) -> dict[str, float]:
    """Compute the shares of a step by name, without parts that such steps do not have."""
    total = sum(parts[name] for name in PARTS)
    return {
        said: parts[name] / total for name, said in PARTS.items() if name in _ALWAYS or parts[name]
    }


def _listed(parts: Mapping[str, float], counts: str) -> str:
    total = sum(parts[name] for name in PARTS)
    listed = ", ".join(f"{said} {share:.1%}" for said, share in shares(parts).items())
    hidden = f"; exchanges hidden {1e3 * parts['hidden']:.3f} ms" if parts["hidden"] else ""
    return f"{1e3 * total:.3f} ms, {counts}: {listed}{hidden}"

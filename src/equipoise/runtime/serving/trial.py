"""Which request a forward pass breaks of: found by serving fewer and fewer of them together.

An exception in a pass, other than that a rank is gone, is of one of the requests in it, and not
necessarily one of the rank that raised: experts compute the tokens of all ranks. So the requests
that all ranks were at are tried in halves, each group served by itself from its prompts, while
nothing else is served. A group that is served is answered; one that breaks is halved again; a
request that breaks a pass alone is answered as failed. With ``n`` requests under way this takes
about ``log2(n)`` broken passes for each culprit.

All ranks know the same groups: they tell each other at the beginning of an epoch, and a group is
over for all of them in the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """What a rank tells the others at the beginning of an epoch.

    Parameters
    ----------
    running
        Numbers of the requests that it was at.
    groups
        The groups still to be served, as far as it knows, the one under way first.
    broke
        What its last pass has raised by itself; empty if nothing.
    heard
        How many times a broken pass was judged so far. One that knows of fewer was cut off before
        it heard the last judgement, or was not there: what it tells is of before.
    """

    running: tuple[int, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    broke: str = ""
    heard: int = 0


@dataclass(frozen=True)
class Verdict:
    """What follows from it, the same on every rank.

    Parameters
    ----------
    groups
        To be served one after the other; none: all as usual.
    culprit
        The request that failed alone.
    reason
        Why, in a sentence.
    blamed
        Whether a pass has broken and there are requests that may be why.
    heard
        For the next time.
    """

    groups: tuple[tuple[int, ...], ...] = ()
    culprit: int | None = None
    reason: str = ""
    blamed: bool = False
    heard: int = 0


def judge(told: Sequence[Told]) -> Verdict:
    """What to serve next, from what all ranks have told."""
    heard = max(one.heard for one in told)
    current = [one for one in told if one.heard == heard]
    # Each list is the end of every longer one: a rank may have been cut off before it moved on.
    groups = max((one.groups for one in current), key=len)
    broke = next((one.broke for one in current if one.broke), "")
    if not broke:
        return Verdict(groups, heard=heard)
    if not groups:
        groups = (tuple(sorted(number for one in current for number in one.running)),)
    first, rest = groups[0], groups[1:]
    match len(first):
        case 0:
            return Verdict(rest, heard=heard)
        case 1:
            reason = f"A forward pass that served nothing else broke off: {broke}"
            return Verdict(rest, culprit=first[0], reason=reason, blamed=True, heard=heard + 1)
    half = len(first) // 2
    return Verdict((first[:half], first[half:], *rest), blamed=True, heard=heard + 1)

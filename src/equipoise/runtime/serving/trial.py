"""Finding the request that breaks a forward pass, by serving fewer and fewer of them together.

Unless a rank is gone, an exception in a pass comes from one of its requests, and not necessarily
one of the rank that raised: experts compute the tokens of all ranks. So the requests of all ranks
are tried in halves: each group of requests is served from its prompts, and nothing else with it. A
group that is served is answered; one that breaks is halved again; a request that breaks a pass
alone is answered as failed. With ``n`` requests under way this takes about ``log2(n)`` broken
passes for each culprit.

All ranks know the same groups: they tell each other at the beginning of an epoch, and a group is
over for all of them in the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """The message of a rank to the others at the beginning of an epoch.

    Parameters
    ----------
    running
        Numbers of the requests that it serves.
    groups
        Groups of requests still to be served, as far as it knows, the one under way first.
    broke
        Error that its last pass raised while all ranks were there; empty if none.
    heard
        Number of broken passes judged so far, as far as it knows. A rank that knows of fewer was
        cut off before the last judgement, or was not there: what it tells is out of date.
    """

    running: tuple[int, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    broke: str = ""
    heard: int = 0


@dataclass(frozen=True)
class Verdict:
    """The conclusion from the ranks' messages, the same on every rank.

    Parameters
    ----------
    groups
        Groups of requests to be served one after the other; none: serve as usual.
    culprit
        Number of the request that failed alone.
    reason
        Reason of its failure, a sentence.
    blamed
        Whether a pass has broken and some requests may be the cause.
    heard
        Number of broken passes judged so far, for the next ``Told``.
    """

    groups: tuple[tuple[int, ...], ...] = ()
    culprit: int | None = None
    reason: str = ""
    blamed: bool = False
    heard: int = 0


def judge(told: Sequence[Told]) -> Verdict:
    """Decide what to serve next from what all ranks have told."""
    heard = max(one.heard for one in told)
    current = [one for one in told if one.heard == heard]
    # Each list is the end of every longer one: a rank may be cut off before it moves on.
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

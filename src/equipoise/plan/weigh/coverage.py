"""The experts that a lost rank or node takes with it, and the chance to survive losses.

``equipoise explain failure``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, islice
from math import comb

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import brief, check_count, check_type, check_whole
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.showing import in_short
from equipoise.topology import Topology, check_ranks

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FAILURE_DOMAINS = ("rank", "node")
"""Kinds of failure domain: one rank, or all ranks of a node."""

_FEW_HOST_SETS = 12  # the work of inclusion-exclusion doubles with each set
_MOST_LOSSES = 1 << 16  # largest number of combinations that are all tried
_SAMPLES = 1 << 15  # random combinations where there are more than that
_BLOCK = 1 << 12  # combinations processed at a time


@dataclass(frozen=True, eq=False, kw_only=True)
class Survival:
    """The chance that every expert survives when random failure domains are lost together.

    Parameters
    ----------
    by_layer
        Chance for the experts of each layer, ``(L,)``.
    model
        Chance for all layers together: that the model continues without reloading weights.
    standard_error
        Standard error of ``model``; 0 where it is exact.
    method
        ``"inclusion-exclusion"``, ``"enumeration"`` (both exact) or ``"sampling"``.
    """

    by_layer: Floats
    model: float
    standard_error: float
    method: str

    __repr__ = in_short


@dataclass(frozen=True, eq=False, kw_only=True)
class Coverage:
    """The failure domains (ranks or nodes) that hold each expert.

    Parameters
    ----------
    failure_domain
        ``"rank"`` or ``"node"``.
    hosts
        Mask of the experts that each of ``X`` ranks or nodes holds, ``(L, X, E)``.
    """

    failure_domain: str
    hosts: Bools

    __repr__ = in_short

    @property
    def num_failure_domains(self) -> int:
        """Number of failure domains, ``X``."""
        return int(self.hosts.shape[1])

    @cached_property
    def homes(self) -> Ints:
        """Number of failure domains that hold each expert, ``(L, E)``."""
        homes: Ints = self.hosts.sum(axis=1)
        return homes

    @property
    def guaranteed_losses(self) -> int:
        """Number of failure domains, whichever they are, whose loss takes no expert."""
        return int(self.homes.min()) - 1

    @property
    def text(self) -> str:
        """Sentence on what the loss of one failure domain takes."""
        name = self.failure_domain
        if self.guaranteed_losses:
            return f"The loss of any {name} leaves every expert alive."
        alone, lost = int(self.endangered(1).max()), float(self.expected_lost(1).mean())
        return (
            f"A lost {name} takes {lost:.1f} experts of a layer on average; up to {alone} "
            f"of {self.hosts.shape[2]} live on one {name} only."
        )

    def endangered(self, losses: int) -> Ints:
        """Count the experts of each layer that losing some ``losses`` failure domains can take."""
        self._check(losses)
        endangered: Ints = (self.homes <= losses).sum(axis=1)
        return endangered

    def expected_lost(self, losses: int) -> Floats:
        """Compute the mean number of experts lost with ``losses`` random failure domains, ``(L,)``.

        An expert with ``h`` homes among ``X`` is lost in ``C(X - h, k - h)`` of the ``C(X, k)``
        equally likely combinations.
        """
        self._check(losses)
        lost: Floats = chance_lost(self.num_failure_domains, losses)[self.homes].sum(axis=1)
        return lost

    def survival(self, losses: int, *, seed: int = 0) -> Survival:
        """Compute the chance that no expert is lost with ``losses`` random failure domains.

        Three methods are used, in this order: inclusion-exclusion if at most 12 sets of hosts can
        be lost whole; trying every combination if there are at most 65,536; otherwise 32,768 random
        combinations. The first two are exact.

        Parameters
        ----------
        losses
            Number of failure domains lost together.
        seed
            Random seed of the combinations.
        """
        self._check(losses)
        check_whole("seed", seed)
        families = [_host_sets(hosts, losses) for hosts in self.hosts]
        every = np.unique(np.concatenate(families), axis=0)
        if len(every) <= _FEW_HOST_SETS:
            by_layer = np.array([_exact_survival(family, losses) for family in families])
            model, error, method = _exact_survival(every, losses), 0.0, "inclusion-exclusion"
        elif comb(self.num_failure_domains, losses) <= _MOST_LOSSES:
            by_layer, model, _ = _try(families, _all_losses(self.num_failure_domains, losses))
            error, method = 0.0, "enumeration"
        else:
            by_layer, model, tried = _try(
                families, _random_losses(self.num_failure_domains, losses, seed)
            )
            error, method = _standard_error(model, tried), "sampling"
        return Survival(by_layer=by_layer, model=model, standard_error=error, method=method)

    def _check(self, losses: int) -> None:
        check_count("losses", losses)
        if losses > (most := self.num_failure_domains):
            raise EquipoiseError(
                f"losses is {losses}; there are {most} {self.failure_domain}s to lose."
            )


def coverage(placement: Placement, topology: Topology, *, failure_domain: str = "rank") -> Coverage:
    """Find the failure domains that hold each expert of a placement.

    Parameters
    ----------
    failure_domain
        Kind of failure domain: ``"rank"`` or ``"node"``.

    Raises
    ------
    EquipoiseError
        A topology with another number of ranks, or an unknown kind of failure domain.
    """
    check_type("placement", placement, Placement)
    check_type("topology", topology, Topology)
    check_ranks(topology, placement.num_ranks)
    of_rank = failure_domain_of_rank(topology, failure_domain)
    first = np.flatnonzero(np.diff(of_rank, prepend=-1))
    hosts = np.logical_or.reduceat(placement.copies_on_rank > 0, first, axis=1)
    return Coverage(failure_domain=failure_domain, hosts=hosts)


def failure_domain_of_rank(topology: Topology, failure_domain: str) -> Ints:
    """Number each rank's failure domain, ``(R,)``; raise ``EquipoiseError`` for an unknown kind."""
    if not isinstance(failure_domain, str) or failure_domain not in FAILURE_DOMAINS:
        raise EquipoiseError(
            f"failure_domain is {brief(failure_domain)}; expected 'rank' or 'node'."
        )
    return topology.node_of_rank if failure_domain == "node" else np.arange(topology.num_ranks)


def chance_lost(num_failure_domains: int, losses: int) -> Floats:
    """Compute the chance that 0, 1, ... ``X`` given failure domains are all lost, ``(X + 1,)``."""
    i = np.arange(num_failure_domains)
    chance: Floats = np.cumprod(
        np.append(1.0, np.maximum(losses - i, 0) / (num_failure_domains - i))
    )
    return chance


def _host_sets(hosts_XE: Bools, losses: int) -> Bools:
    """Find the distinct sets of hosts that can be lost whole, ``(n, X)``."""
    return np.unique(hosts_XE.T[hosts_XE.sum(axis=0) <= losses], axis=0)


def _exact_survival(sets: Bools, losses: int) -> float:
    """Compute the share of combinations that contain none of the sets ``(n, X)``."""
    num_failure_domains = sets.shape[1]
    unions = {0: 1}  # union of some sets, as bits -> number of positive minus negative terms
    for row in sets:
        hosts = sum(1 << int(host) for host in np.flatnonzero(row))
        for union, sign in list(unions.items()):
            unions[union | hosts] = unions.get(union | hosts, 0) - sign
    survived = sum(
        sign * comb(num_failure_domains - size, losses - size)
        for union, sign in unions.items()
        if (size := union.bit_count()) <= losses
    )
    return survived / comb(num_failure_domains, losses)


def _all_losses(num_failure_domains: int, losses: int) -> Iterator[Bools]:
    """Yield every combination of lost failure domains, in blocks ``(X, m)``."""
    every = combinations(range(num_failure_domains), losses)
    while block := list(islice(every, _BLOCK)):
        yield _marked(np.array(block), num_failure_domains)


def _random_losses(num_failure_domains: int, losses: int, seed: int) -> Iterator[Bools]:
    chance = np.random.default_rng(seed)
    for _ in range(_SAMPLES // _BLOCK):
        order = np.argpartition(chance.random((_BLOCK, num_failure_domains)), losses - 1, axis=1)
        yield _marked(order[:, :losses], num_failure_domains)


def _marked(lost: Ints, num_failure_domains: int) -> Bools:
    marked = np.zeros((num_failure_domains, len(lost)), dtype=bool)
    np.put_along_axis(marked, lost.T, True, axis=0)
    return marked


def _try(families: list[Bools], losses: Iterator[Bools]) -> tuple[Floats, float, int]:
    """Return the shares of losses that each layer and all layers survive, and the losses tried."""
    by_layer, model, tried = np.zeros(len(families)), 0, 0
    members = [_members(sets) for sets in families]
    for lost in losses:
        survived = np.stack([_spared(hosts, lost) for hosts in members])
        by_layer += survived.sum(axis=1)
        model += int(survived.all(axis=0).sum())
        tried += lost.shape[1]
    return by_layer / tried, model / tried, tried


def _members(sets: Bools) -> Ints:
    """List the failure domains of each set, ``(n, most)``; small sets repeat their first."""
    size = sets.sum(axis=1)
    order = np.argsort(~sets, axis=1, kind="stable")[:, : size.max(initial=1)]
    return np.where(np.arange(order.shape[1]) < size[:, None], order, order[:, :1])


def _spared(hosts: Ints, lost: Bools) -> Bools:
    """Tell which losses ``(X, m)`` take none of the sets of hosts whole, ``(m,)``."""
    taken = lost[hosts[:, 0]]
    for host in hosts.T[1:]:
        taken &= lost[host]
    return np.logical_not(taken.any(axis=0))


def _standard_error(share: float, tried: int) -> float:
    """Estimate the standard error of a share; two trials of either outcome are added to it."""
    adjusted = (share * tried + 2) / (tried + 4)
    return float(np.sqrt(adjusted * (1 - adjusted) / (tried + 4)))

"""What a lost rank or node takes: where each expert lives, and the odds.

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
from equipoise.topology import Topology

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FAILURE_DOMAINS = ("rank", "node")
"""What is lost as a whole: one rank, or all ranks of a node."""

_FEW_HOST_SETS = 12  # inclusion and exclusion doubles with each
_MOST_LOSSES = 1 << 16  # combinations looked at one by one
_SAMPLES = 1 << 15  # drawn where there are more
_BLOCK = 1 << 12  # combinations at a time


@dataclass(frozen=True, eq=False, kw_only=True)
class Survival:
    """The chance that every expert keeps a home when random failure domains are lost together.

    Parameters
    ----------
    by_layer
        Chance for the experts of each layer, ``(L,)``.
    model
        Chance for all layers at once: whether the model goes on without a reload.
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
    """In which failure domains each expert lives.

    Parameters
    ----------
    failure_domain
        ``"rank"`` or ``"node"``.
    hosts
        Which failure domain holds each expert, ``(L, X, E)``, ``X`` ranks or nodes.
    """

    failure_domain: str
    hosts: Bools

    __repr__ = in_short

    @property
    def num_failure_domains(self) -> int:
        """``X``, the ranks or nodes."""
        return int(self.hosts.shape[1])

    @cached_property
    def homes(self) -> Ints:
        """Distinct failure domains that hold each expert, ``(L, E)``."""
        homes: Ints = self.hosts.sum(axis=1)
        return homes

    @property
    def guaranteed_losses(self) -> int:
        """Failure domains that may be lost, whichever they are, without the loss of any expert."""
        return int(self.homes.min()) - 1

    @property
    def text(self) -> str:
        """What the loss of one failure domain takes, in a sentence."""
        name = self.failure_domain
        if self.guaranteed_losses:
            return f"The loss of any {name} leaves every expert alive."
        alone, lost = int(self.endangered(1).max()), float(self.expected_lost(1).mean())
        return (
            f"A lost {name} takes {lost:.1f} experts of a layer on average; up to {alone} "
            f"of {self.hosts.shape[2]} live on one {name} only."
        )

    def endangered(self, losses: int) -> Ints:
        """Experts of each layer that some loss of ``losses`` failure domains takes, ``(L,)``."""
        self._check(losses)
        endangered: Ints = (self.homes <= losses).sum(axis=1)
        return endangered

    def expected_lost(self, losses: int) -> Floats:
        """Experts a layer loses on average with ``losses`` random failure domains, ``(L,)``.

        An expert with ``h`` homes among ``X`` is lost in ``C(X - h, k - h)`` of the ``C(X, k)``
        equally likely combinations.
        """
        self._check(losses)
        lost: Floats = chance_lost(self.num_failure_domains, losses)[self.homes].sum(axis=1)
        return lost

    def survival(self, losses: int, *, seed: int = 0) -> Survival:
        """The chance that no expert is lost with ``losses`` random failure domains.

        Exact by inclusion and exclusion where at most 12 sets of hosts can be lost whole, exact by
        trying every combination where there are at most 65,536, else from 32,768 random ones.

        Parameters
        ----------
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
    """Say where the experts of a placement live.

    Parameters
    ----------
    failure_domain
        What fails as a whole: ``"rank"`` or ``"node"``.

    Raises
    ------
    EquipoiseError
        A topology of other ranks, or an unknown kind of failure domain.
    """
    check_type("placement", placement, Placement)
    check_type("topology", topology, Topology)
    if topology.num_ranks != placement.num_ranks:
        raise EquipoiseError(
            f"The topology has {topology.num_ranks} ranks, the placement {placement.num_ranks}; "
            "give the topology it was made for."
        )
    of_rank = failure_domain_of_rank(topology, failure_domain)
    first = np.flatnonzero(np.diff(of_rank, prepend=-1))
    hosts = np.logical_or.reduceat(placement.copies_on_rank > 0, first, axis=1)
    return Coverage(failure_domain=failure_domain, hosts=hosts)


def failure_domain_of_rank(topology: Topology, failure_domain: str) -> Ints:
    """Number of each rank's failure domain, ``(R,)``; ``EquipoiseError`` for an unknown kind."""
    if not isinstance(failure_domain, str) or failure_domain not in FAILURE_DOMAINS:
        raise EquipoiseError(
            f"failure_domain is {brief(failure_domain)}; expected 'rank' or 'node'."
        )
    return topology.node_of_rank if failure_domain == "node" else np.arange(topology.num_ranks)


def chance_lost(num_failure_domains: int, losses: int) -> Floats:
    """The chance that ``h`` failure domains are all lost, for ``h`` from 0, ``(X + 1,)``."""
    i = np.arange(num_failure_domains)
    chance: Floats = np.cumprod(
        np.append(1.0, np.maximum(losses - i, 0) / (num_failure_domains - i))
    )
    return chance


def _host_sets(hosts_XE: Bools, losses: int) -> Bools:
    """The distinct sets of hosts that can be lost whole, ``(n, X)``."""
    return np.unique(hosts_XE.T[hosts_XE.sum(axis=0) <= losses], axis=0)


def _exact_survival(sets: Bools, losses: int) -> float:
    """Share of the combinations that contain none of the sets, ``(n, X)``."""
    num_failure_domains = sets.shape[1]
    unions = {
        0: 1
    }  # failure domains of some sets, as bits: terms with a plus less those with a minus
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
    """Every combination of lost failure domains, in blocks ``(X, m)``."""
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
    """Share of the losses each layer survives, ``(L,)``, and all layers; how many losses."""
    by_layer, model, tried = np.zeros(len(families)), 0, 0
    members = [_members(sets) for sets in families]
    for lost in losses:
        survived = np.stack([_spared(hosts, lost) for hosts in members])
        by_layer += survived.sum(axis=1)
        model += int(survived.all(axis=0).sum())
        tried += lost.shape[1]
    return by_layer / tried, model / tried, tried


def _members(sets: Bools) -> Ints:
    """The failure domains of each set, ``(n, most)``; small sets repeat their first."""
    size = sets.sum(axis=1)
    order = np.argsort(~sets, axis=1, kind="stable")[:, : size.max(initial=1)]
    return np.where(np.arange(order.shape[1]) < size[:, None], order, order[:, :1])


def _spared(hosts: Ints, lost: Bools) -> Bools:
    """Which of the losses, ``(X, m)``, take none of the sets of hosts whole, ``(m,)``."""
    taken = lost[hosts[:, 0]]
    for host in hosts.T[1:]:
        taken &= lost[host]
    return np.logical_not(taken.any(axis=0))


def _standard_error(share: float, tried: int) -> float:
    """Standard error of a share of random trials; two of either outcome added keep it above 0."""
    adjusted = (share * tried + 2) / (tried + 4)
    return float(np.sqrt(adjusted * (1 - adjusted) / (tried + 4)))

"""What a lost rank or node takes: where each expert lives, and the odds. ``docs/failure.md``."""

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
from equipoise.topology import Topology

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DOMAINS = ("rank", "node")
"""What is lost as a whole: one rank, or all ranks of a node."""

_FEW_HOST_SETS = 12  # inclusion and exclusion doubles with each
_MOST_LOSSES = 1 << 16  # combinations looked at one by one
_SAMPLES = 1 << 15  # drawn where there are more
_BLOCK = 1 << 12  # combinations at a time


@dataclass(frozen=True, eq=False, kw_only=True)
class Survival:
    """The chance that every expert keeps a home when random domains are lost together.

    Parameters
    ----------
    by_layer
        For the experts of each layer, ``(L,)``.
    model
        For all layers at once: what decides whether the model goes on without a reload.
    standard_error
        Of ``model``; 0 where it is exact.
    method
        ``"inclusion-exclusion"``, ``"enumeration"`` (both exact) or ``"sampling"``.
    """

    by_layer: Floats
    model: float
    standard_error: float
    method: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Coverage:
    """In which failure domains each expert lives.

    Parameters
    ----------
    domain
        ``"rank"`` or ``"node"``.
    hosts
        Which domain holds each expert, ``(L, X, E)``, ``X`` ranks or nodes.
    """

    domain: str
    hosts: Bools

    @property
    def num_domains(self) -> int:
        """``X``, the ranks or nodes."""
        return int(self.hosts.shape[1])

    @cached_property
    def homes(self) -> Ints:
        """Distinct domains that hold each expert, ``(L, E)``."""
        homes: Ints = self.hosts.sum(axis=1)
        return homes

    @property
    def guaranteed_losses(self) -> int:
        """Every expert of every layer survives the loss of any so many domains."""
        return int(self.homes.min()) - 1

    @property
    def text(self) -> str:
        """What the loss of one domain takes, in a sentence."""
        if self.guaranteed_losses:
            return f"The loss of any {self.domain} leaves every expert alive."
        alone, lost = int(self.endangered(1).max()), float(self.expected_lost(1).mean())
        return (
            f"A lost {self.domain} takes {lost:.1f} experts of a layer on average; up to {alone} "
            f"of {self.hosts.shape[2]} live on one {self.domain} only."
        )

    def endangered(self, losses: int) -> Ints:
        """Experts of each layer that some loss of so many domains takes, ``(L,)``."""
        self._check(losses)
        endangered: Ints = (self.homes <= losses).sum(axis=1)
        return endangered

    def expected_lost(self, losses: int) -> Floats:
        """Experts a layer loses on average when so many random domains are lost, ``(L,)``.

        An expert with ``h`` homes among ``X`` is lost in ``C(X - h, k - h)`` of the ``C(X, k)``
        equally likely combinations.
        """
        self._check(losses)
        lost: Floats = chance_lost(self.num_domains, losses)[self.homes].sum(axis=1)
        return lost

    def survival(self, losses: int, *, seed: int = 0) -> Survival:
        """The chance that no expert is lost with so many random domains.

        Exact by inclusion and exclusion where at most 12 sets of hosts can be lost whole, exact by
        trying every combination where there are at most 65,536, else from 32,768 random ones.

        Parameters
        ----------
        seed
            Of the random combinations.
        """
        self._check(losses)
        check_whole("seed", seed)
        families = [_host_sets(hosts, losses) for hosts in self.hosts]
        every = np.unique(np.concatenate(families), axis=0)
        if len(every) <= _FEW_HOST_SETS:
            by_layer = np.array([_exact_survival(family, losses) for family in families])
            model, error, method = _exact_survival(every, losses), 0.0, "inclusion-exclusion"
        elif comb(self.num_domains, losses) <= _MOST_LOSSES:
            by_layer, model, _ = _try(families, _all_losses(self.num_domains, losses))
            error, method = 0.0, "enumeration"
        else:
            by_layer, model, tried = _try(families, _random_losses(self.num_domains, losses, seed))
            error, method = _standard_error(model, tried), "sampling"
        return Survival(by_layer=by_layer, model=model, standard_error=error, method=method)

    def _check(self, losses: int) -> None:
        check_count("losses", losses)
        if losses > self.num_domains:
            raise EquipoiseError(
                f"losses is {losses}; there are {self.num_domains} {self.domain}s to lose."
            )


def coverage(placement: Placement, topology: Topology, *, domain: str = "rank") -> Coverage:
    """Where the experts of a placement live.

    Parameters
    ----------
    domain
        What fails as a whole: ``"rank"`` or ``"node"``.

    Raises
    ------
    EquipoiseError
        A topology of other ranks, or an unknown domain.
    """
    check_type("placement", placement, Placement)
    check_type("topology", topology, Topology)
    if topology.num_ranks != placement.num_ranks:
        raise EquipoiseError(
            f"The topology has {topology.num_ranks} ranks, the placement {placement.num_ranks}; "
            "give the topology it was made for."
        )
    domain_of_rank = domains_of_ranks(topology, domain)
    first = np.flatnonzero(np.diff(domain_of_rank, prepend=-1))
    hosts = np.logical_or.reduceat(placement.copies_on_rank > 0, first, axis=1)
    return Coverage(domain=domain, hosts=hosts)


def domains_of_ranks(topology: Topology, domain: str) -> Ints:
    """The failure domain of each rank, ``(R,)``; ``EquipoiseError`` for an unknown kind."""
    if not isinstance(domain, str) or domain not in DOMAINS:
        raise EquipoiseError(f"domain is {brief(domain)}; expected 'rank' or 'node'.")
    return topology.node_of_rank if domain == "node" else np.arange(topology.num_ranks)


def chance_lost(num_domains: int, losses: int) -> Floats:
    """The chance that all of ``h`` domains are among the lost, for ``h`` from 0, ``(X + 1,)``."""
    i = np.arange(num_domains)
    chance: Floats = np.cumprod(np.append(1.0, np.maximum(losses - i, 0) / (num_domains - i)))
    return chance


def _host_sets(hosts_XE: Bools, losses: int) -> Bools:
    """The distinct sets of hosts that can be lost whole, ``(n, X)``."""
    return np.unique(hosts_XE.T[hosts_XE.sum(axis=0) <= losses], axis=0)


def _exact_survival(sets: Bools, losses: int) -> float:
    """Share of the combinations that contain none of the sets, ``(n, X)``."""
    num_domains = sets.shape[1]
    unions = {0: 1}  # domains of some of the sets, as bits: terms with a plus less those with minus
    for row in sets:
        hosts = sum(1 << int(domain) for domain in np.flatnonzero(row))
        for union, sign in list(unions.items()):
            unions[union | hosts] = unions.get(union | hosts, 0) - sign
    survived = sum(
        sign * comb(num_domains - size, losses - size)
        for union, sign in unions.items()
        if (size := union.bit_count()) <= losses
    )
    return survived / comb(num_domains, losses)


def _all_losses(num_domains: int, losses: int) -> Iterator[Bools]:
    """Every combination of lost domains, in blocks ``(X, m)``."""
    every = combinations(range(num_domains), losses)
    while block := list(islice(every, _BLOCK)):
        yield _marked(np.array(block), num_domains)


def _random_losses(num_domains: int, losses: int, seed: int) -> Iterator[Bools]:
    chance = np.random.default_rng(seed)
    for _ in range(_SAMPLES // _BLOCK):
        order = np.argpartition(chance.random((_BLOCK, num_domains)), losses - 1, axis=1)
        yield _marked(order[:, :losses], num_domains)


def _marked(lost: Ints, num_domains: int) -> Bools:
    marked = np.zeros((num_domains, len(lost)), dtype=bool)
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
    """The domains of each set, ``(n, most)``; small sets name their first more than once."""
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
    """Of a share of random trials; with two of either outcome added, so that it is never 0."""
    adjusted = (share * tried + 2) / (tried + 4)
    return float(np.sqrt(adjusted * (1 - adjusted) / (tried + 4)))

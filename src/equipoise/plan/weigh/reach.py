"""The number of ranks and nodes that a token goes to, with a placement and without balancing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.placement import Placement
from equipoise.plan.evaluate import ranks_without_balancing
from equipoise.plan.weigh.traffic import measure_traffic
from equipoise.showing import in_short
from equipoise.topology import Topology
from equipoise.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Mean number of ranks and nodes that a token goes to in a layer.

    The fields with ``plain`` in their name are those without balancing.
    """

    ranks_per_token: float
    nodes_per_token: float
    plain_ranks_per_token: float
    plain_nodes_per_token: float

    __repr__ = in_short

    @property
    def text(self) -> str:
        """Sentence with these numbers."""
        return (
            f"An unseen token reaches {self.ranks_per_token:.2f} ranks and "
            f"{self.nodes_per_token:.2f} nodes, without balancing "
            f"{self.plain_ranks_per_token:.2f} and {self.plain_nodes_per_token:.2f}."
        )


def measure_reach(placement: Placement, unseen: Trace, topology: Topology) -> Reach:
    """Count the ranks and nodes that tokens reach, in steps that were not planned on.

    Raises
    ------
    EquipoiseError
        A trace without token ids, or with other layers or experts than the placement.
    """
    plain = placement_without_balancing(unseen, topology.num_ranks)
    before, after = (measure_traffic(p, unseen.tokens, topology) for p in (plain, placement))
    return Reach(
        ranks_per_token=float(after.ranks_per_token.mean()),
        nodes_per_token=float(after.nodes_per_token.mean()),
        plain_ranks_per_token=float(before.ranks_per_token.mean()),
        plain_nodes_per_token=float(before.nodes_per_token.mean()),
    )


def placement_without_balancing(trace: Trace, num_ranks: int) -> Placement:
    """Place every expert once, in order; slots that stay empty get experts beyond the model's."""
    rank_E = ranks_without_balancing(trace.num_experts, num_ranks)
    size = -(-trace.num_experts // num_ranks)
    missing = np.repeat(np.arange(num_ranks), size - np.bincount(rank_E, minlength=num_ranks))
    row = np.argsort(np.concatenate([rank_E, missing]), kind="stable")
    return Placement(
        np.tile(row, (trace.num_layers, 1)),
        num_ranks=num_ranks,
        num_experts=len(row),
        layer_ids=trace.layer_ids,
    )

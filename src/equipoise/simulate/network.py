"""The time of one all-to-all exchange of an MoE layer: latency, plus bytes over the busiest link.

There are two tiers: ``near`` connects the ranks of a node or NVLink domain, and ``far`` connects
nodes. Both work at the same time, so the longer time counts. In each tier the rank counts that
sends or receives the most: with skewed routing one rank receives more, and all others wait for it.

A low-latency kernel sends a token once for each choice, a high-throughput one once for each rank
that has a choice, and between nodes once for each node, but takes longer to begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import as_loads, check_count, check_number, check_whole
from equipoise.errors import EquipoiseError

Copies = Literal["assignment", "rank"]
"""Destinations that get a token once each: its experts, or the ranks that hold them."""

_COPIES_IN_A_MESSAGE: Mapping[Copies, int] = {"assignment": 1, "rank": 16}
# A low-latency kernel sends every token by itself; the other joins some, like DeepEP's chunks.

_RATE_SHARPNESS = 4  # exponent of the smooth minimum of the rates of link and multiprocessors


@dataclass(frozen=True, kw_only=True)
class Link:
    """The link of one rank in one direction.

    Parameters
    ----------
    latency_seconds
        Time before the first byte.
    bytes_per_second
        Bandwidth after that.
    message_seconds
        Time per message if a proxy on the host sends messages, with all its threads busy; 0 if the
        GPU sends by itself.
    """

    latency_seconds: float = 0.0
    bytes_per_second: float
    message_seconds: float = 0.0

    def __post_init__(self) -> None:
        check_number("latency_seconds", self.latency_seconds, low=0, high=1)
        check_number("bytes_per_second", self.bytes_per_second, low=1e6, high=1e15)
        check_number("message_seconds", self.message_seconds, low=0, high=1)


@dataclass(frozen=True)
class Traffic:
    """The copies of tokens that ranks send or receive, whichever is more, in each tier.

    Parameters
    ----------
    near
        Copies within the node, including a rank's own, ``(..., R)``; ``(..., 1)`` if all are equal.
    far
        Copies between nodes, of the same shape.
    num_ranks
        Number of ranks.
    """

    near: NDArray[np.float64]
    far: NDArray[np.float64]
    num_ranks: int


@dataclass(frozen=True, kw_only=True)
class ExchangeCost:
    """The cost of one exchange (dispatch or combine) with one kernel.

    Parameters
    ----------
    copies
        Destinations that a token is sent to once.
    fixed_seconds
        Time before the first byte, whatever the size.
    peer_seconds
        Time for each rank that takes part.
    byte_seconds
        Time for each byte of one token, for the passage of its first copy through the kernel.
    link_share
        Share of the near link's bandwidth that the kernel reaches.
    sm_bytes_per_second
        Bandwidth of one streaming multiprocessor; ``None`` if their number does not matter.
    """

    copies: Copies
    fixed_seconds: float
    peer_seconds: float = 0.0
    byte_seconds: float = 0.0
    link_share: float
    sm_bytes_per_second: float | None = None

    def __post_init__(self) -> None:
        if self.copies not in ("assignment", "rank"):
            raise EquipoiseError(f"copies is {self.copies!r}; expected 'assignment' or 'rank'.")
        check_number("fixed_seconds", self.fixed_seconds, low=0, high=1)
        check_number("peer_seconds", self.peer_seconds, low=0, high=1)
        check_number("byte_seconds", self.byte_seconds, low=0, high=1)
        check_number("link_share", self.link_share, low=1e-6, high=2)
        if self.sm_bytes_per_second is not None:
            check_number("sm_bytes_per_second", self.sm_bytes_per_second, low=1e3, high=1e15)

    def seconds(
        self,
        traffic: Traffic,
        payload_bytes: float,
        near: Link,
        far: Link | None = None,
        *,
        sms: int = 0,
    ) -> NDArray[np.float64]:
        """Compute the time of the exchange, ``(...)``: that of the rank with the most traffic.

        Parameters
        ----------
        traffic, near
            Traffic of the exchange, and link within the node.
        payload_bytes
            Bytes of one token, scales included.
        far
            Link between nodes; needed if there is traffic between nodes.
        sms
            Number of streaming multiprocessors that the kernel uses; 0 if unknown.
        """
        rate = self.link_share * near.bytes_per_second
        if self.sm_bytes_per_second is not None and check_whole("sms", sms) > 0:
            slower = rate / (sms * self.sm_bytes_per_second)
            rate /= (1 + slower**_RATE_SHARPNESS) ** (1 / _RATE_SHARPNESS)
        longest = near.latency_seconds + traffic.near.max(axis=-1) * payload_bytes / rate
        crossing = traffic.far.max(axis=-1)
        if crossing.any():
            if far is None:
                raise EquipoiseError("Tokens cross nodes; give the link between nodes.")
            message = far.message_seconds / _COPIES_IN_A_MESSAGE[self.copies]
            each = max(payload_bytes / far.bytes_per_second, message)
            across = far.latency_seconds + crossing * each
            longest = np.maximum(longest, np.where(crossing > 0, across, 0))
        return np.asarray(
            self.fixed_seconds
            + self.peer_seconds * traffic.num_ranks
            + self.byte_seconds * payload_bytes
            + longest
        )


def payload_bytes(hidden_size: int, dtype: str) -> float:
    """Compute the bytes of one token in a number format, scales included."""
    per_element = {"bfloat16": 2.0, "fp8": 1 + 4 / 128, "nvfp4": 1 / 2 + 1 / 16}
    if dtype not in per_element:
        raise EquipoiseError(
            f"There is no payload format {dtype!r}; use one of {', '.join(per_element)}."
        )
    return check_count("hidden_size", hidden_size) * per_element[dtype]


def uniform_traffic(
    tokens_per_rank: ArrayLike,
    copies: Copies,
    *,
    num_experts: int,
    top_k: int,
    num_ranks: int,
    ranks_per_node: int,
) -> Traffic:
    """Compute the expected traffic if experts have equal load and ranks have equal tokens."""
    tokens = as_loads(np.asarray(tokens_per_rank)[..., None])
    sizes = {"num_experts": num_experts, "num_ranks": num_ranks, "ranks_per_node": ranks_per_node}
    for name, size in sizes.items():
        check_count(name, size)
    check_whole("top_k", top_k, low=1, high=num_experts)
    nodes = -(-num_ranks // ranks_per_node)
    on_rank = _chance(num_experts, num_experts // num_ranks, top_k)
    on_node = _chance(num_experts, min(num_experts, num_experts // nodes), top_k)
    near_ranks = min(num_ranks, ranks_per_node)
    if copies == "assignment":
        near, far = top_k * near_ranks / num_ranks, top_k * (1 - near_ranks / num_ranks)
    else:  # a node's tokens arrive once and are passed on within it
        near, far = num_ranks * on_rank, (nodes - 1) * on_node
    return Traffic(tokens * near, tokens * far, num_ranks)


def traffic_of(
    copies_RR: ArrayLike, ranks_per_node: int, far_R: ArrayLike | None = None
) -> Traffic:
    """Compute the traffic of a measured exchange: what each rank sends or receives, if more.

    Parameters
    ----------
    copies_RR
        Copies of tokens from each rank to each rank, ``(..., R, R)``.
    far_R
        Copies that each rank sends or receives between nodes, ``(..., R)``, for a kernel that sends
        a token once to a node; computed from ``copies_RR`` if ``None``.
    """
    copies = as_loads(copies_RR)
    if copies.ndim < 2 or copies.shape[-1] != copies.shape[-2]:
        raise EquipoiseError(f"Copies have shape {copies.shape}; expected (..., ranks, ranks).")
    node = np.arange(copies.shape[-1]) // check_count("ranks_per_node", ranks_per_node)
    is_near = node[:, None] == node
    far = _busier(np.where(is_near, 0, copies)) if far_R is None else as_loads(far_R)
    return Traffic(_busier(np.where(is_near, copies, 0)), far, len(node))


def _busier(copies_RR: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.maximum(copies_RR.sum(axis=-1), copies_RR.sum(axis=-2)))


def _chance(num_experts: int, local: int, top_k: int) -> float:
    """Compute the chance that a token chooses at least one of ``local`` experts."""
    return 1 - comb(num_experts - local, top_k) / comb(num_experts, top_k)

"""Time of a MoE layer of one deployment: its experts, and the exchanges around them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import ceil, comb, hypot
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.checks import check_count
from equipoise.errors import EquipoiseError, argument
from equipoise.simulate.compute import PRECISIONS, ExpertShape, RankTime
from equipoise.simulate.network import (
    ExchangeCost,
    Link,
    crossover_tokens,
    payload_bytes,
    uniform_traffic,
)
from equipoise.simulate.profiles import (
    BORROWED_LOG_ERROR,
    Calibration,
    FittedExchange,
    FittedKernel,
    HardwareProfile,
    calibration,
)

Floats = NDArray[np.float64]
Mode = Literal["low latency", "high throughput"]

MODES: tuple[Mode, ...] = get_args(Mode)
"""Kernels that answer soon, and those that carry much: of the exchanges and of the experts."""

_EXCHANGES: dict[Mode, str] = {"low latency": "deepep_ll", "high throughput": "deepep_normal"}
_PHASES: dict[Mode, str] = {"low latency": "decode", "high throughput": "prefill"}
_PAYLOADS = {"dispatch": "fp8", "combine": "bfloat16"}
_MULTIPROCESSORS = 24  # of the high-throughput kernel, in the tables that it is fitted to


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """A MoE layer of a model on some ranks of some GPU.

    Parameters
    ----------
    shape
        Its experts.
    hardware
        The GPU.
    num_ranks
        ``R``, expert-parallel ranks; no more than experts.
    ranks_per_node
        Ranks behind one fast link.
    link
        Link between nodes, a rank's share of it.
    framework
        Whose kernels are taken where several were timed, ``sglang`` or ``trtllm``.
    """

    shape: ExpertShape
    hardware: HardwareProfile
    num_ranks: int
    ranks_per_node: int
    link: Link
    framework: str = "sglang"

    def __post_init__(self) -> None:
        for name in ("num_ranks", "ranks_per_node"):
            check_count(argument(name), getattr(self, name))
        if self.num_ranks > self.shape.num_experts:
            raise EquipoiseError(
                f"{self.num_ranks} ranks share {self.shape.num_experts} experts; give at most one "
                f"rank an expert ({argument('num_ranks')})."
            )
        self.hardware.device.flops(self.shape.dtype)  # the GPU can multiply these weights

    def experts(self, mode: Mode) -> RankTime:
        """Time of a rank's experts.

        Without the host's launches: a server launches while the GPU works, the benchmarks that the
        constants are of waited for each.
        """
        cost = replace(self._fits[mode].cost, host_seconds=0.0)
        return cost.on(self.hardware.device, self.shape)

    @property
    def source(self) -> str:
        """What the times rest on, and their error, in a sentence."""
        units = PRECISIONS[self.shape.dtype].units
        fits = list(dict.fromkeys(self._fits.values()))
        error = max(fit.log_error for fit in fits)
        borrowed = [fit.gpu for fit in fits if fit.gpu != self._gpu]
        terms = (error, self.hardware.uncertainty(units), BORROWED_LOG_ERROR * bool(borrowed))
        kernels = " and ".join(dict.fromkeys(fit.kernel for fit in fits))
        exchange = self._exchange("low latency", "dispatch")
        return (
            f"Times of experts are those of {kernels}{_of(borrowed)}, good to "
            f"{hypot(*terms):.0%}; those of exchanges are DeepEP's"
            f"{_of([exchange.gpu] if exchange.gpu != self._gpu else [])}."
        )

    def knee(self, mode: Mode) -> float:
        """Assignments of an expert from which on its products take longer than its weights."""
        time = self.experts(mode)
        return time.expert_seconds / time.product_seconds

    def on(self, num_ranks: int) -> LayerTime:
        """The same on another number of ranks."""
        return replace(self, num_ranks=num_ranks)

    def expert_seconds(self, load: ArrayLike, mode: Mode) -> Floats:
        """Time of ranks, ``(...)``, from the assignments of their slots, ``(..., S / R)``.

        How many different tokens those assignments are of is taken as for equally popular experts.
        """
        x = np.asarray(load, dtype=np.float64)
        E, K = self.shape.num_experts, self.shape.top_k
        local = min(E, x.shape[-1])
        one_or_more = 1 - comb(E - local, K) / comb(E, K)
        return self.experts(mode).seconds(x, x.sum(axis=-1) * one_or_more * E / (K * local))

    def even_seconds(self, tokens_per_rank: float, mode: Mode) -> float:
        """Time of a rank's experts if all are equally popular and every rank has these tokens."""
        E, K = self.shape.num_experts, self.shape.top_k
        tokens = tokens_per_rank * self.num_ranks
        local = ceil(E / self.num_ranks)
        active = ceil(local * (1 - (1 - K / E) ** tokens))
        load = np.zeros(local)
        load[:active] = tokens * K * local / E / max(active, 1)
        return float(self.expert_seconds(load, mode))

    def layer_seconds(self, tokens_per_rank: float, mode: Mode) -> float:
        """Time of such experts and the exchanges around them, one after the other."""
        exchange = self.exchange_seconds(tokens_per_rank, mode)
        return self.even_seconds(tokens_per_rank, mode) + exchange

    def exchange_seconds(self, tokens_per_rank: float, mode: Mode) -> float:
        """Time of dispatch and combine of equally popular experts."""
        return sum(
            float(self._exchange_seconds(tokens_per_rank, self._exchange(mode, op).cost, op, mode))
            for op in _PAYLOADS
        )

    def faster_mode(self, tokens_per_rank: float) -> Mode:
        """The kernels with which such a layer takes less time."""
        return min(MODES, key=lambda mode: self.layer_seconds(tokens_per_rank, mode))

    def crossover(self, op: str) -> int:
        """Tokens of a rank from which on the high-throughput kernel is faster, in one node."""
        return crossover_tokens(
            self._exchange("low latency", op).cost,
            self._exchange("high throughput", op).cost,
            payload_bytes(self.shape.hidden_size, _PAYLOADS[op]),
            self.hardware.link,
            num_experts=self.shape.num_experts,
            top_k=self.shape.top_k,
            num_ranks=min(self.num_ranks, self.ranks_per_node),
            sms=_MULTIPROCESSORS,
        )

    @property
    def _gpu(self) -> str:
        return self.hardware.name.split()[0]

    @cached_property
    def _fits(self) -> dict[Mode, FittedKernel]:
        """The fitted kernel of each mode: of this GPU before this format before this maker."""
        dtype, gpu, maker = self.shape.dtype, self._gpu, self.framework
        return {
            mode: min(
                (fit for fit in _published().kernels if fit.phase in (phase, "any")),
                key=lambda f: (f.gpu != gpu, f.dtype != dtype, f.framework != maker),
            )
            for mode, phase in _PHASES.items()
        }

    def _exchange(self, mode: Mode, op: str) -> FittedExchange:
        wanted = _EXCHANGES[mode], op, _PAYLOADS[op]
        known = (fit for fit in _published().exchanges if (fit.kernel, fit.op, fit.dtype) == wanted)
        return min(known, key=lambda fit: fit.gpu != self._gpu)

    def _exchange_seconds(self, tokens: float, cost: ExchangeCost, op: str, mode: Mode) -> Floats:
        traffic = uniform_traffic(
            tokens,
            cost.copies,
            num_experts=self.shape.num_experts,
            top_k=self.shape.top_k,
            num_ranks=self.num_ranks,
            ranks_per_node=self.ranks_per_node,
        )
        sms = _MULTIPROCESSORS if mode == "high throughput" else 0
        payload = payload_bytes(self.shape.hidden_size, _PAYLOADS[op])
        return cost.seconds(traffic, payload, self.hardware.link, self.link, sms=sms)


@cache
def _published() -> Calibration:
    return calibration()


def _of(gpus: list[str]) -> str:
    return f", borrowed from the {' and '.join(dict.fromkeys(gpus))}" if gpus else ""

"""A time model of a deployment: experts, communication and attention on given hardware.

``machine`` builds it from hardware profiles and fitted kernels, and records the source of each
part. Borrowed or assumed values widen the draws of the model, and with them every interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import hypot
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_number, check_whole
from equipoise.cost import RankCost
from equipoise.errors import EquipoiseError, argument
from equipoise.simulate.compute import PRECISIONS, Device, ExpertShape, RankTime
from equipoise.simulate.expert_time import speeds
from equipoise.simulate.network import ExchangeCost, Link, payload_bytes
from equipoise.simulate.own_work import OWN_LOG_ERROR, OwnWork, Phase
from equipoise.simulate.profiles import (
    BORROWED_LOG_ERROR,
    Calibration,
    FittedExchange,
    FittedKernel,
    HardwareProfile,
    LinkProfile,
    calibration,
    hardware,
    names,
)
from equipoise.simulate.routed import Routed, halves
from equipoise.simulate.step import StepParts
from equipoise.topology import Link as Wire
from equipoise.topology import Topology

Floats = NDArray[np.float64]
Exchange = Literal["low-latency", "high-throughput"]

FOREIGN_LOG_ERROR = 0.5
"""Error added to a fit from another maker's GPU; an assumption, which nobody has measured."""

_ASSUMED_RATE_ERROR = 0.5
_SMS = 24  # streaming multiprocessors of high-throughput exchanges in published timings
_PAYLOADS = {"fp8": "fp8", "fp4": "nvfp4", "bfloat16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Standard deviations of the logarithms of a machine's times, by part."""

    fixed: float = 0.0
    weights: float = 0.0
    products: float = 0.0
    exchange: float = 0.0
    far: float = 0.0
    own: float = 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Machine:
    """A ``ComputeModel`` of steps on given hardware with a given model.

    Parameters
    ----------
    name
        Name of the model in results.
    device, shape, phase
        GPU, routed experts, and phase of the steps.
    time
        Time model of a rank's experts.
    dispatch, combine
        Costs of the two exchanges of a layer; ``None`` to leave them out, as on one rank.
    near, far
        Links within a node and between nodes; ``far`` is ``None`` for a single node.
    own_work
        Work for a rank's own tokens, such as attention; ``None`` to leave it out.
    context_tokens
        Mean number of tokens before the new one.
    micro_batches
        Number of micro-batches. With 2, one half computes while the other communicates; with 1,
        nothing overlaps.
    max_tokens
        Largest number of tokens in one chunk, all ranks together; ``None`` if steps are not cut.
    source_imbalance
        Largest number of own tokens on a rank over the mean (attention data parallelism).
    errors
        Errors of the times, by part.
    facts
        Source of each part, by part.
    exchange_factor, own_factor
        Factors of the times in a draw.
    """

    name: str
    device: Device
    shape: ExpertShape
    phase: Phase
    time: RankTime
    dispatch: ExchangeCost | None
    combine: ExchangeCost | None
    near: Link
    far: Link | None
    own_work: OwnWork | None
    context_tokens: float
    micro_batches: int = 1
    max_tokens: int | None = None
    source_imbalance: float = 1.0
    errors: Errors = field(default_factory=Errors)
    facts: Mapping[str, str] = field(default_factory=dict)
    exchange_factor: float = 1.0
    own_factor: float = 1.0

    def __post_init__(self) -> None:
        check_number("context_tokens", self.context_tokens, low=0, high=1e9)
        check_whole("micro_batches", self.micro_batches, low=1, high=2)
        check_number("source_imbalance", self.source_imbalance, low=1, high=1e6)
        if self.max_tokens is not None:
            check_whole("max_tokens", self.max_tokens, low=1)

    @property
    def top_k(self) -> int:
        """Number of experts that a token chooses."""
        return self.shape.top_k

    @property
    def planning_cost(self) -> RankCost:
        """Constants of the experts' time, as planners use them."""
        return self.time.rank_cost(self.name)

    @property
    def counts(self) -> str:
        """The part of a step that it counts, in words for the end of a sentence."""
        parts = {"exchanges": self.dispatch, "attention and the rest": self.own_work}
        missing = [name for name, part in parts.items() if part is None]
        return (
            f"counting steps without {' and '.join(missing)}" if missing else "counting whole steps"
        )

    def rank_seconds(self, slot_load: Floats, num_ranks: int) -> Floats:
        """Compute the experts' time of each rank at speed 1, ``(..., R)``, from slot loads."""
        routed = Routed.expected(slot_load, self.top_k, Topology(num_ranks))
        return self._rank_seconds(routed)

    def step_seconds(self, slot_load: Floats, topology: Topology) -> Floats:
        """Return the seconds of steps, ``(T,)``, from the load of each slot, ``(T, L, S)``."""
        return self.parts(slot_load, topology).total

    def step(self, routed: Routed, topology: Topology) -> StepParts:
        """Divide the time of steps into parts; all waiting is skew, see ``split_steps``.

        Parameters
        ----------
        routed
            Routed tokens of steps and layers, ``(T, L, ...)``.
        """
        speed = speeds(topology)
        chunks = self._chunks(routed)
        part = routed.part(routed.slot_load / chunks[..., None])
        if self.micro_batches == 1:
            batches = [part]
        else:
            batches = [part.part(half) for half in halves(part.slot_load)]
        slowest, mean, exchange = (
            chunks * sum(values)
            for values in zip(*(self._batch(b, topology, speed) for b in batches), strict=True)
        )
        is_cut = self.micro_batches > 1 or bool((chunks > 1).any())
        whole = (self._rank_seconds(routed) / speed).mean(axis=-1) if is_cut else mean
        own, own_slowest = self._own(routed, speed)
        behind = slowest + own_slowest if self.micro_batches > 1 else 0.0
        exposed = np.maximum(exchange - behind, 0)
        return StepParts(
            experts=whole.sum(axis=-1),
            rereading=(mean - whole).sum(axis=-1),
            chance=np.zeros(len(whole)),
            drift=np.zeros(len(whole)),
            skew=(slowest - mean).sum(axis=-1),
            own=own.sum(axis=-1),
            own_wait=(own_slowest - own).sum(axis=-1),
            exposed=exposed.sum(axis=-1),
            hidden=(exchange - exposed).sum(axis=-1),
        )

    def parts(self, slot_load: Floats, topology: Topology) -> StepParts:
        """Divide the time of steps into parts, from the load of each slot; all waiting is skew."""
        return self.step(Routed.expected(slot_load, self.top_k, topology), topology)

    def draws(self, number: int, seed: int) -> Sequence[Machine]:
        """Draw machines that may be the true one: the times of each part are lognormal."""
        e = self.errors
        spread = (e.fixed, e.weights, e.products, e.exchange, e.far, e.own)
        if not any(spread):
            return ()
        z = np.random.default_rng(seed).standard_normal((number, len(spread)))
        return tuple(self._drawn(*row) for row in np.exp(z * spread).tolist())

    def _drawn(
        self, fixed: float, weights: float, products: float, exchange: float, far: float, own: float
    ) -> Machine:
        t = self.time
        link = self.far
        if link is not None:
            link = replace(
                link,
                latency_seconds=min(link.latency_seconds * far, 1.0),
                bytes_per_second=max(link.bytes_per_second / far, 1e6),
                message_seconds=min(link.message_seconds * far, 1.0),
            )
        return replace(
            self,
            time=replace(
                t,
                fixed_seconds=t.fixed_seconds * fixed,
                host_seconds=t.host_seconds * fixed,
                slot_seconds=t.slot_seconds * fixed,
                expert_seconds=t.expert_seconds * weights,
                product_seconds=t.product_seconds * products,
                small_product_seconds=t.small_product_seconds * products,
                assignment_seconds=t.assignment_seconds * weights,
                token_seconds=t.token_seconds * weights,
            ),
            far=link,
            exchange_factor=exchange,
            own_factor=own,
        )

    def _rank_seconds(self, routed: Routed) -> Floats:
        R = routed.on_rank.shape[-1]
        by_rank = routed.slot_load.reshape(*routed.slot_load.shape[:-1], R, -1)
        return self.time.seconds(by_rank, routed.on_rank)

    def _batch(
        self, routed: Routed, topology: Topology, speed: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Compute expert times of the slowest and mean rank, and exchange time, ``(T, L)`` each."""
        ranks = self._rank_seconds(routed) / speed
        return ranks.max(axis=-1), ranks.mean(axis=-1), self._exchange(routed, topology)

    def _exchange(self, routed: Routed, topology: Topology) -> Floats:
        if self.dispatch is None or self.combine is None or topology.num_ranks == 1:
            return np.zeros(routed.tokens.shape)
        seconds = np.zeros(routed.tokens.shape)
        width = self.shape.hidden_size
        sent = payload_bytes(width, _PAYLOADS[PRECISIONS[self.shape.dtype].units])
        for cost, payload in (
            (self.dispatch, sent),
            (self.combine, payload_bytes(width, "bfloat16")),
        ):
            traffic = routed.traffic(cost.copies, topology, self.source_imbalance)
            seconds += cost.seconds(traffic, payload, self.near, self.far, sms=_SMS)
        return np.asarray(self.exchange_factor * seconds)

    def _chunks(self, routed: Routed) -> Floats:
        """Compute the number of chunks of each step and layer, ``(T, L)``."""
        if self.max_tokens is None:
            return np.ones(routed.tokens.shape)
        return np.maximum(np.ceil(routed.tokens / self.max_tokens), 1)

    def _own(self, routed: Routed, speed: Floats) -> tuple[Floats, Floats]:
        """Compute the time of own work on the mean and the slowest rank, ``(T, L)`` each."""
        work = self.own_work
        if work is None:
            return np.zeros(routed.tokens.shape), np.zeros(routed.tokens.shape)
        tokens = routed.tokens / len(speed) / self.micro_batches
        mean, slowest = (
            self.micro_batches
            * self.own_factor
            * work.layer_seconds(number, self.device, self.phase, self.context_tokens)
            for number in (tokens, self.source_imbalance * tokens)
        )
        return mean * (1 / speed).mean(), slowest / speed.min()


def machine(
    gpu: HardwareProfile | str,
    shape: ExpertShape,
    *,
    phase: Phase,
    num_nodes: int,
    link: LinkProfile | None = None,
    exchange: Exchange | None = None,
    own_work: OwnWork | None = None,
    context_tokens: float = 0.0,
    micro_batches: int = 1,
    max_tokens: int | None = None,
    source_imbalance: float = 1.0,
    framework: str | None = None,
    fits: Calibration | None = None,
) -> Machine:
    """Build a machine from hardware profiles and fitted kernels.

    Parameters
    ----------
    gpu
        Hardware profile, or its name.
    shape, phase
        Shape and number of the experts, and phase of the steps.
    num_nodes
        Number of nodes; with several, ``link`` is needed.
    link
        Link between nodes.
    exchange
        Kernel mode of dispatch and combine; ``None`` takes low latency for decode and high
        throughput for prefill.
    own_work, context_tokens, micro_batches, max_tokens, source_imbalance
        Fields of ``Machine``.
    framework
        Framework whose expert kernels are used if several were timed in the weights' format; the
        most certain fit if ``None``.
    fits
        Fitted kernels; the published ones if ``None``.

    Raises
    ------
    EquipoiseError
        No fit for such steps, or several nodes without a link.
    """
    profile = hardware(gpu) if isinstance(gpu, str) else gpu
    known = calibration() if fits is None else fits
    if num_nodes > 1 and link is None:
        raise EquipoiseError(
            f"{num_nodes} nodes need the link between them; give {argument('link')}."
        )
    kernel = _nearest_kernel(known, profile, shape, phase, framework)
    kind = exchange or ("low-latency" if phase == "decode" else "high-throughput")
    dispatch = _nearest_exchange(known, profile, kind, "dispatch", shape)
    combine = _nearest_exchange(known, profile, kind, "combine", shape)
    device, rate_error, assumed = _with_rate(profile, shape)
    by_kernel = _log_error(kernel, profile)
    memory = profile.memory_bytes_per_second.uncertainty
    far = None if num_nodes == 1 else link
    facts = {
        "GPU": f"{profile.name}, {profile.memory_bytes_per_second.source}{assumed}",
        "experts": f"{kernel.kernel} ({kernel.framework}, {kernel.phase} steps) fitted on "
        f"{kernel.gpu}{_borrowed(kernel, profile)}",
        "exchanges": f"{dispatch.kernel} ({dispatch.framework}) fitted on "
        f"{dispatch.gpu}{_borrowed(dispatch, profile)}",
    }
    if far is not None:
        facts["between nodes"] = f"{far.name}, {far.bytes_per_second.source}"
    return Machine(
        name=f"{profile.name}, {phase}",
        device=device,
        shape=shape,
        phase=phase,
        time=kernel.cost.on(device, shape),
        dispatch=dispatch.cost,
        combine=combine.cost,
        near=profile.link,
        far=None if far is None else far.from_gpu(profile),
        own_work=own_work,
        context_tokens=context_tokens,
        micro_batches=micro_batches,
        max_tokens=max_tokens,
        source_imbalance=source_imbalance,
        errors=Errors(
            fixed=by_kernel,
            weights=hypot(by_kernel, memory),
            products=hypot(by_kernel, rate_error),
            exchange=hypot(
                max(_log_error(dispatch, profile), _log_error(combine, profile)),
                profile.link_bytes_per_second.uncertainty,
            ),
            far=0.0 if far is None else far.uncertainty,
            own=0.0 if own_work is None else hypot(OWN_LOG_ERROR, memory),
        ),
        facts=facts,
    )


def _nearest_kernel(
    known: Calibration,
    profile: HardwareProfile,
    shape: ExpertShape,
    phase: Phase,
    framework: str | None,
) -> FittedKernel:
    """Choose the fit of the same GPU if possible, then of the same format and framework."""
    able = [fit for fit in known.kernels if fit.phase in (phase, "any")]
    if not able:
        raise EquipoiseError(f"{known.source} has no fit for {phase} steps.")
    return min(
        able,
        key=lambda fit: (
            not profile.is_called(fit.gpu),
            fit.dtype != shape.dtype,
            framework is not None and fit.framework != framework,
            fit.phase == "any",
            fit.log_error,
        ),
    )


def _nearest_exchange(
    known: Calibration, profile: HardwareProfile, kind: Exchange, op: str, shape: ExpertShape
) -> FittedExchange:
    """Choose the fit of the same GPU, mode and format if possible, and the most certain one."""
    able = [fit for fit in known.exchanges if fit.op == op]
    if not able:
        raise EquipoiseError(f"{known.source} has no fit of an exchange that does {op}.")
    copies = "assignment" if kind == "low-latency" else "rank"
    payload = _PAYLOADS[PRECISIONS[shape.dtype].units] if op == "dispatch" else "bfloat16"
    return min(
        able,
        key=lambda fit: (
            not profile.is_called(fit.gpu),
            fit.cost.copies != copies,
            fit.dtype != payload,
            fit.log_error,
        ),
    )


def _with_rate(profile: HardwareProfile, shape: ExpertShape) -> tuple[Device, float, str]:
    """Return the device with a rate for the weights, its uncertainty, and what was assumed."""
    units = PRECISIONS[shape.dtype].units
    rates = profile.flops_per_second
    if units in rates:
        return profile.device, rates[units].uncertainty, ""
    device = profile.device
    flops = {**device.flops_per_second, units: device.flops_per_second["bfloat16"]}
    said = f"; it has no {units} units, the rate of bfloat16 is taken for them"
    return replace(device, flops_per_second=flops), _ASSUMED_RATE_ERROR, said


def _log_error(fit: FittedKernel | FittedExchange, profile: HardwareProfile) -> float:
    """Compute the fit's own error plus the error of using it on another GPU."""
    return hypot(fit.log_error, _borrowing_error(fit, profile))


def _borrowing_error(fit: FittedKernel | FittedExchange, profile: HardwareProfile) -> float:
    if profile.is_called(fit.gpu):
        return 0.0
    is_known = fit.gpu.lower() in names("hardware")
    if is_known and hardware(fit.gpu).maker == profile.maker:
        return BORROWED_LOG_ERROR
    return FOREIGN_LOG_ERROR


def _borrowed(fit: FittedKernel | FittedExchange, profile: HardwareProfile) -> str:
    error = _borrowing_error(fit, profile)
    if not error:
        return ""
    whose = "another maker's GPU" if error == FOREIGN_LOG_ERROR else "another GPU"
    return f", {whose}: {error:.0%} less sure"


def wired(topology: Topology, gpu: HardwareProfile, far: LinkProfile) -> Topology:
    """Return the same ranks with the links of hardware profiles, over which experts move."""
    near, across = (
        Wire(link.latency_seconds, link.bytes_per_second) for link in (gpu.link, far.link)
    )
    return replace(topology, node_link=near, network_link=across)


def wiring_facts(gpu: HardwareProfile, far: LinkProfile) -> dict[str, str]:
    """Return the sources of the links, by part."""
    return {
        "within a node": f"{gpu.name}, {gpu.link_bytes_per_second.source}",
        "between nodes": f"{far.name}, {far.bytes_per_second.source}",
    }

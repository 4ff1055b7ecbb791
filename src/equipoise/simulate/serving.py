"""Latency and throughput that users of a serving engine would see, by simulation.

pool = Pool(step_time=LinearStepTime(fixed_seconds=0.02, token_seconds=2e-6),
            num_ranks=32, max_sequences=128, max_tokens=2048, kv_tokens=400_000)
result = serve(requests, pool)
result.ttft_p99, result.tpot_p99, result.goodput(Slo(ttft_seconds=1, tpot_seconds=0.05))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_number, check_type, check_whole
from equipoise.errors import EquipoiseError
from equipoise.simulate.batching import Pool, Timeline, Work, run
from equipoise.simulate.progress import Progress, part_of
from equipoise.simulate.requests import MAX_SECONDS, Requests

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Slo:
    """The limits (service-level objective) that a request must stay within to count for goodput.

    Parameters
    ----------
    ttft_seconds
        Longest time to the first token.
    tpot_seconds
        Longest mean time per later token; an answer of one token always meets it.
    """

    ttft_seconds: float
    tpot_seconds: float

    def __post_init__(self) -> None:
        for name in ("ttft_seconds", "tpot_seconds"):
            check_number(name, getattr(self, name), low=0, high=MAX_SECONDS)


@dataclass(frozen=True, kw_only=True)
class HandOver:
    """The time to send a request from the prefill pool to the decode pool.

    Parameters
    ----------
    fixed_seconds
        Time per request.
    token_seconds
        Time per prompt token: bytes of its keys and values over the link's bandwidth.
    """

    fixed_seconds: float = 0.0
    token_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("fixed_seconds", "token_seconds"):
            check_number(name, getattr(self, name), low=0, high=1e6)


@dataclass(frozen=True, eq=False, kw_only=True)
class PoolUse:
    """The use of a pool from the first arrival to the end of the last answer.

    Parameters
    ----------
    pool
        Pool of ranks.
    work
        Work of the pool for each of its requests.
    timeline
        Times at which it was done.
    seconds
        Length of the simulation.
    """

    pool: Pool
    work: Work
    timeline: Timeline
    seconds: float

    @property
    def busy_share(self) -> float:
        """Share of the time in which a step ran."""
        return float(self.timeline.steps.seconds.sum()) / self.seconds

    @property
    def sequence_share(self) -> float:
        """Mean number of requests on the ranks over the most they may have."""
        stay = self.timeline.finished - self.timeline.admitted
        most = self.pool.num_ranks * self.pool.max_sequences
        return float(stay.sum()) / self.seconds / most

    @property
    def kv_share(self) -> float:
        """Mean share of the key-value caches that requests had reserved."""
        stay = self.timeline.finished - self.timeline.admitted
        most = self.pool.num_ranks * self.pool.kv_tokens
        return float(stay @ self.work.kv_tokens) / self.seconds / most

    @property
    def mean_queue(self) -> float:
        """Mean number of requests that waited for admission, or only for the end of a step."""
        return float((self.timeline.admitted - self.work.arrival_seconds).sum()) / self.seconds

    @property
    def longest_queue(self) -> int:
        """Largest number of requests that waited for admission at a time."""
        arrival = self.work.arrival_seconds
        admitted = np.searchsorted(self.timeline.admitted, arrival, side="right")
        return int((np.arange(1, len(arrival) + 1) - admitted).max())


@dataclass(frozen=True, eq=False, kw_only=True)
class ServingResult:
    """The times at which requests got their tokens, and the resulting metrics.

    Percentiles include the first requests, which find an empty server, and the last. So simulate
    long enough, or use a part of the arrays.

    Parameters
    ----------
    requests
        Requests that were served.
    first_token, finished
        Times of each request's first and last token, ``(N,)`` seconds.
    pools
        Use of each pool by name: ``serving``; or ``prefill``, and ``decode`` if any came to it.
    """

    requests: Requests
    first_token: Floats
    finished: Floats
    pools: Mapping[str, PoolUse]

    @cached_property
    def ttft(self) -> Floats:
        """Time to the first token of each request, ``(N,)`` seconds."""
        return self.first_token - self.requests.arrival_seconds

    @cached_property
    def tpot(self) -> Floats:
        """Mean time per later token, ``(N,)`` seconds; NaN for an answer of one token."""
        later = self.requests.output_tokens - 1
        each = np.full(len(later), np.nan)
        np.divide(self.finished - self.first_token, later, out=each, where=later > 0)
        return each

    @property
    def ttft_p50(self) -> float:
        """Median time to the first token, seconds."""
        return _quantile(self.ttft, 0.5)

    @property
    def ttft_p99(self) -> float:
        """Time to the first token that 99 % of requests stay below, seconds."""
        return _quantile(self.ttft, 0.99)

    @property
    def tpot_p50(self) -> float:
        """Median time per later token, seconds; NaN if no answer has a second token."""
        return _quantile(self.tpot, 0.5)

    @property
    def tpot_p99(self) -> float:
        """Time per later token that 99 % of requests stay below, seconds; NaN if there is none."""
        return _quantile(self.tpot, 0.99)

    @property
    def seconds(self) -> float:
        """Length of the simulation, from the first arrival to the end of the last answer."""
        return float(self.finished.max() - self.requests.arrival_seconds[0])

    @property
    def output_tokens_per_second(self) -> float:
        """Tokens of answers per second."""
        return float(self.requests.output_tokens.sum()) / self.seconds

    def within(self, slo: Slo) -> NDArray[np.bool_]:
        """Tell which requests stay within the limits, ``(N,)``."""
        check_type("slo", slo, Slo)
        return (self.ttft <= slo.ttft_seconds) & ~(self.tpot > slo.tpot_seconds)

    def goodput(self, slo: Slo) -> float:
        """Compute the number of requests per second that stay within the limits."""
        return float(self.within(slo).sum()) / self.seconds

    def summary(self, slo: Slo | None = None) -> dict[str, float | None]:
        """Return the results as plain numbers by name, for JSON, with goodput if limits are given.

        TPOT is ``None`` if no answer has a second token.
        """
        names = ("ttft_p50", "ttft_p99", "tpot_p50", "tpot_p99", "output_tokens_per_second")
        numbers: dict[str, float | None] = {name: getattr(self, name) for name in names}
        if not (self.requests.output_tokens > 1).any():
            numbers |= {"tpot_p50": None, "tpot_p99": None}
        if slo is not None:
            numbers["goodput"] = self.goodput(slo)
        for pool, use in self.pools.items():
            for name in ("busy_share", "sequence_share", "kv_share", "mean_queue", "longest_queue"):
                numbers[f"{pool}_{name}"] = getattr(use, name)
        return numbers


def serve(requests: Requests, pool: Pool, *, progress: Progress | None = None) -> ServingResult:
    """Simulate serving on one pool that computes prompts and answers.

    Parameters
    ----------
    requests, pool
        Requests to serve, and the pool.
    progress
        Function that is called now and then with the amount of work done and of all.

    Raises
    ------
    EquipoiseError
        A request that never fits into the pool, or a step time that is not valid.
    """
    check_type("requests", requests, Requests)
    work = _work(requests, requests.output_tokens - 1)
    timeline = run(check_type("pool", pool, Pool), work, progress)
    return _result(
        requests, timeline.prompt_done, timeline.finished, {"serving": (pool, work, timeline)}
    )


def serve_disaggregated(
    requests: Requests,
    *,
    prefill: Pool,
    decode: Pool,
    hand_over: HandOver,
    progress: Progress | None = None,
) -> ServingResult:
    """Simulate serving on two pools: one for prompts, the other for all tokens after the first.

    The prefill pool makes the first token and then releases the request, even if the decode pool is
    full. The memory for requests that wait in between is assumed to be unlimited.

    Raises
    ------
    EquipoiseError
        Whatever ``serve`` refuses.
    """
    check_type("requests", requests, Requests)
    check_type("hand_over", hand_over, HandOver)
    prompts = _work(requests, np.zeros(len(requests), np.int64))
    computed = run(check_type("prefill", prefill, Pool), prompts, part_of(progress, 0, 2))
    check_type("decode", decode, Pool)
    first_token, finished = computed.prompt_done, computed.finished.copy()
    pools = {"prefill": (prefill, prompts, computed)}

    goes_on = np.flatnonzero(requests.output_tokens > 1)
    if goes_on.size:
        moving = hand_over.fixed_seconds + hand_over.token_seconds * requests.prompt_tokens
        handed_over = first_token + moving
        goes_on = goes_on[np.argsort(handed_over[goes_on], kind="stable")]
        answers = Work(
            arrival_seconds=handed_over[goes_on],
            cached_tokens=requests.prompt_tokens[goes_on],
            prompt_tokens=np.zeros(len(goes_on), np.int64),
            decode_steps=requests.output_tokens[goes_on] - 1,
        )
        decoded = run(decode, answers, part_of(progress, 1, 2))
        finished[goes_on] = decoded.finished
        pools["decode"] = (decode, answers, decoded)
    return _result(requests, first_token, finished, pools)


def kv_tokens(
    memory_bytes: int,
    *,
    token_bytes: int,
    redundant_per_rank: int = 0,
    num_layers: int = 1,
    expert_bytes: int = 0,
) -> int:
    """Compute the tokens that a rank's key-value cache holds next to its redundant experts.

    Parameters
    ----------
    memory_bytes
        Memory of a rank for its cache without redundant experts.
    token_bytes
        Bytes of one token's keys and values in all layers.
    redundant_per_rank
        Number of redundant slots of a rank in each MoE layer.
    num_layers
        Number of MoE layers.
    expert_bytes
        Bytes of one expert's weights in one layer.

    Raises
    ------
    EquipoiseError
        Redundant experts that leave no room for a single token.
    """
    memory = check_whole("memory_bytes", memory_bytes, low=1)
    experts = check_whole("redundant_per_rank", redundant_per_rank)
    experts *= check_whole("num_layers", num_layers, low=1)
    experts *= check_whole("expert_bytes", expert_bytes)
    tokens = (memory - experts) // check_whole("token_bytes", token_bytes, low=1)
    if tokens < 1:
        raise EquipoiseError(
            f"{redundant_per_rank} redundant experts a rank take {experts:,} of {memory:,} "
            "bytes and leave no room for a token; use fewer."
        )
    return tokens


def _work(requests: Requests, decode_steps: NDArray[np.int64]) -> Work:
    return Work(
        arrival_seconds=requests.arrival_seconds,
        cached_tokens=np.zeros(len(requests), np.int64),
        prompt_tokens=requests.prompt_tokens,
        decode_steps=decode_steps,
    )


def _result(
    requests: Requests,
    first_token: Floats,
    finished: Floats,
    pools: Mapping[str, tuple[Pool, Work, Timeline]],
) -> ServingResult:
    seconds = float(finished.max() - requests.arrival_seconds[0])
    uses = {
        name: PoolUse(pool=pool, work=work, timeline=timeline, seconds=seconds)
        for name, (pool, work, timeline) in pools.items()
    }
    return ServingResult(
        requests=requests,
        first_token=first_token,
        finished=finished,
        pools=MappingProxyType(uses),
    )


def _quantile(seconds: Floats, share: float) -> float:
    known = seconds[~np.isnan(seconds)]
    return float(np.quantile(known, share)) if known.size else float("nan")

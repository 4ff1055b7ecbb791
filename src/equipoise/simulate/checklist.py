"""A checklist of decisions for serving a model, with the numbers of one deployment.

Load balancing is the last decision: the earlier ones matter more, and change what is left for it.
How each number is found: ``equipoise explain checklist``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from equipoise.balance import imbalance
from equipoise.checks import check_number
from equipoise.errors import EquipoiseError, argument
from equipoise.noise import trace_noise_floor
from equipoise.simulate.expert_time import Layout
from equipoise.simulate.forecast import Forecast, Option
from equipoise.simulate.layer_time import MODES, MOST_TOKENS, LayerTime
from equipoise.simulate.machine import Exchange
from equipoise.simulate.trial import some_steps, step_loads
from equipoise.trace import Trace

Floats = NDArray[np.float64]
Topic = Literal[
    "wide EP", "token budget", "concurrency", "chunked prefill", "kernel mode", "overlap",
    "buffers", "load balancing",
]  # fmt: skip
TOPICS: tuple[Topic, ...] = get_args(Topic)
Verdict = Literal["keep", "change", "set"]
"""Advice on a decision: leave it, change it, or set it to the given number."""

CLOSING = "Change one thing at a time, and measure again after every change."

TILE = 128
"""Number of rows to which grouped GEMM kernels pad each expert in prefill."""

_PREFILL: Exchange = "high-throughput"
_MEMORY_SHARE = 0.9  # share of a GPU's memory that engines use
_WORTH = 0.05  # share of a layer's time below which nothing is changed
_HEADROOM = 1.1  # accepted time per token over that in the longest chunk
_LONGEST_CHUNK = 1 << 15
_MOST_SEQUENCES = 1024  # largest number of sequences of a rank in a decode step


@dataclass(frozen=True, kw_only=True)
class Item:
    """One decision.

    Parameters
    ----------
    topic
        Subject of the decision.
    found
        Sentences with the numbers of this deployment.
    means
        Sentences on what follows from them.
    verdict
        Advice to keep a setting, to change it, or to set it to a given number.
    numbers
        Numbers by name, with the unit last in each name, for programs.
    """

    topic: Topic
    found: str
    means: str
    verdict: Verdict
    numbers: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Checklist:
    """All decisions, in order.

    Parameters
    ----------
    items
        Decisions with their numbers.
    step_tokens
        Number of tokens of the mean step that the numbers are for, all ranks together.
    source
        Source of the times.
    """

    items: tuple[Item, ...]
    step_tokens: float
    source: str


def checklist(
    trace: Trace,
    layer: LayerTime,
    forecasts: Sequence[Forecast | str],
    *,
    num_layers: int,
    kv_bytes_per_token: int | None = None,
    step_tokens: float | None = None,
    seed: int = 0,
) -> Checklist:
    """Make the checklist for one deployment.

    Parameters
    ----------
    trace
        Recorded loads. Experts are assumed to be placed in order, without copies.
    layer
        Model of the time of a layer on the ranks.
    forecasts
        Forecasts for these ranks, one for each kind of steps, or sentences that say why there is
        none. They decide on load balancing.
    num_layers
        Number of MoE layers of the model.
    kv_bytes_per_token
        Bytes of a token's KV cache on a rank; ``None`` if unknown.
    step_tokens
        Number of tokens of a mean step, all ranks together. Each row of the trace then becomes one
        step of about this size, drawn at random. ``None`` takes the rows as they are.
    seed
        Random seed of the draw.

    Raises
    ------
    EquipoiseError
        A trace without load or with other experts than the model, or values out of range.
    """
    shape = layer.shape
    if trace.num_experts != shape.num_experts:
        raise EquipoiseError(
            f"The recording has {trace.num_experts} experts in a layer and the model "
            f"{shape.num_experts}; give the configuration of the model that it is of."
        )
    if not trace.counts.any():
        raise EquipoiseError(
            f"No assignment was recorded in {trace.provenance.source}; record some traffic first."
        )
    if step_tokens is not None:
        check_number(argument("step_tokens"), step_tokens, low=1, high=1e9)
    assignments = None if step_tokens is None else step_tokens * shape.top_k
    load = step_loads(trace, assignments, seed)
    counts = load[some_steps(len(load))].round().astype(np.int64)
    case = _Case(
        layer=layer,
        steps=Trace(counts=counts, top_k=shape.top_k, layer_ids=trace.layer_ids),
        num_layers=num_layers,
        kv_bytes=kv_bytes_per_token,
    )
    return Checklist(
        items=(
            _wide_ep(case),
            _token_budget(case),
            _concurrency(case),
            _chunked_prefill(case),
            _kernel_mode(case),
            _overlap(case),
            _buffers(case),
            _load_balancing(case, forecasts),
        ),
        step_tokens=case.tokens * layer.num_ranks,
        source=layer.source,
    )


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A deployment, with the quantities that several decisions need."""

    layer: LayerTime
    steps: Trace
    num_layers: int
    kv_bytes: int | None

    @cached_property
    def load(self) -> Floats:
        """Assignments of each expert, ``(T, L, E)``."""
        return self.steps.counts.astype(np.float64)

    @cached_property
    def rank_load(self) -> Floats:
        """Assignments of each slot by rank, ``(T, L, R, S / R)``."""
        slots = Layout.unbalanced(self.steps, self.layer.num_ranks).slot_loads(self.load)
        return slots.reshape(*slots.shape[:2], self.layer.num_ranks, -1)

    @property
    def tokens(self) -> float:
        """Number of tokens of a rank in a mean step."""
        return float(self.load.sum(axis=2).mean()) / self.layer.shape.top_k / self.layer.num_ranks

    @property
    def mean_load(self) -> float:
        """Mean number of assignments of an active expert in a step."""
        return float(self.load.sum() / np.count_nonzero(self.load))

    @property
    def mode(self) -> Exchange:
        """Kernel mode with which a mean step is faster."""
        return self.layer.faster_mode(self.tokens)

    @property
    def layer_seconds(self) -> float:
        """Time of a layer in a mean step if all experts have equal load."""
        return self.layer.layer_seconds(self.tokens, self.mode)

    @property
    def rank_bytes(self) -> float:
        """Bytes of a rank's experts in all layers."""
        slots = self.rank_load.shape[-1]
        return float(slots * self.layer.shape.expert_bytes * self.num_layers)

    @property
    def memory(self) -> float:
        """Bytes of a GPU's memory that an engine uses."""
        return _MEMORY_SHARE * self.layer.hardware.memory_bytes.value


def _wide_ep(case: _Case) -> Item:
    """Decide whether more ranks should share the experts."""
    layer, shape = case.layer, case.layer.shape
    total = shape.expert_bytes * shape.num_experts * case.num_layers
    fewest = int(np.ceil(total / case.memory))
    active = float((case.rank_load > 0).sum(axis=-1).mean())
    knee = layer.knee(case.mode)
    before = case.layer_seconds
    found = (
        f"The experts take {_gb(total)}, which {_ranks(fewest)} could hold. Each of the "
        f"{layer.num_ranks} ranks has {case.rank_load.shape[-1]} experts, {_gb(case.rank_bytes)} "
        f"of the {_gb(case.memory)} of GPU memory that an engine uses. In a mean step "
        f"{active:.1f} of them are active, with {case.mean_load:.0f} assignments each. Up to "
        f"{knee:.0f} assignments, reading an expert's weights takes longer than computing."
    )
    numbers = {
        "expert_bytes": total,
        "expert_bytes_per_rank": case.rank_bytes,
        "memory_bytes": case.memory,
        "fewest_ranks": fewest,
        "active_experts_per_rank": active,
        "assignments_per_active_expert": case.mean_load,
        "knee_assignments": knee,
        "layer_seconds": before,
    }
    if case.rank_bytes > case.memory:
        means = (
            f"The experts do not fit: they need {_ranks(fewest)} or more, and the KV cache needs "
            "further memory."
        )
        return _item("wide EP", found, means, numbers, change=True)
    if 2 * layer.num_ranks > shape.num_experts:
        means = "Twice the ranks would exceed the number of experts."
        return _item("wide EP", found, means, numbers)
    wider = layer.on(2 * layer.num_ranks)
    after = wider.layer_seconds(case.tokens, wider.faster_mode(case.tokens))
    numbers["layer_seconds_of_twice_the_ranks"] = after
    saved = 1 - after / before
    means = (
        f"With twice the ranks and the same tokens on each, a layer's experts and exchanges take "
        f"{_us(after)} instead of {_us(before)}"
    )
    if saved > _WORTH:
        means += f": {saved:.0%} less, if there are enough requests to fill the ranks."
    else:
        means += ", so more ranks do not make a step shorter."
    return _item("wide EP", found, means, numbers, change=saved > _WORTH)


def _token_budget(case: _Case) -> Item:
    """Decide how many tokens a step should have."""
    layer, shape = case.layer, case.layer.shape
    at_knee = layer.knee(case.mode) * shape.num_experts / shape.top_k / layer.num_ranks
    double = 2 * case.tokens
    longer = layer.layer_seconds(double, layer.faster_mode(double)) / case.layer_seconds - 1
    found = (
        f"A mean step has {case.tokens:,.0f} tokens on a rank; from {at_knee:,.0f} tokens on, "
        "computing takes longer than reading weights. A step with twice the tokens takes "
        f"{longer:.0%} longer."
    )
    change = longer < 0.5
    means = (
        "Further tokens cost little time: raise the token budget until the time between tokens "
        "reaches its limit."
        if change
        else "Time grows with the tokens: a larger token budget makes steps longer and hardly "
        "raises throughput."
    )
    numbers = {"tokens_per_rank": case.tokens, "knee_tokens_per_rank": at_knee, "longer": longer}
    return _item("token budget", found, means, numbers, change=change)


def _concurrency(case: _Case) -> Item:
    """Decide how many sequences fit."""
    free = max(case.memory - case.rank_bytes, 0.0)
    numbers = {"free_bytes_per_rank": free}
    if case.kv_bytes is None:
        found = (
            f"The experts leave {_gb(free)} of a GPU; the size of a token's KV cache is not known."
        )
        means = "Watch how full the engine's KV cache is: if requests wait or are preempted, "
        means += "concurrency is too high."
        return _item("concurrency", found, means, numbers)
    tokens = free / case.kv_bytes
    context = tokens / max(case.tokens, 1)
    slot = case.layer.shape.expert_bytes * case.num_layers / case.kv_bytes
    numbers |= {
        "kv_tokens_per_rank": tokens,
        "context_tokens": context,
        "kv_tokens_of_a_slot": slot,
    }
    found = (
        f"The experts leave {_gb(free)} of a GPU, room for at most {tokens:,.0f} tokens of KV "
        "cache, minus the other weights. A redundant slot on every rank takes the room of "
        f"{slot:,.0f} tokens."
    )
    if case.tokens > _MOST_SEQUENCES:
        means = "These steps are large enough to be prompts; record decode steps to decide this."
        return _item("concurrency", found, means, numbers, change=free == 0)
    means = (
        f"If each of the {case.tokens:,.0f} tokens of a rank's step is a sequence, each may be "
        f"{context:,.0f} tokens long; raise concurrency while yours are shorter."
    )
    return _item("concurrency", found, means, numbers, change=free == 0)


def _chunked_prefill(case: _Case) -> Item:
    """Decide how long a chunk of a prompt should be."""
    layer = case.layer
    sizes = [1 << n for n in range(4, _LONGEST_CHUNK.bit_length())]
    by_token = [layer.even_seconds(size, _PREFILL) / size for size in sizes]
    chunk = next(s for s, t in zip(sizes, by_token, strict=True) if t <= _HEADROOM * by_token[-1])
    seconds = layer.even_seconds(chunk, _PREFILL) * case.num_layers
    decode = layer.even_seconds(case.tokens, case.mode) * case.num_layers
    even = chunk * layer.num_ranks * layer.shape.top_k / layer.shape.num_experts
    numbers = {
        "chunk_tokens_per_rank": chunk,
        "chunk_seconds": seconds,
        "step_seconds": decode,
        "chunk_padding": np.ceil(even / TILE) * TILE / even - 1,
        "padding": _padding(case.load),
    }
    found = (
        f"With chunks of {chunk:,} tokens a rank, the experts' time per token is within 10 % of "
        f"its least. Such a chunk takes {_ms(seconds)} in all MoE layers, a mean step "
        f"{_ms(decode)}. Kernels that pad experts to {TILE} rows add "
        f"{numbers['chunk_padding']:.0%} to the rows of the chunk, and {numbers['padding']:.0%} to "
        "those of the recorded steps."
    )
    means = (
        f"Shorter chunks than {chunk:,} tokens a rank waste computation. Longer ones only delay "
        "the tokens of other requests, unless prefill has its own ranks."
    )
    return _item("chunked prefill", found, means, numbers, set_it=True)


def _kernel_mode(case: _Case) -> Item:
    """Decide between low-latency and high-throughput kernels."""
    layer, tokens = case.layer, case.tokens
    low, high = (layer.layer_seconds(tokens, mode) for mode in MODES)
    crossover = layer.crossover()
    numbers = {
        "low_latency_seconds": low,
        "high_throughput_seconds": high,
        "crossover_tokens_per_rank": crossover,
    }
    found = (
        f"At {tokens:,.0f} tokens on a rank a layer takes {_us(low)} with low-latency kernels and "
        f"{_us(high)} with high-throughput ones. Within a node the exchanges of both take the "
        f"same time at {_tokens(crossover)} tokens on a rank."
    )
    means = f"Use {case.mode} kernels for steps like these"
    if layer.num_ranks > layer.ranks_per_node:
        means += (
            "; between nodes high-throughput kernels pay with fewer tokens, because they send a "
            "token to a node only once"
        )
    return _item("kernel mode", found, f"{means}.", numbers, set_it=True)


def _overlap(case: _Case) -> Item:
    """Decide whether two micro-batches should hide each other's communication."""
    layer, mode = case.layer, case.mode
    exchange, plain = layer.exchange_seconds(case.tokens, mode), case.layer_seconds
    overlapped = layer.overlapped_seconds(case.tokens)
    saved = 1 - overlapped / plain
    share = exchange / plain
    numbers = {
        "layer_seconds": plain,
        "exchange_seconds": exchange,
        "exchange_share": share,
        "overlapped_seconds": overlapped,
        "saved": saved,
    }
    found = (
        f"Exchanges are {share:.0%} of a layer's {_us(plain)}. In two micro-batches, each of which "
        f"reads the weights again, it takes {_us(overlapped)}."
    )
    if saved > _WORTH:
        means = f"Overlap them: that saves {saved:.0%}, and more if attention overlaps too."
    elif saved < -_WORTH:
        means = "Leave it off: reading the weights twice takes more time than overlapping hides."
    else:
        means = "Leave it off: it makes hardly any difference."
    if share > 0.5 and layer.num_ranks > layer.ranks_per_node:
        means += (
            " The link between nodes decides this step: a faster one, or experts placed so that "
            "tokens stay in their node, helps more."
        )
    return _item("overlap", found, means, numbers, change=saved > _WORTH)


def _buffers(case: _Case) -> Item:
    """Decide how large the buffers of the fullest rank must be."""
    layer, shape = case.layer, case.layer.shape
    of_rank = case.rank_load.sum(axis=-1)
    mean = of_rank.mean(axis=-1, keepdims=True)
    share = np.divide(of_rank, mean, out=np.zeros_like(of_rank), where=mean > 0)
    worst = float(share.max())
    _, row, rank = np.unravel_index(share.argmax(), share.shape)
    layer_id = case.steps.layer_ids[row]
    largest = float(case.load.sum(axis=2).max()) / shape.top_k / layer.num_ranks
    dispatch = 1 << int(np.ceil(np.log2(max(largest, 1))))
    # Two sets, each with room for every token of every rank in every local expert, in BF16.
    buffer = 2 * shape.num_experts * dispatch * 2 * shape.hidden_size
    received = worst * largest * shape.top_k * 2 * shape.hidden_size
    numbers = {
        "busiest_share": worst,
        "busiest_rank": int(rank),
        "dispatch_tokens_per_rank": dispatch,
        "low_latency_buffer_bytes": buffer,
        "received_bytes": received,
    }
    found = (
        f"The fullest rank (rank {rank}, in layer {layer_id}) receives {worst:.2f} times its share "
        f"of a step, up to {_gb(received)} of activations. Low-latency kernels need room for "
        f"{dispatch:,} tokens from each rank, about {_gb(buffer)}."
    )
    means = (
        "Size buffers for the fullest rank, not for the mean. A buffer that is too small stops "
        "that rank or splits its step; one that is too large takes room from the KV cache."
    )
    return _item("buffers", found, means, numbers, set_it=True)


def _load_balancing(case: _Case, forecasts: Sequence[Forecast | str]) -> Item:
    """Decide whether to balance, as the forecasts say."""
    of_rank = case.rank_load.sum(axis=-1)
    every_step = float(imbalance(of_rank[of_rank.any(axis=2)]).mean())
    total = of_rank.sum(axis=0)
    lasting = float(imbalance(total[total.any(axis=1)]).mean())
    floor = float(trace_noise_floor(case.steps, case.layer.num_ranks).mean.mean())
    varying = max(every_step - floor - (lasting - 1), 0.0)
    numbers = {"imbalance": every_step, "floor": floor, "lasting": lasting, "varying": varying}
    found = [
        f"The busiest rank has {every_step:.2f} times the mean load of a step; chance alone would "
        f"make it {floor:.2f}. Of the rest, {lasting - 1:.2f} lasts over the recording and "
        f"{varying:.2f} changes from step to step."
    ]
    means = []
    made = [one for one in forecasts if isinstance(one, Forecast)]
    for one in forecasts:
        if isinstance(one, str):
            means.append(f"insufficient evidence: {one}")
            continue
        found += [idle.text for idle in one.today]
        means.append(f"{one.model}: {one.verdict.text} {_by_split(one)}")
        before = f"{one.today[0].steps}_" if len(made) > 1 else ""
        numbers |= {before + name: value for name, value in _foreseen(one).items()}
    recommended = any(one.verdict.kind == "recommend" for one in made)
    return _item("load balancing", " ".join(found), " ".join(means), numbers, change=recommended)


def _by_split(forecast: Forecast) -> str:
    """Say what each way to share a batch over the copies saves, with its best number of slots."""
    best: dict[str, Option] = {}
    for option in forecast.options:
        known = best.get(option.dispatch)
        if known is None or option.gain - option.needed > known.gain - known.needed:
            best[option.dispatch] = option
    saved = (f"{name} {o.gain:z.1%} with {o.redundant} redundant" for name, o in best.items())
    return f"Saved by split: {', '.join(saved)}."


def _foreseen(forecast: Forecast) -> dict[str, float]:
    """Return the numbers of a forecast: what ranks wait, and the best change."""
    idle, best = forecast.today[0], forecast.best
    low, high = best.interval or (best.gain, best.gain)
    return {
        "idle_share": idle.share,
        "chance_share": idle.chance,
        "redundant_slots": best.redundant,
        "gain": best.gain,
        "gain_low": low,
        "gain_high": high,
        "gain_needed": best.needed,
    }


def _padding(load: Floats) -> float:
    """Compute the share of rows added by padding every expert to whole tiles."""
    return float((np.ceil(load / TILE) * TILE).sum() / load.sum() - 1)


def _item(
    topic: Topic,
    found: str,
    means: str,
    numbers: Mapping[str, float],
    *,
    change: bool = False,
    set_it: bool = False,
) -> Item:
    verdict: Verdict = "change" if change else "set" if set_it else "keep"
    values = {name: float(value) for name, value in numbers.items()}
    return Item(topic=topic, found=found, means=means, verdict=verdict, numbers=values)


def _ranks(number: int) -> str:
    return f"{number} rank{'s' * (number > 1)}"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _us(seconds: float) -> str:
    return f"{1e6 * seconds:,.0f} us"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms"


def _tokens(number: int) -> str:
    return f"{number:,}" if number <= MOST_TOKENS else f"more than {MOST_TOKENS:,}"

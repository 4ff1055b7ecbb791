"""Simulated servers that serve the same requests on different placements.

server = Server(num_ranks=32, kv_tokens=400_000)
costs = ServingCosts.of_ranks(UncertainCost.published("h100-deepep-ep32"), other_seconds=0.01)
stage = Stage(server=server, trace=unseen, topology=topology, top_k=8, costs=costs)
contest = Contest(stage, lambda redundant, dispatch, progress: layout, slo)
contest.run(requests, redundant=32, dispatch="minmax").text
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from equipoise.checks import check_count, check_flag, check_type, check_whole
from equipoise.errors import EquipoiseError
from equipoise.simulate.batching import NO_LIMIT, Pool
from equipoise.simulate.expert_time import Layout
from equipoise.simulate.progress import Parts, Progress
from equipoise.simulate.requests import MAX_TOKENS, Requests
from equipoise.simulate.serving import (
    HandOver,
    ServingResult,
    Slo,
    kv_tokens,
    serve,
    serve_disaggregated,
)
from equipoise.simulate.serving_costs import ServingCosts
from equipoise.simulate.side_by_side import SideBySide
from equipoise.simulate.step_table import (
    StepSeconds,
    Table,
    layout_seconds,
    parts_of_recording,
    step_table,
)
from equipoise.simulate.step_time import StepTime, TabulatedStepTime
from equipoise.topology import Topology
from equipoise.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Server:
    """The ranks of a server, and their limits.

    Parameters
    ----------
    num_ranks
        Number of ranks that share the experts; if prompts have their own ranks, those that decode.
    kv_tokens
        Number of tokens that the cache of a rank holds without redundant experts.
    token_bytes, slot_bytes
        Bytes of a token's keys and values and of one slot, both in all layers. They determine how
        much cache a further slot takes.
    max_sequences, max_tokens, chunked_prefill
        Limits of a rank, see ``Pool``.
    prefill_ranks
        Number of ranks in a separate pool that computes prompts; 0 if the same ranks do.
    hand_over
        Time to send a request from the prefill ranks to the others.
    """

    num_ranks: int
    kv_tokens: int
    token_bytes: int = 1
    slot_bytes: int = 0
    max_sequences: int = 128
    max_tokens: int = 2048
    chunked_prefill: bool = True
    prefill_ranks: int = 0
    hand_over: HandOver = field(default_factory=HandOver)

    def __post_init__(self) -> None:
        check_count("num_ranks", self.num_ranks)
        for name in ("max_sequences", "max_tokens"):
            check_whole(name, getattr(self, name), low=1, high=MAX_TOKENS)
        check_whole("kv_tokens", self.kv_tokens, low=1, high=NO_LIMIT)
        check_whole("token_bytes", self.token_bytes, low=1)
        check_whole("slot_bytes", self.slot_bytes)
        check_whole("prefill_ranks", self.prefill_ranks)
        check_flag("chunked_prefill", self.chunked_prefill)
        check_type("hand_over", self.hand_over, HandOver)

    @property
    def most_tokens(self) -> int:
        """Largest number of tokens in a step of the ranks that decode."""
        return self.num_ranks * (self.max_sequences if self.prefill_ranks else self.max_tokens)

    def kv_tokens_with(self, more_slots: int) -> int:
        """Compute the tokens that a rank's cache holds with further slots; errors if none fit."""
        return kv_tokens(
            self.kv_tokens * self.token_bytes,
            token_bytes=self.token_bytes,
            redundant_per_rank=more_slots,
            expert_bytes=self.slot_bytes,
        )

    def pool(self, num_ranks: int, step_time: StepTime, kv_tokens: int) -> Pool:
        """Make a pool of some ranks with these limits."""
        return Pool(
            step_time=step_time,
            num_ranks=num_ranks,
            max_sequences=self.max_sequences,
            max_tokens=self.max_tokens,
            kv_tokens=kv_tokens,
            chunked_prefill=self.chunked_prefill,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Timed:
    """A placement, with the times of steps of all sizes on it."""

    layout: Layout
    table: Table


@dataclass(frozen=True, eq=False, kw_only=True)
class Served:
    """A placement, with the result of serving requests on it."""

    timed: Timed
    result: ServingResult


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage:
    """Everything that a simulation needs in addition to requests and a placement.

    Parameters
    ----------
    server, topology
        Ranks that share the experts, and their limits.
    trace
        Recording whose routing the batches have. If prompts have their own ranks, its steps of the
        phases ``prefill`` and ``decode`` are used separately, if it has these labels.
    top_k
        Number of choices of a token in a layer.
    costs
        Costs of steps.
    layers_factor
        Number of MoE layers of the model over the recorded number; recorded layers stand for all.
    seed
        Random seed of the batches.
    """

    server: Server
    trace: Trace
    topology: Topology
    top_k: int
    costs: ServingCosts
    layers_factor: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.topology.num_ranks != self.server.num_ranks:
            raise EquipoiseError(
                f"The topology has {self.topology.num_ranks} ranks and the server "
                f"{self.server.num_ranks}; expected the same."
            )

    @cached_property
    def decoded(self) -> Trace:
        """Return the steps from which batches of the decoding ranks are drawn."""
        return self._of("decode") if self.server.prefill_ranks else self.trace

    def timed(self, layout: Layout, progress: Progress | None = None) -> Timed:
        """Time batches of all sizes on a placement; the batches are the same for each placement."""
        seconds = layout_seconds(layout, self.topology, self.costs.model)
        table = self._table(self.decoded, seconds, self.server.most_tokens, progress)
        return Timed(layout=layout, table=table)

    def prefill_time(self, progress: Progress | None = None) -> StepTime | None:
        """Compute the step times of separate prefill ranks, without balancing, if there are any."""
        ranks = self.server.prefill_ranks
        if not ranks:
            return None
        steps, topology = self._of("prefill"), in_such_nodes(self.topology, ranks)
        seconds = layout_seconds(
            Layout.unbalanced(steps, ranks), topology, self.costs.prefill_model
        )
        table = self._table(steps, seconds, ranks * self.server.max_tokens, progress)
        return TabulatedStepTime(by_tokens=table, rest=self.costs.prefill_rest)

    def kv_tokens(self, layout: Layout) -> int:
        """Compute the tokens that a rank's cache holds next to its slots."""
        fewest = -(-self.trace.num_experts // self.server.num_ranks)
        return self.server.kv_tokens_with(layout.placement.slots_per_rank - fewest)

    def serve(
        self,
        requests: Requests,
        timed: Timed,
        *,
        prefill: StepTime | None = None,
        progress: Progress | None = None,
    ) -> Served:
        """Serve requests on a placement; raises as ``equipoise.simulate.serving.serve``.

        Parameters
        ----------
        prefill
            Step times of separate prefill ranks, from ``prefill_time``.
        """
        ranks, kv_tokens = self.server, self.kv_tokens(timed.layout)
        step_time = TabulatedStepTime(by_tokens=timed.table, rest=self.costs.rest)
        pool = ranks.pool(ranks.num_ranks, step_time, kv_tokens)
        if prefill is None:
            return Served(timed=timed, result=serve(requests, pool, progress=progress))
        result = serve_disaggregated(
            requests,
            prefill=ranks.pool(ranks.prefill_ranks, prefill, ranks.kv_tokens),
            decode=pool,
            hand_over=ranks.hand_over,
            progress=progress,
        )
        return Served(timed=timed, result=result)

    def compare(self, old: Served, new: Served, slo: Slo) -> SideBySide:
        """Put two simulations of the same requests next to each other."""
        steps = list(old.result.pools.values())[-1].timeline.steps
        usual = float((steps.prefill_tokens + steps.sequences).mean())
        size = min(old.timed.table, key=lambda tokens: abs(tokens - usual))
        step_before, step_after = (
            parts_of_recording(one.timed.table[size], self.decoded, size, top_k=self.top_k)
            for one in (old, new)
        )
        return SideBySide(
            before=old.result,
            after=new.result,
            slo=slo,
            step_before=step_before,
            step_after=step_after,
        )

    def _table(
        self, steps: Trace, seconds: StepSeconds, most_tokens: int, progress: Progress | None
    ) -> Table:
        return step_table(
            steps,
            lambda load: self.layers_factor * seconds(load),
            top_k=self.top_k,
            most_tokens=most_tokens,
            seed=self.seed,
            progress=progress,
        )

    def _of(self, phase: str) -> Trace:
        """Return the steps of a phase, or all if the recording has no phases."""
        phases = self.trace.labels.get("phase")
        return self.trace if phases is None else self.trace.select(phase=phase)


def in_such_nodes(topology: Topology, num_ranks: int) -> Topology:
    """Describe another number of ranks, in nodes of the same size, or in one node if they fit.

    Raises
    ------
    EquipoiseError
        A number of ranks that does not fill such nodes.
    """
    size = topology.ranks_per_node
    return Topology(num_ranks, None if size is None or num_ranks <= size else size)


def _untold(name: str) -> None:
    """Tell nobody that a part of the work begins."""


class Contest:
    """A comparison of placements with no balancing on the same requests, with cached results.

    Parameters
    ----------
    stage
        Stage of the simulations.
    layout
        Function that makes the placement for a number of redundant slots and a dispatcher. Its
        third argument is a function to report progress to.
    slo
        Limits that requests should stay within.
    """

    def __init__(
        self, stage: Stage, layout: Callable[[int, str, Progress | None], Layout], slo: Slo
    ) -> None:
        self._stage, self._layout, self._slo = stage, layout, slo
        self._prefill: StepTime | None = None
        self._plain: Timed | None = None
        self._timed: dict[tuple[int, str], Timed] = {}
        self._served: dict[Requests, Served] = {}

    def run(
        self, requests: Requests, *, redundant: int, dispatch: str, begin: Parts = _untold
    ) -> SideBySide:
        """Serve the requests without balancing and on the placement.

        Parameters
        ----------
        begin
            Function that is called with the name of each part of the work. How long a part takes
            compared with another depends on the recording and on the requests.
        """
        timed = self._with(redundant, dispatch, begin)
        plain = self._without(begin)
        if requests not in self._served:
            alone = begin("serving without balancing")
            self._served[requests] = self._serve(requests, plain, alone)
        served = self._serve(requests, timed, begin("serving on the placement"))
        return self._stage.compare(self._served[requests], served, self._slo)

    def _serve(self, requests: Requests, timed: Timed, progress: Progress | None) -> Served:
        return self._stage.serve(requests, timed, prefill=self._prefill, progress=progress)

    def _without(self, begin: Parts) -> Timed:
        if self._plain is None:
            if self._stage.server.prefill_ranks:
                self._prefill = self._stage.prefill_time(begin("timing steps of prompts"))
            plain = Layout.unbalanced(self._stage.trace, self._stage.server.num_ranks)
            self._plain = self._stage.timed(plain, begin("timing steps without balancing"))
        return self._plain

    def _with(self, redundant: int, dispatch: str, begin: Parts) -> Timed:
        key = redundant, dispatch
        if key not in self._timed:
            layout = self._layout(redundant, dispatch, begin("planning"))
            self._stage.kv_tokens(layout)  # raises an error before the long work
            self._timed[key] = self._stage.timed(layout, begin("timing steps on the placement"))
        return self._timed[key]

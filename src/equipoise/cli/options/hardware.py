"""The hardware, on the command line: times and links that nobody has to give by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Literal, TypeVar

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.cli.options.groups import HARDWARE
from equipoise.cli.options.limits import Amount
from equipoise.cli.options.machine import MachineArguments
from equipoise.cli.options.names import option_name
from equipoise.cli.options.planner import Judging
from equipoise.cost import RankCost
from equipoise.engines.formats import given
from equipoise.engines.machines import FAR_LINK, Serving, machine_of
from equipoise.engines.transformers.config import ModelConfig
from equipoise.errors import EquipoiseError
from equipoise.simulate.machine import Machine, wired, wiring_facts
from equipoise.simulate.profiles import HardwareProfile, LinkProfile, hardware, link
from equipoise.topology import Topology
from equipoise.trace import Trace

Planning = TypeVar("Planning", bound=Judging)

_UNTIL_KNOWN = RankCost(token_seconds=1.0)  # what options are checked with before there are loads


@Parameter(name="*", group=HARDWARE)
@dataclass(frozen=True, kw_only=True)
class HardwareArguments:
    """The hardware that serves.

    Parameters
    ----------
    hardware
        GPU that serves: the name of a profile (h100, h200, gh200, b200, gb200, mi300x, mi355x,
        ascend-910b, ascend-910c) or the file of one. It determines the time of steps, instead of
        --rank-cost, and the links and nodes. Times are for the experts of --model, or of
        DeepSeek-V3 without it.
    link
        Link between nodes (with --hardware): the name of a profile (infiniband-400g,
        infiniband-400g-proxy, aws-efa) or the file of one; infiniband-400g if not given.
    serve
        Kind of work that steps do (with --hardware). If not given: what the recording says.
    """

    hardware: str | None = None
    link: str | None = None
    serve: Literal["decode", "prefill"] | None = None

    @cached_property
    def profile(self) -> HardwareProfile | None:
        """The GPU; ``None`` if none was given."""
        return None if self.hardware is None else hardware(self.hardware)

    @cached_property
    def far(self) -> LinkProfile | None:
        """The link between nodes; ``None`` if none was given."""
        return None if self.link is None else link(self.link)

    @property
    def serving(self) -> Serving:
        """How steps are run, as far as it is known."""
        return Serving(phase=self.serve, link=self.far)

    def topology(self, machine: MachineArguments, ranks: int) -> Topology:
        """The ranks, wired as the profiles say unless options say otherwise."""
        self.check()
        if self.profile is None:
            return machine.topology(ranks)
        size = round(self.profile.ranks_per_node.value)
        whole = machine if machine.ranks_per_node is not None else _in_nodes(machine, ranks, size)
        far = self.far or link(FAR_LINK)
        topology = whole.topology(ranks)
        if self.far is not None and topology.num_nodes == 1:
            raise EquipoiseError(
                f"--link: the {ranks} ranks are in one node, so nothing crosses it; leave it out, "
                "or give --ranks-per-node."
            )
        return wired(topology, self.profile, far)

    def check(self, rank_cost: str | None = None) -> None:
        """Refuse options that only matter with hardware, and times given in addition to it."""
        if self.profile is not None:
            if rank_cost is not None:
                raise EquipoiseError(
                    "--hardware and --rank-cost both set the time of ranks; give one of the two."
                )
            return
        if given(self):
            names = ", ".join(sorted(map(option_name, given(self))))
            raise EquipoiseError(
                f"{names}: only with --hardware, which names the GPU, as in --hardware h100."
            )

    @property
    def facts(self) -> dict[str, str]:
        """Where the links came from that experts move over."""
        if self.profile is None:
            return {}
        return wiring_facts(self.profile, self.far or link(FAR_LINK))

    def before_reading(self, planning: Planning) -> Planning:
        """The planner's options, to be checked while its times are not known yet."""
        self.check(planning.rank_cost)
        return planning if self.profile is None else replace(planning, timed=_UNTIL_KNOWN)

    def machine(
        self, recording: Trace, config: ModelConfig | None, topology: Topology
    ) -> Machine | None:
        """What steps like those recorded take; ``None`` without hardware."""
        if self.profile is None:
            return None
        return machine_of(self.profile, recording, config, topology, self.serving)


@Parameter(name="*", group=HARDWARE)
@dataclass(frozen=True, kw_only=True)
class StepArguments(HardwareArguments):
    """The hardware that serves, and how it runs whole steps.

    Parameters
    ----------
    exchange
        Kernel that exchanges tokens (with --hardware). If not given: low-latency for decode and
        high-throughput for prefill.
    context_tokens
        Tokens of context before the new token, on average (with --hardware); 4096 if not given.
    overlap
        Compute one half of a step while the other half is exchanged (with --hardware).
    chunk_tokens
        Largest number of tokens in one pass through the experts, all ranks together (with
        --hardware): what TensorRT-LLM calls moe_max_num_tokens.
    attention_imbalance
        Tokens of the rank that has the most of its own, divided by the mean (with --hardware).
    """

    exchange: Literal["low-latency", "high-throughput"] | None = None
    context_tokens: Annotated[float | None, Parameter(validator=Number(gte=0, lte=1e9))] = None
    overlap: bool = False
    chunk_tokens: Annotated[int | None, Amount] = None
    attention_imbalance: Annotated[float, Parameter(validator=Number(gte=1, lte=1e6))] = 1.0

    @property
    def serving(self) -> Serving:
        """How steps are run."""
        return Serving(
            phase=self.serve,
            link=self.far,
            exchange=self.exchange,
            context_tokens=self.context_tokens,
            overlap=self.overlap,
            chunk_tokens=self.chunk_tokens,
            attention_imbalance=self.attention_imbalance,
        )


def _in_nodes(machine: MachineArguments, ranks: int, size: int) -> MachineArguments:
    """The ranks in nodes of that size; in one if they fit."""
    return machine if ranks <= size else replace(machine, ranks_per_node=size)

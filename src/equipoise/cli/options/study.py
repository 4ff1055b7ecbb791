"""What the commands share that plan, score and write a map."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.engine import EngineArguments
from equipoise.cli.options.groups import TRTLLM, VERDICT
from equipoise.cli.options.hardware import StepArguments
from equipoise.cli.options.limits import Redundant
from equipoise.cli.options.machine import MachineArguments
from equipoise.cli.options.maps import check_decoder_layers
from equipoise.cli.options.model import ModelArguments
from equipoise.cli.options.names import option_name
from equipoise.cli.options.output import For, Json, Output, check_output, check_target
from equipoise.cli.options.page import PageArguments, origin
from equipoise.cli.options.recording import TraceArguments
from equipoise.cli.options.trtllm import TrtllmArguments
from equipoise.cli.views.console import print_json, stdout
from equipoise.cli.views.plan import Outcome, plan_document, print_plan
from equipoise.engines.formats import given
from equipoise.engines.map_target import MapTarget
from equipoise.engines.registry import written_as
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.problem import Problem
from equipoise.plan.study import Study
from equipoise.plan.weigh.reach import Reach
from equipoise.report.page.of_plan import plan_story
from equipoise.simulate.machine import Machine
from equipoise.simulate.whole import judged_whole
from equipoise.trace import Trace


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StudyArguments:
    """The steps that score a plan, where its map goes, and what is served on what.

    Parameters
    ----------
    output
        File to write the map to. Without it nothing is written.
    for_
        Engine that loads the map: equipoise, trtllm, sglang, vllm-41141, vllm-49572, vllm-53022,
        ascend; or vllm, whose releases read no map: its own flags are printed, and the plan is kept
        in our format. If not given: what the name of --output says, such as trtllm for .yaml.
    hold_out
        Share of the steps to score on, the latest of each domain. 0: the plan uses all steps, and
        nothing is verified.
    even_if_worse
        Write the map even if it is not better than leaving things as they are.
    layer_updates_per_iter
        Layers that the engine plans again in each iteration, starting from the map. 0: it keeps the
        map.
    """

    output: Annotated[Path | None, Output] = None
    for_: Annotated[str | None, For] = None
    hold_out: Annotated[float, Parameter(group=VERDICT)] = 0.2
    even_if_worse: Annotated[bool, Parameter(group=VERDICT)] = False
    json: Json = False
    hardware: StepArguments = field(default_factory=StepArguments)
    serving: ModelArguments = field(default_factory=ModelArguments)
    machine: MachineArguments = field(default_factory=MachineArguments)
    engine: EngineArguments = field(default_factory=EngineArguments)
    layer_updates_per_iter: Annotated[int, Redundant, Parameter(group=TRTLLM)] = 0
    trtllm: TrtllmArguments = field(default_factory=TrtllmArguments)
    reading: TraceArguments = field(default_factory=TraceArguments)
    page: PageArguments = field(default_factory=PageArguments)

    def target(self, *inputs: Path, usual: str | None = None) -> MapTarget | None:
        """The map to write, if one is; refuses what would be ignored without one.

        Parameters
        ----------
        inputs
            Files that the command reads.
        usual
            Format of the map if neither --for nor the name of the file says one.
        """
        read = (*inputs, self.reading.run_map)
        self.page.check(*read, other=self.output)
        format = check_target(self.output, self.for_ or usual)
        of_trtllm = given(self.trtllm) | given(self) & {"layer_updates_per_iter"}
        if format is None or self.output is None:
            unused = given(self.engine) | of_trtllm | given(self) & {"even_if_worse"}
            _refuse(unused, "only for a map; give --output, its file, as well")
            return None
        check_output(self.output, *read)
        self.trtllm.check(self.output, *read)
        check_decoder_layers(self.engine.hidden_layers, written_as(format))
        options = self.engine.options(self.serving.config)
        if format == "trtllm":
            return self.trtllm.target(self.output, self.layer_updates_per_iter, options)
        _refuse(of_trtllm, f"only for trtllm, not {format}")
        return MapTarget(
            format=format,
            path=self.output,
            num_hidden_layers=self.serving.hidden_layers(self.engine.hidden_layers),
            options=options,
        )

    def read(self, trace: Path, ranks: int | None) -> Trace:
        """The recording, which must be of the model."""
        recording = self.reading.read(trace, ranks=ranks)
        self.serving.check_fits(f"{trace}", recording.num_experts, recording.layer_ids)
        return recording

    def conclude(
        self,
        recording: Trace,
        result: Study,
        target: MapTarget | None,
        *,
        current: Placement | None = None,
        expert_bytes: int | None = None,
        reach: Reach | None = None,
        times: Machine | None = None,
    ) -> int:
        """Write the map if it is a gain, and the page; print what came of it.

        Whole steps decide what is a gain if hardware times them.

        Returns
        -------
        Exit status.
        """
        if times is not None:
            result = judged_whole(result, recording, current, times)
        wanted = result.verdict.is_gain or self.even_if_worse
        outcome = Outcome(
            study=result,
            model=self.serving.config,
            expert_bytes=expert_bytes,
            facts={**self.hardware.facts, **({} if times is None else times.facts)},
            reach=reach,
            written=target.write(result.plan, recording) if target is not None and wanted else None,
            withheld=target is not None and not wanted,
        )
        maps = {"plan": result.plan.placement, "map in force": current}
        self.page.write(
            lambda: plan_story(
                recording,
                result,
                origin(recording, maps),
                current=current,
                expert_bytes=expert_bytes,
            )
        )
        if self.json:
            print_json(plan_document(outcome))
        else:
            print_plan(stdout(), recording, outcome)
        return 0 if wanted else 1


def rehearsal(target: MapTarget | None, recording: Trace) -> Callable[[Problem], None] | None:
    """What refuses, just before the search, all that writing would refuse after it."""
    return None if target is None else lambda problem: target.rehearse(problem, recording)


def _refuse(names: Collection[str], why: str) -> None:
    """Raise ``EquipoiseError`` if there are options that would be ignored."""
    if names:
        raise EquipoiseError(f"{', '.join(sorted(map(option_name, names)))}: {why}.")

"""The output of a plan for TensorRT-LLM: the map, and the options file if one is wanted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from equipoise.engines._shared.findings import numbered
from equipoise.engines.files import output_file, write_text
from equipoise.engines.formats import Launch, MapContext
from equipoise.engines.map_io import write_as
from equipoise.engines.map_target import MapTarget, WrittenMap
from equipoise.engines.trtllm import maps
from equipoise.engines.trtllm.draft_layers import default_row, with_draft_layers
from equipoise.engines.trtllm.launch import ROWS_NOTE, launch
from equipoise.engines.trtllm.options_file import Capacity, options_text
from equipoise.placement import Placement, check_slot_count
from equipoise.plan.result import Plan
from equipoise.trace import Trace


@dataclass(frozen=True, kw_only=True)
class TrtllmTarget(MapTarget):
    """The files to which the map of a plan is written for TensorRT-LLM.

    Parameters
    ----------
    layer_updates_per_iter
        Layers that the engine re-plans per iteration; 0: it keeps the map.
    mtp_layers
        Speculative layers that the engine runs after the others; each gets a row.
    options_file
        File for the options with which the engine loads the map; ``None``: none is written.
    capacity
        Limits that decide the size of a chunk in the options file.
    """

    format: str = maps.FORMAT.name
    layer_updates_per_iter: int = 0
    mtp_layers: int = 0
    options_file: Path | None = None
    capacity: Capacity = field(default_factory=Capacity)

    def completed(self, placement: Placement) -> Placement:
        """The placement with the rows of speculative layers."""
        if not self.mtp_layers:
            return placement
        return with_draft_layers(placement, self._mtp_layer_ids(placement))

    def flags(self, placement: Placement, recording: Trace) -> Launch:
        """Return how to start the engine, with the options file as it will be written."""
        recorded = placement.rows(range(placement.num_layers - self.mtp_layers))
        return self._flags(placement, self._notes(recorded), recorded, recording)

    def write(self, plan: Plan, recording: Trace) -> WrittenMap:
        """Write the map as for any engine, and the options file if one is wanted."""
        return self._with_options(super().write(plan, recording))

    def write_online(self, num_experts: int, num_slots: int, num_ranks: int) -> WrittenMap:
        """Write a file without assignments, and the options file if one is wanted.

        Raises
        ------
        EquipoiseError
            What ``launch`` and ``maps.write_online`` refuse; files that cannot be written.
        """
        check_slot_count(num_slots, num_ranks=num_ranks, num_experts=num_experts)
        row = default_row(num_experts, num_slots, num_ranks)
        start = Placement([row], num_ranks=num_ranks, num_experts=num_experts)
        context = MapContext(
            num_ranks=num_ranks, num_experts=num_experts, num_redundant=start.num_redundant
        )
        note = (
            "The file has no assignments: the engine starts with its own layout and re-plans "
            f"{self.layer_updates_per_iter} layers an iteration."
        )
        flags = self._flags(start, (note,), start, None)
        flags = replace(flags, notes=tuple(n for n in flags.notes if n != ROWS_NOTE))
        maps.write_online(self.path, context, layer_updates_per_iter=self.layer_updates_per_iter)
        return self._with_options(WrittenMap(self.path, [], flags))

    def _flags(
        self,
        placement: Placement,
        notes: tuple[str, ...],
        recorded: Placement,
        recording: Trace | None,
    ) -> Launch:
        flags = launch(placement, self.path.name, self.options)
        flags = replace(flags, notes=(*notes, *flags.notes))
        if self.options_file is None:
            return flags
        output_file(self.options_file)
        name = str(self.options_file)
        text = options_text(flags, recorded, recording, self.capacity)
        return replace(flags, command=(*flags.command[:-1], name), files=((name, text),))

    def _notes(self, recorded: Placement) -> tuple[str, ...]:
        """Return notes on effects of the file beyond those of a fixed map of recorded layers."""
        notes = []
        if self.mtp_layers:
            layers = numbered(self._mtp_layer_ids(recorded))
            notes.append(
                f"The MTP {layers} had no recording and got the layout that the engine uses "
                "without a map."
            )
        if self.layer_updates_per_iter:
            cycle = maps.iterations_to_refresh(
                recorded.num_layers + self.mtp_layers, self.layer_updates_per_iter
            )
            notes.append(
                "This map is only the start: the engine re-plans while it runs, every layer once "
                f"in {cycle} iterations."
            )
        return tuple(notes)

    def _mtp_layer_ids(self, recorded: Placement) -> range:
        """After the model's decoder layers; after the last recorded one if it is not known."""
        model = self.options.model
        first = max(recorded.layer_ids[-1] + 1, 0 if model is None else model.num_hidden_layers)
        return range(first, first + self.mtp_layers)

    def _with_options(self, written: WrittenMap) -> WrittenMap:
        if self.options_file is None or written.launch is None:
            return written
        ((_, text),) = written.launch.files
        write_text(self.options_file, text)
        return replace(written, files=(self.options_file,))

    def _write_map(self, placement: Placement, path: Path, planner: str, source: str) -> list[str]:
        del planner, source  # the file has no place for them
        writer = partial(maps.write, layer_updates_per_iter=self.layer_updates_per_iter)
        return write_as(placement, path, replace(maps.FORMAT, write=writer))

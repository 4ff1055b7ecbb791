"""The output of a plan: a map and the launch flags for it, written together or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from equipoise.engines.formats import Launch, LaunchOptions, MapContext
from equipoise.engines.launch_flags import launch
from equipoise.engines.map_io import write_map
from equipoise.engines.registry import written_as
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.problem import Problem
from equipoise.plan.result import Plan
from equipoise.plan.search.layout import unsearched_placement
from equipoise.trace import Trace


@dataclass(frozen=True)
class WrittenMap:
    """A written map, what it does not say, and how to start the engine with it.

    Parameters
    ----------
    files
        Files of the launch that were also written.
    """

    path: Path
    lost: list[str]
    launch: Launch | None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MapTarget:
    """The target of a plan: where and how its map will be written.

    Parameters
    ----------
    format
        Name of the map format; or ``vllm``, whose releases read no map, so that the plan is written
        in our own format.
    path
        Path of the file to write.
    num_hidden_layers
        Number of decoder layers of the model, for formats with a row for each.
    options
        Options that determine the launch flags in addition to the map.
    """

    format: str
    path: Path
    num_hidden_layers: int | None = None
    options: LaunchOptions = field(default_factory=LaunchOptions)

    def rehearse(self, problem: Problem, recording: Trace) -> None:
        """Refuse before the search whatever writing would refuse after it.

        Flags and a map are made for a placement of the same shape that needs no search, in a
        temporary folder next to the map.

        Raises
        ------
        EquipoiseError
            Whatever ``launch`` and ``write_map`` refuse, or a path that cannot be written.
        """
        placement = self.completed(unsearched_placement(problem))
        self.flags(placement, recording)
        try:
            with TemporaryDirectory(dir=self.path.parent, prefix=".equipoise.") as folder:
                rehearsed = Path(folder) / self.path.name
                try:
                    self._write_map(placement, rehearsed, "", "")
                except EquipoiseError as error:
                    text = error.message.marked.replace(f"{rehearsed}", f"{self.path}")
                    raise EquipoiseError(text) from error
        except OSError as error:
            raise EquipoiseError(f"{self.path}: cannot be written ({error.strerror}).") from error

    def completed(self, placement: Placement) -> Placement:
        """Add to the placement what the engine needs and the recording lacks."""
        return placement

    def flags(self, placement: Placement, recording: Trace) -> Launch | None:
        """Make the launch flags for a placement that was made from a recording."""
        del recording  # does not affect the flags of most engines
        return launch(placement, self.format, self.path.name, self.options)

    def write(self, plan: Plan, recording: Trace) -> WrittenMap:
        """Write the map of a plan that was made from a recording.

        Raises
        ------
        EquipoiseError
            Whatever ``launch`` and ``write_map`` refuse. The plan is then saved in our own format
            in the folder for temporary files, and the message says where.
        """
        source = recording.provenance.source
        try:
            placement = self.completed(plan.placement)
            # Flags come first, so that a refused combination leaves no file.
            flags = self.flags(placement, recording)
            lost = self._write_map(placement, self.path, plan.planner, source)
        except EquipoiseError as error:
            kept = _keep(plan, source)
            raise EquipoiseError(
                f"{error.message.marked} The plan is not lost: it is in {kept}."
            ) from error
        return WrittenMap(self.path, lost, flags)

    def _write_map(self, placement: Placement, path: Path, planner: str, source: str) -> list[str]:
        context = MapContext(
            num_hidden_layers=self.num_hidden_layers, planner=planner, trace=source
        )
        return write_map(placement, path, format=written_as(self.format), context=context)


def _keep(plan: Plan, source: str) -> Path:
    """Save the plan in our own format, in the folder for temporary files."""
    path = Path(mkdtemp(prefix="equipoise-plan-")) / "plan.json"
    context = MapContext(planner=plan.planner, trace=source)
    write_map(plan.placement, path, format="equipoise", context=context)
    return path

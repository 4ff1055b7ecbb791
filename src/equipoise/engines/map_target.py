"""A map to be written with the launch flags that go with it: both or neither."""

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
    """A map on disk, what it does not say, and how to start the engine with it.

    Parameters
    ----------
    files
        Files of the launch that were written too.
    """

    path: Path
    lost: list[str]
    launch: Launch | None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MapTarget:
    """Where and how to write the map of a plan that is yet to be made.

    Parameters
    ----------
    format
        Name of the map format; or ``vllm``, whose releases read none, so that the plan is kept in
        our own format.
    path
        File to write.
    num_hidden_layers
        All decoder layers of the model, where the format has a row for each.
    options
        What decides the launch flags besides the map.
    """

    format: str
    path: Path
    num_hidden_layers: int | None = None
    options: LaunchOptions = field(default_factory=LaunchOptions)

    def rehearse(self, problem: Problem, recording: Trace) -> None:
        """Refuse before the search all that writing would refuse after it.

        Flags and a map are made for a placement of the same shape that needs no search, in a folder
        next to the map that is gone at once.

        Raises
        ------
        EquipoiseError
            What ``launch`` and ``write_map`` refuse; a path that cannot be written.
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
        """The placement with all that the engine needs and the recording does not have."""
        return placement

    def flags(self, placement: Placement, recording: Trace) -> Launch | None:
        """How to start the engine with a placement that was made from a recording."""
        del recording  # says nothing of most engines' flags
        return launch(placement, self.format, self.path.name, self.options)

    def write(self, plan: Plan, recording: Trace) -> WrittenMap:
        """Write the map of a plan that was made from a recording.

        Raises
        ------
        EquipoiseError
            What ``launch`` and ``write_map`` refuse; the plan is then kept in our own format where
            temporary files go, and the message says where.
        """
        source = recording.provenance.source
        try:
            placement = self.completed(plan.placement)
            # Flags first: a combination the engine would ignore is refused before a file exists.
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
    """The plan in our own format, where temporary files go."""
    path = Path(mkdtemp(prefix="equipoise-plan-")) / "plan.json"
    context = MapContext(planner=plan.planner, trace=source)
    write_map(plan.placement, path, format="equipoise", context=context)
    return path

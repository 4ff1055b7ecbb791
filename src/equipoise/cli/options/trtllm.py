"""What only TensorRT-LLM's files say, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.cli.options.groups import TRTLLM
from equipoise.cli.options.limits import Amount, Size
from equipoise.cli.options.names import option_name
from equipoise.cli.options.output import check_output
from equipoise.engines.formats import LaunchOptions, given
from equipoise.engines.trtllm.options_file import Capacity
from equipoise.engines.trtllm.target import TrtllmTarget
from equipoise.errors import EquipoiseError


@Parameter(name="*", group=TRTLLM)
@dataclass(frozen=True, kw_only=True)
class TrtllmArguments:
    """What only TensorRT-LLM's files say.

    Parameters
    ----------
    mtp_layers
        Number of speculative (MTP) layers that run after the others; each gets a row in the map.
    options_file
        Further file to write: extra_llm_api_options.yaml, which loads the map and sets attention
        data parallelism, CUDA graphs and the largest chunk of tokens.
    max_batch_size
        Largest number of requests that a rank decodes together (with --options-file). A chunk then
        takes their tokens on all ranks.
    rank_assignments
        Number of assignments that a rank has room for in one chunk (with --options-file). Chunks
        are then so small that the busiest rank of the recording has room.
    """

    mtp_layers: Annotated[int, Parameter(validator=Number(gte=0, lte=64))] = 0
    options_file: Path | None = None
    max_batch_size: Annotated[int | None, Size] = None
    rank_assignments: Annotated[int | None, Amount] = None

    def check(self, output: Path | None, *inputs: Path | None) -> None:
        """Refuse a size of chunks without the file it stands in, and a file onto another one."""
        if self.options_file is None:
            unused = sorted(map(option_name, given(self) & {"max_batch_size", "rank_assignments"}))
            if unused:
                raise EquipoiseError(f"{', '.join(unused)}: only with --options-file.")
            return
        check_output(self.options_file, *inputs)
        if output is not None and self.options_file.resolve() == output.resolve():
            raise EquipoiseError(
                f"{self.options_file}: is the map itself; give the options another file."
            )

    def target(
        self, path: Path, layer_updates_per_iter: int, options: LaunchOptions | None = None
    ) -> TrtllmTarget:
        """The map to write, with these options."""
        return TrtllmTarget(
            path=path,
            options=options or LaunchOptions(),
            layer_updates_per_iter=layer_updates_per_iter,
            mtp_layers=self.mtp_layers,
            options_file=self.options_file,
            capacity=Capacity(
                max_batch_size=self.max_batch_size, rank_assignments=self.rank_assignments
            ),
        )

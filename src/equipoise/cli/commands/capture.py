"""``equipoise capture``: record the routing of a model while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from equipoise.cli.options.limits import Size
from equipoise.cli.options.output import check_output
from equipoise.cli.options.recording import parse_range
from equipoise.cli.views.console import stdout
from equipoise.cli.views.text import one_line
from equipoise.engines.trace_io import write_trace
from equipoise.errors import EquipoiseError


def capture(
    model: Path,
    /,
    *,
    prompts: Path,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    token_ids: Annotated[bool, Parameter(negative=())] = False,
    iterations: str | None = None,
    max_new_tokens: Annotated[int, Size] = 64,
    batch_size: Annotated[int, Size] = 8,
) -> int:
    """Record the routing of a Hugging Face model while it answers prompts.

    Needs torch and transformers: pip install 'equipoise[capture]'.

    Parameters
    ----------
    model
        A local folder that transformers can load.
    prompts
        One prompt a line, or JSON lines {"prompt": ..., "domain": ...}.
    output
        The recording to write.
    token_ids
        Keep each token's own experts, not only counts.
    iterations
        Record forward passes START-STOP only, STOP not included.
    max_new_tokens
        Tokens to generate for each prompt.
    batch_size
        Prompts answered together.
    """
    check_output(output, model, prompts)
    try:
        from equipoise.engines.transformers.capture import capture_prompts, read_prompts
    except ImportError as error:
        raise EquipoiseError(
            f"Recording a model needs {error.name}; install equipoise[capture]."
        ) from error
    trace = capture_prompts(
        model,
        read_prompts(prompts),
        token_ids=token_ids,
        iterations=parse_range(iterations) if iterations else None,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    write_trace(trace, output)
    stdout().print(one_line(f"{output}: {trace}"))
    return 0

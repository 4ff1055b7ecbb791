"""``equipoise capture``: record the routing of a model while it runs, here or in a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from equipoise.cli.options.limits import Size
from equipoise.cli.options.output import Output, check_output
from equipoise.cli.options.recording import parse_range
from equipoise.cli.views.console import stdout
from equipoise.cli.views.progress import progress_bar
from equipoise.cli.views.text import one_line
from equipoise.engines._shared.prompts import read_prompts
from equipoise.engines.replay.server import capture_recorder, capture_server
from equipoise.engines.trace_io import write_trace
from equipoise.errors import EquipoiseError
from equipoise.trace import Trace

_SECONDS = 300.0


def capture(
    model: Path | None = None,
    /,
    *,
    prompts: Path,
    output: Annotated[Path, Output],
    url: str | None = None,
    token_ids: bool = False,
    iterations: str | None = None,
    max_new_tokens: Annotated[int, Size] = 64,
    batch_size: Annotated[int, Size] = 8,
    top_k: Annotated[int | None, Size] = None,
    recorder_dir: Path | None = None,
    timeout: float | None = None,
) -> int:
    r"""Record the routing of a model while it runs, here or in a server.

    Prompts are answered, and what every token is routed to is recorded. The model of a local folder
    runs here, which needs torch and transformers: pip install 'equipoise[capture]'. With --url, a
    running server answers.

    For example:

        equipoise capture MODEL --prompts prompts.txt -o run.safetensors
        equipoise capture MODEL --prompts prompts.txt --token-ids -o run.safetensors
        equipoise capture --url http://127.0.0.1:8000 --prompts prompts.txt \
            -o run.safetensors

    Parameters
    ----------
    model
        Local folder of a model that transformers can load.
    prompts
        File of prompts: one on each line, or JSON lines {"prompt": ..., "domain": ...}.
    output
        File to write the recording to.
    url
        Address of a vLLM or SGLang server to ask instead of a model, such as http://127.0.0.1:8000.
        The server must run with --enable-return-routed-experts.
    token_ids
        Keep the experts that each token chose, not only counts.
    iterations
        Range of forward passes to record, as in 100-200; the last one is not recorded (with a
        model).
    max_new_tokens
        Number of tokens to generate for each prompt.
    batch_size
        Number of prompts answered together.
    top_k
        Number of experts that a token chooses (with --url): SGLang does not report it.
    recorder_dir
        Folder in which the recorder of SGLang writes its dumps (with --url): the recorder counts,
        and answers need not name the experts.
    timeout
        Seconds to wait for an answer (with --url); 300 if not given.
    """
    check_output(output, model, prompts)
    if (model is None) == (url is None):
        raise EquipoiseError("Give either the folder of a model, or --url and a server's address.")
    if url is None:
        _refuse({"--top-k": top_k, "--recorder-dir": recorder_dir, "--timeout": timeout}, "--url")
    else:
        _refuse({"--iterations": iterations}, "a model")
    if recorder_dir is not None:
        _refuse({"--top-k": top_k, "--token-ids": token_ids or None}, "answers, not the recorder")
    texts = read_prompts(prompts)
    how = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    if url is None:
        trace = _run(model or Path(), texts, token_ids, iterations, **how)
    else:
        seconds = _SECONDS if timeout is None else timeout
        with progress_bar(f"asking {url}") as progress:
            if recorder_dir is None:
                trace = capture_server(
                    url, texts, top_k=top_k, token_ids=token_ids, timeout_seconds=seconds,
                    progress=progress, **how,
                )  # fmt: skip
            else:
                trace = capture_recorder(
                    url, texts, recorder_dir, timeout_seconds=seconds, progress=progress, **how
                )
    write_trace(trace, output)
    stdout().print(one_line(f"{output}: {trace}"))
    return 0


def _refuse(given: dict[str, object], belongs_to: str) -> None:
    """Refuse options that would be ignored."""
    unused = [name for name, value in given.items() if value is not None]
    if unused:
        raise EquipoiseError(f"{', '.join(unused)} goes with {belongs_to}; leave it out here.")


def _run(
    model: Path, texts: dict[str, list[str]], token_ids: bool, iterations: str | None, **how: Any
) -> Trace:
    """Record a model that runs here."""
    try:
        from equipoise.engines.transformers.capture import capture_prompts
    except ImportError as error:
        raise EquipoiseError(
            f"Recording a model needs {error.name}; install equipoise[capture]."
        ) from error
    steps = parse_range(iterations) if iterations else None
    return capture_prompts(model, texts, token_ids=token_ids, iterations=steps, **how)

"""Recording the routing of a running server: ``equipoise capture --url``.

If it is switched on, vLLM and SGLang return the experts of a request's tokens. SGLang's recorder
counts them in the server instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from equipoise.checks import check_count, check_number
from equipoise.engines._shared.prompts import check_prompts
from equipoise.engines._shared.requests import Request, trace_of_requests
from equipoise.engines.formats import Progress, TraceOptions, no_progress
from equipoise.engines.replay.encoding import refuse_cut_choices
from equipoise.engines.replay.http import NotFoundError, Server
from equipoise.engines.replay.responses import SWITCH, requests_of
from equipoise.engines.trace_io import read_trace
from equipoise.errors import EquipoiseError
from equipoise.invariants import checked
from equipoise.trace import Provenance, Trace

_RECORDER = "/{}_expert_distribution_record"
_DUMPS = "expert_distribution_recorder_*.pt"
_MODE = "expert_distribution_recorder_mode"

Ask = Callable[[str], Any]
"""Function that returns the answer to a prompt."""


def capture_server(
    url: str,
    prompts: Mapping[str, Sequence[str]] | Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    top_k: int | None = None,
    token_ids: bool = False,
    timeout_seconds: float = 300.0,
    progress: Progress = no_progress,
) -> Trace:
    """Have a vLLM or SGLang server answer prompts, and record the routing that it returns.

    Decoding is greedy. A step of the trace is one prompt (``prefill``), or one token of each of
    the ``batch_size`` requests that run at a time (``decode``). The server does not return in
    which passes it really ran them.

    Parameters
    ----------
    url
        Address of the server, such as ``http://127.0.0.1:8000``.
    prompts
        Texts by domain, which becomes the label ``domain``; or a list of texts without domains.
    max_new_tokens
        Most tokens to generate for each prompt.
    batch_size
        Prompts under way at a time.
    top_k
        Number of experts that a token chooses; needed for SGLang, which does not return it.
    token_ids
        Keep each token's own experts, not only counts.
    timeout_seconds
        The longest wait for an answer.
    progress
        Called with (prompts done, prompts in all).

    Raises
    ------
    EquipoiseError
        The server cannot be reached, it answers with an error, or its answers hold no routing.
    """
    server, ask = _asking(url, max_new_tokens, timeout_seconds)
    options = TraceOptions(top_k=top_k, window_tokens=check_count("batch_size", batch_size))
    notes: list[str] = []
    requests: list[Request] = []
    for domain, answer in _answers(ask, check_prompts(prompts), batch_size, progress):
        found = list(requests_of([answer], options, server.url, notes))
        if not found:
            raise EquipoiseError(f"{url} answers, but without routed_experts. {SWITCH}")
        requests += [replace(request, domain=domain) for request in found]
    if top_k is not None:
        refuse_cut_choices(requests)
    provenance = Provenance("server", url, tuple(dict.fromkeys(notes)))
    trace = checked(trace_of_requests(requests, options, provenance))
    return trace if token_ids else replace(trace, tokens=None)


def capture_recorder(
    url: str,
    prompts: Mapping[str, Sequence[str]] | Sequence[str],
    folder: str | Path,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 8,
    timeout_seconds: float = 300.0,
    progress: Progress = no_progress,
) -> Trace:
    """Have SGLang's recorder count while the server answers prompts, and read what it dumps.

    Parameters
    ----------
    folder
        Folder on this machine that is the server's SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR.

    Other parameters, and errors, are those of ``capture_server``; also raised where the recorder
    is off, or its dump is not in the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EquipoiseError(f"{folder} is not a folder; name the one that the recorder writes to.")
    server, ask = _asking(url, max_new_tokens, timeout_seconds)
    _check_recorder(server)
    before = set(folder.glob(_DUMPS))
    with _recording(server):
        for _ in _answers(ask, check_prompts(prompts), batch_size, progress):
            pass  # the recorder has what is wanted of them
    server.send(_RECORDER.format("dump"), {})
    written = sorted(set(folder.glob(_DUMPS)) - before)
    if not written:
        raise EquipoiseError(
            f"The server dumped nothing to {folder}; name the folder of its "
            "SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR."
        )
    with TemporaryDirectory() as own:
        for file in written:
            (Path(own) / file.name).symlink_to(file.resolve())
        trace = read_trace(own, format="sglang")
    return replace(trace, provenance=replace(trace.provenance, source=f"{folder}"))


def _asking(url: str, max_new_tokens: int, timeout_seconds: float) -> tuple[Server, Ask]:
    """Return the server, and the function that asks its engine."""
    check_count("max_new_tokens", max_new_tokens)
    check_number("timeout_seconds", timeout_seconds, low=0.001, high=1e6)
    server = Server(url.rstrip("/"), timeout_seconds)
    if _is_sglang(server):
        return server, lambda prompt: server.ask(
            "/generate",
            {
                "text": prompt,
                "sampling_params": {"temperature": 0, "max_new_tokens": max_new_tokens},
                "return_routed_experts": True,
            },
        )
    model = _model(server)
    return server, lambda prompt: server.ask(
        "/v1/completions",
        {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "return_token_ids": True,
        },
    )


def _is_sglang(server: Server) -> bool:
    for path in ("/model_info", "/get_model_info"):  # the second one until 0.5.5
        try:
            info = server.ask(path)
            return isinstance(info, dict) and "model_path" in info
        except NotFoundError:
            continue
    return False


def _model(server: Server) -> str:
    """Return the name of the first model of a server with OpenAI's interface."""
    try:
        models = server.ask("/v1/models")
    except NotFoundError as error:
        raise EquipoiseError(
            f"{server.url} is not a server of vLLM or SGLang: it has neither /v1/models nor "
            "/model_info."
        ) from error
    try:
        return str(models["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise EquipoiseError(f"{server.url}/v1/models names no model.") from error


def _answers(
    ask: Ask, prompts: Mapping[str, Sequence[str]], together: int, progress: Progress
) -> Iterator[tuple[str, Any]]:
    """Yield domain and answer of each prompt in order, with ``together`` prompts under way."""
    asked = [(domain, text) for domain, texts in prompts.items() for text in texts]
    pool = ThreadPoolExecutor(together)
    try:
        answers: Iterable[Any] = pool.map(ask, [text for _, text in asked])
        for done, ((domain, _), answer) in enumerate(zip(asked, answers, strict=True), start=1):
            progress(done, len(asked))
            yield domain, answer
    finally:
        pool.shutdown(cancel_futures=True)


def _check_recorder(server: Server) -> None:
    """Refuse a server whose recorder is off: the first request to the recorder would fail."""
    try:
        info = server.ask("/server_info")
    except NotFoundError:
        return  # older than that question
    if isinstance(info, dict) and _MODE in info and not info[_MODE]:
        raise EquipoiseError(
            f"The recorder of {server.url} is off. Start SGLang with "
            f"--{_MODE.replace('_', '-')} stat (or per_token)."
        )


@contextmanager
def _recording(server: Server) -> Iterator[None]:
    """Keep the recorder running during the body of the ``with`` statement."""
    server.send(_RECORDER.format("start"), {})
    try:
        yield
    finally:
        server.send(_RECORDER.format("stop"), {})

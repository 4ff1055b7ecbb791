"""Recording the routing of a saved transformers model over prompts: ``equipoise capture``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from equipoise.engines._shared.prompts import check_prompts
from equipoise.engines.formats import Progress, no_progress
from equipoise.engines.transformers.recorder import RoutingRecorder, check_iterations
from equipoise.errors import EquipoiseError
from equipoise.trace import Trace


def capture_prompts(
    model_path: str | Path,
    prompts: Mapping[str, Sequence[str]] | Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 1,
    token_ids: bool = False,
    iterations: tuple[int, int] | None = None,
    progress: Progress = no_progress,
) -> Trace:
    """Run a local model over prompts and record its routing.

    Decoding is greedy, so a run has no seed. Prompts of one domain are batched together in the
    order given and padded on the left; neither padding nor sequences that have ended are counted.
    The model runs on the first accelerator if there is one; to place it otherwise, load it
    yourself and use ``RoutingRecorder``.

    Parameters
    ----------
    model_path
        Path of a folder with a model and its tokenizer, as ``save_pretrained`` writes them. Nothing
        is downloaded and no code from the folder is run.
    prompts
        Texts by domain; each domain becomes the label ``domain`` of its steps, unless its name is
        empty. A plain sequence has no domains.
    max_new_tokens
        Number of tokens to generate per prompt; the first comes from the prefill.
    batch_size
        Number of prompts that run together.
    token_ids, iterations
        See ``RoutingRecorder``. The run stops at the end of the batch that completes the range.
    progress
        Function that is called with (prompts done, prompts in all).

    Raises
    ------
    EquipoiseError
        No prompts, an empty prompt, a folder that cannot be loaded, an unknown layout, or a range
        that was not reached.
    """
    for name, value in {"max_new_tokens": max_new_tokens, "batch_size": batch_size}.items():
        if value < 1:
            raise EquipoiseError(f"{name} is {value}; expected at least 1.")
    check_iterations(iterations)
    by_domain = check_prompts(prompts)
    model, tokenizer = _load(Path(model_path), batch_size)
    _decode_greedily(model, tokenizer, max_new_tokens)
    recorder = RoutingRecorder(
        model, token_ids=token_ids, iterations=iterations, finished_ids=_finished_ids(model)
    )
    total, seen = sum(map(len, by_domain.values())), 0
    with recorder:
        for domain, batch in _batches(by_domain, batch_size):
            if recorder.done:
                break
            with recorder.labelled(domain=domain):
                _generate(model, tokenizer, batch)
            seen += len(batch)
            progress(seen, total)
    return recorder.trace()


def _batches(by_domain: Mapping[str, list[str]], size: int) -> Iterator[tuple[str, list[str]]]:
    for domain, texts in by_domain.items():
        rest = iter(texts)
        while batch := list(islice(rest, size)):
            yield domain, batch


def _load(path: Path, batch_size: int) -> tuple[Any, Any]:
    """Load the model and its tokenizer, from local files only."""
    if not (path / "config.json").is_file():
        raise EquipoiseError(f"{path} holds no config.json; expected a folder with a saved model.")
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise EquipoiseError(
            "Running a model needs torch and transformers; install equipoise[capture]."
        ) from error
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _no_progress_bars():
            tokenizer: Any = AutoTokenizer.from_pretrained(path, padding_side="left", **local)
            model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto", **local)
    except Exception as error:  # a damaged folder may cause any error in the loaders
        raise EquipoiseError(f"{path} cannot be loaded by transformers: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None and batch_size > 1:
        raise EquipoiseError(
            f"The tokenizer in {path} has no padding and no end-of-text token; use batch size 1."
        )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing its own progress bars, which it does in pipes too."""
    from transformers.utils import logging

    bars: Any = logging  # not annotated throughout
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _decode_greedily(model: Any, tokenizer: Any, max_new_tokens: int) -> None:
    """Replace the folder's generation settings, which may ask for sampling or penalties."""
    own = model.generation_config
    model.generation_config = type(own)(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=own.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _finished_ids(model: Any) -> set[int]:
    """Return the tokens that ended sequences are fed: end-of-text and padding tokens."""
    config = model.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return {token for token in (*ends, config.pad_token_id) if token is not None}


def _generate(model: Any, tokenizer: Any, texts: list[str]) -> None:
    inputs = tokenizer(texts, return_tensors="pt", padding=len(texts) > 1)
    if not inputs["input_ids"].shape[1]:
        raise EquipoiseError(f"The prompt {texts[0]!r} has no tokens; expected some text.")
    model.generate(
        input_ids=inputs["input_ids"].to(model.device),
        attention_mask=inputs["attention_mask"].to(model.device),
    )

"""Where steps come from, on the command line: a recording, or a prior in place of one."""

from __future__ import annotations

from pathlib import Path

from equipoise.cli.options.names import option_name
from equipoise.cli.options.recording import TraceArguments
from equipoise.engines.formats import given
from equipoise.errors import EquipoiseError
from equipoise.simulate.prior import assumed_trace
from equipoise.simulate.profiles import prior as read_prior
from equipoise.trace import Trace

_ASSUMED_STEPS = 160  # of a prior, where nobody says how many


def check_source(path: Path | None, prior: str | None, reading: TraceArguments | None) -> None:
    """Refuse neither or both of a recording and a prior, and ways to read without one to read."""
    if (path is None) == (prior is None):
        raise EquipoiseError("Give a recording or --prior, one of the two.")
    if prior is not None and reading is not None and given(reading):
        unused = ", ".join(sorted(map(option_name, given(reading))))
        raise EquipoiseError(f"{unused}: only with a recording.")


def read_source(
    path: Path | None,
    prior: str | None,
    reading: TraceArguments | None,
    *,
    ranks: int,
    step_tokens: int | None = None,
    num_steps: int = _ASSUMED_STEPS,
) -> Trace:
    """The recording, or steps of what a family of models is assumed to route.

    Parameters
    ----------
    step_tokens
        Tokens of an assumed step; those of the windows that the prior was fitted to if ``None``.
    num_steps
        Assumed steps.
    """
    if path is not None:
        return (reading or TraceArguments()).read(path, ranks=ranks)
    assert prior is not None  # checked
    known = read_prior(prior)
    return assumed_trace(known, step_tokens=step_tokens or known.window_tokens, num_steps=num_steps)

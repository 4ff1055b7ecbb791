"""Requests to simulate, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from equipoise.cli.options.limits import Amount
from equipoise.cli.options.names import option_name
from equipoise.engines.formats import given
from equipoise.errors import EquipoiseError
from equipoise.simulate.arrivals import synthetic
from equipoise.simulate.requests import Requests, read_requests
from equipoise.simulate.serving import Slo

REQUESTS = Group("Requests", sort_key=2)

_OF_MADE_ONES = {"duration", "prompt_tokens", "output_tokens", "spread", "arrivals"}


@Parameter(name="*", group=REQUESTS)
@dataclass(frozen=True, kw_only=True)
class RequestArguments:
    """Requests: made, or those of a file.

    Parameters
    ----------
    requests
        The requests of a file in place of made ones: JSON lines or CSV with arrival_seconds,
        prompt_tokens and output_tokens.
    duration
        Seconds in which requests arrive.
    prompt_tokens
        Tokens of a prompt.
    output_tokens
        Tokens of an answer.
    spread
        Lengths are lognormal with this deviation of their logarithm, and the tokens given are their
        medians; 0.8 is much. 0: all are equal.
    arrivals
        When requests arrive: poisson; or bursts, 2.5 times the rate for ten seconds on average,
        after half of it for thirty.
    slo_ttft
        Seconds to the first token that a request may take to count for goodput.
    slo_tpot
        Seconds for each later token, on average, that it may take.
    seed
        Random seed of requests and batches.
    """

    requests: Path | None = None
    duration: Annotated[float, Parameter(validator=Number(gt=0, lte=1e7))] = 300.0
    prompt_tokens: Annotated[int, Amount] = 1000
    output_tokens: Annotated[int, Amount] = 300
    spread: Annotated[float, Parameter(validator=Number(gte=0, lte=10))] = 0.0
    arrivals: Literal["poisson", "bursts"] = "poisson"
    slo_ttft: Annotated[float, Parameter(validator=Number(gte=0, lte=1e6))] = 2.0
    slo_tpot: Annotated[float, Parameter(validator=Number(gte=0, lte=1e6))] = 0.05
    seed: Annotated[int, Parameter(validator=Number(gte=0, lte=1 << 50))] = 0

    @property
    def slo(self) -> Slo:
        """What goodput counts."""
        return Slo(ttft_seconds=self.slo_ttft, tpot_seconds=self.slo_tpot)

    def at(self, rate: float | None) -> Requests:
        """The requests: of the file, or made at a rate, which one of the two needs.

        Raises
        ------
        EquipoiseError
            A rate and a file, or neither; what the file lacks.
        """
        if self.requests is not None:
            unused = set(given(self) & _OF_MADE_ONES) | ({"rate"} if rate is not None else set())
            if unused:
                names = ", ".join(sorted(map(option_name, unused)))
                raise EquipoiseError(f"{names}: only without --requests, whose file says it.")
            return read_requests(self.requests)
        if rate is None:
            raise EquipoiseError("Give --rate, the requests a second, or --requests, a file.")
        return synthetic(
            requests_per_second=rate,
            seconds=self.duration,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            spread=self.spread,
            in_bursts=self.arrivals == "bursts",
            seed=self.seed,
        )

"""Requests to simulate, on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from equipoise.cli.options.groups import REQUESTS
from equipoise.cli.options.limits import Amount
from equipoise.cli.options.names import option_name
from equipoise.engines.formats import given
from equipoise.errors import EquipoiseError
from equipoise.simulate.arrivals import synthetic
from equipoise.simulate.requests import Requests, read_requests
from equipoise.simulate.serving import Slo

_OF_MADE_ONES = {"duration", "prompt_tokens", "output_tokens", "spread", "arrivals"}


@Parameter(name="*", group=REQUESTS)
@dataclass(frozen=True, kw_only=True)
class RequestArguments:
    """Requests: synthetic, or those of a file.

    Parameters
    ----------
    requests
        File of requests to serve instead of generated ones: JSON lines or CSV with arrival_seconds,
        prompt_tokens and output_tokens.
    duration
        Seconds during which requests arrive.
    prompt_tokens
        Tokens of a prompt.
    output_tokens
        Tokens of an answer.
    spread
        Standard deviation of the logarithm of lengths, which are lognormal; --prompt-tokens and
        --output-tokens are then their medians. 0.8 is a wide spread; 0: all lengths are equal.
    arrivals
        Pattern of arrival: poisson, or bursts. Bursts last ten seconds on average at 2.5 times the
        rate, after thirty seconds at half of it.
    slo_ttft
        Seconds that the first token may take for a request to count as goodput.
    slo_tpot
        Seconds that each later token may take, on average, for a request to count as goodput.
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

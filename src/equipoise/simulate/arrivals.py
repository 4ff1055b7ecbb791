"""Synthetic requests: arrival times and lengths. Equal seeds give equal requests.

arrival = poisson(1000, requests_per_second=20, seed=1)
prompt = lognormal_tokens(1000, median=400, sigma=1.0, highest=8192, seed=2)
requests = Requests(arrival_seconds=arrival, prompt_tokens=prompt, output_tokens=128)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.checks import check_number, check_whole
from equipoise.errors import EquipoiseError
from equipoise.simulate.requests import MAX_REQUESTS, MAX_TOKENS, Requests

_CALM_RATE, _CALM_SECONDS = 0.5, 30.0  # rate between bursts over the mean rate, mean duration
_BURST_RATE, _BURST_SECONDS = 2.5, 10.0
_LONGEST = 8  # longest length over the median, where lengths differ
_RARELY, _OFTEN = 1e-6, 1e6
_MAX_PHASES = 1 << 24


def synthetic(
    *,
    requests_per_second: float,
    seconds: float,
    prompt_tokens: int,
    output_tokens: int,
    spread: float = 0.0,
    in_bursts: bool = False,
    seed: int = 0,
) -> Requests:
    """Make requests that arrive over about a number of seconds.

    Parameters
    ----------
    requests_per_second
        Mean rate of arrivals.
    seconds
        Time over which requests arrive, approximately.
    prompt_tokens, output_tokens
        Median number of tokens of prompts and answers. Lengths are lognormal, and at most eight
        times the median.
    spread
        Standard deviation of the logarithm of lengths; 0 for equal lengths.
    in_bursts
        Flag for bursts: 2.5 times the mean rate for ten seconds on average, after half the mean
        rate for thirty. Otherwise arrivals are a Poisson process.
    seed
        Random seed.

    Raises
    ------
    EquipoiseError
        Numbers out of range, or too few or too many requests.
    """
    rate = check_number("requests_per_second", requests_per_second, low=_RARELY, high=_OFTEN)
    expected = rate * check_number("seconds", seconds, low=_RARELY, high=1e9)
    if not 1 <= expected <= MAX_REQUESTS:
        raise EquipoiseError(
            f"{rate:g} requests a second for {seconds:g} seconds are {expected:,.3g}; expected 1 "
            f"to {MAX_REQUESTS:,}."
        )
    number, seed = int(expected), check_whole("seed", seed)
    if in_bursts:
        arrival = bursts(
            number,
            calm_requests_per_second=_CALM_RATE * rate,
            burst_requests_per_second=_BURST_RATE * rate,
            calm_seconds=_CALM_SECONDS,
            burst_seconds=_BURST_SECONDS,
            seed=seed,
        )
    else:
        arrival = poisson(number, requests_per_second=rate, seed=seed)
    prompts, outputs = (
        lognormal_tokens(
            number,
            median=check_whole(name, tokens, low=1, high=MAX_TOKENS),
            sigma=spread,
            highest=min(_LONGEST * tokens, MAX_TOKENS),
            seed=seed + more,
        )
        for more, (name, tokens) in enumerate(
            [("prompt_tokens", prompt_tokens), ("output_tokens", output_tokens)], start=1
        )
    )
    return Requests(arrival_seconds=arrival, prompt_tokens=prompts, output_tokens=outputs)


def evenly(num_requests: int, *, requests_per_second: float) -> NDArray[np.float64]:
    """Make arrivals at equal intervals, the first at 0, ``(N,)`` seconds."""
    check_whole("num_requests", num_requests, low=1, high=MAX_REQUESTS)
    rate = check_number("requests_per_second", requests_per_second, low=_RARELY, high=_OFTEN)
    return np.arange(num_requests) / rate


def poisson(num_requests: int, *, requests_per_second: float, seed: int = 0) -> NDArray[np.float64]:
    """Draw arrivals of a Poisson process with a constant rate, ``(N,)`` seconds."""
    rate = check_number("requests_per_second", requests_per_second, low=_RARELY, high=_OFTEN)
    return _unit_poisson(num_requests, np.random.default_rng(check_whole("seed", seed))) / rate


def bursts(
    num_requests: int,
    *,
    calm_requests_per_second: float,
    burst_requests_per_second: float,
    calm_seconds: float,
    burst_seconds: float,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Draw arrivals of a Markov-modulated Poisson process with two rates, ``(N,)`` seconds.

    Parameters
    ----------
    calm_requests_per_second
        Mean rate in calm times, with which the process starts; 0 for no arrivals.
    burst_requests_per_second
        Mean rate during a burst.
    calm_seconds, burst_seconds
        Mean duration of calm times and bursts, exponentially distributed.
    """
    rates = np.array(
        [
            check_number("calm_requests_per_second", calm_requests_per_second, low=0, high=_OFTEN),
            check_number(
                "burst_requests_per_second", burst_requests_per_second, low=_RARELY, high=_OFTEN
            ),
        ]
    )
    lasting = np.array(
        [
            check_number("calm_seconds", calm_seconds, low=1e-6, high=1e6),
            check_number("burst_seconds", burst_seconds, low=1e-6, high=1e6),
        ]
    )
    rng = np.random.default_rng(check_whole("seed", seed))
    expected = _unit_poisson(num_requests, rng)  # arrivals at rate 1, stretched below
    cycles = int(2 * expected[-1] / (rates @ lasting)) + 32
    if 2 * cycles > _MAX_PHASES:
        raise EquipoiseError(
            f"{num_requests:,} requests take about {cycles:,} bursts; expected fewer: make bursts "
            "longer or their rate higher."
        )
    phase_seconds, phase_requests = [np.zeros(1)], [np.zeros(1)]
    while sum(part.sum() for part in phase_requests) <= expected[-1]:
        drawn = rng.standard_exponential((cycles, 2)) * lasting
        phase_seconds.append(drawn.ravel())
        phase_requests.append((drawn * rates).ravel())
    ends, requests = (np.concatenate(x).cumsum() for x in (phase_seconds, phase_requests))
    return np.asarray(np.interp(expected, requests, ends))


def lognormal_tokens(
    num_requests: int,
    *,
    median: float,
    sigma: float,
    highest: int,
    lowest: int = 1,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Draw lengths ``median * exp(sigma * z)``, ``z`` standard normal, rounded and clipped.

    Give prompts and answers different seeds. With equal seeds, the longest prompts would have the
    longest answers.

    Returns
    -------
    Tokens ``(N,)`` int64, from ``lowest`` to ``highest``.
    """
    check_whole("num_requests", num_requests, low=1, high=MAX_REQUESTS)
    check_number("median", median, low=1, high=MAX_TOKENS)
    check_number("sigma", sigma, low=0, high=10)
    check_whole("lowest", lowest, low=1, high=MAX_TOKENS)
    check_whole("highest", highest, low=lowest, high=MAX_TOKENS)
    z = np.random.default_rng(check_whole("seed", seed)).standard_normal(num_requests)
    return np.clip(np.rint(median * np.exp(sigma * z)), lowest, highest).astype(np.int64)


def _unit_poisson(num_requests: int, rng: np.random.Generator) -> NDArray[np.float64]:
    check_whole("num_requests", num_requests, low=1, high=MAX_REQUESTS)
    return rng.standard_exponential(num_requests).cumsum()

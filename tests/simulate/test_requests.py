from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError, FormatError
from equipoise.simulate.arrivals import bursts, evenly, lognormal_tokens, poisson
from equipoise.simulate.requests import Requests, read_requests

GOOD = '{"arrival_seconds": 0.5, "prompt_tokens": 7, "output_tokens": 2}'


def test_one_length_is_that_of_all():
    requests = Requests(arrival_seconds=[0, 1, 1], prompt_tokens=5, output_tokens=[1, 2, 3])
    assert requests.prompt_tokens.tolist() == [5, 5, 5]
    assert len(requests) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"arrival_seconds": [1, 0]},
        {"arrival_seconds": []},
        {"arrival_seconds": [[0]]},
        {"arrival_seconds": [-1, 0]},
        {"arrival_seconds": [0, np.nan]},
        {"arrival_seconds": [0, 1e10]},
        {"prompt_tokens": [1]},
        {"prompt_tokens": 0},
        {"prompt_tokens": 1.5},
        {"prompt_tokens": [[1, 1]]},
        {"output_tokens": [1, 0]},
        {"output_tokens": 2**40},
        {"output_tokens": None},
    ],
)
def test_what_is_no_request_is_refused(changes):
    with pytest.raises(EquipoiseError):
        Requests(**{"arrival_seconds": [0, 1], "prompt_tokens": 1, "output_tokens": 1} | changes)


def test_json_lines_and_csv_say_the_same(tmp_path):
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.CSV"
    lines.write_text(
        '{"user": "x", "prompt_tokens": 9, "output_tokens": 3, "arrival_seconds": 2}\n\n' + GOOD
    )
    table.write_text(
        "\ufeffoutput_tokens, arrival_seconds,user,prompt_tokens\r\n3,2,x,9\r\n\r\n2,5e-1,y,7\r\n",
        encoding="utf-8",
    )
    for path in (lines, table):
        requests = read_requests(path)
        assert requests.arrival_seconds.tolist() == [0.5, 2.0]
        assert requests.prompt_tokens.tolist() == [7, 9]
        assert requests.output_tokens.tolist() == [2, 3]


JUNK_LINES = {
    "nothing": "",
    "blank": "\n\n",
    "text": "hello",
    "list": "[1, 2, 3]",
    "a number": "3",
    "cut": GOOD[:-5],
    "deep": "[" * 50_000,
    "long": " " * 70_000 + GOOD,
    "digits": GOOD.replace("7", "7" * 5000),
    "infinite": GOOD.replace("0.5", "1e999"),
    "NaN": GOOD.replace("0.5", "NaN"),
    "negative": GOOD.replace("0.5", "-0.5"),
    "text for a number": GOOD.replace("7", '"7"'),
    "a fraction": GOOD.replace("7", "7.0"),
    "true": GOOD.replace("7", "true"),
    "none": GOOD.replace("7", "0"),
    "missing": GOOD.replace("prompt", "input"),
    "twice": GOOD.replace("{", '{"prompt_tokens": 3, '),
    "second line": GOOD + "\n{}",
}


@pytest.mark.parametrize("text", JUNK_LINES.values(), ids=JUNK_LINES)
def test_lines_that_are_no_requests_are_refused(text, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"r\.jsonl"):
        read_requests(path)


HEAD = "arrival_seconds,prompt_tokens,output_tokens\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEAD,
        "1,2,3\n",
        HEAD.replace("prompt", "output"),
        HEAD + "1,2\n",
        HEAD + "1,2,3,4\n",
        HEAD + "1,2,\n",
        HEAD + "1,2.5,3\n",
        HEAD + "inf,2,3\n",
        HEAD + "1,x,3\n",
        HEAD + "1," + "9" * 5000 + ",3\n",
        HEAD + '"' + "1\n" * 90_000,
    ],
)
def test_tables_that_have_no_requests_are_refused(text, tmp_path):
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"r\.csv"):
        read_requests(path)


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv"])
@given(content=st.binary(max_size=300))
def test_any_bytes_are_requests_or_refused(content, name, tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(content)
    with pytest.raises(FormatError):
        read_requests(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in (".", "missing.csv", "pipe.jsonl", "a\0b"):
        with pytest.raises(FormatError):
            read_requests(tmp_path / name)


def test_even_arrivals():
    assert evenly(3, requests_per_second=4).tolist() == [0, 0.25, 0.5]


def test_poisson_arrivals_have_independent_exponential_gaps():
    gaps = np.diff(poisson(100_000, requests_per_second=20, seed=1))
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.02)
    assert gaps.std() == pytest.approx(1 / 20, rel=0.02)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.02


def bursty(num_requests=200_000, **changes):
    given = {
        "calm_requests_per_second": 5,
        "burst_requests_per_second": 50,
        "calm_seconds": 9,
        "burst_seconds": 1,
    }
    return bursts(num_requests, **given | changes)


def test_bursts_have_the_mean_rate_and_the_dispersion_of_two_rates():
    arrival = bursty()
    assert (np.diff(arrival) >= 0).all()
    assert len(arrival) / arrival[-1] == pytest.approx(5 * 0.9 + 50 * 0.1, rel=0.03)
    # Variance over mean of counts in long windows, from the two-state process's autocovariance.
    counts = np.bincount((arrival / 50).astype(int))[:-1]
    relaxation = 1 / (1 / 9 + 1 / 1)
    long = 0.9 * 0.1 * 45**2 * 2 * relaxation / 9.5
    expected = 1 + long * (1 - relaxation / 50)
    assert counts.var() / counts.mean() == pytest.approx(expected, rel=0.1)


def test_bursts_of_one_rate_are_poisson_and_nothing_arrives_at_rate_zero():
    same = bursty(50, calm_requests_per_second=50)
    assert same == pytest.approx(poisson(50, requests_per_second=50))
    gaps = np.diff(bursty(20_000, calm_requests_per_second=0))
    assert np.sort(gaps)[-300:].mean() > 9
    assert np.median(gaps) < 1 / 40


def test_too_many_bursts_are_refused():
    with pytest.raises(EquipoiseError, match="bursts"):
        bursty(calm_seconds=1e-6, burst_seconds=1e-6)


def test_lognormal_lengths():
    tokens = lognormal_tokens(100_000, median=300, sigma=0.5, highest=10_000)
    assert np.median(tokens) == pytest.approx(300, rel=0.02)
    assert np.log(tokens).std() == pytest.approx(0.5, rel=0.02)
    clipped = lognormal_tokens(1000, median=300, sigma=3, lowest=20, highest=900)
    assert (clipped.min(), clipped.max()) == (20, 900)
    assert lognormal_tokens(9, median=300, sigma=0, highest=900).tolist() == [300] * 9


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: poisson(50, requests_per_second=3, seed=seed),
        lambda seed: bursty(50, seed=seed),
        lambda seed: lognormal_tokens(50, median=100, sigma=1, highest=999, seed=seed),
    ],
)
def test_equal_seeds_give_equal_requests(make):
    assert np.array_equal(make(1), make(1))
    assert not np.array_equal(make(1), make(2))
    with pytest.raises(EquipoiseError):
        make(-1)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1e9, "1"])
def test_rates_that_are_none_are_refused(rate):
    for make in (evenly, poisson):
        with pytest.raises(EquipoiseError, match="requests_per_second"):
            make(3, requests_per_second=rate)

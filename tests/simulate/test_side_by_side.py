from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.errors import EquipoiseError
from equipoise.simulate.arrivals import poisson
from equipoise.simulate.batching import Pool
from equipoise.simulate.requests import Requests
from equipoise.simulate.serving import Slo, serve
from equipoise.simulate.side_by_side import SideBySide
from equipoise.simulate.step_time import LinearStepTime

REQUESTS = Requests(
    arrival_seconds=poisson(400, requests_per_second=20), prompt_tokens=50, output_tokens=20
)
SLO = Slo(ttft_seconds=0.1, tpot_seconds=0.02)
STEPS = 0.01 + 0.001 * np.random.default_rng(0).random(40)


def served(requests=REQUESTS, **times):
    step_time = LinearStepTime(**{"fixed_seconds": 0.01} | times)
    pool = Pool(
        step_time=step_time, num_ranks=1, max_sequences=64, max_tokens=512, kv_tokens=100_000
    )
    return serve(requests, pool)


def compared(after, step_after=0.9 * STEPS, **changes):
    given = {"before": served(), "after": after, "slo": SLO}
    return SideBySide(**given | {"step_before": STEPS, "step_after": step_after} | changes)


def test_shorter_steps_are_better_and_longer_ones_worse():
    better = compared(served(fixed_seconds=0.008))
    assert better.kind == "better"
    assert better.step_gain == pytest.approx(0.1)
    assert "mean TPOT 8 ms against 10 ms (20.0% shorter)" in better.text
    worse = compared(served(fixed_seconds=0.015))
    assert worse.kind == "worse"
    assert "mean TPOT 15 ms against 10 ms (50.0% longer)" in worse.text


def test_the_same_is_no_difference_and_less_than_a_percent_too():
    before = served()
    for after in (before, served(fixed_seconds=0.00999)):
        result = compared(after, before=before)
        assert result.kind == "no difference"
        assert result.text.startswith("no difference: mean TTFT")


def test_what_helps_tokens_and_harms_prompts_is_mixed():
    mixed = compared(served(fixed_seconds=0.004, token_seconds=3e-4))
    assert mixed.kind == "mixed"
    assert mixed.text.startswith("mixed: better in mean TPOT")
    assert "but worse in mean TTFT" in mixed.text


def test_a_gain_that_the_recording_does_not_show_is_no_gain():
    after = served(fixed_seconds=0.008)
    noisy = STEPS * np.random.default_rng(1).normal(1, 0.2, len(STEPS))
    for step_after, doubt in ((noisy, "a step gets shorter by -"), (STEPS, "0.0% to 0.0%")):
        result = compared(after, step_after)
        assert result.kind == "insufficient evidence"
        assert doubt in result.text
    few = compared(after, 0.9 * STEPS[:4], step_before=STEPS[:4])
    assert few.kind == "insufficient evidence"
    assert "4 recorded steps cannot tell" in few.text
    one = compared(after, 0.9 * STEPS[:1], step_before=STEPS[:1])
    assert "1 recorded step cannot tell" in one.text


def test_a_loss_needs_no_evidence():
    few = compared(served(fixed_seconds=0.015), STEPS[:1], step_before=STEPS[:1])
    assert few.kind == "worse"


def test_requests_within_the_slo_count():
    slow = compared(served(fixed_seconds=0.03))
    share = slow.measures[2]
    assert (share.before, share.after, share.kind) == (1, 0, "worse")
    assert share.text == "share of requests within the SLO 0.0% against 100.0% (100.0% less)"


def test_answers_of_one_token_have_no_tpot():
    single = replace(REQUESTS, output_tokens=np.ones(400, np.int64))
    result = compared(
        served(single, fixed_seconds=0.008), before=served(single), step_after=0.9 * STEPS
    )
    assert [m.name for m in result.measures] == ["mean TTFT", "share of requests within the SLO"]
    assert result.kind == "better"


def test_other_requests_are_refused():
    with pytest.raises(EquipoiseError, match="do not compare"):
        compared(served(replace(REQUESTS, output_tokens=np.full(400, 20))))

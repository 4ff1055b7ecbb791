from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from equipoise.control.exposition import Samples, grown, grown_buckets, quantile
from equipoise.control.metrics import Metrics
from equipoise.errors import FormatError

TEXT = """\
# HELP vllm:steps Steps.
# TYPE vllm:steps histogram
vllm:steps_bucket{le="0.5",rank="0"} 2
vllm:steps_bucket{le="+Inf",rank="0"} 3 1700000000000
vllm:steps_bucket{rank="1", le="0.5",} 1.0
vllm:steps_bucket{rank="1",le="+Inf"} 1e0

names{of="a \\"quoted\\" one, {braced} \\\\ and\\nmore"} -4
none NaN
endless +Inf
absurd 1e300
"""


def test_samples_are_asked_for_by_name_and_labels():
    samples = Samples(TEXT)
    assert samples.total("vllm:steps_bucket", le="0.5") == 3
    assert samples.by("vllm:steps_bucket", "rank", le="+Inf") == {"0": 3, "1": 1}
    assert samples.buckets("vllm:steps", rank="0") == ((0.5, 2), (math.inf, 3))
    assert samples.values("names", "of") == ['a "quoted" one, {braced} \\ and\nmore']
    assert samples.total("nobody") is None
    assert samples.names == {"vllm:steps_bucket", "names"}, "what is no number is left out"


def test_it_reads_what_the_client_of_prometheus_reads():
    metrics = Metrics()
    metrics.take_info(version="1", model='a "b" \\ {c} \u2028 d', dispatch="even", planner="eplb")
    metrics.take_step(0.25, tokens=3, stall_seconds=0.5)
    metrics.take_ranks(4, 0.0, wanted=4, process="p0", rank=0)
    text = metrics.text()
    ours = Samples(text)
    theirs = [s for family in text_string_to_metric_families(text) for s in family.samples]
    assert {s.name for s in theirs} == ours.names
    for sample in theirs:
        assert ours.total(sample.name, **sample.labels) == sample.value


@pytest.mark.parametrize(
    "line",
    ["<html>", "ranks", "ranks four", "ranks{a} 1", 'ranks{a="b} 1', 'ranks{a="b"c="d"} 1',
     "ranks 1 2 3", "4 4"],
)  # fmt: skip
def test_what_is_no_sample_is_refused_by_its_line(line):
    with pytest.raises(FormatError, match="line 2 is not in Prometheus's text format: "):
        Samples(f"fine 1\n{line}\n")


def test_an_answer_of_too_many_samples_is_refused():
    with pytest.raises(FormatError, match="it has more than 262,144 samples"):
        Samples("a 1\n" * (1 << 19))


@given(st.text() | st.text(alphabet='ab_{}="\\#, 0123\n'))
@example('a{b="\\"} 1')
@example("a{" + "x" * 5000)
@example("a{" + 'b="",' * 5000 + "} 1")
@example("a{" + "} " * 5000)
def test_any_text_is_read_or_refused(text):
    try:
        samples = Samples(text)
    except FormatError as error:
        said = str(error)
    else:
        said = "".join(f"{samples.total(name):g}" for name in samples.names)
    assert said.isprintable()


def test_a_counter_that_began_again_has_grown_by_all_of_it():
    assert (grown(5.0, 2.0), grown(2.0, 5.0), grown(2.0, None), grown(None, 2.0)) == (3, 2, 2, 0)
    before, now = ((1.0, 4.0), (math.inf, 6.0)), ((1.0, 5.0), (math.inf, 9.0))
    assert grown_buckets(now, before) == ((1.0, 1.0), (math.inf, 3.0))
    assert grown_buckets(before, now) == before


def test_a_quantile_lies_in_its_bucket():
    buckets = ((1.0, 50.0), (2.0, 100.0), (math.inf, 100.0))
    assert quantile(buckets, 0.5) == 1.0
    assert quantile(buckets, 0.75) == 1.5
    assert quantile(((1.0, 0.0), (math.inf, 4.0)), 0.99) == 1.0
    assert quantile((), 0.99) is None

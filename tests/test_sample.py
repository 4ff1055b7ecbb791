"""The recording that ships with the package is what its documentation says."""

from __future__ import annotations

import numpy as np
import pytest

import equipoise as eq


@pytest.fixture(scope="module")
def trace():
    return eq.read_trace(eq.sample_trace_path())


def test_size_and_content(trace):
    assert eq.sample_trace_path().stat().st_size < 3_000_000
    assert (trace.num_layers, trace.num_experts, trace.top_k) == (5, 32, 4)
    assert set(trace.labels["phase"]) == {"prefill", "decode"}
    assert len(set(trace.labels["domain"])) == 6


def test_counts_are_those_of_the_tokens(trace):
    again = eq.Trace.from_tokens(trace.tokens.ids, trace.tokens.offsets, num_experts=32)
    assert (again.counts == trace.counts).all()


def test_domains_load_different_experts(trace):
    """Halves of a domain correlate, domains do not: the router has specialised."""
    halves = {}
    for domain in dict.fromkeys(trace.labels["domain"].tolist()):
        counts = trace.select(domain=domain).counts.astype(np.int64)
        middle = len(counts) // 2
        halves[domain] = (counts[:middle].sum(axis=0), counts[middle:].sum(axis=0))

    def correlation(one, other):
        return np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one, other, strict=True)])

    within = [correlation(*pair) for pair in halves.values()]
    names = list(halves)
    between = [correlation(halves[a][0], halves[b][1]) for a in names for b in names if a != b]
    assert min(within) > 0.6
    assert np.mean(between) < 0.2
    assert np.mean(within) - np.mean(between) > 0.6

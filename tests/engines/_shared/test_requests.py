from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.engines._shared.requests import Request, trace_of_requests
from equipoise.engines.formats import TraceOptions
from equipoise.errors import EquipoiseError
from equipoise.trace import Provenance, Trace

FROM = Provenance("test", "here")


def request(number: int, prompt: int | None, generated: int, domain: str = "") -> Request:
    """A request whose tokens can be told: of token d the experts are (number, 100 + d)."""
    rows = (prompt or 0) + generated
    ids = np.stack([np.full(rows, number), 100 + np.arange(rows)], axis=1)[:, None, :]
    return Request(f"r{number}", ids, prompt, domain)


def read(requests: list[Request], together: int | None = None) -> Trace:
    return trace_of_requests(requests, TraceOptions(window_tokens=together), FROM)


def steps(trace: Trace) -> list[list[tuple[int, int]]]:
    """The (request, token) pairs of every step."""
    return [
        [(int(a), int(b) - 100) for a, b in trace.tokens.of_step(t)[:, 0]]
        for t in range(trace.num_steps)
    ]


def test_a_request_is_its_prompt_and_what_it_generated():
    trace = read([request(0, 2, 2), request(1, 1, 0), request(2, 0, 1)])
    assert steps(trace) == [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(1, 0)], [(2, 0)]]
    assert trace.labels["phase"].tolist() == ["prefill", "decode", "prefill", "decode"]
    assert trace.labels["request"].tolist() == ["r0", "r0", "r1", "r2"]
    assert "Each request is two steps" in trace.provenance.notes[0]


def test_unknown_prompts_leave_requests_whole():
    trace = read([request(0, 2, 1), request(1, None, 2)])
    assert [len(step) for step in steps(trace)] == [3, 2]
    assert "phase" not in trace.labels
    by_window = read(
        [request(0, None, 3, "b"), request(1, None, 2, "a"), request(2, None, 2, "b")], 2
    )
    assert steps(by_window) == [[(0, 0), (0, 1)], [(0, 2), (2, 0)], [(2, 1)], [(1, 0), (1, 1)]]
    assert by_window.labels["domain"].tolist() == ["b", "b", "b", "a"]


def served(requests: list[tuple[int, int]], together: int) -> list[list[tuple[int, int]]]:
    """What a server does, in a plain loop: fill free places, then give each place a token."""
    waiting, running, done = list(range(len(requests))), {}, []
    while waiting or running:
        for place in range(together):
            if place not in running and waiting:
                number = waiting.pop(0)
                running[place] = [number, 0]
                done += [[(number, d) for d in range(requests[number][0])]]
        step = []
        for place, (number, made) in list(running.items()):
            prompt, generated = requests[number]
            if made < generated:
                step.append((number, prompt + made))
                running[place][1] += 1
            if made + 1 >= generated:
                del running[place]
        done.append(sorted(step))
    return [step for step in done if step]


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), min_size=1, max_size=6),
    st.integers(1, 4),
)
def test_requests_run_together_as_in_a_server(lengths, together):
    trace = read([request(i, *each) for i, each in enumerate(lengths)], together)
    assert steps(trace) == served(lengths, together)
    assert "request" not in trace.labels
    assert f"decoded {together} at a time" in trace.provenance.notes[0]


def test_domains_do_not_share_a_step():
    trace = read([request(0, 1, 2, "a"), request(1, 1, 2, "b"), request(2, 1, 1, "a")], 2)
    assert trace.labels["domain"].tolist() == ["a"] * 4 + ["b"] * 3
    assert [len(step) for step in steps(trace)] == [1, 1, 2, 1, 1, 1, 1]


def test_no_place_at_all_is_refused():
    with pytest.raises(EquipoiseError, match="window_tokens is 0"):
        read([request(0, 1, 1)], 0)

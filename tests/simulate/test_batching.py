from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.simulate.batching import Pool, Work, run
from equipoise.simulate.step_time import LinearStepTime

SECOND = LinearStepTime(fixed_seconds=1.0)


@dataclass
class Recorded:
    """Linear step time that keeps what it was asked."""

    calls: list[tuple[list[int], list[int], list[int]]] = field(default_factory=list)

    def seconds(self, step, prefill_tokens, sequences, context_tokens):
        assert step == len(self.calls)
        self.calls.append((prefill_tokens.tolist(), sequences.tolist(), context_tokens.tolist()))
        return 1.0


def pool(step_time=SECOND, **changes):
    limits = {"max_sequences": 4, "max_tokens": 8, "kv_tokens": 100}
    return Pool(step_time=step_time, **limits | changes)


def work(arrival, prompt, decode_steps, cached=0):
    n = len(arrival)
    return Work(
        arrival_seconds=np.array(arrival, float),
        cached_tokens=np.broadcast_to(cached, n).astype(np.int64),
        prompt_tokens=np.broadcast_to(prompt, n).astype(np.int64),
        decode_steps=np.broadcast_to(decode_steps, n).astype(np.int64),
    )


def test_a_prompt_is_cut_and_its_answer_grows_the_context():
    model = Recorded()
    timeline = run(pool(model), work([0.0], 19, 2))
    assert model.calls == [
        ([8], [0], [0]),
        ([8], [0], [8]),
        ([3], [0], [16]),
        ([0], [1], [19]),
        ([0], [1], [20]),
    ]
    assert timeline.prompt_done == [3.0]
    assert timeline.finished == [5.0]


def test_sequences_come_first_and_prompts_get_what_is_left():
    model = Recorded()
    run(pool(model, max_tokens=4), work([0.0, 0.0, 1.5], [2, 2, 9], 9))
    assert model.calls[0] == ([4], [0], [0])
    assert model.calls[1] == ([0], [2], [4])
    assert [call[0][0] for call in model.calls[2:8]] == [2, 2, 2, 2, 1, 0]
    assert [call[1][0] for call in model.calls[2:8]] == [2, 2, 2, 2, 2, 3]


def test_whole_prompts_hold_up_the_sequences_of_all_ranks():
    model = Recorded()
    ranks = pool(model, num_ranks=2, chunked_prefill=False)
    run(ranks, work([0.0, 0.5, 1.5], [5, 8, 6], 3))
    assert model.calls[:4] == [
        ([5, 0], [0, 0], [0, 0]),
        ([0, 8], [0, 0], [0, 0]),
        ([6, 0], [0, 0], [0, 0]),
        ([0, 0], [2, 1], [11, 8]),
    ]


def test_requests_go_to_the_rank_with_the_fewest_and_have_room():
    model = Recorded()
    run(pool(model, num_ranks=3, kv_tokens=10), work([0.0] * 4, [9, 2, 2, 2], 1))
    assert model.calls[0][0] == [8, 4, 2]  # the last one no longer fits on rank 0


def test_the_first_without_room_holds_up_all_behind_it():
    timeline = run(pool(kv_tokens=10), work([0.0, 0.0, 0.0], [6, 5, 1], 1))
    assert timeline.admitted.tolist() == [0.0, 2.0, 2.0]


def test_no_more_sequences_than_allowed():
    timeline = run(pool(max_sequences=2), work([0.0] * 5, 1, 3))
    assert timeline.admitted.tolist() == [0.0, 0.0, 4.0, 4.0, 8.0]
    assert timeline.steps.sequences.max() == 2


def test_a_pool_waits_for_what_arrives_next():
    timeline = run(pool(), work([2.5, 10.25], 3, 0))
    assert timeline.admitted.tolist() == [2.5, 10.25]
    assert timeline.finished.tolist() == [3.5, 11.25]
    assert timeline.steps.start.tolist() == [2.5, 10.25]


def test_what_is_cached_is_not_computed_but_read():
    model = Recorded()
    run(pool(model), work([0.0, 0.0], [0, 4], 1, cached=[7, 3]))
    assert model.calls == [([4], [1], [10]), ([0], [1], [7])]


@pytest.mark.parametrize(
    ("given", "change", "said"),
    [
        (work([0.0], 90, 11), {}, "needs 101 tokens of the cache"),
        (work([0.0], 9, 1), {"chunked_prefill": False}, "A prompt has 9 tokens"),
    ],
)
def test_requests_that_never_fit_are_refused(given, change, said):
    with pytest.raises(EquipoiseError, match=said):
        run(pool(**change), given)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, -1.0, float("nan"), float("inf")])
def test_steps_without_a_time_are_refused(seconds):
    class Broken:
        def seconds(self, *_):
            return seconds

    with pytest.raises(EquipoiseError, match="Step 0 takes"):
        run(pool(Broken()), work([0.0], 1, 1))


@pytest.mark.parametrize(
    "limits",
    [
        {"num_ranks": 0},
        {"max_sequences": 0},
        {"max_sequences": 9},
        {"max_tokens": 8.0},
        {"kv_tokens": 0},
        {"chunked_prefill": 1},
    ],
)
def test_limits_that_are_none_are_refused(limits):
    with pytest.raises(EquipoiseError):
        pool(**limits)


def plain_times(ranks, given):
    """The same rules with a list of requests for each rank, looked at in every step."""
    requests = [
        {"left": int(p), "cached": int(c), "to_come": int(d), "need": int(c + p + d)}
        for c, p, d in zip(
            given.cached_tokens, given.prompt_tokens, given.decode_steps, strict=True
        )
    ]
    arrival = given.arrival_seconds.tolist()
    on_rank = [[] for _ in range(ranks.num_ranks)]
    finished, now, step, waiting = {}, 0.0, 0, list(range(len(requests)))

    def leave(member):
        return not requests[member]["left"] and not requests[member]["to_come"]

    while len(finished) < len(requests):
        if not any(on_rank):
            now = max(now, arrival[waiting[0]])
        while waiting and arrival[waiting[0]] <= now:
            need = requests[waiting[0]]["need"]
            fits = [
                (len(members), r)
                for r, members in enumerate(on_rank)
                if len(members) < ranks.max_sequences
                and sum(requests[m]["need"] for m in members) + need <= ranks.kv_tokens
            ]
            if not fits:
                break
            on_rank[min(fits)[1]].append(waiting.pop(0))
        computed = {}
        for members in on_rank:
            room = ranks.max_tokens
            if ranks.chunked_prefill:
                room -= sum(not requests[m]["left"] for m in members)
            for m in members:
                tokens = requests[m]["left"]
                if tokens > room:
                    tokens = room if ranks.chunked_prefill else 0
                if requests[m]["left"] and not tokens:
                    break
                if tokens:
                    computed[m] = tokens
                    room -= tokens
        pauses = bool(computed) and not ranks.chunked_prefill
        decoded = [m for members in on_rank for m in members if not requests[m]["left"]]
        decoded = [] if pauses else decoded
        rows = np.zeros((3, ranks.num_ranks), np.int64)
        for r, members in enumerate(on_rank):
            rows[0, r] = sum(computed.get(m, 0) for m in members)
            rows[1, r] = sum(m in decoded for m in members)
            active = [m for m in members if m in computed or m in decoded]
            rows[2, r] = sum(requests[m]["cached"] for m in active)
        now += ranks.step_time.seconds(step, *rows)
        step += 1
        for m in decoded:
            requests[m]["to_come"] -= 1
            requests[m]["cached"] += 1
        for m, tokens in computed.items():
            requests[m]["left"] -= tokens
            requests[m]["cached"] += tokens
        for members in on_rank:
            for m in [m for m in members if leave(m)]:
                finished[m] = now
                members.remove(m)
    return [finished[m] for m in range(len(requests))], step


@st.composite
def systems(draw):
    n = draw(st.integers(1, 12))
    whole = draw(st.booleans())
    arrival = np.cumsum(draw(st.lists(st.sampled_from([0.0, 0.25, 3.0]), min_size=n, max_size=n)))
    prompt = draw(st.lists(st.integers(1, 8), min_size=n, max_size=n))
    steps = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    cached = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    model = LinearStepTime(
        fixed_seconds=0.5,
        token_seconds=0.125,
        sequence_seconds=0.25,
        context_token_seconds=draw(st.sampled_from([0.0, 0.0625])),
    )
    max_sequences = draw(st.integers(1, 5))
    ranks = Pool(
        step_time=model,
        num_ranks=draw(st.integers(1, 3)),
        max_sequences=max_sequences,
        max_tokens=8 if whole else draw(st.integers(max_sequences, 9)),
        kv_tokens=draw(st.integers(17, 60)),
        chunked_prefill=not whole,
    )
    return ranks, work(arrival, prompt, steps, cached)


@given(systems())
def test_times_are_those_of_the_plain_rules(system):
    ranks, given_work = system
    timeline = run(ranks, given_work)
    finished, num_steps = plain_times(ranks, given_work)
    assert timeline.finished.tolist() == finished
    assert len(timeline.steps.start) == num_steps


@given(systems())
def test_no_token_is_lost_and_time_goes_on(system):
    ranks, given_work = system
    timeline = run(ranks, given_work)
    steps = timeline.steps
    assert steps.prefill_tokens.sum() == given_work.prompt_tokens.sum()
    assert steps.sequences.sum() == given_work.decode_steps.sum()
    assert (steps.prefill_tokens + steps.sequences <= ranks.num_ranks * ranks.max_tokens).all()
    assert (timeline.admitted >= given_work.arrival_seconds).all()
    assert (timeline.prompt_done >= timeline.admitted).all()
    assert (timeline.finished >= timeline.prompt_done).all()
    assert (np.diff(timeline.admitted) >= 0).all()
    ends = steps.start + steps.seconds
    assert (ends[:-1] <= steps.start[1:]).all()
    again = run(ranks, given_work)
    assert again.finished.tobytes() == timeline.finished.tobytes()

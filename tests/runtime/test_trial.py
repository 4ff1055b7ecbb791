from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from equipoise.runtime.serving.trial import Told, Verdict, judge


def test_nothing_is_tried_while_nothing_breaks():
    assert judge([Told((1, 2)), Told((3,))]) == Verdict()


def test_what_all_ranks_were_at_is_halved():
    told = [Told((4, 1)), Told((), broke="it is full"), Told((2,))]
    assert judge(told) == Verdict(((1,), (2, 4)), blamed=True, heard=1)


def test_one_that_breaks_a_pass_alone_is_the_culprit():
    groups = ((7,), (8, 9))
    told = [Told((7,), groups), Told((), groups, broke="it is full")]
    verdict = judge(told)
    assert (verdict.culprit, verdict.groups) == (7, ((8, 9),))
    assert verdict.reason == "A forward pass that served nothing else broke off: it is full"


def test_a_pass_that_breaks_with_nothing_in_it_is_nobodys_doing():
    assert not judge([Told(broke="a defect"), Told()]).blamed


def test_a_rank_that_was_cut_off_before_the_next_group_and_one_that_is_new_hear_the_same():
    ahead, behind = ((8, 9),), ((7,), (8, 9))
    assert judge([Told((8,), ahead), Told((), behind), Told()]) == Verdict(behind)


def test_a_break_is_judged_once_also_if_the_rank_that_broke_was_cut_off_before_it_heard():
    groups = ((7,), (8, 9))
    first = judge([Told((7, 8, 9), broke="it is full")])
    assert (first.groups, first.heard) == (groups, 1)
    after = judge([Told((7,), groups, heard=1), Told((8, 9), broke="it is full")])
    assert after == Verdict(groups, heard=1)


def test_what_a_rank_is_at_that_was_not_there_is_not_suspected():
    there = Told((1, 2), broke="it is full", heard=3)
    assert judge([there, Told((5, 6), heard=2)]).groups == ((1,), (2,))


@given(
    st.lists(st.lists(st.integers(0, 200), max_size=6), min_size=1, max_size=4),
    st.sets(st.integers(0, 200)),
    st.integers(0, 3),
)
def test_those_are_found_that_break_passes_and_all_others_are_served(parts, bad, teller):
    """Ranks with requests, some of which break every pass they are in, wherever it is noticed."""
    numbers = sorted({number for part in parts for number in part})
    owner = {number: index for index, part in enumerate(parts) for number in part}
    bad &= set(numbers)
    groups, running, failed, served, broken = (), set(numbers), set(), set(), 0
    while running or groups:
        group = running if not groups else set(groups[0]) - failed
        if group & bad:
            broken += 1
            told = [
                Told(
                    tuple(n for n in sorted(group) if owner[n] == rank),
                    groups,
                    "broken" if rank == teller % len(parts) else "",
                    broken - 1,
                )
                for rank in range(len(parts))
            ]
            verdict = judge(told)
            assert verdict.blamed
            groups = verdict.groups
            failed |= set() if verdict.culprit is None else {verdict.culprit}
        else:
            served |= group
            groups = groups[1:]
        running = set()
    assert failed == bad
    assert served == set(numbers) - bad
    most = max(len(numbers), 1).bit_length() + 1
    assert broken <= most * len(bad)

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from equipoise.control.messages import PeerError
from equipoise.errors import EquipoiseError
from equipoise.runtime.members.board import Board, Watch
from equipoise.runtime.members.membership import Membership
from tests.runtime.members import Members

SECRET = "a secret that members share"
PATIENT = {"silence_seconds": 30.0}  # where nobody dies, a busy machine shall not look like a death


@pytest.fixture
def members() -> Iterator[Members]:
    members = Members()
    yield members
    members.close()


@pytest.mark.parametrize("store", ["tcp", "file"])
def test_the_first_epoch_and_a_death_at_rest(store: str, tmp_path: Path):
    members = Members(tmp_path if store == "file" else None)
    members.start(0, 1, 2, expected=3, how="rest")
    first = members.together(0, 1, 2)
    assert first.number == 1
    assert first.previous == (-1, -1, -1)
    assert sorted(members.formed[n][0].rank for n in range(3)) == [0, 1, 2]
    assert sorted(name[:3] for name in first.members) == ["m0-", "m1-", "m2-"]
    dead = first.members.index(next(name for name in first.members if name.startswith("m1-")))
    members.kill(1)
    after = members.together(0, 2)
    assert after.members == tuple(name for name in first.members if not name.startswith("m1-"))
    assert after.previous == tuple(rank for rank in range(3) if rank != dead)
    ends = [members.ends[number][-1] for number in (0, 2)]  # one may hear of it from the other
    assert any("no sign of life of m1-" in end for end in ends)
    members.close()


@pytest.mark.parametrize("how", ["gather", "all_to_all", "thread"])
def test_whoever_waits_for_one_that_is_killed_is_released(members: Members, how: str):
    members.start(0, 1, 2, 3, expected=4, how=how)
    members.together(0, 1, 2, 3)
    members.send(1, "stall")
    time.sleep(0.2)
    members.kill(1)
    members.together(0, 2, 3)
    assert all("raised" in members.ends[n] for n in (0, 2, 3))


@pytest.mark.parametrize("how", ["gather", "thread"])
def test_one_that_is_stopped_is_left_behind_and_comes_back(members: Members, how: str):
    members.start(0, 1, 2, expected=3, how=how)
    members.together(0, 1, 2)
    members.stop(1)
    without = members.together(0, 2)
    members.resume(1)
    again = members.together(0, 1, 2)
    assert again.number > without.number
    assert again.members[:2] == without.members
    assert again.members[2].startswith("m1-")


def test_a_planned_exit_and_a_newcomer_break_nothing(members: Members):
    members.start(0, 1, 2, expected=3, **PATIENT)
    members.together(0, 1, 2)
    members.send(0, "leave")
    rest = members.together(1, 2)
    assert rest.number == 2
    members.until(0, "closed")
    members.start(3, **PATIENT)
    full = members.together(1, 2, 3)
    assert full.number == 3
    assert full.members[:2] == rest.members
    assert members.ends[1] == members.ends[2] == ["over: None"] * 2


def test_two_deaths_at_once_rank_0_among_them(members: Members):
    members.start(0, 1, 2, 3, expected=4)
    first = members.together(0, 1, 2, 3)
    dead = [int(name[1]) for name in first.members[:2]]
    members.kill(*dead)
    members.together(*({0, 1, 2, 3} - set(dead)))


@pytest.mark.parametrize("how", ["dies proposing", "dies having proposed", "dies connecting"])
def test_a_death_while_an_epoch_is_formed(members: Members, how: str):
    members.start(0, expected=3, how=how)
    time.sleep(0.3)  # so that it comes first and leads
    members.start(1, 2, expected=3)
    board = Board(members.store)
    while how != "dies proposing" and board.latest()[0] == 0:
        time.sleep(0.01)
    members.start(3, expected=3)  # one that has not failed to make a group, as the others have
    formed = members.together(1, 2, 3)
    assert how == "dies proposing" or formed.number > 1


def test_regrouping_leaves_nothing_behind(members: Members):
    members.start(0, 1, expected=2, **PATIENT)
    first = members.together(0, 1)
    leader = int(first.members[0][1])
    for number in range(2, 14):
        members.send(leader, "regroup")
        members.together(0, 1, least=number)
    epochs = members.formed[leader]
    early, late = epochs[2:5], epochs[-3:]  # a thread that is about to end may be counted once
    assert min(epoch.threads for epoch in late) <= min(epoch.threads for epoch in early)
    assert min(epoch.files for epoch in late) <= min(epoch.files for epoch in early)


def test_one_that_lives_and_does_not_come_is_left_out(members: Members):
    members.start(0, 1, 2, expected=3, timeout_seconds=8, **PATIENT)
    first = members.together(0, 1, 2)
    leader, other, last = (int(name[1]) for name in first.members)
    members.send(last, "stall")
    time.sleep(0.2)
    members.send(leader, "regroup")
    assert members.together(leader, other).number == 2


def test_a_spare_group_is_renewed_while_a_thread_waits_in_it(members: Members):
    members.start(0, 1, expected=2, **PATIENT)
    first = members.together(0, 1)
    members.send(int(first.members[0][1]), "renew")
    for number in range(2):
        members.until(number, "['released'] 2")


def test_a_lost_store_ends_the_epoch_with_an_error(members: Members):
    members.start(0, 1, expected=2)
    members.together(0, 1)
    members.store = None
    members.until(0, "The store does not answer")
    members.until(1, "The store does not answer")


def test_whoever_has_not_the_secret_gets_in_nowhere_and_disturbs_nobody(members: Members):
    members.start(0, 1, expected=2, secret=SECRET, **PATIENT)
    first = members.together(0, 1)
    board = dist.PrefixStore("equipoise", members.store)
    for key in ("name/3", "name/4", "members/2"):
        board.set(key, 'what is "not" signed')
    members.start(2, **PATIENT)
    members.start(3, secret="another secret of theirs", **PATIENT)
    for number in (2, 3):
        members.until(number, "is refused: the processes that serve at this store have another")
    assert (members.formed[2], members.formed[3]) == ([], [])
    assert [len(members.formed[number]) for number in (0, 1)] == [1, 1]
    assert members.ends[0] == members.ends[1] == []
    members.start(4, secret=SECRET, **PATIENT)
    whole = members.together(0, 1, 4)
    assert whole.members[:2] == first.members
    assert whole.number == 3  # somebody had written under 2


def test_a_forged_list_that_comes_first_is_no_group(members: Members):
    dist.PrefixStore("equipoise", members.store).set("members/1", '- ["m0-00000000"]')
    members.start(0, secret=SECRET)
    members.until(0, "is refused")


def churn(members: Members, seed: int, changes: int) -> None:
    """Kill, stop, resume and start at random, faster than the others can regroup."""
    draw = random.Random(seed)
    live, stopped, next_number = {0, 1, 2}, set(), 3
    members.start(0, 1, 2, expected=3, how=draw.choice(["gather", "rest", "thread"]))
    members.together(0, 1, 2)
    for _ in range(changes):
        change = draw.choice(["kill", "start", "stop", "resume"])
        if change == "kill" and len(live) > 2:
            victim = draw.choice(sorted(live))
            members.kill(victim)
            live.remove(victim)
            stopped.discard(victim)
        elif change == "start" and len(live) < 5:
            members.start(next_number)
            live.add(next_number)
            next_number += 1
        elif change == "stop" and len(live - stopped) > 1:
            victim = draw.choice(sorted(live - stopped))
            members.stop(victim)
            stopped.add(victim)
        elif change == "resume" and stopped:
            members.resume(stopped.pop())
        members.listen(0.01)
        time.sleep(draw.expovariate(1.0))
    for victim in stopped:
        members.resume(victim)
    members.together(*live)


def test_never_two_lists_of_members_for_a_number(members: Members):
    churn(members, seed=1, changes=6)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 14))
def test_never_two_lists_of_members_for_a_number_at_length(members: Members, seed: int):
    churn(members, seed, changes=15)


def test_a_form_without_others_gives_up_and_can_be_called_again():
    store = dist.HashStore()
    membership = Membership(store, "alone", timeout_seconds=0.2)
    with pytest.raises(EquipoiseError, match="no process group to renew"):
        membership.renew_spare()
    with pytest.raises(EquipoiseError, match=r"alone-.* got into no process group in 0\.2 s"):
        membership.form(expected=2)
    epoch = membership.form(expected=1)
    assert (epoch.number, epoch.members, epoch.rank) == (1, (membership.name,), 0)
    assert (membership.failed, membership.newcomers, membership.departures) == (None, False, False)
    membership._term.fail("a member has died, and this process does not know yet")
    with pytest.raises(PeerError, match="The epoch is over: a member has died"):
        membership.renew_spare()
    membership.close()
    membership.close()
    assert not dist.is_initialized()
    with pytest.raises(EquipoiseError, match="closed"):
        membership.form()


def test_a_group_of_somebody_else_is_refused():
    store = dist.HashStore()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    membership = Membership(store, "alone")
    try:
        with pytest.raises(EquipoiseError, match="a default process group already"):
            membership.form()
    finally:
        membership.close()
    assert dist.is_initialized()
    dist.destroy_process_group()


@pytest.mark.parametrize(("named", "said"), [
    ({"name": ""}, "name"),
    ({"beat_seconds": 0}, "beat_seconds"),
    ({"silence_seconds": 0.5}, "silence_seconds"),
    ({"timeout_seconds": -1}, "timeout_seconds"),
    ({"store": None}, "NoneType"),
])  # fmt: skip
def test_bad_arguments(named: dict, said: str):
    with pytest.raises(EquipoiseError, match=said):
        Membership(**({"store": dist.HashStore(), "name": "a"} | named))


def test_a_list_is_written_once_whoever_writes():
    store = dist.HashStore()
    one, other = Board(store), Board(store)
    one.propose(1, ["a", "b"])
    other.propose(1, ["b"])
    assert one.latest() == other.latest() == (1, ("a", "b"))


@given(st.lists(st.sampled_from(["a", "b", "c"]), unique=True, min_size=1))
def test_processes_are_known_in_the_order_in_which_they_came(names: list[str]):
    store = dist.HashStore()
    for name in names:
        Board(store).register(name)
    assert list(Board(store).wants().items()) == [(name, 0) for name in names]
    assert Board(store).beats() == dict.fromkeys(names, 1)


def test_silence_is_time_in_which_one_has_looked(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = Watch(beat_seconds=1, silence_seconds=3)
    assert watch.silent({"a": 1, "b": 1}) == frozenset()
    for beat in range(2, 5):
        now += 1
        assert watch.silent({"a": beat, "b": 1}) == frozenset()
    now += 1
    assert watch.silent({"a": 5, "b": 1}) == {"b"}
    now += 1000  # this process was stopped
    assert watch.silent({"a": 5, "b": 2}) == frozenset()

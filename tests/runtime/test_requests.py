from __future__ import annotations

import threading

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.runtime.serving.requests import Ledger


def store():
    return dist.HashStore()


def test_gives_out_each_number_once():
    where = store()
    one, two = Ledger(where, "one"), Ledger(where, "two")
    members = ("one", "two")
    assert one.exchange([], 3, members) == [0, 1, 2]
    assert two.exchange([], 2, members) == [3, 4]
    assert one.exchange([1], 1, members) == [5]
    assert one.keep_only([0, 1, 2, 5, 3]) == [0, 2, 5]


def test_what_a_process_that_is_gone_was_at_comes_first():
    where = store()
    one, two = Ledger(where, "one"), Ledger(where, "two")
    one.exchange([], 3, ("one", "two"))
    assert two.exchange([], 2, ("two",)) == [0, 1]
    assert two.exchange([], 2, ("two",)) == [2, 3]
    assert one.keep_only([0, 1, 2]) == []  # it was only thought to be gone
    assert one.exchange([0, 1, 2], 1, ("one", "two")) == [4]


def test_ends_at_the_limit():
    where = store()
    one = Ledger(where, "one", limit=5)
    assert one.exchange([], 4, ("one",)) == [0, 1, 2, 3]
    assert one.exchange([], 4, ("one",)) == [4]
    assert one.exchange([0], 4, ("one",)) == []


def test_a_ledger_that_nobody_has_written_keeps_nothing():
    assert Ledger(store(), "one").keep_only([1]) == []


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.integers(0, 4), st.integers(0, 3), st.sampled_from("abc")
        ),
        max_size=30,
    )
)
def test_no_number_is_lost(turns):
    """Whoever comes, goes and returns: a number is at a live process or will be given out."""
    where = store()
    ledgers = {name: Ledger(where, name) for name in "abc"}
    done, at = set(), {name: [] for name in "abc"}
    for name, wanted, hand_in, gone in turns:
        members = set("abc") - {gone} | {name}
        still = ledgers[name].keep_only(at[name])
        finished = still[:hand_in]
        done |= set(finished)
        at[name] = still[hand_in:] + ledgers[name].exchange(finished, wanted, members)
        assert len(set(at[name])) == len(at[name])
    last = Ledger(where, "last")
    first_new = last.exchange([], 1000, ("last",))
    highest = max(first_new)
    assert sorted(first_new) == sorted(set(range(highest + 1)) - done)


def test_processes_at_the_same_time_do_not_get_the_same():
    where = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    got: list[int] = []

    def take(name):
        ledger, mine = Ledger(where.clone(), name), []
        for _ in range(50):
            mine = ledger.exchange(mine, 2, ("one", "two", "three"))
            got.extend(mine)

    threads = [threading.Thread(target=take, args=(n,)) for n in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(300))


@pytest.mark.parametrize("wanted", [0, 1])
def test_on_a_file_store(tmp_path, wanted):
    ledger = Ledger(dist.FileStore(str(tmp_path / "store")), "one")
    assert ledger.exchange([], wanted, ("one",)) == list(range(wanted))

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from equipoise.control.settings import Settings
from equipoise.control.waiting import Wait

STEPS = st.integers(1, 10_000)


def wait(asked_for: int, interval: int) -> Wait:
    return Wait(Settings(window=8, update_interval=interval, wait_steps=asked_for))


def test_the_longest_of_what_was_set_the_interval_and_what_planning_takes():
    assert wait(30, 400).steps == 400
    assert wait(1000, 400).steps == 1000
    slow = wait(30, 400)
    slow.see(50)
    assert slow.steps == 400
    slow.see(250)
    slow.see(40)
    assert slow.steps == slow.usual == 500


def test_a_plan_given_up_doubles_the_next_wait_until_one_comes():
    waiting = wait(30, 100)
    assert (
        waiting.give_up() == "The planner has not answered in 100 steps. Next time it may take 200."
    )
    assert (
        waiting.give_up() == "The planner has not answered in 200 steps. Next time it may take 400."
    )
    assert (waiting.steps, waiting.usual) == (400, 100)
    waiting.see(150)
    assert waiting.steps == 300
    for _ in range(20):
        waiting.give_up()
    assert waiting.give_up() == "The planner has not answered in 6400 steps."


@given(STEPS, STEPS.map(lambda steps: steps + 7), st.lists(st.one_of(st.none(), STEPS)))
def test_it_is_never_shorter_than_was_asked_for_and_has_an_end(asked_for, interval, happens):
    waiting, longest = wait(asked_for, interval), 0
    for taken in happens:
        if taken is None:
            waiting.give_up()
        else:
            waiting.see(taken)
            longest = max(longest, taken)
        assert waiting.steps >= waiting.usual >= max(asked_for, interval, longest)
        assert waiting.steps <= max(asked_for, 64 * interval, 2 * longest)

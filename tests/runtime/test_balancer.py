from __future__ import annotations

import datetime
import errno
import os
import threading
import time
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from prometheus_client.parser import text_string_to_metric_families

from equipoise import read_map, write_map
from equipoise.control.controller import Action, Outcome, State
from equipoise.control.findings import Balance, Finding, Question
from equipoise.control.metrics import Metrics
from equipoise.control.rehearsal import rehearsal_window
from equipoise.control.settings import Settings
from equipoise.control.watchdog import ALARMS
from equipoise.engines.formats import MapContext
from equipoise.errors import EquipoiseError
from equipoise.migration import with_slots
from equipoise.placement import Placement
from equipoise.report.monitor.address import checked_url, post
from equipoise.runtime import balancer as balancers
from equipoise.runtime.balancer import Balancer
from equipoise.runtime.moving import transfer as transfers
from equipoise.runtime.moving.transfer import LayerMove
from equipoise.topology import Topology
from equipoise.trace import Trace
from tests.control.advisors import decision
from tests.runtime.small_model import (
    NEW_TOKENS,
    TOLERANCE,
    L,
    load,
    prompts_of,
    random_placement,
    reference,
)

EAGER = Settings(
    window=8, update_interval=8, warm_up_steps=2, cool_down_steps=8, wait_steps=100_000
)
TIMEOUT_SECONDS = 120  # no test waits so long, only one that hangs


# --- planners --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shuffling:
    """Proposes another random placement every time, and finds every change to be good."""

    gain: float = 1.0

    def __call__(self, question: Question, window: Trace) -> Finding:
        rng = np.random.default_rng(question.number)
        slots = rng.permuted(question.current.slots, axis=1)
        asked = question.plan_above < np.inf
        return Finding(
            number=question.number,
            balance={"": Balance(imbalance=1.5, excess=0.4, balancedness=0.7)},
            sure_excess=0.4,
            assignments=int(window.counts.sum()),
            achieved=decision(gain=self.gain, low=self.gain / 2) if question.previous else None,
            proposal=with_slots(question.current, slots) if asked else None,
            predicted=decision() if asked else None,
        )


@dataclass(frozen=True)
class Dying(Shuffling):
    """Dies when first asked in a process, without a word."""

    def __call__(self, question: Question, window: Trace) -> Finding:
        os._exit(3)


@dataclass(frozen=True)
class Sleeping(Shuffling):
    def __call__(self, question: Question, window: Trace) -> Finding:
        time.sleep(1000)
        raise AssertionError


@dataclass(frozen=True)
class Babbling(Shuffling):
    def __call__(self, question: Question, window: Trace) -> Any:
        return "nothing of use"


class AtOnce:
    """A planning process without the process: its answers are there at the next step."""

    def __init__(self, advisor: Any) -> None:
        self.advisor, self.answer, self.closed = advisor, None, False

    def ask(self, question: Question, window: Trace) -> None:
        self.answer = self.advisor(question, window)

    def rehearse(self, question: Question, num_steps: int) -> None:
        self.ask(question, rehearsal_window(question.current, num_steps))

    def poll(self) -> Any:
        answer, self.answer = self.answer, None
        return answer

    def drop(self) -> None:
        self.answer = None

    def close(self) -> None:
        self.closed = True


at_once = mock.patch.object(balancers, "PlanningProcess", AtOnce)


# --- serving ---------------------------------------------------------------------------------


def new_group(ranks: int, seconds: float = TIMEOUT_SECONDS) -> Any:
    """A group of the first ranks; all four processes have to make it."""
    timeout = datetime.timedelta(seconds=seconds)
    return dist.new_group(list(range(ranks)), timeout=timeout)


class Service:
    """The small model under a balancer, decoding the prompts of ``small_model`` over and over."""

    def __init__(
        self,
        group: Any,
        settings: Settings = EAGER,
        redundant: int = 12,
        dispatch: str = "minmax",
        advisor: Any = None,
        spare: Any = None,
        **options: Any,
    ) -> None:
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.model = load(group, random_placement(self.ranks, redundant), dispatch=dispatch)
        self.metrics = Metrics()
        self.balancer = Balancer(
            self.model,
            settings,
            topology=Topology(self.ranks),
            spare=spare or new_group(self.ranks),
            advisor=None if advisor is True else advisor or Shuffling(),
            metrics=self.metrics,
            **options,
        )
        self.orders: list[Any] = []
        self.furthest = 0.0
        self.placements: list[str] = []

    def round(self) -> None:
        """A prompt and its tokens, compared with what transformers answers."""
        ids, mask = prompts_of(self.rank, self.ranks)
        wanted = reference(self.rank, self.ranks) if len(ids) else None
        new, cache = ids, None
        for step in range(NEW_TOKENS):
            logits, cache = self.model.step(new, mask, cache)
            new = logits.argmax(dim=-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(new)], dim=1)
            if wanted is not None:
                same = torch.equal(new[:, 0], wanted[0][:, step])
                far = (logits - wanted[1][:, step]).abs().max().item() if same else np.inf
                self.furthest = max(self.furthest, far)
            self.orders.append(self.balancer.step(0.01, len(new)))
            self.placements.append(self.model.placement.checksum)

    def until(self, is_so: Any, rounds: int = 200) -> None:
        """Serve until a condition holds on every rank."""
        for _ in range(rounds):
            self.round()
            if is_so(self):
                return
        raise AssertionError(f"{self.orders[-1]}")

    def count(self, what: Action | Outcome) -> int:
        return sum(what in (order.action, order.outcome) for order in self.orders)

    def samples(self) -> dict[str, float]:
        return {
            sample.name.removeprefix("equipoise_") + "".join(sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.metrics.text())
            for sample in family.samples
        }


# --- moving all the time ---------------------------------------------------------------------


@at_once
def shuffle(_group, ranks, settings, redundant, dispatch, bytes_per_second=None):
    group, spare = new_group(ranks), new_group(ranks)
    if dist.get_rank() >= ranks:
        return None
    service = Service(
        group, settings, redundant, dispatch, spare=spare, bytes_per_second=bytes_per_second
    )
    service.until(lambda s: len(s.orders) >= 65 and s.count(Outcome.KEPT) >= 2)
    service.balancer.close()
    in_motion = sum(order.state is State.MOVE for order in service.orders)
    return (
        service.furthest,
        len(set(service.placements)),
        in_motion,
        service.samples(),
        service.balancer.moved_slots,
    )


@pytest.mark.parametrize(
    ("ranks", "redundant", "dispatch", "background", "layers_per_step"),
    [
        (4, 12, "minmax", True, 1),
        (4, 12, "nearest", False, 1),
        (4, 0, "even", True, 2),
        (2, 8, "minmax", False, 5),
        (2, 0, "even", True, 1),
    ],
)
def test_the_model_says_the_same_while_its_experts_move(
    pool, ranks, redundant, dispatch, background, layers_per_step
):
    settings = replace(EAGER, background=background, layers_per_step=layers_per_step)
    answers = pool.run(shuffle, ranks, settings, redundant, dispatch)
    for furthest, placements, in_motion, samples, moved_slots in answers[:ranks]:
        assert furthest < TOLERANCE
        assert placements >= 1 + 2 * -(-L // layers_per_step)
        assert in_motion >= 2 * -(-L // layers_per_step)
        assert samples["rebalances_totalkept"] >= 2
        assert samples["failures_total"] == 0
        assert moved_slots > 0
        assert samples["moved_bytes_total"] > 0
        assert samples["stall_seconds_sum"] > 0
        assert samples["moved_slots_total"] > 0
        assert not any(samples[f"alarm{name}"] for name in ALARMS)


@at_once
def keep_up(group, bytes_per_second):
    """Steps in which layers were under way until one change was complete."""
    service = Service(group, bytes_per_second=bytes_per_second)
    service.until(lambda s: s.count(Action.SETTLE))
    service.balancer.close()
    return service.count(Action.COMMIT), service.furthest


def test_a_limited_transfer_takes_more_steps_and_says_the_same(pool):
    quick, slow = (pool.run(keep_up, limit)[0] for limit in (None, 3e6))
    assert slow[0] > quick[0]
    assert max(quick[1], slow[1]) < TOLERANCE


# --- what fails costs a move, not the serving ------------------------------------------------


def plan_badly(group, advisor, wait_steps, warm_up_steps):
    settings = replace(EAGER, wait_steps=wait_steps, warm_up_steps=warm_up_steps)
    service = Service(group, settings, advisor=advisor)
    service.until(lambda s: s.count(Outcome.FAILED))
    service.balancer.close()
    notes = [order.note for order in service.orders if order.outcome is Outcome.FAILED]
    return service.furthest, service.count(Action.MOVE), service.samples()["failures_total"], notes


@pytest.mark.parametrize(
    ("advisor", "wait_steps", "warm_up_steps", "says"),
    [
        (Dying(), 100_000, 0, "The planner died."),
        (Dying(), 100_000, 2, "Rehearsing a plan failed: The planner died."),
        (Babbling(), 100_000, 0, "The planner answered str, not the question."),
        (
            Sleeping(), 20, 0, "The planner has not answered in 20 steps. Next time it may take 40."
        ),
    ],
)  # fmt: skip
def test_a_planner_that_fails_is_told_and_serving_goes_on(
    pool, advisor, wait_steps, warm_up_steps, says
):
    for furthest, moves, failures, notes in pool.run(
        plan_badly, advisor, wait_steps, warm_up_steps
    ):
        assert furthest < TOLERANCE
        assert (moves, notes) == (0, [says])
        assert failures == 1


def plan_truly(group):
    """With the planner of the package in its own process, on what the model routes."""
    service = Service(group, replace(EAGER, excess_on=1e-3, excess_off=0.0), advisor=True)
    before: list[dict[str, float]] = []  # what is measured after each round before the first look
    service.until(lambda s: s.count(Action.LOOK) or before.append(s.samples()))
    service.until(lambda s: s.orders[-1].state is State.OBSERVE or s.count(Action.MOVE))
    service.balancer.close()
    return service.furthest, service.samples(), service.orders, before


@pytest.fixture(scope="module")
def planned(pool):
    """What each rank says of one run under the planner of the package."""
    return pool.run(plan_truly)


def test_the_plain_advisor_answers(planned):
    assert max(furthest for furthest, *_ in planned) < TOLERANCE
    assert planned[0][1]["imbalancedecode"] > 1
    assert "imbalancedecode" not in planned[1][1]
    assert planned[0][1]["failures_total"] == 0


def test_it_rehearses_before_the_first_look_and_says_how_long_a_plan_takes(planned):
    for _, _, orders, before in planned:
        actions = [order.action for order in orders if order.action is not Action.NOTHING]
        assert actions[:3] == [Action.REHEARSE, Action.REHEARSE, Action.LOOK]
        note = next(order.note for order in orders if order.note)
        assert note.startswith("The planner is ready: a plan takes ")
        for samples in before:  # the made-up loads are not measured
            assert not any(name.startswith("imbalance") for name in samples)


def spoil_a_chunk(chunks: list[torch.Tensor]) -> list[torch.Tensor]:
    chunks = [chunk.clone() for chunk in chunks]
    chunks[0][0] ^= 1
    return chunks


@at_once
def move_damaged(group, background):
    """Rank 0 sends a wrong bit until a move has failed."""
    service = Service(group, replace(EAGER, background=background))
    layers, whole = service.model.layers, transfers._messages

    def messages(weights: dict[str, torch.Tensor], slot: int) -> list[torch.Tensor]:
        chunks = whole(weights, slot)
        sent = any(weights["down_proj"] is layer.weights["down_proj"] for layer in layers)
        return spoil_a_chunk(chunks) if sent and service.rank == 0 else chunks

    before = service.model.placement.checksum
    with mock.patch.object(transfers, "_messages", messages):
        service.until(lambda s: s.count(Outcome.FAILED))
    unmoved = service.model.placement.checksum == before
    service.until(lambda s: s.count(Outcome.KEPT))
    service.balancer.close()
    return service.furthest, unmoved, service.samples(), service.placements[-1] != before


@pytest.mark.parametrize("background", [True, False])
def test_a_chunk_that_arrives_damaged_costs_that_move(pool, background):
    for furthest, unmoved, samples, moved_later in pool.run(move_damaged, background):
        assert furthest < TOLERANCE
        assert unmoved
        assert moved_later
        assert samples["failures_total"] == samples["rebalances_totalfailed"] == 1


@at_once
def move_with_a_broken_thread(group):
    """The thread of rank 2 breaks off, once, and leaves those of the others waiting."""
    spare = new_group(4, seconds=20)
    service = Service(group, spare=spare)
    whole, broken = LayerMove.stage, []

    def stage(move: LayerMove, *rest: Any) -> Any:
        if move.layer.rank == 2 and not broken:
            broken.append(True)
            raise RuntimeError("no memory left")
        return whole(move, *rest)

    with mock.patch.object(LayerMove, "stage", stage):
        service.until(lambda s: s.count(Outcome.KEPT))
    service.balancer.close()
    return service.furthest, service.balancer._spare is spare, service.count(Outcome.FAILED)


def test_a_group_in_disorder_is_replaced_before_the_next_move(pool):
    for furthest, same_group, failures in pool.run(move_with_a_broken_thread):
        assert furthest < TOLERANCE
        assert not same_group
        assert failures == 1


@at_once
def keep_where_no_folder_is(group, path, error):
    """The folder is made before the third attempt; until then writing fails, or what is given."""
    tried, alarms = [], []

    def keep(placement: Placement) -> None:
        tried.append(placement.checksum)
        alarms.append(service.samples()["alarmmap_not_kept"])
        if len(tried) == 3:
            path.parent.mkdir()
        elif len(tried) < 3 and error is not None:
            raise error
        write_map(placement, path, format="equipoise")

    service = Service(group, keep=keep)
    service.until(lambda s: s.count(Action.SETTLE) == 2)
    service.balancer.close()
    settled = [o.serving for o in service.orders if o.action is Action.SETTLE]
    served = [service.orders[0].serving, *settled]
    return tried, alarms, served, service.samples(), service.furthest


@pytest.mark.parametrize(
    "error", [None, OSError(errno.ENOSPC, "No space left on device"), RuntimeError("a defect")]
)
def test_a_map_that_cannot_be_written_is_an_alarm_and_tried_again(pool, error, tmp_path):
    path = tmp_path / "missing" / "map.json"
    answers = pool.run(keep_where_no_folder_is, path, error)
    tried, alarms, (start, *settled), samples, _ = answers[0]
    assert tried == [start, settled[0], settled[0], settled[1]]
    assert alarms == [0, 1, 1, 0]
    assert (samples["failures_total"], samples["alarmmap_not_kept"]) == (2, 0)
    assert read_map(path, MapContext(num_ranks=4)).checksum == settled[1]
    assert all(tried == [] for tried, *_ in answers[1:])
    assert all(furthest < TOLERANCE for *_, furthest in answers)


# --- settings --------------------------------------------------------------------------------


@at_once
def serve_some(group, settings, rounds):
    service = Service(group, settings)
    for _ in range(rounds):
        service.round()
    service.balancer.close()
    return service.furthest, [order.action for order in service.orders], service.samples()


def test_static_measures_and_moves_nothing(pool):
    settings = replace(EAGER, layers_per_step=0, map_path=__file__)
    answers = pool.run(serve_some, settings, 8)
    for furthest, actions, _ in answers:
        assert furthest < TOLERANCE
        assert set(actions) == {Action.NOTHING, Action.LOOK}
        assert actions.count(Action.LOOK) == 4
    assert answers[0][2]["imbalanceall"] == 1.5


def test_once_moves_once(pool):
    settings = replace(EAGER, once=True, layers_per_step=L, background=False)
    for _, actions, samples in pool.run(serve_some, settings, 10):
        assert actions.count(Action.SETTLE) == 1
        assert actions.count(Action.LOOK) > 3
        assert samples["rebalances_totalkept"] == 1


@at_once
def look_when_asked(group):
    """Whether a look comes that is due in a million steps, once the monitor's key has asked."""
    asked = threading.Event()
    service = Service(group, replace(EAGER, update_interval=10**6), asked=asked)
    monitored = checked_url(f"127.0.0.1:{service.metrics.listen(0, asked=asked)}")
    service.until(lambda s: s.count(Action.SETTLE))  # the first look, and its move
    service.until(lambda s: s.count(Outcome.KEPT))
    looks, steps = service.count(Action.LOOK), len(service.orders)
    service.until(lambda s: len(s.orders) >= steps + 40)
    unasked = service.count(Action.LOOK) - looks
    said = post(monitored._replace(path="/look")) if service.rank == 0 else ""
    service.until(lambda s: s.count(Action.LOOK) > looks)
    service.balancer.close()
    return unasked, said, service.furthest, [order.number for order in service.orders]


def test_the_monitor_asks_for_a_look(pool):
    (unasked, said, furthest, numbers), *others = pool.run(look_when_asked)
    assert (unasked, said) == (0, "Asked for fresh figures at /look.")
    assert furthest < TOLERANCE
    assert all(other[3] == numbers for other in others)


@at_once
def count_nothing(group):
    service = Service(group)
    for layer in service.model.layers:
        layer.recorder = None
    service.until(lambda s: s.count(Action.ABORT))
    service.balancer.close()
    return [service.samples()[f"alarm{name}"] for name in ALARMS], service.orders[-1].note


def test_a_recorder_without_layers_is_noticed(pool):
    idle = 2
    for rank, (alarms, _) in enumerate(pool.run(count_nothing)):
        assert alarms == [0, rank != idle, 0, 0, 0]


@at_once
def broadcasts(group):
    """The sizes of what every step broadcasts, next to its order."""
    service = Service(group, bytes_per_second=1e6)
    sizes: list[int] = []
    broadcast = dist.broadcast

    def counting(tensor: torch.Tensor, **options: Any) -> Any:
        sizes.append(tensor.numel())
        return broadcast(tensor, **options)

    step, each = service.balancer.step, []

    def watched(seconds: float, tokens: int) -> Any:
        sizes.clear()
        order = step(seconds, tokens)
        each.append((order.action, tuple(sizes)))
        return order

    service.balancer.step = watched
    with mock.patch.object(dist, "broadcast", counting):
        service.until(lambda s: s.count(Action.SETTLE))
    service.balancer.close()
    return each


def test_steps_are_told_of_as_little_as_they_need(pool):
    for steps in pool.run(broadcasts):
        quiet = [sizes for action, sizes in steps if action is Action.NOTHING]
        assert quiet.count(()) >= len(quiet) - 3  # the first, after the warm-up, while it plans
        assert {sizes for action, sizes in steps if action is Action.COMMIT} == {()}
        assert all(len(sizes) == 2 for action, sizes in steps if action is Action.MOVE)


@at_once
def close_while_moving(group):
    """Close while the thread that moves waits for what comes only afterwards."""
    comes, service = threading.Event(), Service(group)

    def stage(*_: Any) -> Any:
        comes.wait()
        raise RuntimeError("too late")

    with mock.patch.object(LayerMove, "stage", stage):
        service.until(lambda s: s.orders[-1].state is State.MOVE)
        moving = service.balancer._moving
        service.balancer.close()
        waits = moving._thread.is_alive()
        comes.set()
        moving.close()
    return waits


def test_closing_does_not_wait_for_a_transfer(pool):
    assert pool.run(close_while_moving) == [True] * 4


@at_once
def refused(group, change):
    settings = EAGER
    if change == "settings" and dist.get_rank(group) == 1:
        settings = replace(EAGER, window=9, update_interval=9, cool_down_steps=9)
    if change == "limit":
        settings = replace(EAGER, background=False)
    limit = {"limit": 1e6, "zero": 0}.get(change)
    with pytest.raises(EquipoiseError) as told:
        Service(group, settings, bytes_per_second=limit)
    return str(told.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("settings", "Ranks disagree on how to balance"),
        ("limit", "bytes_per_second limits moves in the background"),
        ("zero", "bytes_per_second is 0"),
    ],
)
def test_what_does_not_fit_is_refused(pool, change, says):
    assert all(says in text for text in pool.run(refused, change))

"""Balancing joined to a model that serves.

After every forward pass, on every rank::

    report ---> Controller (rank 0) ---> order, broadcast ---> Follower ---> act ---> next report
                     ^
    PlanningProcess -'               REHEARSE have the planner plan for made-up loads, on rank 0
                                     LOOK    LoadRecorder: add up the ranks; then ask the planner
                                     MOVE    transfer, or begin a BackgroundTransfer
                                     COMMIT  BackgroundTransfer: write a layer that has arrived
                                     ABORT   drop the question and the transfer
                                     SETTLE  keep the placement

``Balancer`` has no rules of its own: the controller says when to look and what to move, the
transfers say how to move it, and ``Metrics`` and ``Watchdog`` observe.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from threading import Event
from typing import Any

import torch
import torch.distributed as dist

from equipoise.checks import check_number
from equipoise.control.advisor import plain_advisor
from equipoise.control.controller import Action, Controller, Follower, Order, Report, State
from equipoise.control.findings import Advisor, Failure, Finding, said
from equipoise.control.messages import decode, encode
from equipoise.control.metrics import Metrics
from equipoise.control.process import PlanningProcess
from equipoise.control.settings import Settings
from equipoise.control.watchdog import UNKEPT, Alarms, Watchdog
from equipoise.errors import EquipoiseError
from equipoise.migration import Migration, Receive, diff
from equipoise.placement import Placement
from equipoise.runtime.members.agreement import agree
from equipoise.runtime.moe.model import ExpertParallelModel
from equipoise.runtime.moe.recorder import LoadRecorder, SummedLoads
from equipoise.runtime.moving.background import BackgroundTransfer
from equipoise.runtime.moving.store import device_of
from equipoise.runtime.moving.transfer import Outcome, transfer
from equipoise.topology import Topology

logger = logging.getLogger("equipoise.runtime")


class Balancer:
    """Measures, plans and moves experts while a model serves.

    Every rank has one and calls ``step`` between the same two forward passes. The constructor is
    collective; it gives the model a new recorder of loads.

    Parameters
    ----------
    model
        Model that serves.
    settings
        Settings of the controller; the same on every rank.
    topology
        Topology of the ranks.
    spare
        Process group of the model's ranks that nothing else uses. Its time-out is how long a
        transfer may wait for a rank.
    advisor
        Advisor that looks at the loads and plans, on rank 0; ``None``: ``plain_advisor``.
    metrics, alarms
        Observers that are told everything that happens.
    keep
        Function that saves a placement; called on rank 0 with the one that is served, at looks at
        the loads, when a change is complete, and at the end, unless it has saved the same before.
        If it raises, an alarm says so, serving goes on, and it is called again the next time.
    bytes_per_second
        Highest average rate at which a rank sends while it moves experts in the background.
    renew_spare
        Function that makes another spare process group; called by all ranks after a transfer that
        failed and left the old one unusable. ``Membership.renew_spare`` also ends the wait of a
        thread in the old one, which gloo alone never does. ``None``: make a plain new process
        group, which all processes have to do together.
    asked
        Event that is set, on rank 0, when somebody wants the loads to be looked at before that is
        due; ``None``: nobody can. Ranks then hear of each other more often.

    Raises
    ------
    EquipoiseError
        Settings that differ between ranks; a topology or a spare process group of other ranks; a
        limit that is not positive, or without moves in the background.
    """

    def __init__(
        self,
        model: ExpertParallelModel,
        settings: Settings,
        *,
        topology: Topology,
        spare: dist.ProcessGroup,
        advisor: Advisor | None = None,
        metrics: Metrics | None = None,
        alarms: Alarms | None = None,
        keep: Callable[[Placement], None] | None = None,
        bytes_per_second: float | None = None,
        renew_spare: Callable[[], dist.ProcessGroup] | None = None,
        asked: Event | None = None,
    ) -> None:
        _check(model, settings, topology, spare, bytes_per_second)
        self._group, self._spare = model.group, spare
        self._settings, self._topology, self._keep = settings, topology, keep
        self._bytes_per_second = bytes_per_second
        self._renew_spare = renew_spare or self._another_spare
        self._metrics = metrics or Metrics()
        self._metrics.take_settings(settings)
        self._asked = asked
        self._alarms = alarms or Alarms()
        self._watchdog = Watchdog(settings, self._alarms)
        self._kept: Placement | None = None
        self._layers = {layer.layer_id: layer for layer in model.layers}
        self._device = device_of(model.layers[0])
        self._expert_bytes = sum(t[0].nbytes for t in model.layers[0].weights.values())
        self._follower = Follower(model.placement)
        self._recorder = _recorder_of(model, settings.window)
        self._tokens: deque[int] = deque(maxlen=settings.window)  # this rank's, by step
        self._loads: SummedLoads | None = None
        self._last: Order | None = None
        self._report = Report()
        self._moving: BackgroundTransfer | None = None
        self._failed: BackgroundTransfer | None = None
        self.moved_slots = 0
        """Number of slots, over all ranks, that have got another expert."""
        self._controller: Controller | None = None
        if dist.get_rank(self._group) == 0:
            self._controller = Controller(
                model.placement,
                settings,
                expert_bytes=self._expert_bytes,
                rehearse=True,
                on_demand=asked is not None,
            )
            dispatch = model.layers[0].assignment.dispatcher
            advisor = advisor or plain_advisor(
                dispatch, settings, topology, model.placement.num_slots
            )
            self._metrics.take_info(planner=type(advisor).__name__)
            self._planner = PlanningProcess(advisor)

    def step(self, seconds: float, tokens: int) -> Order:
        """Do what is due after a forward pass; every rank calls it.

        There is no collective until there is something to look at again. While a plan is awaited,
        every fourth step has one of one number; during a transfer every step has one.

        Parameters
        ----------
        seconds
            Duration of the forward pass.
        tokens
            Number of tokens that this rank has served in it.

        Returns
        -------
        What was done, the same on every rank.
        """
        started = time.monotonic()
        self._tokens.append(tokens)
        order = self._last = self._hear(self._decide())
        self._follower.follow(order)
        self._watch(order)
        self._report = self._act(order)
        stalled = time.monotonic() - started
        self._metrics.take_step(seconds, tokens=tokens, stall_seconds=stalled)
        return order

    def close(self) -> None:
        """End the planner and the transfer, without waiting for other ranks."""
        if self._controller is not None:
            self._planner.close()
            self._try_to_keep()
        self._abort()

    # --- what to do ------------------------------------------------------------------------------

    def _decide(self) -> Order | None:
        """The next order, on rank 0."""
        if self._controller is None:
            return None
        if self._asked is not None and self._asked.is_set():
            self._asked.clear()
            self._controller.ask()
        answer = self._report.answer
        if answer is None and not self._quiet:
            answer = self._answer(self._controller)
        if answer is not None and self._controller.state is not State.WARM_UP:  # a rehearsal
            self._metrics.take_answer(answer)
        return self._controller.step(replace(self._report, answer=answer))

    def _answer(self, controller: Controller) -> Finding | Failure | None:
        """The planner's answer; the planner is asked once the loads of all ranks have arrived."""
        if self._loads is not None and self._loads.done:
            loads, self._loads = self._loads, None
            try:
                self._planner.ask(controller.question, loads.trace())
            except EquipoiseError as error:
                return Failure(number=controller.question.number, text=str(error))
        return self._planner.poll()

    def _hear(self, order: Order | None) -> Order:
        """Rank 0's order, on every rank.

        Its size is broadcast, and 0 stands for the order that every rank expects. There is no
        broadcast in two cases: during a transfer, when all ranks know the next order, and until
        the controller is to look at something again.
        """
        if self._quiet or self._transferring:
            return order or _expected(self._last)
        text = b"" if order is None or _is_expected(order, self._last) else encode(order)
        size = torch.tensor(len(text), device=self._device)
        dist.broadcast(size, group=self._group, group_src=0)
        if not size:
            return order or _expected(self._last)
        data = torch.frombuffer(bytearray(text or int(size)), dtype=torch.uint8).to(self._device)
        dist.broadcast(data, group=self._group, group_src=0)
        heard: Order = order or decode(data.cpu().numpy().tobytes(), Order)
        return heard

    @property
    def _quiet(self) -> bool:
        """Whether every rank knows that the next order says nothing new."""
        last = self._last
        return (
            last is not None
            and last.action is Action.NOTHING
            and last.number + 1 < last.quiet_until
        )

    @property
    def _transferring(self) -> bool:
        """Whether every rank knows that the next order is to commit."""
        return self._moving is not None and not self._moving.done and not self._report.moved

    # --- doing it --------------------------------------------------------------------------------

    def _act(self, order: Order) -> Report:
        """Carry out an order and report what came of it."""
        match order.action:
            case Action.REHEARSE:
                self._rehearse()
            case Action.LOOK:
                return self._look(order)
            case Action.MOVE:
                return self._move(order)
            case Action.COMMIT:
                return self._commit()
            case Action.ABORT:
                self._abort()
            case Action.SETTLE:
                self._settle()
        return Report()

    def _rehearse(self) -> None:
        """Have the planner plan for made-up loads, so that it starts and compiles."""
        if self._controller is not None:
            self._planner.rehearse(self._controller.question, self._settings.window)

    def _look(self, order: Order) -> Report:
        """Begin to add up the counts of all ranks, for a question to the planner."""
        self._watchdog.see_counts(self._recorder.counted, sum(self._tokens))
        self._try_to_keep()
        try:
            self._loads = self._recorder.sum_up(self._group)
        except EquipoiseError as error:  # on every rank
            return Report(answer=Failure(number=order.number, text=str(error)))
        return Report()

    def _move(self, order: Order) -> Report:
        """Move the layers of an order, or begin to."""
        layers = [self._layers[layer] for layer in order.layers]
        migration = self._migration(order)
        try:
            if not self._settings.background:
                return self._moved(migration, transfer(migration, layers))
            self._moving = BackgroundTransfer(
                migration,
                layers,
                group=self._orderly_spare(),
                bytes_per_second=self._bytes_per_second,
            )
        except EquipoiseError as error:  # on every rank
            return Report(failures=(str(error),))
        return Report()

    def _commit(self) -> Report:
        """Write a layer if it has arrived on every rank."""
        assert self._moving is not None
        moved = self._moving.commit()
        outcome = Outcome(() if moved is None else (moved,), self._moving.outcome.failures)
        return self._moved(self._moving.migration, outcome)

    def _moved(self, migration: Migration, outcome: Outcome) -> Report:
        """Report the layers that serve their new placement."""
        self._follower.commit(outcome.moved)
        rows = [migration.new.layer_ids.index(layer) for layer in outcome.moved]
        self.moved_slots += int((migration.receive[rows] != Receive.UNCHANGED).sum())
        if rows:
            self._metrics.take_move(*self._received(migration, rows))
        return Report(moved=outcome.moved, failures=outcome.failures)

    def _received(self, migration: Migration, rows: list[int]) -> tuple[int, int]:
        """Slots of this rank that have changed in these layers, and bytes that came for them."""
        rank = dist.get_rank(self._group)
        per_rank = migration.new.slots_per_rank
        mine = migration.receive[rows, rank * per_rank : (rank + 1) * per_rank]
        num_bytes = int(migration.received[rows, rank].sum()) * self._expert_bytes
        return int((mine != Receive.UNCHANGED).sum()), num_bytes

    def _abort(self) -> None:
        """Drop the question and the transfer under way, without waiting for other ranks."""
        self._loads = None
        if self._controller is not None:
            self._planner.drop()
        if self._moving is not None:
            self._moving.abandon()
            self._moving, self._failed = None, self._moving

    def _settle(self) -> None:
        """A change is complete: keep the placement."""
        self._moving = None
        self._try_to_keep()

    def _try_to_keep(self) -> None:
        """Save the placement that is served, on rank 0, if it was not saved yet."""
        if self._keep is None or self._controller is None:
            return
        served = self._controller.placement
        if served == self._kept:
            return
        try:
            self._keep(served)
        except Exception as error:  # from a disk, a folder, a format: serving does not depend on it
            self._alarms.say(UNKEPT, True, f"{said(error).rstrip('.')}. It is tried again.")
            self._metrics.take_failure()
            return
        self._alarms.say(UNKEPT, False)
        self._kept = served

    def _migration(self, order: Order) -> Migration:
        """The migration from what the layers of an order hold to what they are to hold."""
        served = self._follower.placement
        rows = [served.layer_ids.index(layer) for layer in order.layers]
        old, new = served.rows(rows), self._follower.target().rows(rows)
        return diff(old, new, self._topology)

    def _orderly_spare(self) -> dist.ProcessGroup:
        """The spare process group, a new one if a failed transfer has left the old one unusable."""
        if self._failed is not None:
            orderly = torch.tensor(int(self._failed.orderly), device=self._device)
            dist.all_reduce(orderly, dist.ReduceOp.MIN, group=self._group)
            if not orderly:
                self._spare = self._renew_spare()
            self._failed = None
        return self._spare

    def _another_spare(self) -> dist.ProcessGroup:
        """Make a new process group of the same ranks (collective); nothing needs the old one."""
        group = self._spare
        backend: Any = group._get_backend(self._device)
        backend.abort()
        other: dist.ProcessGroup = dist.new_group(
            dist.get_process_group_ranks(group),
            timeout=backend.options._timeout,
            backend=dist.get_backend(group),
        )
        return other

    # --- observing -------------------------------------------------------------------------------

    def _watch(self, order: Order) -> None:
        self._watchdog.see_order(order, self._follower)
        self._metrics.take_order(order)
        self._metrics.take_alarms(self._watchdog.alarms)
        if order.note and self._controller is not None:
            logger.info("Step %d: %s", order.number, order.note)


def _recorder_of(model: ExpertParallelModel, window: int) -> LoadRecorder:
    """Give the model a new recorder and return it."""
    model.record(window=window)
    assert model.recorder is not None
    return model.recorder


def _expected(last: Order | None) -> Order:
    """The order that follows if nothing new is to be done."""
    assert last is not None
    under_way = last.action in (Action.MOVE, Action.COMMIT)
    return replace(
        last,
        number=last.number + 1,
        action=Action.COMMIT if under_way else Action.NOTHING,
        layers=(),
        slots=None,
        outcome=None,
        note="",
    )


def _is_expected(order: Order, last: Order | None) -> bool:
    """Whether an order equals the expected one in every field."""
    return last is not None and order.slots is None and vars(order) == vars(_expected(last))


def _check(
    model: ExpertParallelModel,
    settings: Settings,
    topology: Topology,
    spare: dist.ProcessGroup,
    bytes_per_second: float | None,
) -> None:
    of_all = {name: value for name, value in vars(settings).items() if name != "map_path"}
    agree("how to balance", of_all, model.group)
    ranks = dist.get_process_group_ranks(model.group)
    if topology.num_ranks != len(ranks) or dist.get_process_group_ranks(spare) != ranks:
        raise EquipoiseError(
            f"The model is served by {len(ranks)} ranks; expected a topology of the same number "
            f"(it has {topology.num_ranks}) and a spare process group of the same ranks."
        )
    if bytes_per_second is not None:
        check_number("bytes_per_second", bytes_per_second, low=1, high=float("inf"))
        if not settings.background:
            raise EquipoiseError(
                "bytes_per_second limits moves in the background, and these settings have none; "
                "leave it out."
            )

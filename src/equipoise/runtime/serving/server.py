"""Processes that serve a model together, keep it balanced, and go on when one of them is gone.

Every process runs the same loop. In an epoch the same processes serve together; a step is one
forward pass of all of them and the balancing after it. When a process dies, hangs, leaves or joins,
the epoch ends and the processes that are there begin the next: they agree on the members, make sure
that every expert has a slot, and repeat the pass that was broken off. Requests of a process that is
gone are given to others.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore

from equipoise.checks import check_count, check_whole
from equipoise.control.controller import Order
from equipoise.control.findings import Advisor, said
from equipoise.control.messages import PeerError
from equipoise.control.metrics import Metrics
from equipoise.control.metrics_page import LOOPBACK
from equipoise.control.settings import Settings
from equipoise.control.status import Arrival
from equipoise.control.watchdog import Alarms
from equipoise.dispatch.registry import check_serving
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.plan.planners.baselines import Contiguous
from equipoise.plan.problem import Problem
from equipoise.runtime.balancer import Balancer
from equipoise.runtime.members.agreement import gather
from equipoise.runtime.members.membership import Epoch, Membership
from equipoise.runtime.members.recovery import RankError, Recovered, rebuild
from equipoise.runtime.members.secret import VARIABLE, secret_of
from equipoise.runtime.moe.assignment import token_assignment
from equipoise.runtime.moe.checkpoint import Checkpoint
from equipoise.runtime.moe.layer import ExpertFunction
from equipoise.runtime.moe.model import ExpertParallelModel, load_from
from equipoise.runtime.moe.slot_recorder import SlotRecorder, SlotRecording
from equipoise.runtime.serving.answers import Results, check_folder
from equipoise.runtime.serving.desk import Desk
from equipoise.runtime.serving.door import Door
from equipoise.runtime.serving.publisher import Publisher
from equipoise.runtime.serving.requests import Ledger, Source
from equipoise.runtime.serving.speed import SpeedMeter
from equipoise.runtime.serving.trial import Told
from equipoise.topology import Topology
from equipoise.version import __version__

_LISTEN_STEPS = 8  # between looks at who comes, leaves or has work
_SPEED_STEPS = 256  # between looks at how fast the ranks are
_MOST_FRUITLESS = 3  # epochs of the same processes in a row that end before their first step

logger = logging.getLogger("equipoise.runtime")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of serving; the same for all processes.

    Parameters
    ----------
    model
        Folder of a saved model: see ``load_model``.
    source
        Source of the requests.
    limit
        Number of requests; ``None``: serve until told to stop.
    processes
        Number of processes to wait for at the start.
    nodes
        Number of nodes; each has the same number of consecutive processes. While the number of
        processes is not a multiple of it, all count as one node.
    settings
        Settings of balancing; ``None``: do not balance.
    placement
        Placement to start from; ``None``: experts in order, redundant slots for the first ones.
    dispatch
        Name of the dispatcher.
    batch_size, new_tokens
        Number of requests that a process decodes together, and of tokens for each.
    advisor
        Advisor that plans instead of ``GatedRepair``.
    compute
        Function that computes the experts; ``None``: the one of the model's type.
    keep, bytes_per_second
        See ``Balancer``.
    recording
        Forward passes whose slots are counted, on each rank for its own tokens; ``None``: none. It
        ends early when the processes change.
    results
        Folder for the answers, one file per process: see ``Results``. ``None``: keep none.
    threads
        Number of torch's threads in each process.
    metrics_details
        Whether Prometheus is told of each rank and layer too.
    timeout_seconds, silence_seconds
        See ``Membership``.
    secret
        See ``Membership``; ``None``: the secret in the environment, see ``secret_of``.
    """

    model: Path
    source: Source
    limit: int | None = None
    processes: int = 1
    nodes: int = 1
    settings: Settings | None = field(default_factory=Settings)
    placement: Placement | None = None
    dispatch: str = "minmax"
    batch_size: int = 4
    new_tokens: int = 32
    advisor: Advisor | None = None
    compute: ExpertFunction | None = None
    keep: Callable[[Placement], None] | None = None
    bytes_per_second: float | None = None
    recording: SlotRecording | None = None
    results: Path | None = None
    threads: int = 1
    metrics_details: bool = False
    timeout_seconds: float = 30.0
    silence_seconds: float = 5.0
    secret: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("processes", "nodes", "batch_size", "new_tokens", "threads"):
            check_count(name, getattr(self, name))
        if self.limit is not None:
            check_whole("limit", self.limit)
        check_serving(self.dispatch)
        if self.results is not None:
            check_folder(self.results)
        if self.settings is not None and self.settings.map_path and self.placement is None:
            raise EquipoiseError(
                f"The settings start from {self.settings.map_path}, which is not read here; read "
                "it and give its placement too."
            )


def serve(
    host: str,
    port: int,
    name: str,
    options: Options,
    metrics_port: int | None = None,
    metrics_host: str = LOOPBACK,
    metrics_look: bool = False,
) -> None:
    """Serve as one process; a launcher calls this in each process that it starts.

    The store at ``host`` and ``port`` is the launcher's, or torchrun's. Returns when all requests
    are served; on SIGTERM the process leaves after the present step and ignores further ones.

    Parameters
    ----------
    metrics_port, metrics_host
        Port and address at which Prometheus is answered. Without a port there is no answer; the
        default address is for programs on this machine only.
    metrics_look
        Whether programs on this machine may ask there for a look at the loads: a POST to ``/look``
        of the process of rank 0.

    Raises
    ------
    EquipoiseError
        No store answers; a model, a folder, a secret or a port cannot be used; and all that
        ``Server.run`` raises.
    """
    torch.set_num_threads(options.threads)
    logger.setLevel(logging.INFO)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the launcher
    if host in (LOOPBACK, "localhost"):  # all processes are here: nobody else has to reach them
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        store = TCPStore(host, port, is_master=False)
    except (RuntimeError, ValueError) as error:
        raise EquipoiseError(
            f"No store answers at {host}, port {port}; start one first."
        ) from error
    asked = Event() if metrics_look else None
    server = Server(store, name, options, asked)
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    try:
        if metrics_port is not None:
            server.metrics.listen(metrics_port, metrics_host, asked=asked)
        server.run()
    finally:
        server.close()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it has left already


class Server:
    """One of the processes that serve.

    Parameters
    ----------
    store
        Store that all processes share.
    name
        Name of this process, different in each.
    options
        Options, the same in each.
    asked
        Event that is set when somebody wants the loads to be looked at; ``None``: nobody can.
    """

    def __init__(
        self, store: Store, name: str, options: Options, asked: Event | None = None
    ) -> None:
        self.options, self._name, self._asked = options, name, asked
        self.metrics = Metrics(with_details=options.metrics_details)
        self.metrics.take_info(
            version=__version__, model=options.model.resolve().name, dispatch=options.dispatch
        )
        self.model: ExpertParallelModel | None = None
        self._alarms = Alarms()
        self._checkpoint = Checkpoint(options.model)
        door = self._door()
        self._results = Results(options.results, name)
        self._secret = secret_of(options.secret)
        self._membership = Membership(
            store,
            name,
            timeout_seconds=options.timeout_seconds,
            silence_seconds=options.silence_seconds,
            secret=self._secret,
        )
        self._desk = Desk(
            Ledger(store, self._membership.name, options.limit),
            door,
            self._results,
            batch_size=options.batch_size,
            new_tokens=options.new_tokens,
            metrics=self.metrics,
            alarms=self._alarms,
        )
        self._publisher = Publisher(store, name)
        self._publisher.arrive(Arrival.STARTED)
        logger.addHandler(self._publisher.log)
        self._balancer: Balancer | None = None
        self._recorder: SlotRecorder | None = None
        self._speed = SpeedMeter(options.compute or self._checkpoint.compute)
        self._speeds: tuple[float, ...] = ()
        self._slots_per_rank: int | None = None
        self._steps = 0
        self._map_version = self._version_before = 0  # now, and when its balancer began from 0
        self._last_step = time.monotonic()
        self._stopping = False
        self._fruitless = 0

    def stop(self) -> None:
        """Leave after the step under way."""
        self._stopping = True

    def run(self) -> None:
        """Serve until there are no more requests, or ``stop`` was called.

        Raises
        ------
        EquipoiseError
            The processes cannot go on: neither a rank nor a checkpoint has some expert, or the same
            processes meet and fail again and again.
        """
        while True:
            epoch = self._membership.form(self.options.processes)
            self._publisher.arrive(Arrival.JOINED)
            before = self._steps
            try:
                self._begin(epoch)
                if self._serve(epoch):
                    return
            except RuntimeError as error:  # from a collective: another process is gone
                why = self._membership.failed or str(error).partition("\n")[0]
                logger.warning("Epoch %d was broken off: %s", epoch.number, why)
                self._give_up_on(error, fruitless=self._steps == before)
            finally:
                self._end_balancing()

    def close(self) -> None:
        """Release everything; the other processes go on."""
        self._end_balancing()
        self._end_recording()
        self._membership.close()
        self.model = None
        logger.removeHandler(self._publisher.log)
        self._results.close()

    def _begin(self, epoch: Epoch) -> None:
        """Rebuild the model on the processes of this epoch, and make its balancer."""
        num_ranks = len(epoch.members)
        self._speeds = (1.0,) * num_ranks
        self._desk.reclaim()
        told = gather(_Hello(self.model is not None, self._desk.tell()), _Hello, None)
        if self._desk.hear([one.desk for one in told]):
            self._fruitless = 0  # each time fewer requests are under suspicion
        first = not any(one.has_model for one in told)
        if first and self._secret is None and epoch.rank == 0:
            logger.warning(
                "Any process that can reach the store can join; set %s to require a secret.",
                VARIABLE,
            )
        if first:
            start = self._start(num_ranks)
            self._slots_per_rank = start.slots_per_rank
            self.model = load_from(
                self._checkpoint,
                start,
                compute=self._speed,
                dispatch=self.options.dispatch,
                topology=self._topology(num_ranks),
            )
        else:
            self.model, recovered = self._rebuild(epoch)
            self._slots_per_rank = self._slots_per_rank or recovered.slots_per_rank
            logger.info("Epoch %d: %s", epoch.number, recovered)
        if self._recorder is not None and not self._recorder.closed:
            logger.warning("The processes have changed, which ends the recording.")
        self._end_recording()
        if first and self.options.recording is not None:
            self._begin_recording(self.model, epoch, self.options.recording)
        self._publisher.arrive(Arrival.LOADED)
        for layer in self.model.layers:
            layer.meter = self._publisher.take_load
        self._publisher.forget()
        self.metrics.take_ranks(
            num_ranks,
            time.monotonic() - self._last_step,
            wanted=self.options.processes,
            process=self._name,
            rank=epoch.rank,
            epoch=epoch.number,
        )
        self._begin_balancing(epoch, epoch.spare, warm_up=first)

    def _rebuild(self, epoch: Epoch) -> tuple[ExpertParallelModel, Recovered]:
        """Rebuild the model on these ranks; a rank that fails leaves, and the others try again."""
        try:
            return rebuild(
                self.model,
                self._checkpoint,
                topology=self._topology,
                slots_per_rank=self._slots_per_rank,
                compute=self._speed,
                dispatch=self.options.dispatch,
            )
        except RankError as error:
            if error.rank == epoch.rank:
                raise
            raise RuntimeError(f"{epoch.members[error.rank]} cannot go on: {error}") from error
        except EquipoiseError as error:  # such as bytes that have changed in transit
            raise RuntimeError(str(error)) from error

    def _begin_balancing(self, epoch: Epoch, spare: dist.ProcessGroup, *, warm_up: bool) -> None:
        """Make a balancer for the present ranks; warm up only if all have just begun."""
        settings = self.options.settings
        if settings is None or len(epoch.members) == 1:
            return
        assert self.model is not None
        self._balancer = Balancer(
            self.model,
            settings if warm_up else replace(settings, warm_up_steps=0),
            topology=self._topology(len(epoch.members)),
            spare=spare,
            advisor=self.options.advisor,
            metrics=self.metrics,
            alarms=self._alarms,
            keep=self.options.keep,
            bytes_per_second=self.options.bytes_per_second,
            renew_spare=self._membership.renew_spare,
            asked=self._asked,
        )

    def _begin_recording(
        self, model: ExpertParallelModel, epoch: Epoch, wanted: SlotRecording
    ) -> None:
        """Count slots from now on: the first processes have them all, and the same iterations."""
        self._recorder = SlotRecorder(
            wanted,
            rank=epoch.rank,
            layer_ids=self._checkpoint.layer_ids,
            num_slots=model.placement.num_slots,
            top_k=self._checkpoint.top_k,
        )
        for layer in model.layers:
            layer.tally = partial(self._recorder.add, layer.layer_id)
        settings = self.options.settings
        if settings is not None and settings.layers_per_step > 0:
            logger.warning(
                "Experts may move while slots are counted; such counts show how the ranks were "
                "balanced and when the map changed, but cannot be folded to experts."
            )

    def _end_recording(self) -> None:
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None

    def _serve(self, epoch: Epoch) -> bool:
        """Step until the epoch ends; return whether this process is finished."""
        assert self.model is not None
        step = 0
        while True:
            if step % _LISTEN_STEPS == 0:
                self._desk.turn(epoch.members, leaving=self._stopping)
                going = self._listen()
                if going is not None:
                    return going
            step += 1
            if step % _SPEED_STEPS == 0:
                self._adapt(epoch)
            began = time.monotonic()
            tokens = self._forward(self.model)
            order = self._balance(time.monotonic() - began, tokens)
            self._steps += 1
            self._last_step = time.monotonic()
            self._publisher.take_step(tokens, time.monotonic() - began)
            if self._publisher.due:
                self._publish(epoch, order)

    def _listen(self) -> bool | None:
        """Agree on what all ranks do now; takes one collective.

        Returns ``None`` to go on, else whether the epoch ends for good.
        """
        if self._stopping:
            self._membership.leave()
        changes = self._membership.newcomers or self._membership.departures
        wish = torch.tensor([self._desk.busy, changes, self._stopping], dtype=torch.int64)
        dist.all_reduce(wish, dist.ReduceOp.MAX)
        busy, changes, leaving = wish.tolist()
        if not busy and not self._desk.next_group() and self.options.limit is not None:
            return True
        if changes or leaving:
            return self._stopping
        return None

    def _adapt(self, epoch: Epoch) -> None:
        """Dispatch and plan for the measured speeds of the ranks, if these have changed.

        Takes one small collective.
        """
        assert self.model is not None
        speeds = self._speed.speeds()
        if speeds == self._speeds:
            return
        self._speeds = speeds
        logger.warning("Speeds of the ranks are now %s.", ", ".join(f"{s:.2g}" for s in speeds))
        topology = self._topology(len(speeds))
        for layer in self.model.layers:
            layer.assignment = token_assignment(self.options.dispatch, topology)
        self._end_balancing()  # perhaps during a transfer
        self._begin_balancing(epoch, self._membership.renew_spare(), warm_up=False)

    def _forward(self, model: ExpertParallelModel) -> int:
        """Run one forward pass; if it fails while all ranks are there, a request is the cause."""
        recorder = self._recorder
        try:
            with (
                nullcontext()
                if recorder is None
                else recorder.iteration(self._steps, self._map_version)
            ):
                return self._desk.advance(model)
        except PeerError:
            raise
        except Exception as error:
            if self._membership.failed is None:
                self._desk.blame(said(error))
            raise RuntimeError(f"a forward pass broke off: {said(error)}") from error

    def _balance(self, seconds: float, tokens: int) -> Order | None:
        if self._balancer is None:
            self.metrics.take_step(seconds, tokens=tokens)
            return None
        order = self._balancer.step(seconds, tokens)
        self._map_version = self._version_before + order.version
        return order

    def _publish(self, epoch: Epoch, order: Order | None) -> None:
        self._publisher.publish(
            rank=epoch.rank,
            members=epoch.members,
            epoch=epoch.number,
            step=self._steps,
            state=order.state.value if order is not None else "off",
            version=order.version if order is not None else 0,
            moved_slots=self._balancer.moved_slots if self._balancer is not None else 0,
            moved_bytes=self.metrics.moved_bytes,
            domain=self._desk.domain,
            failed_requests=self.metrics.failed_requests,
            alarms=tuple(sorted(self._alarms.names)),
        )

    def _give_up_on(self, error: RuntimeError, *, fruitless: bool) -> None:
        """Raise an error that comes back whenever the same processes meet."""
        self._fruitless = self._fruitless + 1 if fruitless else 0
        if self._fruitless > _MOST_FRUITLESS:
            cause = error.__cause__
            raise cause if isinstance(cause, EquipoiseError) else error

    def _end_balancing(self) -> None:
        if self._balancer is not None:
            self._balancer.close()
            self._balancer = None
            self._version_before = self._map_version

    def _door(self) -> Door:
        return Door(
            self.options.source,
            vocab_size=self._checkpoint.vocab_size,
            most_tokens=self._checkpoint.most_tokens,
            new_tokens=self.options.new_tokens,
        )

    def _topology(self, num_ranks: int) -> Topology:
        nodes = self.options.nodes
        per_node = num_ranks // nodes if num_ranks % nodes == 0 else num_ranks
        speed = self._speeds if len(set(self._speeds)) > 1 else None
        return Topology(num_ranks, per_node, speed=speed)

    def _start(self, num_ranks: int) -> Placement:
        if self.options.placement is not None:
            return self.options.placement
        layer_ids, num_experts = self._checkpoint.layer_ids, self._checkpoint.num_experts
        settings, num_slots = self.options.settings, num_experts
        if num_ranks != self.options.processes:  # some were lost before the first epoch
            num_slots = (settings or Settings()).rounded_slots(num_experts, num_ranks)
        elif settings is not None and num_ranks > 1:
            num_slots = settings.num_slots(num_experts, num_ranks)
        like = np.ones((len(layer_ids), num_experts))
        problem = Problem(like, Topology(num_ranks), num_slots, layer_ids=layer_ids)
        return Contiguous().plan(problem).placement


@dataclass(frozen=True)
class _Hello:
    """The message of a rank to the others at the beginning of an epoch."""

    has_model: bool
    desk: Told

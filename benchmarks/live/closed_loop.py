"""Whether a forecast comes true on this machine: it is made first, then the change is measured.

    python -m benchmarks.live.closed_loop [--settings 5] [--work 320] [--json FILE]

Protocol: one process a core, kept on it, one thread each, over gloo, decode batches of
`balance-5m`, experts that compute every row `--work` times over, as in `pays`.

1. Calibrate: three batch sizes without balancing, two with the experts of most load on one rank and
   two with copies planned for the min-max split, in turns of 8 steps, 160 steps each, prose and
   code. `fit_runs` explains their times by what they routed.
2. Forecast, for each setting (a mix of domains, a batch size, a number of redundant slots): 192
   steps are served without balancing, recorded and timed; the fit is set to their level. The first
   144 are planned on, and the later ones are timed by the fitted costs under every policy; "online"
   starts from the experts in order and is replayed with the controller itself. All forecasts are
   written down here.
3. Measure: the policies serve further prompts of the same mix in turns of 8 steps, each time
   another one first, 256 steps of each policy.

Tokens a second are all generated tokens over the seconds of the policy's turns. The interval is 80
%, of what a run of that length shows. Four things are in it: machines that fit the calibration
about as well, the recorded steps drawn again, the machine's speed, and the noise of turns. The
speed changes from one part of the protocol to the next as it did so far: a Student t of the changes
seen. The noise is by how much the turns of the calibration differed from the fit, drawn again: each
policy takes that of another run, with what the fit missed of this run, and all take the same turns,
since they share what the machine did meanwhile. The change is against "no balancing" in the same
turns; its sign counts where the interval excludes zero.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from numpy.typing import NDArray

from benchmarks.live.pays import (
    EXPERTS,
    FOLDER,
    LAYERS,
    NEW_TOKENS,
    OURS,
    TURN,
    Service,
    Work,
    take_turns,
)
from benchmarks.quality import machine
from equipoise.dispatch import dispatcher
from equipoise.placement import Placement
from equipoise.plan import Contiguous, Problem, Robust
from equipoise.runtime.balancer import Balancer
from equipoise.runtime.moe.model import load_model
from equipoise.runtime.serving.prompts import Prompts
from equipoise.simulate.expert_time import Layout
from equipoise.simulate.gain import CONFIDENCE
from equipoise.simulate.online import Conditions, controlled, replay
from equipoise.simulate.own_runs import OwnMachine, Run, fit_runs
from equipoise.topology import Topology
from equipoise.trace import Trace

Floats = NDArray[np.float64]

CALIBRATION_BATCHES = (4, 12, 32)
OTHER_BATCHES = (12, 32)  # of the placements that are skewed, and balanced
DRAWS = 400
CALIBRATION_STEPS, RECORDED, PLANNED, MEASURED = 160, 192, 144, 256
EXPERT_BYTES = 3 * 160 * 56 * 4  # of the model's experts in float32
PLAIN, ONLINE, STATIC = "no balancing", "online, min-max", "static, min-max"
PLAN_SECONDS = 2.0  # of a plan for five layers next to a rank that computes, as logs of `pays` show
START_SECONDS = 14.0  # of the planner's start and rehearsal, of what serving leaves of the cores


@dataclass(frozen=True)
class Setting:
    """What is served, and the redundant slots that the policies with copies have."""

    mix: dict[str, float]
    batch: int
    redundant: int

    @property
    def name(self) -> str:
        """What it is, in words."""
        domains = " and ".join(self.mix)
        return f"{domains}, {self.batch} sequences a rank, {self.redundant} redundant"

    def prompts(self, part: int) -> Prompts:
        """Prompts of a part of the protocol: each has others."""
        return Prompts(part, [(0.0, self.mix)])


SETTINGS = (
    Setting({"docs": 1.0}, 16, 2),
    Setting({"tables": 1.0}, 16, 2),
    Setting({"code": 1.0, "maths": 1.0}, 24, 4),
    Setting({"docs": 1.0, "tables": 1.0}, 8, 4),
    Setting({"maths": 1.0}, 24, 2),
)
CALIBRATED_ON = {"docs": 1.0, "code": 1.0}


def serve(rank: int, store: str, options: argparse.Namespace, results: str) -> None:
    torch.set_num_threads(1)
    keep_on_core(rank)
    ranks = options.ranks
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
    calibrated = calibrate(options)
    fit = calibrated.machine
    told = []
    for setting in SETTINGS[: options.settings]:
        recorded = record(setting, options)
        layouts = _shared([layouts_of(recorded[0], setting, ranks)] if rank == 0 else [None])
        calibrated = calibrated.at_level_of(*recorded)
        forecasts = forecast(calibrated, recorded[0], layouts, setting, ranks)
        if rank == 0:  # written down before anything is measured
            Path(results).write_text(json.dumps([*told, {"forecast": forecasts}]))
        measured = measure(layouts, setting, options)
        calibrated = calibrated.after(forecasts[PLAIN]["tokens"] / measured[PLAIN])
        told.append({"setting": setting.name, "forecast": forecasts, "measured": measured})
        if rank == 0:
            print(table(told[-1:]), flush=True)
    if rank == 0:
        error = f"{fit.error:.1%} apart from the fit"
        print(f"\nCalibrated: {fit.cost}; means of the calibration runs are {error}.")
        print()
        Path(results).write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()


def keep_on_core(number: int) -> None:
    """Keep this process's threads on one core: steps then vary less."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {number})


@dataclass(frozen=True)
class Calibrated:
    """What the runs told.

    Parameters
    ----------
    machine
        The costs, fitted and set to the speed last seen.
    noise
        Time of each turn over what is fitted, ``(runs, turns)``; its mean is 1. What the fit misses
        of a whole run is in it.
    changes
        Logarithms of how much longer steps took from one part of the protocol to the next.
    """

    machine: OwnMachine
    noise: Floats
    changes: tuple[float, ...] = ()

    def after(self, slower: float) -> Calibrated:
        """The machine after its times have changed by a factor."""
        machine = replace(
            self.machine,
            cost=self.machine.cost.slower(slower),
            likely=tuple(one.slower(slower) for one in self.machine.likely),
        )
        return replace(self, machine=machine, changes=(*self.changes, float(np.log(slower))))

    def at_level_of(self, recorded: Trace, seconds: Floats) -> Calibrated:
        """The machine at the speed of recorded steps."""
        start = _start(dist.get_world_size())
        load = Layout(placement=start).slot_loads(np.asarray(recorded.counts, dtype=np.float64))
        said = self.machine.step_seconds(load, Topology(start.num_ranks)).mean()
        return self.after(float(seconds.mean() / said))

    def speed_changes(self, number: int, seed: int) -> Floats:
        """Factors by which times may change until the next part."""
        spread = np.sqrt(np.mean(np.square(self.changes)))
        drawn = np.random.default_rng(seed).standard_t(len(self.changes), size=number)
        return np.asarray(np.exp(np.clip(spread * drawn, -1, 1)))


def calibrate(options: argparse.Namespace) -> Calibrated:
    """The machine's costs, from batch sizes and placements served in turns."""
    prompts = Prompts(1, [(0.0, CALIBRATED_ON)])
    start = Layout(placement=_start(options.ranks))
    first = _service("", start, options, prompts, CALIBRATION_BATCHES[0])
    first.play(0, 4 * TURN)
    seen = _decode_steps(first)[0]
    skewed = Layout(placement=_skewed(seen, options.ranks))
    balanced = _shared([_planned(seen, 2, "minmax", options.ranks)])
    asked = [(start, batch) for batch in CALIBRATION_BATCHES]
    asked += [(layout, batch) for layout in (skewed, balanced) for batch in OTHER_BATCHES]
    services = [_service("", layout, options, prompts, batch) for layout, batch in asked]
    take_turns(services, 0, CALIBRATION_STEPS)
    runs = []
    for (layout, batch), service in zip(asked, services, strict=True):
        trace, seconds = _decode_steps(service)
        runs.append(
            Run(
                name=f"the run of {batch} sequences",
                trace=trace,
                layout=layout,
                topology=Topology(options.ranks),
                step_seconds=seconds,
            )
        )
    mine = fit_runs(runs)
    fitted = [mine.step_seconds(run.slot_load, run.topology) for run in runs]
    turns = CALIBRATION_STEPS // TURN
    apart = [run.seconds / said for run, said in zip(runs, fitted, strict=True)]
    by_turn = [np.array([part.mean() for part in np.array_split(one, turns)]) for one in apart]
    noise = np.stack(by_turn)
    return Calibrated(machine=mine, noise=noise / noise.mean())


def record(setting: Setting, options: argparse.Namespace) -> tuple[Trace, Floats]:
    """Steps served without balancing, and what each took."""
    service = _service(
        "", Layout(placement=_start(options.ranks)), options, setting.prompts(2), setting.batch
    )
    service.play(0, RECORDED)
    return _decode_steps(service)


def layouts_of(recorded: Trace, setting: Setting, ranks: int) -> dict[str, Layout]:
    """Where the copies are under every policy, planned on the earlier steps."""
    earlier = _part(recorded, slice(None, PLANNED))
    return {
        PLAIN: Layout(placement=_start(ranks)),
        "static, even": _planned(earlier, setting.redundant, "even", ranks),
        STATIC: _planned(earlier, setting.redundant, "minmax", ranks),
        ONLINE: _copied(ranks, setting.redundant),
    }


def _planned(steps: Trace, redundant: int, dispatch: str, ranks: int) -> Layout:
    """A plan for the steps and the way to split that serves it."""
    problem = Problem(steps, Topology(ranks), EXPERTS + redundant)
    plan = Robust(dispatch=dispatch, num_threads=1).plan(problem)
    return Layout(placement=plan.placement, dispatch=dispatcher(dispatch))


def forecast(
    calibrated: Calibrated,
    recorded: Trace,
    layouts: dict[str, Layout],
    setting: Setting,
    ranks: int,
) -> dict[str, dict[str, Any]]:
    """Tokens a second and the change of every policy, with intervals."""
    mine, noise = calibrated.machine, calibrated.noise
    held = np.asarray(recorded.counts[PLANNED:], dtype=np.float64)
    topology, tokens = Topology(ranks), setting.batch * ranks
    fixed = {name: layout for name, layout in layouts.items() if name != ONLINE}
    loads = {name: layout.slot_loads(held) for name, layout in fixed.items()}
    best = {name: float(mine.step_seconds(load, topology).mean()) for name, load in loads.items()}
    best[ONLINE] = _online_seconds(mine, held, layouts[ONLINE], topology)
    rng = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {name: [] for name in layouts}
    levels = calibrated.speed_changes(DRAWS, seed=1).tolist()
    for likely, level in zip(mine.draws(DRAWS, seed=0), levels, strict=True):
        steps = rng.integers(len(held), size=len(held))
        turns = rng.integers(noise.shape[1], size=MEASURED // TURN)
        runs = rng.permutation(len(noise))
        for run, (name, load) in zip(runs, loads.items(), strict=False):
            seconds = likely.step_seconds(load[steps], topology).mean()
            drawn[name].append(float(level * seconds * noise[run, turns].mean()))
        while_static = drawn[STATIC][-1] / noise[runs[list(loads).index(STATIC)], turns].mean()
        online = while_static * best[ONLINE] / best[STATIC]  # the same machine, other maps
        drawn[ONLINE].append(float(online * noise[runs[len(loads)], turns].mean()))
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    plain = np.array(drawn[PLAIN])
    return {
        name: {
            "tokens": tokens / seconds,
            "interval": np.quantile(tokens / np.array(drawn[name]), ends).tolist(),
            "change": best[PLAIN] / seconds - 1,
            "change_interval": np.quantile(plain / np.array(drawn[name]) - 1, ends).tolist(),
        }
        for name, seconds in best.items()
    }


def _online_seconds(mine: OwnMachine, held: Floats, start: Layout, topology: Topology) -> float:
    """The mean step while the controller moves experts, the recorded steps over and over."""
    repeated = np.resize(held, (MEASURED, *held.shape[1:])).astype(np.int64)
    conditions = Conditions(
        topology=topology, model=mine, expert_bytes=EXPERT_BYTES, interference=1.0
    )
    waits = round(START_SECONDS / float(mine.step_seconds(start.slot_loads(held), topology).mean()))
    settings = replace(OURS, warm_up_steps=waits, wait_steps=max(OURS.wait_steps, waits))
    policy = controlled(
        conditions, "minmax", settings, dwell_steps=10_000, plan_seconds=PLAN_SECONDS
    )
    served = replay(Trace(counts=repeated), start, policy, conditions)
    return float(served.seconds.mean())


def measure(
    layouts: dict[str, Layout], setting: Setting, options: argparse.Namespace
) -> dict[str, float]:
    """Tokens a second of every policy, on further prompts."""
    services = [
        _service(name, one, options, setting.prompts(3), setting.batch)
        for name, one in layouts.items()
    ]
    services = [
        _balanced(service, setting, options.ranks) if service.policy == ONLINE else service
        for service in services
    ]
    take_turns(services, 0, MEASURED)
    for service in services:
        service.close()
    return {
        service.policy: setting.batch * options.ranks / float(_decode_seconds(service).mean())
        for service in services
    }


def _balanced(service: Service, setting: Setting, ranks: int) -> Service:
    """The service with the balancer at work."""
    settings = replace(OURS, num_redundant=setting.redundant)
    service.balancer = Balancer(
        service.model, settings, topology=Topology(ranks), spare=dist.new_group()
    )
    return service


def _service(
    policy: str, layout: Layout, options: argparse.Namespace, prompts: Prompts, batch: int
) -> Service:
    work = Work(options.work)
    dispatch = "even" if layout.dispatch is None else layout.dispatch.name
    model = load_model(FOLDER, layout.placement, dispatch=dispatch)
    model.record(window=1000)
    for layer in model.layers:
        layer.compute = work
    return Service(policy, model, work, prompts, batch)


def _decode_steps(service: Service) -> tuple[Trace, Floats]:
    """What was routed and what it took, of the passes that read no prompt."""
    assert service.model.recorder is not None
    trace = service.model.recorder.to_trace().select(phase="decode")
    return trace, _decode_seconds(service)


def _decode_seconds(service: Service) -> Floats:
    """What the same passes took, moves included."""
    seconds = np.array(service.seconds)
    return seconds[np.arange(len(seconds)) % NEW_TOKENS != 0]


def _part(trace: Trace, steps: slice) -> Trace:
    return Trace(counts=trace.counts[steps], layer_ids=trace.layer_ids)


def _copied(ranks: int, redundant: int) -> Layout:
    """Experts in order with the first ones copied, for the min-max split."""
    return Layout(placement=_start(ranks, EXPERTS + redundant), dispatch=dispatcher("minmax"))


def _start(ranks: int, num_slots: int = EXPERTS) -> Placement:
    even_LE = np.ones((LAYERS, EXPERTS))
    return Contiguous().plan(Problem(even_LE, Topology(ranks), num_slots)).placement


def _skewed(trace: Trace, ranks: int) -> Placement:
    """The experts of most load together, so that load and batch size can be told apart."""
    order = np.argsort(-trace.counts.sum(axis=0), axis=-1, kind="stable")
    return Placement(slots=order, num_ranks=ranks, num_experts=EXPERTS)


def _shared(values: list[Any]) -> Any:
    dist.broadcast_object_list(values)
    return values[0]


def table(told: list[dict[str, Any]]) -> str:
    lines = []
    for one in told:
        lines += [
            "",
            one["setting"],
            "",
            "| policy | tokens/s said | 80 % | measured | change said | 80 % | measured |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        plain = one["measured"][PLAIN]
        for name, said in one["forecast"].items():
            tokens = one["measured"][name]
            low, high = said["interval"]
            less, more = said["change_interval"]
            lines.append(
                f"| {name} | {said['tokens']:.0f} | {low:.0f}-{high:.0f} | {tokens:.0f} | "
                f"{said['change']:+.1%} | {less:+.1%} to {more:+.1%} | {tokens / plain - 1:+.1%} |"
            )
    return "\n".join(lines)


def score(told: list[dict[str, Any]]) -> str:
    """How many forecasts came true."""
    inside, changed, right, sure = 0, 0, 0, 0
    forecasts = [(one, name) for one in told for name in one["forecast"]]
    for one, name in forecasts:
        said, tokens = one["forecast"][name], one["measured"][name]
        inside += said["interval"][0] <= tokens <= said["interval"][1]
        change = tokens / one["measured"][PLAIN] - 1
        low, high = said["change_interval"]
        if name != PLAIN:
            changed += low <= change <= high
            if low > 0 or high < 0:
                sure += 1
                right += (change > 0) == (low > 0)
    changes = len(forecasts) - len(told)
    return (
        f"Tokens/s inside the 80 % interval: {inside} of {len(forecasts)}. Changes inside: "
        f"{changed} of {changes}. Sign right: {right} of {sure} whose interval excludes zero."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", type=int, default=len(SETTINGS))
    parser.add_argument("--ranks", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=int, default=320)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        multiprocessing.spawn(
            serve, (f"{folder}/store", options, str(results)), nprocs=options.ranks
        )
        told = json.loads(results.read_text())
    print(machine.about_machine())
    print(score(told))
    if options.json:
        options.json.write_text(json.dumps(told))


if __name__ == "__main__":
    main()

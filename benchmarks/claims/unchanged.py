"""Whether a change of the code leaves all results as they were, bit for bit.

From the repository root, before the change and after it:

    python -m benchmarks.claims.unchanged --write before.json
    python -m benchmarks.claims.unchanged --against before.json

The file holds three kinds of entries, each under a key such as ``plan/robust/minmax/glm52``:

checksums       SHA-256 of numbers: of arrays with their types, of the files that are written, of
                JSON documents without their sentences.
sentences       What the results say in words.
refusals        Exit status and message of what is refused.

Entries that differ, are missing or are new are printed, and the exit status is then 1. Only the
names of ``equipoise`` itself and the commands are used, so that modules may move. Searches make few
proposals and have no time budget: they end in the same place on every machine.

The recordings are the one that ships with the package, a drawn one of unequal layers, two phases
and ranks of unequal speed, and a few layers of glm52 and gptoss_decode_sample in the folder --data;
without that folder the last two are left out. The answers need torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import equipoise as eq
from benchmarks.claims.entries import Options, Record, attributes, report, run, typed

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
PROPOSALS = 512
COST = "h100-deepep-ep32"
EXPERT_BYTES = 44_040_192

DEPLOYMENTS: dict[str, dict[str, Any]] = {
    "sample": {"ranks": 8, "redundant": 16, "ranks-per-node": 4},
    "synthetic": {"ranks": 4, "redundant": 8, "ranks-per-node": 2, "speed": "1,1,2,2"},
    "glm52": {"ranks": 32, "redundant": 64, "ranks-per-node": 8},
    "gptoss": {"ranks": 8, "redundant": 16, "ranks-per-node": 4},
}
ROOMS = {
    "sample": ",".join(["5", "6"] * 4),
    "synthetic": "7,8,7,8",
    "glm52": ",".join(["9", "10"] * 16),
    "gptoss": ",".join(["5", "6"] * 4),
}
SEARCH = {"proposals": PROPOSALS, "seed": 3}
PLANNERS: dict[str, dict[str, Any]] = {
    "robust": SEARCH,
    "survivable-rank": {"planner": "survivable", **SEARCH},
    "survivable-node": {"planner": "survivable", "loss-of": "node", **SEARCH},
    "greedy": {"planner": "greedy"},
    "greedy-same-rank": {"planner": "greedy", "allow-same-rank-copies": True},
    "hierarchical": {"planner": "hierarchical", "expert-groups": 8},
    "hierarchical-same-rank": {
        "planner": "hierarchical", "expert-groups": 8, "allow-same-rank-copies": True,
    },
    "trtllm": {"planner": "trtllm"},
    "fixed-graph-ring": {
        "planner": "fixed-graph", "graph": "ring", "across-nodes": "price",
    },
    "fixed-graph-cube": {
        "planner": "fixed-graph", "graph": "cube", "across-nodes": "price",
    },
    "fixed-graph-hypercube": {
        "planner": "fixed-graph", "graph": "hypercube", "across-nodes": "price",
    },
    "fixed-graph-torus": {"planner": "fixed-graph", "graph": "torus"},
    "contiguous": {"planner": "contiguous"},
    "round-robin": {"planner": "round-robin"},
}  # fmt: skip
DISPATCHERS = (
    "even", "minmax", "nearest", "fewest", "vllm", "sglang-static", "sglang-dynamic", "sglang-rows",
    "trtllm", "ascend", "ascend-mrv2", "lplb", "auto",
)  # fmt: skip
FEW_DISPATCHERS = {  # as these searches take long, and follow a rule as ``robust`` does
    "survivable-rank": ("even", "minmax", "fewest", "vllm", "lplb"),
    "survivable-node": ("even", "minmax"),
}
TIMES = {"rank-cost": COST, "step-assignments": 4096}
REPAIRS: dict[str, dict[str, Any]] = {
    "free": {},
    "few-moves": {"max-moves": 12},
    "few-bytes": {"max-bytes": 10 * EXPERT_BYTES, "expert-bytes": EXPERT_BYTES},
    "short": {"max-seconds": 0.02, "expert-bytes": EXPERT_BYTES},
}
LOCALITY = (("robust", 0.005), ("greedy", 0.005), ("greedy", 0.1), ("hierarchical", 0.1))
FORMATS = {
    "equipoise": ".json", "trtllm": ".yaml", "sglang": ".json", "vllm-41141": ".jsonl",
    "vllm-49572": ".json", "vllm-53022": ".json", "ascend": ".json",
}  # fmt: skip
NUM_DECODER_LAYERS = 79
SIZES = {"small": (3, 12, 4, 2, 16), "middle": (4, 64, 8, 4, 80), "large": (2, 256, 32, 8, 320)}
"""Layers, experts, ranks, ranks a node, slots."""


@dataclass(frozen=True)
class Recording:
    """A recording in the current folder, its ranks, and the same as a trace."""

    name: str
    path: str
    trace: eq.Trace

    @property
    def deployment(self) -> Options:
        return DEPLOYMENTS[self.name]

    @property
    def start(self) -> str:
        """The map without balancing."""
        return f"{self.name}.start.json"

    @property
    def topology(self) -> eq.Topology:
        speed = self.deployment.get("speed")
        return eq.Topology(
            self.deployment["ranks"],
            self.deployment["ranks-per-node"],
            speed=None if speed is None else tuple(map(float, speed.split(","))),
        )

    @property
    def problem(self) -> eq.Problem:
        num_slots = self.trace.num_experts + self.deployment["redundant"]
        return eq.Problem(self.trace, self.topology, num_slots)

    def plan(self, *options: Options) -> list[object]:
        """The command that plans for it."""
        merged = {
            name: value for some in (self.deployment, *options) for name, value in some.items()
        }
        return ["plan", self.path, *typed(merged)]

    def repair(self, *options: Options) -> list[object]:
        """The command that changes the map without balancing by few moves."""
        deployment = {k: v for k, v in self.deployment.items() if k != "redundant"}
        merged = {name: value for some in (deployment, *options) for name, value in some.items()}
        return ["repair", self.start, self.path, *typed(merged)]


def synthetic() -> eq.Trace:
    """Layers of 1 to 1000 times the load, one of them without any in half of the steps."""
    rng = np.random.default_rng(7)
    scale = np.array([0.5, 20.0, 500.0])[:, None]
    of_phase = rng.lognormal(0, 1, (2, 1, 3, 24))
    mean = np.repeat(of_phase, 12, axis=0) * rng.lognormal(0, 0.3, (24, 4, 3, 24)) * scale
    source = rng.poisson(mean)
    source[::2, :, 0] = 0
    return eq.Trace(
        counts=source.sum(axis=1),
        source_counts=source,
        layer_ids=(3, 4, 9),
        top_k=2,
        labels={
            "phase": np.repeat(["prefill", "decode"], 12),
            "domain": np.tile(["code", "code", "text"], 8),
        },
    )


def sample() -> eq.Trace:
    """Windows of three layers."""
    return eq.read_trace(eq.sample_trace_path()).select(layers=[0, 2, 4]).windows(48)


def glm52(data: Path) -> eq.Trace:
    with np.load(data / "glm52" / "windows.npz") as archive:
        counts, domains, layers = archive["counts"], archive["domains"], archive["layers"]
        top_k = int(archive["top_k"])
    return eq.Trace(
        counts=counts[:, :, ::40].reshape(-1, 2, counts.shape[-1]),
        layer_ids=tuple(layers[::40].tolist()),
        top_k=top_k,
        labels={"domain": np.repeat(domains, counts.shape[1])},
    )


def gptoss(data: Path) -> eq.Trace:
    with np.load(data / "gptoss_decode_sample" / "topk_ids.npz") as archive:
        ids = archive["topk_ids"][:8192, ::8]
    return eq.Trace.from_tokens(ids, np.arange(0, len(ids) + 1, 256), num_experts=32)


def recordings(data: Path) -> Iterator[Recording]:
    """Recordings, written to the current folder."""
    made = {"sample": sample, "synthetic": synthetic}
    if data.is_dir():
        made |= {"glm52": lambda: glm52(data), "gptoss": lambda: gptoss(data)}
    else:
        print(f"{data}: no such folder, so glm52 and gptoss are left out")
    for name, make in made.items():
        eq.write_trace(make(), f"{name}.safetensors")
        yield Recording(name, f"{name}.safetensors", eq.read_trace(f"{name}.safetensors"))


def plans(record: Record, found: Sequence[Recording]) -> None:
    """What the planners place for the dispatchers, and the map that is written of it."""
    for r in found:
        for key, options in searches(r):
            command = r.plan(options, map_to("map.json"))
            record.document(f"plan/{key}/{r.name}", *command, written="map.json")
        record.text(f"plan/text/{r.name}", *r.plan(SEARCH))


def searches(r: Recording) -> Iterator[tuple[str, Options]]:
    """Every planner x dispatcher, some by times as well, by ranks of less memory, or mirrored."""
    for planner, options in PLANNERS.items():
        for dispatch in FEW_DISPATCHERS.get(planner, DISPATCHERS):
            judged = {**options, "dispatch": dispatch}
            yield f"{planner}/{dispatch}", judged
            if planner in ("robust", "greedy"):
                yield f"{planner}/{dispatch}-times", judged | TIMES
        if planner in ("robust", "survivable-rank"):
            yield f"{planner}-room/even", {**options, "room": ROOMS[r.name]}
    twice = {"redundant": r.trace.num_experts, "mirrored": True}
    yield "survivable-mirrored/even", PLANNERS["survivable-rank"] | twice


def map_to(path: str) -> Options:
    """Options of a plan whose map is wanted, whatever it is worth."""
    return {"for": "equipoise", "output": path, "even-if-worse": True}


def repairs(record: Record, found: Sequence[Recording]) -> None:
    """From the map without balancing, within budgets, by the command and from Python."""
    for r in found:
        for dispatch in DISPATCHERS:
            command = r.repair(SEARCH, {"dispatch": dispatch})
            record.document(f"repair/{dispatch}/{r.name}", *command)
        for name, options in REPAIRS.items():
            record.document(f"repair/{name}/{r.name}", *r.repair(SEARCH, options))
        current = eq.read_map(r.start)
        record.attempt(
            f"repair/python/{r.name}",
            lambda current=current, problem=r.problem: _answer(
                eq.Repair(current=current, proposals=PROPOSALS, dispatch="minmax").plan(problem)
            ),
        )


def locality(record: Record, found: Sequence[Recording]) -> None:
    """Copies moved so that tokens go to fewer ranks; refused where tokens are not recorded."""
    for r in found:
        for planner, price in LOCALITY:
            options = PLANNERS[planner] | SEARCH | {"locality-price": price}
            options |= {"planner": "colocate", "start": planner}
            record.document(f"locality/{planner}/{price}/{r.name}", *r.plan(options))


def python_plans(record: Record, found: Sequence[Recording]) -> None:
    """Planners of the public surface with options that the command lacks."""
    cost = eq.rank_cost(COST)
    for r in found:
        planners = {
            "robust-auto": eq.Robust(dispatch=eq.Auto(cost=cost), proposals=PROPOSALS),
            "robust-tail": eq.Robust(tail=0.25, proposals=PROPOSALS),
            "robust-cost": eq.Robust(dispatch="minmax", cost=cost, proposals=PROPOSALS),
            "robust-weights": eq.Robust(
                traffic_weights={"code": 3.0, "text": 1.0}, proposals=PROPOSALS
            ),
            "survivable-two": eq.Survivable(losses=2, proposals=PROPOSALS),
            "greedy": eq.Greedy(),
            "hierarchical": eq.Hierarchical(num_expert_groups=4),
            "contiguous": eq.Contiguous(),
            "round-robin": eq.RoundRobin(),
        }
        for name, planner in planners.items():
            record.attempt(
                f"python/{name}/{r.name}",
                lambda planner=planner, problem=r.problem: _answer(planner.plan(problem)),
            )


def _answer(plan: eq.Plan) -> dict[str, Any]:
    """All that a plan says."""
    return attributes(
        plan, "placement", "planner", "peak", "mean", "bound", "dispatch_bound", "gap", "status",
        "binding", "dispatch",
    )  # fmt: skip


def splits(record: Record, _found: Sequence[Recording]) -> None:
    """Every dispatcher x machine x kind of batch, and peaks of several batches."""
    for size, (num_layers, num_experts, num_ranks, per_node, num_slots) in SIZES.items():
        rng = np.random.default_rng(11)
        placement = drawn_placement(rng, num_layers, num_experts, num_ranks, num_slots)
        speed = tuple(rng.uniform(0.5, 2.0, num_ranks).round(3).tolist())
        machines = {
            "equal": None,
            "nodes": eq.Topology(num_ranks, per_node),
            "speeds": eq.Topology(num_ranks, per_node, speed=speed),
        }
        batches = drawn_batches(rng, num_layers, num_experts, num_ranks)
        for machine, topology in machines.items():
            for name, dispatcher in dispatchers(topology).items():
                key = f"split/{name}/{machine}/{size}"
                for batch, load in batches.items():
                    record.attempt(
                        f"{key}/{batch}",
                        lambda d=dispatcher, load=load, p=placement: _shared(d.split(load, p)),
                    )
                steps = rng.poisson(3.0, (4, num_layers, num_experts))
                record.attempt(
                    f"{key}/peaks", lambda d=dispatcher, steps=steps, p=placement: d.peaks(steps, p)
                )


def drawn_placement(
    rng: np.random.Generator, layers: int, experts: int, ranks: int, slots: int
) -> eq.Placement:
    """Every expert and some of them again, anywhere; a rank may hold one twice."""
    extra = rng.integers(experts, size=(layers, slots - experts))
    rows = np.hstack([np.tile(np.arange(experts), (layers, 1)), extra])
    return eq.Placement(rng.permuted(rows, axis=1), num_ranks=ranks, num_experts=experts)


def drawn_batches(
    rng: np.random.Generator, layers: int, experts: int, ranks: int
) -> dict[str, np.ndarray]:
    mean = rng.lognormal(0, 1.5, (layers, experts))
    sparse = rng.poisson(0.05 * mean)
    sparse[0] = 0
    return {
        "whole": rng.poisson(30 * mean),
        "sparse": sparse,
        "fractional": 30 * mean,
        "by-source": rng.poisson(2 * mean[:, None], (layers, ranks, experts)),
    }


def dispatchers(topology: eq.Topology | None) -> dict[str, Any]:
    cost = eq.rank_cost(COST)
    kinds: dict[str, Any] = {
        "even": eq.Even, "minmax": eq.MinMax, "nearest": eq.Nearest, "fewest": eq.FewestExperts,
    }  # fmt: skip
    plain = {name: kind(topology=topology) for name, kind in kinds.items()}
    timed = {f"{name}-times": kind(topology=topology, cost=cost) for name, kind in kinds.items()}
    return {**plain, **timed, "auto": eq.Auto(cost=cost, topology=topology)}


def _shared(split: Any) -> dict[str, Any]:
    """All that a split says."""
    names = [
        "shares", "bottleneck_ranks", "bottleneck_experts", "peak", "bound", "gap", "rank_loads",
        "rank_times", "dispatch", "status",
    ]  # fmt: skip
    if (split.load == np.floor(split.load)).all():
        names += ["quotas"]
        names += ["source_quotas"] if split.source_load is not None else []
    names += ["rules", "rule_seconds"] if hasattr(split, "rules") else []
    return attributes(split, *names)


def maps(record: Record, found: Sequence[Recording]) -> None:
    """Every format written, read, checked and converted."""
    for r in found:
        for name, planner in {
            "contiguous": eq.Contiguous(),
            "greedy": eq.Greedy(),
            "same-rank": eq.Greedy(allow_same_rank_copies=True),
        }.items():
            placement = planner.plan(r.problem).placement
            for format, suffix in FORMATS.items():
                key = f"map/{format}/{name}/{r.name}"
                _round_trip(record, key, placement, format, Path(f"round{suffix}"))


def _round_trip(record: Record, key: str, placement: eq.Placement, format: str, path: Path) -> None:
    decoders = NUM_DECODER_LAYERS if format in ("sglang", "vllm-53022") else None
    context = eq.MapContext(num_hidden_layers=decoders, planner="drawn", trace="drawn.npz")
    lost = record.attempt(
        f"{key}/losses", lambda: eq.write_map(placement, path, format=format, context=context)
    )
    if lost is None:
        return
    record.put(f"{key}/bytes", path.read_bytes())
    known = eq.MapContext(
        num_ranks=placement.num_ranks,
        num_experts=placement.num_experts,
        layer_ids=placement.layer_ids,
        num_hidden_layers=decoders,
    )
    record.attempt(f"{key}/read", lambda: eq.read_map(path, known, format=format))
    record.attempt(f"{key}/findings", lambda: eq.validate_map(path, known, format=format))
    deployment = typed({"ranks": known.num_ranks, "experts": known.num_experts})
    deployment += [] if decoders is None else typed({"hidden-layers": decoders})
    record.document(f"{key}/validate", "validate", path, "--for", format, *deployment)
    record.text(f"{key}/validate-text", "validate", path, "--for", format, *deployment)
    to = "trtllm" if format != "trtllm" else "equipoise"
    target = Path(f"converted{FORMATS[to]}")
    options = {"to": to, "output": target, "format": format, "ranks": placement.num_ranks}
    options |= {} if decoders is None else {"hidden-layers": decoders}
    target.unlink(missing_ok=True)
    record.text(f"{key}/convert", "convert", path, *typed(options))
    if target.exists():
        record.put(f"{key}/converted", target.read_bytes())


def evaluations(record: Record, found: Sequence[Recording]) -> None:
    """Placements scored, loads summed up, moves counted."""
    for r in found:
        before = eq.Contiguous().plan(r.problem).placement
        after = eq.Greedy().plan(r.problem).placement
        for name, dispatcher in dispatchers(r.topology).items():
            for which, placement in (("contiguous", before), ("greedy", after)):
                record.attempt(
                    f"evaluate/{name}/{which}/{r.name}",
                    lambda d=dispatcher, p=placement, t=r.trace: eq.evaluate(p, t, dispatch=d),
                )
        for name in DISPATCHERS:
            record.attempt(
                f"evaluate/by-name/{name}/{r.name}",
                lambda n=name, t=r.trace, p=after: eq.evaluate(p, t, dispatch=n),
            )
        _teaching(record, r)
        for pair, (old, new) in {"there": (before, after), "back": (after, before)}.items():
            record.put(f"diff/{pair}/{r.name}", _moves(eq.diff(old, new, r.topology)))
        dead = eq.diff(before, after, r.topology, dead_ranks=(0, 3))
        record.put(f"diff/dead-ranks/{r.name}", _moves(dead))
    for sizes in ((0, 8, 2, 4), (3, 32, 4, 8), (64, 256, 8, 32), (100, 60, 4, 8), (9, 4, 2, 8)):
        record.attempt(
            f"noise-floor/{'-'.join(map(str, sizes))}", lambda sizes=sizes: eq.noise_floor(*sizes)
        )


def _teaching(record: Record, r: Recording) -> None:
    total, ranks = r.trace.total, r.topology.num_ranks
    device = [eq.best_placement(row, ranks) for row in total]
    record.put(f"best-placement/{r.name}", device)
    record.put(f"step-time/{r.name}", eq.ep_step_time(total, ranks))
    record.put(f"imbalance/{r.name}", eq.imbalance(r.trace.counts))
    record.put(f"dropped/{r.name}", eq.dropped_tokens(total, 1.25))
    if r.trace.tokens is not None:
        loads = eq.expert_loads(r.trace.tokens.ids[:, 0], r.trace.num_experts)
        record.put(f"expert-loads/{r.name}", loads)
    for num_ranks in (None, ranks):
        summary = eq.summarise(r.trace, num_ranks=num_ranks)
        record.put(f"summary/{num_ranks}/{r.name}", json.loads(summary.to_json()))


def _moves(migration: Any) -> dict[str, Any]:
    return {
        **attributes(
            migration, "receive", "source", "round", "num_rounds", "counts", "lost", "sent",
            "received", "moves",
        ),
        "bytes": migration.bytes(EXPERT_BYTES),
        "by_link": migration.bytes_by_link(EXPERT_BYTES),
        "seconds": migration.layer_seconds(EXPERT_BYTES),
    }  # fmt: skip


def commands(record: Record, found: Sequence[Recording]) -> None:
    """The other commands, as documents and as they print."""
    for r in found:
        start, good, ranks = r.start, f"{r.name}.greedy.json", ["--ranks", r.deployment["ranks"]]
        run(*r.plan(PLANNERS["greedy"], map_to(good)))
        nodes = ["--ranks-per-node", r.deployment["ranks-per-node"]]
        bytes_ = ["--expert-bytes", EXPERT_BYTES]
        prices = {
            "dwell-steps": 5000, "stall-seconds": 0.1, "interference": 0.1, "delay-steps": 10,
            "rank-cost": COST, "trace": r.path,
        }  # fmt: skip
        search = typed(SEARCH | {"up-to": 2 * r.topology.num_ranks})
        for name, arguments in {
            "report/plain": ["report", r.path],
            "report/ranks": ["report", r.path, *ranks],
            "report/map": ["report", r.path, "--map", good],
            "diff/plain": ["diff", start, good, *nodes, *bytes_],
            "diff/match": ["diff", start, good, *nodes, "--match"],
            "diff/decision": ["diff", start, good, *nodes, *bytes_, *typed(prices)],
            "failover/rank": ["failover", good, r.path, "--lost", "rank"],
            "failover/node": ["failover", good, r.path, "--lost", "node", *nodes],
            "failover/fewer": ["failover", good, r.path, "--to-ranks", r.topology.num_ranks - 1],
            "failover/more": ["failover", good, r.path, "--to-ranks", r.topology.num_ranks + 2],
            "budget/robust": ["budget", r.path, *ranks, *search],
        }.items():
            record.document(f"command/{name}/{r.name}", *arguments)
            record.text(f"command/{name}-text/{r.name}", *arguments)
        run("report", r.path, *ranks, "--html", "page.html")
        record.page(f"command/page/{r.name}", Path("page.html"))


def traces(record: Record, found: Sequence[Recording]) -> None:
    """Recordings written in every format, and read back."""
    for r in found:
        record.put(f"trace/file/{r.name}", _content(Path(r.path)))
        folder = f"{r.name}.trtllm"
        record.attempt(
            f"trace/trtllm/{r.name}",
            lambda r=r, folder=folder: eq.write_trace(r.trace, folder, format="trtllm"),
        )
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        record.put(f"trace/trtllm-files/{r.name}", {p.name: p.read_bytes() for p in files})
        record.attempt(f"trace/trtllm-read/{r.name}", lambda f=folder: _read(eq.read_trace(f)))
        record.put(f"trace/read/{r.name}", _read(r.trace))


def _content(path: Path) -> list[Any]:
    """Header and body of a safetensors file, whose writer puts the header in any order."""
    raw = path.read_bytes()
    body = 8 + int.from_bytes(raw[:8], "little")
    return [json.loads(raw[8:body]), raw[body:]]


def _read(trace: eq.Trace) -> dict[str, Any]:
    return attributes(
        trace, "counts", "layer_ids", "step_ids", "top_k", "source_counts", "tokens", "labels",
        "provenance",
    )  # fmt: skip


def answers(record: Record, _found: Sequence[Recording]) -> None:
    """What the small language model answers, greedily, while two processes serve and balance it.

    Which of the two takes a request is up to chance, so their answers are taken together.
    """
    if find_spec("torch") is None:
        print("torch is not installed, so answers are left out")
        return
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", "2", "examples/serve.py"),
                *("--requests", "64", "--results", folder),
            ],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        if done.returncode:
            sys.exit(f"examples/serve.py has failed:\n{done.stderr}")
        lines = [line for file in Path(folder).iterdir() for line in file.read_text().splitlines()]
    replies = sorted(map(json.loads, lines), key=lambda reply: reply["number"])
    record.put("answers/serve", replies)


SECTIONS: dict[str, Callable[[Record, Sequence[Recording]], None]] = {
    "traces": traces,
    "plans": plans,
    "repairs": repairs,
    "locality": locality,
    "python": python_plans,
    "splits": splits,
    "maps": maps,
    "evaluations": evaluations,
    "commands": commands,
    "answers": answers,
}


def measure(names: Sequence[str], data: Path) -> Record:
    """The entries of some sections, worked out in a folder of their own."""
    record = Record()
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        found = list(recordings(data.absolute()))
        for r in found:
            run(*r.plan(PLANNERS["contiguous"], map_to(r.start)))
        for name in names:
            began, before = time.monotonic(), len(record.entries["checksums"])
            SECTIONS[name](record, found)
            number = len(record.entries["checksums"]) - before
            print(f"{name}: {number} checksums, {time.monotonic() - began:.0f} s", flush=True)
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="default: ../shared/data")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--write", type=Path, metavar="FILE", help="record the entries here")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with these entries")
    options = parser.parse_args(arguments)
    before = None if options.against is None else json.loads(options.against.read_text())
    after = measure(options.only, options.data).entries
    if options.write is not None:
        options.write.write_text(json.dumps(after, indent=1, sort_keys=True) + "\n")
    return 0 if before is None else report(before, after)


if __name__ == "__main__":
    sys.exit(main())

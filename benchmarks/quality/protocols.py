"""Which recorded loads are planned on and which are scored: never the same window, sequence or
generation.

``glm52``        Fit: windows 0..6 of all 7 domains, which take turns: 49 steps of raw counts,
                 labelled with their domain. Tests: window 7 of each domain ("known domains"); 32
                 batches of 4,096 tokens, each a random mixture of the domains' window 7 ("mixed
                 batches"): Dirichlet(1) weights over domains, then assignments drawn per layer
                 from the mixed popularity (multinomial: choices within a token are not kept, the
                 source does not have them).
``esft_tokens``  Fit: the first 70 % of each of 3 tasks, cut at the sequence boundary nearest to it,
                 as 512-token windows of consecutive tokens (a shorter last one is left out); the
                 tasks take turns, windows are labelled with theirs. Tests: such windows of the rest
                 ("known domains"); 32 batches of 512 tokens of the rest, drawn without replacement
                 within a batch, tasks by Dirichlet(1) weights ("mixed batches").
``gptoss``       Fit: 42 of the 60 generations, 70 % of each benchmark (largest remainders), drawn
                 at random. Test: the other 18. Either side decodes in lockstep, every generation
                 starting at a random step in [0, 256); steps with at least 8 active sequences count
                 ("new requests"). A step has 8 to 42 tokens: chance alone unbalances it.
``*, left out``  One domain at a time: fit on the fit windows of all others, test on its own test
                 windows ("unseen domain"), for glm52 and esft_tokens.

All draws use seed 0. The recordings are prefill (glm52, esft_tokens) and single-request decode put
into lockstep by us (gptoss); one model each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise.trace import Trace

SEED = 0
MIXED_BATCHES = 32
GLM52_MIXED_TOKENS = 4096
ESFT_WINDOW = 512
FIT_SHARE = 0.7
GPTOSS_LATEST_START = 256
GPTOSS_LEAST_ACTIVE = 8


@dataclass(frozen=True, eq=False)
class Split:
    """What to plan on, what to score on, and which recorded units went into either."""

    fit: Trace
    tests: Mapping[str, Trace]
    fit_units: frozenset[str]
    test_units: frozenset[str]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Recorded choices ``(D, L, K)``, the length and the label of each sequence, in order."""

    ids: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    labels: NDArray[np.str_]
    num_experts: int

    def sequence(self, index: int) -> NDArray[np.uint8]:
        end = int(self.lengths[: index + 1].sum())
        return self.ids[end - int(self.lengths[index]) : end]


def read_glm52(data: Path) -> Trace:
    """Every window a step, labelled with its domain and its number in it."""
    with np.load(data / "glm52" / "windows.npz") as archive:
        counts, domains, layers = archive["counts"], archive["domains"], archive["layers"]
        top_k = int(archive["top_k"])
    return Trace(
        counts=counts.reshape(-1, *counts.shape[2:]),
        layer_ids=tuple(layers.tolist()),
        top_k=top_k,
        labels={
            "domain": np.repeat(domains, counts.shape[1]),
            "window": np.tile(np.arange(counts.shape[1]), len(domains)).astype(np.str_),
        },
    )


def read_esft(data: Path) -> Tokens:
    with np.load(data / "esft_tokens" / "topk_ids.npz") as archive:
        tasks = archive["tasks"].tolist()
        lengths = [archive[f"{task}_seq_lens"].astype(np.int64) for task in tasks]
        return Tokens(
            ids=np.concatenate([archive[f"{task}_topk_ids"] for task in tasks]),
            lengths=np.concatenate(lengths),
            labels=np.repeat(tasks, [len(x) for x in lengths]),
            num_experts=64,
        )


def read_gptoss(data: Path) -> Tokens:
    with np.load(data / "gptoss_decode_sample" / "topk_ids.npz") as archive:
        return Tokens(
            ids=archive["topk_ids"],
            lengths=archive["seq_lens"].astype(np.int64),
            labels=archive["dataset"],
            num_experts=32,
        )


def glm52(windows: Trace) -> Split:
    """Windows 0..6 of every domain, then window 7, alone and mixed."""
    window = windows.labels["window"].astype(np.int64)
    taking_turns = np.argsort(window, kind="stable")
    fit = windows.select(steps=taking_turns[window[taking_turns] < 7])
    test = windows.select(steps=window == 7)
    tests = {"known domains": test, "mixed batches": _mix_counts(test)}
    return Split(fit, tests, _window_units(fit), _window_units(test))


def glm52_left_out(windows: Trace) -> Iterator[Split]:
    """As ``glm52``, with one domain after the other missing from the fit and alone in the test."""
    whole = glm52(windows)
    known = whole.tests["known domains"]
    for domain in known.labels["domain"].tolist():
        fit = whole.fit.select(steps=whole.fit.labels["domain"] != domain)
        test = known.select(domain=domain)
        yield Split(fit, {"unseen domain": test}, _window_units(fit), _window_units(test))


def esft(tokens: Tokens) -> Split:
    """The first 70 % of every task, then the rest, alone and mixed."""
    fit, held = _cut_tasks(tokens)
    tests = {
        "known domains": _token_windows(tokens, held),
        "mixed batches": _mix_tokens(tokens, held),
    }
    return Split(_token_windows(tokens, fit), tests, _units(tokens, fit), _units(tokens, held))


def esft_left_out(tokens: Tokens) -> Iterator[Split]:
    """As ``esft``, with one task after the other missing from the fit and alone in the test."""
    all_fit, all_held = _cut_tasks(tokens)
    for task in dict.fromkeys(tokens.labels.tolist()):
        fit = all_fit[tokens.labels[all_fit] != task]
        held = all_held[tokens.labels[all_held] == task]
        yield Split(
            _token_windows(tokens, fit),
            {"unseen domain": _token_windows(tokens, held)},
            _units(tokens, fit),
            _units(tokens, held),
        )


def gptoss(tokens: Tokens) -> Split:
    """42 generations, then 18 others, each side decoding with shuffled starts."""
    rng = np.random.default_rng(SEED)
    fit = _stratified(tokens.labels, FIT_SHARE, rng)
    held = np.setdiff1d(np.arange(len(tokens.lengths)), fit)
    return Split(
        _decode(tokens, fit, rng),
        {"new requests": _decode(tokens, held, rng)},
        _units(tokens, fit),
        _units(tokens, held),
    )


def studies(data: Path) -> dict[str, Callable[[], list[Split]]]:
    """Name to splits; those of one study are scored together."""
    return {
        "glm52": lambda: [glm52(read_glm52(data))],
        "glm52, left out": lambda: list(glm52_left_out(read_glm52(data))),
        "esft_tokens": lambda: [esft(read_esft(data))],
        "esft_tokens, left out": lambda: list(esft_left_out(read_esft(data))),
        "gptoss": lambda: [gptoss(read_gptoss(data))],
    }


def _window_units(windows: Trace) -> frozenset[str]:
    names = zip(windows.labels["domain"].tolist(), windows.labels["window"].tolist(), strict=True)
    return frozenset(f"{domain} window {window}" for domain, window in names)


def _units(tokens: Tokens, sequences: NDArray[np.int64]) -> frozenset[str]:
    return frozenset(f"{tokens.labels[s]} sequence {s}" for s in sequences)


def _mix_counts(test: Trace) -> Trace:
    rng = np.random.default_rng(SEED)
    assert test.top_k is not None
    popularity = test.counts / test.counts.sum(axis=2, keepdims=True)
    weights = rng.dirichlet(np.ones(test.num_steps), MIXED_BATCHES)
    mixed = np.einsum("bd,dle->ble", weights, popularity)
    counts = rng.multinomial(GLM52_MIXED_TOKENS * test.top_k, mixed)
    return Trace(counts=counts, layer_ids=test.layer_ids, top_k=test.top_k)


def _cut_tasks(tokens: Tokens) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sequences to fit on and to hold out."""
    fit = []
    for task in dict.fromkeys(tokens.labels.tolist()):
        index = np.flatnonzero(tokens.labels == task)
        ends = np.cumsum(tokens.lengths[index])
        cut = int(np.argmin(np.abs(ends - FIT_SHARE * ends[-1]))) + 1
        fit.append(index[:cut])
    chosen = np.concatenate(fit)
    return chosen, np.setdiff1d(np.arange(len(tokens.lengths)), chosen)


def _token_windows(tokens: Tokens, sequences: NDArray[np.int64]) -> Trace:
    """Whole windows of consecutive tokens, none across two tasks; the tasks take turns."""
    windows, domains, turns = [], [], []
    for task in dict.fromkeys(tokens.labels[sequences].tolist()):
        of_task = sequences[tokens.labels[sequences] == task]
        ids = np.concatenate([tokens.sequence(int(s)) for s in of_task])
        whole = len(ids) // ESFT_WINDOW
        windows.append(ids[: whole * ESFT_WINDOW])
        domains += [task] * whole
        turns += list(range(whole))
    sizes = np.full(len(domains), ESFT_WINDOW)
    trace = _steps(tokens, np.concatenate(windows), sizes, domains)
    return trace.select(steps=np.argsort(turns, kind="stable"))


def _mix_tokens(tokens: Tokens, sequences: NDArray[np.int64]) -> Trace:
    rng = np.random.default_rng(SEED)
    tasks = list(dict.fromkeys(tokens.labels[sequences].tolist()))
    of_task = [
        np.concatenate([tokens.sequence(int(s)) for s in sequences[tokens.labels[sequences] == t]])
        for t in tasks
    ]
    batches = []
    for _ in range(MIXED_BATCHES):
        shares = rng.multinomial(ESFT_WINDOW, rng.dirichlet(np.ones(len(tasks))))
        batches += [
            ids[rng.choice(len(ids), share, replace=False)]
            for ids, share in zip(of_task, shares, strict=True)
        ]
    return _steps(tokens, np.concatenate(batches), np.full(MIXED_BATCHES, ESFT_WINDOW))


def _stratified(
    labels: NDArray[np.str_], share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """A share of every stratum; the places lost to rounding go to the largest remainders."""
    strata = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    wanted = np.array([share * len(s) for s in strata])
    take = np.floor(wanted + 1e-9).astype(np.int64)
    sizes = np.array([len(s) for s in strata])
    neediest = np.lexsort((-sizes, -np.round(wanted - take, 9)))
    take[neediest[: round(share * len(labels)) - take.sum()]] += 1
    chosen = [rng.choice(s, n, replace=False) for s, n in zip(strata, take, strict=True)]
    return np.sort(np.concatenate(chosen))


def _decode(tokens: Tokens, sequences: NDArray[np.int64], rng: np.random.Generator) -> Trace:
    """Steps of a batch whose generations start at random; steps with few active are left out."""
    starts = rng.integers(0, GPTOSS_LATEST_START, len(sequences))
    ids = np.concatenate([tokens.sequence(int(s)) for s in sequences])
    step = np.concatenate(
        [start + np.arange(tokens.lengths[s]) for start, s in zip(starts, sequences, strict=True)]
    )
    active = np.bincount(step)
    order = np.argsort(step, kind="stable")
    order = order[active[step[order]] >= GPTOSS_LEAST_ACTIVE]
    return _steps(tokens, ids[order], active[active >= GPTOSS_LEAST_ACTIVE])


def _steps(
    tokens: Tokens,
    ids: NDArray[np.uint8],
    sizes: NDArray[np.int64],
    domains: list[str] | None = None,
) -> Trace:
    labels = {} if domains is None else {"domain": np.array(domains)}
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return Trace.from_tokens(ids, offsets, num_experts=tokens.num_experts, labels=labels)

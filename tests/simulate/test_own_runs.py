"""Costs fitted to timed runs: known constants come back, and what cannot be told is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from equipoise.cost import RankCost
from equipoise.errors import EquipoiseError, FormatError
from equipoise.placement import Placement
from equipoise.simulate.expert_time import Layout
from equipoise.simulate.own_runs import OwnCost, OwnMachine, Run, fit_runs, read_own_machine
from equipoise.topology import Topology
from equipoise.trace import Trace

STEPS, LAYERS, EXPERTS = 96, 5, 32
TRUE = OwnCost(
    experts=RankCost(expert_seconds=3.2e-4, token_seconds=2e-5),
    step_seconds=5e-3,
    assignment_seconds=3e-6,
)


def run_of(
    step_tokens: int,
    *,
    noise: float = 0.05,
    cost: OwnCost = TRUE,
    skewed: bool = False,
    speed: tuple[float, ...] | None = None,
    seed: int = 0,
) -> Run:
    """Steps of a router with a taste, timed by known costs; some take four times as long."""
    rng = np.random.default_rng((seed, step_tokens, skewed))
    taste = np.random.default_rng(7).dirichlet(np.full(EXPERTS, 0.7), size=LAYERS)
    counts = np.stack([[rng.multinomial(2 * step_tokens, p) for p in taste] for _ in range(STEPS)])
    slots = np.argsort(-taste, axis=-1) if skewed else np.tile(np.arange(EXPERTS), (LAYERS, 1))
    layout = Layout(placement=Placement(slots=slots, num_ranks=2, num_experts=EXPERTS))
    topology = Topology(2, speed=speed)
    seconds = cost.seconds(layout.slot_loads(counts.astype(np.float64)), topology)
    seconds = seconds * np.exp(noise * rng.standard_normal(STEPS))
    if noise:
        seconds[rng.random(STEPS) < 0.02] *= 4
    return Run(
        name=f"{step_tokens} tokens",
        trace=Trace(counts=counts),
        layout=layout,
        topology=topology,
        step_seconds=seconds,
    )


def runs_of(**options: object) -> list[Run]:
    """Three batch sizes, and the largest also with the experts of most load on one rank."""
    runs = [run_of(tokens, **options) for tokens in (32, 128, 512)]  # type: ignore[arg-type]
    return [*runs, run_of(512, skewed=True, **options)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fit() -> OwnMachine:
    return fit_runs(runs_of(), num_draws=32)


def test_exact_times_give_the_exact_constants() -> None:
    cost = fit_runs(runs_of(noise=0.0), num_draws=0).cost
    assert cost.experts.token_seconds == pytest.approx(2e-5, rel=1e-6)
    assert cost.experts.expert_seconds == pytest.approx(3.2e-4, rel=1e-6)
    assert cost.step_seconds == pytest.approx(5e-3, rel=1e-6)
    assert cost.assignment_seconds == pytest.approx(3e-6, rel=1e-6)


def test_the_ranks_speeds_are_taken_out() -> None:
    cost = fit_runs(runs_of(noise=0.0, speed=(1.0, 0.5)), num_draws=0).cost
    assert cost.experts.token_seconds == pytest.approx(2e-5, rel=1e-6)


def test_noise_and_interruptions_leave_the_slope_within_its_draws(fit: OwnMachine) -> None:
    drawn = np.array([draw.experts.token_seconds for draw in fit.likely])
    low, high = np.quantile(drawn, [0.02, 0.98])
    assert low <= TRUE.experts.token_seconds <= high
    assert fit.cost.experts.token_seconds == pytest.approx(2e-5, rel=0.1)


def test_a_batch_size_and_a_placement_not_fitted_are_predicted(fit: OwnMachine) -> None:
    unseen = run_of(256, noise=0.0, skewed=True)
    said = fit.step_seconds(unseen.slot_load, unseen.topology).mean()
    slow_steps = 1 + 0.02 * 3  # those that take four times as long are steps as well
    assert said == pytest.approx(slow_steps * unseen.seconds.mean(), rel=0.05)


def test_equal_seeds_give_equal_draws() -> None:
    runs = runs_of()
    assert fit_runs(runs, num_draws=4, seed=1) == fit_runs(runs, num_draws=4, seed=1)
    assert fit_runs(runs, num_draws=4, seed=1) != fit_runs(runs, num_draws=4, seed=2)


def varying_run(step_tokens: int, jitter: float, *, spread: float, seed: int) -> Run:
    """Steps of equal experts whose two ranks vary by chance, each on its own.

    The first rank has ``spread`` times the assignments of the second.
    """
    rng = np.random.default_rng((seed, step_tokens))
    share = np.repeat([spread, 1.0], EXPERTS // 2)
    counts = rng.poisson(2 * step_tokens * share / share.sum(), size=(STEPS, LAYERS, EXPERTS))
    placement = Placement(
        slots=np.tile(np.arange(EXPERTS), (LAYERS, 1)), num_ranks=2, num_experts=EXPERTS
    )
    load = Layout(placement=placement).slot_loads(counts.astype(np.float64))
    ranks = TRUE.experts.rank_seconds(load, 2)
    ranks = ranks * (1 + jitter * rng.standard_normal(ranks.shape))
    return Run(
        name=f"{step_tokens} tokens",
        trace=Trace(counts=counts),
        layout=Layout(placement=placement),
        topology=Topology(2),
        step_seconds=TRUE.step_seconds + ranks.max(axis=-1).sum(axis=-1),
    )


def test_ranks_that_vary_are_told_and_make_balancing_win_less() -> None:
    sizes = [(size, spread) for size in (128, 256, 512) for spread in (1.0, 1.2, 1.6)]
    runs = [varying_run(size, 0.2, spread=spread, seed=1) for size, spread in sizes]
    found = fit_runs(runs, num_draws=16)
    assert 0.1 <= found.cost.jitter <= 0.3
    test = {spread: varying_run(384, 0.2, spread=spread, seed=2) for spread in (1.0, 1.2)}
    said, fixed = (
        {
            spread: machine.seconds(run.slot_load, run.topology).mean()
            for spread, run in test.items()
        }
        for machine in (found.cost, replace(found.cost, jitter=0.0))
    )
    true = test[1.2].seconds.mean() / test[1.0].seconds.mean() - 1
    assert said[1.2] / said[1.0] - 1 == pytest.approx(true, abs=0.02)
    assert fixed[1.2] / fixed[1.0] - 1 > true + 0.03


def test_two_runs_are_too_few() -> None:
    with pytest.raises(EquipoiseError, match=r"2 timed runs cannot tell .* expected 3 or more"):
        fit_runs(runs_of()[:2])


def test_batch_sizes_close_to_each_other_are_refused() -> None:
    runs = [run_of(tokens) for tokens in (64, 70, 80)]
    with pytest.raises(EquipoiseError, match="128 to 160 assignments a step"):
        fit_runs(runs)


def test_times_that_do_not_depend_on_the_load_are_refused() -> None:
    free = OwnCost(experts=RankCost(token_seconds=1e-30), step_seconds=5e-3, assignment_seconds=0.0)
    with pytest.raises(EquipoiseError, match="take no longer when a rank has more to compute"):
        fit_runs([run_of(tokens, noise=0.0, cost=free) for tokens in (32, 128, 512)])


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (np.ones(3), "96 steps and step times of shape"),
        (np.zeros(STEPS), "not above 0 and finite"),
        (np.full(STEPS, np.nan), "NaN|not above 0 and finite"),
    ],
)
def test_damaged_times_are_refused(seconds: NDArray[np.float64], message: str) -> None:
    run = run_of(32)
    with pytest.raises(EquipoiseError, match=message):
        Run(
            name="run",
            trace=run.trace,
            layout=run.layout,
            topology=run.topology,
            step_seconds=seconds,
        )


def test_a_machine_is_read_as_it_was_written(fit: OwnMachine, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(fit.to_json())
    assert read_own_machine(file) == fit


def test_draws_vary_with_the_fits_and_with_the_machine(fit: OwnMachine) -> None:
    run = run_of(128)
    means = [
        draw.step_seconds(run.slot_load, run.topology).mean() for draw in fit.draws(200, seed=0)
    ]
    middle = fit.step_seconds(run.slot_load, run.topology).mean()
    assert np.quantile(means, 0.05) < middle < np.quantile(means, 0.95)
    assert np.std(means) / middle >= 0.9 * fit.error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error": -1}, "error is -1"),
        ({"likely": 3}, "likely is 3"),
        ({"cost": {}}, "a cost is {}; expected an object of experts, "),
        ({"name": 7}, "name is 7"),
    ],
)
def test_damaged_machines_are_refused(
    fit: OwnMachine, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    document = json.loads(fit.to_json())
    document["timed_runs"].update(change)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(document))
    with pytest.raises(FormatError, match=message):
        read_own_machine(file)

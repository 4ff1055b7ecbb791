from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from equipoise.cli import main
from equipoise.errors import EquipoiseError
from equipoise.simulate.calibrate import calibrate, draw, fit_exchange, fit_kernel, predict
from equipoise.simulate.compute import ExpertShape
from equipoise.simulate.profiles import calibration
from equipoise.simulate.tables import read_compute
from tests.simulate.planted import (
    DECODE,
    DEVICE,
    LINK,
    LOW_LATENCY,
    compute_table,
    exchange_table,
    write,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tables")
    write(compute_table(noise=0.02), place / "moe_compute_deepep.csv")
    write(exchange_table(), place / "alltoall.csv")
    return place


def test_planted_constants_are_found():
    cost, log_error = fit_kernel(draw(compute_table(), "deepep"), DEVICE)
    assert cost.fixed_seconds == pytest.approx(DECODE.fixed_seconds, rel=0.01)
    assert cost.memory_share == pytest.approx(DECODE.memory_share, rel=0.01)
    assert cost.flops_share == pytest.approx(DECODE.flops_share, rel=0.01)
    assert cost.sharpness == pytest.approx(DECODE.sharpness, rel=0.02)
    assert log_error < 0.001


def test_outliers_do_not_move_them():
    table = compute_table(noise=0.02)
    table["time_us"][::7] *= 3
    cost, _ = fit_kernel(draw(table, "deepep"), DEVICE)
    assert cost.memory_share == pytest.approx(DECODE.memory_share, rel=0.05)
    assert cost.flops_share == pytest.approx(DECODE.flops_share, rel=0.08)


def test_ranks_that_were_left_out_are_predicted():
    table = compute_table(noise=0.02)
    known, asked = table.where(table["ep_size"] != 4), table.where(table["ep_size"] == 4)
    cost, log_error = fit_kernel(draw(known, "deepep"), DEVICE)
    forecast = predict(cost, DEVICE, draw(asked, "deepep"), log_error)
    assert np.median(np.abs(forecast.seconds / asked.seconds - 1)) < 0.03
    low, high = forecast.interval()
    assert (low < forecast.seconds).all()
    assert (forecast.seconds < high).all()


def test_the_draw_widens_the_interval_where_loads_are_drawn():
    table = compute_table()
    forecast = predict(DECODE, DEVICE, draw(table, "deepep"))
    assert (forecast.log_draw[table["alpha"] == 0] == 0).all()
    drawn = table["alpha"] > 0
    assert np.median(forecast.log_draw[drawn & (table["tokens_global"] > 1000)]) > 0.01


def test_a_time_is_the_mean_of_five_draws_and_the_middle_of_such_means():
    table = compute_table()
    (row,) = np.flatnonzero(
        (table["alpha"] == 1.2) & (table["ep_size"] == 8) & (table["tokens_global"] == 4096)
    )
    drawn = draw(table, "deepep", num_draws=20)
    forecast = predict(DECODE, DEVICE, drawn.where(np.array([row])))
    shape = ExpertShape(
        hidden_size=2048, inter_size=1024, num_experts=32, top_k=4, dtype="fp8_block"
    )
    time = DECODE.on(DEVICE, shape)
    single = [float(time.seconds(load, 4096)) for load in drawn.shares[row].load]
    means = [sum(single[i : i + 5]) / 5 for i in range(0, 20, 5)]
    assert forecast.seconds[0] == pytest.approx(np.prod(means) ** (1 / 4))
    assert forecast.log_draw[0] == pytest.approx(np.std(np.log(means)))


def test_a_planted_exchange_is_found():
    table = exchange_table()
    cost, log_error = fit_exchange(table.where(table["op"] == "dispatch"), LINK)
    assert cost.fixed_seconds == pytest.approx(LOW_LATENCY.fixed_seconds, rel=0.01)
    assert cost.link_share == pytest.approx(LOW_LATENCY.link_share, rel=0.01)
    assert cost.copies == "assignment"
    assert log_error < 0.001


def test_the_command_writes_what_is_read_again(folder, tmp_path, capsys):
    output = tmp_path / "fits.json"
    assert main(["calibrate", str(folder), "-o", str(output), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    known = calibration(output)
    assert [row["log_error"] for row in printed["fits"]] == [
        fit.log_error for fit in (*known.kernels, *known.exchanges)
    ]
    assert known == replace(calibrate(folder), source=known.source)
    assert main(["calibrate", str(folder), "-o", str(output)]) == 0
    assert "masked" in capsys.readouterr().out


def test_a_gpu_of_ones_own_needs_a_profile_next_to_the_tables(folder, tmp_path, capsys):
    table = read_compute(folder, "deepep")
    table["gpu"][:] = "mine"
    write(table, tmp_path / "moe_compute_deepep.csv")
    output = tmp_path / "fits.json"
    assert main(["calibrate", str(tmp_path), "-o", str(output)]) == 2
    assert "no hardware profile for the GPU 'mine'" in capsys.readouterr().err
    assert not output.exists()
    import equipoise.simulate.profiles as profiles

    source = profiles.files("equipoise.simulate.profiles") / "data" / "hardware" / "h100.json"
    (tmp_path / "mine.json").write_text(source.read_text())
    assert main(["calibrate", str(tmp_path), "-o", str(output)]) == 0
    assert calibration(output).kernels[0].gpu == "mine"


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(EquipoiseError, match=r"has no kernel table; expected alltoall\.csv or"):
        calibrate(tmp_path)


def test_a_phase_that_no_model_is_for_is_refused(folder):
    table = read_compute(folder, "deepep")
    table["phase"][:] = "mixed"
    with pytest.raises(EquipoiseError, match="phase 'mixed'; expected one of decode, prefill"):
        fit_kernel(draw(table, "deepep"), DEVICE)

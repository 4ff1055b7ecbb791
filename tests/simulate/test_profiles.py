from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest

from equipoise.errors import EquipoiseError, FormatError
from equipoise.simulate import profiles
from equipoise.simulate.compute import ExpertShape
from equipoise.simulate.profiles import calibration, hardware, link, names

DATA = files("equipoise.simulate.profiles") / "data"


def damaged(tmp_path, kind, name, change):
    document = json.loads((DATA / kind / f"{name}.json").read_text())
    change(document)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("name", names("hardware"))
def test_every_gpu_has_its_numbers_with_source_and_uncertainty(name):
    profile = hardware(name.upper())
    assert profile.device.flops("bfloat16") > 1e14
    assert 1e12 < profile.memory_bytes_per_second.value < 1e13
    assert profile.link.bytes_per_second > 1e11
    quantities = [profile.memory_bytes, profile.memory_bytes_per_second]
    for quantity in (*quantities, *profile.flops_per_second.values()):
        assert quantity.source
        assert 0 < quantity.uncertainty <= 0.5


def test_a_host_that_shares_memory_takes_less_for_a_message():
    proxy = link("aws-efa")
    assert proxy.from_gpu(hardware("h100")) == proxy.link
    assert proxy.link.message_seconds > 0
    coherent = hardware("gh200").coherent_message_share
    assert coherent.is_assumed
    share = proxy.from_gpu(hardware("gh200")).message_seconds / proxy.link.message_seconds
    assert share == coherent.value < 1
    assert link("infiniband-400g").link.message_seconds == 0
    assert link("infiniband-400g-proxy").from_gpu(hardware("gh200")).message_seconds > 0


@pytest.mark.parametrize("name", names("link"))
def test_every_link_is_usable_and_says_what_is_assumed(name):
    profile = link(name)
    assert profile.link.bytes_per_second >= 1e9
    for quantity in (profile.latency_seconds, profile.bytes_per_second):
        assert quantity.is_assumed == (quantity.uncertainty == 0.5)


def test_the_link_on_the_page_is_read(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "explanation" / "timemodel.md"
    (shown,) = re.findall(r"(?ms)^```json\n(.*?)^```$", page.read_text(encoding="utf-8"))
    (tmp_path / "ethernet.json").write_text(shown)
    assert link(tmp_path / "ethernet.json").bytes_per_second.value == 10e9 / 8


def test_what_nobody_published_is_left_out_and_asked_for_in_words():
    profile = hardware("ascend-910c")
    assert "fp8" not in profile.flops_per_second
    with pytest.raises(EquipoiseError, match="no fp8 rate"):
        profile.device.flops("fp8_block")
    assert link("aws-efa").bytes_per_second.is_assumed


def test_the_published_fits_are_on_gpus_that_are_known():
    known = calibration()
    for fit in known.kernels:
        shape = ExpertShape(
            hidden_size=7168, inter_size=2048, num_experts=256, top_k=8, dtype=fit.dtype
        )
        seconds = fit.cost.on(hardware(fit.gpu).device, shape).seconds([100] * 8, 700)
        assert 50e-6 < float(seconds) < 1e-3
    assert {fit.kernel for fit in known.exchanges} >= {"deepep_ll", "deepep_normal"}


def test_the_nearest_fit_is_of_the_same_kernel_then_format_then_gpu():
    known = calibration()
    asked = {"table": "wideep", "phase": "decode", "kernel": "wideep_compute_cutlass"}
    assert known.nearest(**asked, dtype="nvfp4", gpu="B200").gpu == "GB200"
    assert known.nearest(**asked, dtype="fp8_block", gpu="B200").gpu == "H100"
    assert known.nearest(**asked, gpu="GB200").gpu == "GB200"
    with pytest.raises(EquipoiseError, match="no fit of 'fused' for 'decode'; there is deepep"):
        known.nearest(table="fused", phase="decode")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(EquipoiseError, match=r"no hardware profile 'h1000'; .*ascend-910b, .*h100"):
        hardware("h1000")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("memory_bytes"), "memory_bytes is None; expected an object"),
        (lambda d: d.update(format="other"), 'expected "format": "equipoise hardware 1"'),
        (lambda d: d.update(name=7), "name is 7; expected text"),
        (
            lambda d: d["flops_per_second"].update(bfloat16={"value": None, "reason": "unknown"}),
            'bfloat16 is null without "assumed"',
        ),
        (lambda d: d.pop("maker"), "maker is None; expected text"),
        (
            lambda d: d.update(coherent_message_share=d["memory_bytes"]),
            "coherent_message_share is 8e.10; expected from 0 to 1",
        ),
        (lambda d: d.update(flops_per_second=[]), "flops_per_second is .*; expected an object"),
        (lambda d: d["memory_bytes"].update(value="80 GB"), "value is '80 GB'; expected a number"),
        (lambda d: d["memory_bytes"].update(value=0), "value is 0; expected from 0"),
        (lambda d: d["memory_bytes"].update(value=float("nan")), "NaN is not a number"),
        (lambda d: d["memory_bytes"].update(uncertainty=7), "uncertainty is 7; expected from 0 to"),
        (lambda d: d["memory_bytes"].pop("source"), "source is None; expected text"),
        (lambda d: d["memory_bytes"].update(value=None), "reason is None; expected text"),
        (
            lambda d: d.update(memory_bytes={"value": None, "reason": "unknown"}),
            'memory_bytes is null without "assumed"',
        ),
    ],
)
def test_damaged_hardware_is_refused(tmp_path, change, message):
    with pytest.raises(FormatError, match=message):
        hardware(damaged(tmp_path, "hardware", "h100", change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(kernels={}), "kernels is {}; expected a list"),
        (lambda d: d["kernels"].append(3), "a fit is 3; expected an object of table, "),
        (lambda d: d["kernels"][0].update(more=1), "a fit is {.*; expected an object of table, "),
        (lambda d: d["kernels"][0].update(cost=None), "cost is None; expected an object of "),
        (lambda d: d["kernels"][0]["cost"].update(memory_share=2), "memory_share is 2"),
        (lambda d: d["kernels"][0]["cost"].update(sharpness="2"), "sharpness is '2'"),
        (lambda d: d["kernels"][0].update(log_error="low"), "log_error is 'low'"),
        (lambda d: d["kernels"][0].update(gpu=5), "gpu is 5"),
        (lambda d: d["exchanges"][0]["cost"].update(copies=[]), "copies is"),
    ],
)
def test_damaged_fits_are_refused(tmp_path, change, message):
    with pytest.raises(FormatError, match=message):
        calibration(damaged(tmp_path, "calibration", "published", change))


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"[" * 100_000, b'{"a": 1, "a": 2}', b"9" * 10_000, b"[]", b"null"],
)
def test_junk_is_refused(tmp_path, data):
    path = tmp_path / "junk.json"
    path.write_bytes(data)
    for read in (hardware, link, calibration):
        with pytest.raises(FormatError):
            read(path)


def test_one_key_twice_is_refused(tmp_path):
    text = (DATA / "hardware" / "h100.json").read_text()
    path = tmp_path / "twice.json"
    path.write_text('{"name": "other", ' + text.lstrip()[1:])
    with pytest.raises(FormatError, match="appears twice in one object"):
        hardware(path)


def test_a_huge_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "_MAX_BYTES", 1000)
    path = tmp_path / "huge.json"
    path.write_bytes(b" " * 1001)
    with pytest.raises(FormatError, match="expected a profile"):
        hardware(path)

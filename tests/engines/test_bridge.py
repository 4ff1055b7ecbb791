"""What engines say of themselves, told in our names."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Summary,
    generate_latest,
)
from prometheus_client.parser import text_string_to_metric_families

from equipoise.cli import main
from equipoise.control.exposition import Samples
from equipoise.control.metric_families import BRIDGED, DESCRIPTIONS, DETAILS
from equipoise.control.metrics import FRESH_SECONDS
from equipoise.engines.bridge import Bridge, open_source
from equipoise.engines.registry import live
from equipoise.engines.trace_io import write_trace
from equipoise.errors import EquipoiseError, FormatError
from equipoise.trace import Trace
from tests.prometheus import free_ports


class Engine:
    """The metrics of a server, which the test changes, at an address."""

    def __init__(self, prefix: str) -> None:
        self.registry = CollectorRegistry()
        self.prefix = prefix
        self.text: str | None = None  # in place of the metrics
        self.length: int | None = None
        engine = self

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = engine.text or generate_latest(engine.registry).decode()
                self.send_response(200 if self.path == "/metrics" else 404)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def make(self, kind, name, labels=(), **named):
        return kind(
            f"{self.prefix}{name}", "Said by the engine.", labels, registry=self.registry, **named
        )

    def bridge(self, name: str, **named) -> Bridge:
        return Bridge(open_source(self.url, live(name)), **named)


@pytest.fixture
def engine(request) -> Iterator[Engine]:
    made = Engine(getattr(request, "param", "sglang:"))
    yield made
    made.server.shutdown()
    made.server.server_close()


def told(bridge: Bridge) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(bridge)
    return {
        sample.name.removeprefix("equipoise_")
        + "".join(f"/{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def without_buckets(read: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in read.items() if "_bucket/" not in name}


# --- SGLang ------------------------------------------------------------------------------------


def test_sglang_says_how_balanced_its_passes_are(engine):
    seen = engine.make(Summary, "eplb_balancedness", ["forward_mode", "tp_rank"])
    bridge = engine.bridge("sglang")
    assert told(bridge) == {"bridge_up": 1}
    for mode, values in {"decode": (0.5, 0.75), "extend": (0.8,), "idle": (0.95,)}.items():
        for value in values:
            seen.labels(mode, "0").observe(value)
    read = told(bridge)
    assert read.pop("last_look_timestamp_seconds") > 1e9
    assert read == {
        "bridge_up": 1,
        "imbalance/prefill": 1.25,
        "imbalance/decode": 1.6,
        "balancedness": 0.75,
        "expert_load_balance_ratio": pytest.approx(4 / 3),
    }
    assert told(bridge) == {"bridge_up": 1}  # nothing new: what was is not told again
    seen.labels("decode", "0").observe(1.0)
    assert told(bridge)["imbalance/decode"] == 1.0


def test_sglang_has_a_bucket_for_each_rank(engine):
    seen = engine.make(Histogram, "eplb_gpu_physical_count", ["layer"], buckets=[0, 1, 2, 3])
    bridge = engine.bridge("sglang", with_details=True)
    for layer, loads in {"0": (1, 1, 1, 5), "7": (3, 1, 2, 2)}.items():
        for rank, load in enumerate(loads):
            for _ in range(load):
                seen.labels(layer).observe(rank)
    assert told(bridge) == {
        "bridge_up": 1,
        "rank_load/0": 1.0,
        "rank_load/1": 0.5,
        "rank_load/2": 0.75,
        "rank_load/3": 1.75,
        "layer_imbalance/0": 2.5,
        "layer_imbalance/7": 1.5,
    }
    seen.labels("0").observe(2)
    assert told(bridge)["rank_load/2"] == 4.0


def test_sglang_separates_what_attention_waits_for(engine):
    ratio = engine.make(Histogram, "dp_attention_token_imbalance_ratio", buckets=[1, 2, 4])
    wait = engine.make(Histogram, "dp_attention_sync_wait_seconds", buckets=[1])
    for value in (1.0, 2.0):
        ratio.observe(value)
        wait.observe(0.25)
    read = told(engine.bridge("sglang"))
    assert read == {
        "bridge_up": 1, "attention_imbalance": 1.5, "attention_wait_seconds_total": 0.5,
    }  # fmt: skip


# --- what users wait ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "name", "later"),
    [
        ("sglang:", "sglang", "inter_token_latency_seconds"),
        ("vllm:", "vllm", "request_time_per_output_token_seconds"),
        ("vllm:", "ascend", "inter_token_latency_seconds"),
    ],
    indirect=["engine"],
)
def test_latencies_and_tokens_of_all_engines(engine, name, later):
    first = engine.make(Histogram, "time_to_first_token_seconds", ["rank"], buckets=[0.1, 0.2, 0.4])
    after = engine.make(Histogram, later, buckets=[0.01, 0.02])
    tokens = engine.make(Counter, "generation_tokens", ["rank"])
    bridge = engine.bridge(name)
    for rank in "01":
        first.labels(rank).observe(0.15)
        tokens.labels(rank).inc(20)
    after.observe(0.015)
    read = told(bridge)
    assert without_buckets(read) == {
        "bridge_up": 1,
        "ttft_seconds_count": 2,
        "ttft_seconds_sum": 0.3,
        "ttft_p99": pytest.approx(0.199),
        "tpot_seconds_count": 1,
        "tpot_seconds_sum": 0.015,
        "tpot_avg": 0.015,
        "tokens_total": 40,
    }
    assert [read[f"ttft_seconds_bucket/{le}"] for le in ("0.1", "0.2", "0.4", "+Inf")] == [
        0, 2, 2, 2,
    ]  # fmt: skip
    assert not {"ttft_p99", "tpot_avg"} & set(told(bridge))
    first.labels("0").observe(0.3)
    assert told(bridge)["ttft_p99"] == pytest.approx(0.398)


# --- Ascend ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["", "vllm_profiling_"], indirect=True)
def test_ascend_says_how_hot_the_hottest_rank_is(engine):
    # The client has no colons to spare in names that it makes; the profiler's have three.
    hotness = f"{engine.prefix}eplb:expert_hotness"
    engine.text = (
        f"# TYPE {hotness}:current_mean gauge\n"
        f'{hotness}:current_mean{{rank="0",phase="all"}} 1.5\n'
        f'{hotness}:update_mean{{rank="0",phase="all"}} 1.1\n'
        f'{hotness}:imbalance{{rank="0",phase="current",layer="3"}} 1.25\n'
        f'{hotness}:imbalance{{rank="0",phase="update",layer="3"}} 1.0\n'
    )
    read = told(engine.bridge("ascend", with_details=True))
    del read["last_look_timestamp_seconds"]
    assert read == {
        "bridge_up": 1,
        "imbalance/all": 1.5,
        "expert_load_balance_ratio": 1.5,
        "layer_imbalance/3": 1.25,
    }


# --- logs --------------------------------------------------------------------------------------

LINES = {
    "vllm": "INFO 11-30 10:00:0{n} EPLB step: 12 for model a-model: avg_tokens=64.00, "
    "max_tokens=80, balancedness=0.{n}000, steps until the next rearrangement: 88",
    "sglang": "[2026-11-30 10:00:0{n} TP0] [Expert Balancedness] forward_pass_id=7 "
    "current_pass_balancedness=0.990 last_10_average_balancedness=0.{n}00 "
    "last_100_average_balancedness=0.910 gpu_physical_count_sum=96",
    "ascend": "INFO [Expert Hotness] Current: mean={n}.000, max=9.125, "
    "Updated: mean=1.010, max=1.200",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vllm", {"imbalance/all": 1.25, "balancedness": 0.8}),
        ("sglang", {"imbalance/all": 1.25, "balancedness": 0.8}),
        ("ascend", {"imbalance/all": 8.0}),
    ],
)
def test_the_last_line_of_a_log_that_says_it(tmp_path, name, wanted):
    log = tmp_path / "server.log"
    lines = [LINES[name].replace("{n}", n) for n in "58"]
    log.write_text("\n".join(["starting", *lines, "\udcff and more".replace("\udcff", "?"), ""]))
    read = told(Bridge(open_source(str(log), live(name))))
    ratio = wanted["imbalance/all"]
    assert read == wanted | {
        "bridge_up": 1,
        "expert_load_balance_ratio": ratio,
        "last_look_timestamp_seconds": pytest.approx(log.stat().st_mtime),
    }


def test_a_log_that_grows_no_more_has_no_gauges(tmp_path):
    log = tmp_path / "server.log"
    log.write_text(LINES["vllm"].replace("{n}", "5"))
    os.utime(log, (1000, 1000))
    source = open_source(str(log), live("vllm"))
    ages = {age: Bridge(source, clock=lambda age=age: 1000 + age) for age in (0, 300, 301)}
    assert ages[0] is not None
    assert "balancedness" in told(ages[FRESH_SECONDS])
    assert told(ages[301]) == {"bridge_up": 1, "last_look_timestamp_seconds": 1000}


# --- recordings --------------------------------------------------------------------------------


@pytest.fixture
def recording(tmp_path):
    rng = np.random.default_rng(3)
    phase = np.where(np.arange(8) % 2, "decode", "prefill")
    counts = rng.multinomial(4000, [0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05], size=(8, 2))
    trace = Trace(counts=counts, layer_ids=(3, 4), top_k=2, labels={"phase": phase})
    path = tmp_path / "run.trace"
    write_trace(trace, path)
    return path, trace


def test_a_recording_is_measured_as_a_look_would(recording):
    path, trace = recording
    bridge = Bridge(open_source(str(path), live("vllm"), num_ranks=4), with_details=True)
    read = told(bridge)
    load_TLR = trace.counts.reshape(8, 2, 4, 2).sum(axis=3)
    imbalance = load_TLR.max(axis=2) / load_TLR.mean(axis=2)
    assert read["imbalance/decode"] == pytest.approx(imbalance[1::2].mean())
    assert read["imbalance/prefill"] == pytest.approx(imbalance[::2].mean())
    assert read["layer_imbalance/4"] == pytest.approx(imbalance[:, 1].mean())
    assert read["excess/decode"] == pytest.approx(
        read["imbalance/decode"] - read["noise_floor/decode"]
    )
    assert 1 < read["noise_floor/decode"] < 1.2
    assert sum(read[f"rank_load/{rank}"] for rank in range(4)) == pytest.approx(4)


def test_a_recording_that_grows_is_read_again(recording):
    path, trace = recording
    bridge = Bridge(open_source(str(path), live("vllm"), num_ranks=4))
    before = told(bridge)
    path.unlink()
    assert told(bridge) == {"bridge_up": 0}
    counts = np.full_like(trace.counts, 100)
    write_trace(Trace(counts=counts, layer_ids=(3, 4), top_k=2), path)
    after = told(bridge)
    assert "imbalance/decode" in before
    assert after["imbalance/all"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--for", "vllm"], "does not say on how many ranks; give --ranks"),
        (["--for", "trtllm"], "There is no bridge from 'trtllm'; choose one of sglang, vllm,"),
        (["--for", "vllm", "--ranks", "3"], "8 experts do not divide over 3 ranks"),
    ],
)
def test_what_a_recording_cannot_answer(recording, capsys, arguments, message):
    assert main(["bridge", str(recording[0]), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_prints_once(recording, capsys):
    arguments = ["--for", "sglang", "--ranks", "4", "--details", "--once"]
    assert main(["bridge", str(recording[0]), *arguments]) == 0
    text = capsys.readouterr().out
    names = set(re.findall(r"^# TYPE equipoise_(\w+) ", text, flags=re.MULTILINE))
    assert names <= {*DESCRIPTIONS, *DETAILS, *BRIDGED}
    assert {"bridge_up", "imbalance", "rank_load"} <= names


def test_the_command_answers_until_it_is_interrupted(tmp_path):
    log = tmp_path / "server.log"
    log.write_text(LINES["vllm"].replace("{n}", "5"))
    port = free_ports(1)
    paths = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [sys.executable, "-m", "equipoise", "bridge", log, "--for", "vllm", "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    try:
        assert f"http://127.0.0.1:{port}/metrics" in process.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            assert "equipoise_balancedness 0.5\n" in page.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 130
    finally:
        process.kill()
        process.communicate()


# --- what is no metrics ------------------------------------------------------------------------


def test_an_engine_that_is_gone_is_down_and_nothing_else(engine):
    bridge = engine.bridge("sglang")
    engine.make(Summary, "eplb_balancedness", ["forward_mode"]).labels("decode").observe(0.5)
    assert "balancedness" in told(bridge)
    engine.text = "<html>restarting</html>"
    assert told(bridge) == {"bridge_up": 0}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ftp://127.0.0.1/metrics", "expected one such as http://127.0.0.1:8000"),
        ("file:///etc/passwd", "expected one such as http://127.0.0.1:8000"),
        ("http://127.0.0.1:1", "cannot be reached"),
        ("nowhere", "nowhere does not exist"),
    ],
)
def test_a_source_that_is_none(capsys, source, message):
    assert main(["bridge", source, "--for", "vllm", "--once"]) == 2
    assert message in capsys.readouterr().err


def test_an_answer_without_end_is_refused(engine, monkeypatch):
    monkeypatch.setattr("equipoise.engines.bridge._MOST_ANSWER_BYTES", 1 << 20)
    engine.text = "# " + "a" * (1 << 21)
    with pytest.raises(EquipoiseError, match="answers more than 1 MiB"):
        open_source(engine.url, live("vllm"))()


def test_ranks_are_for_recordings(engine):
    with pytest.raises(EquipoiseError, match="--ranks and --map are for recordings"):
        open_source(engine.url, live("vllm"), num_ranks=4)


PIECES = st.sampled_from(
    [*'{}=",# \n', "TYPE ", "HELP ", "sglang:eplb_balancedness", "_sum", "_bucket", "le", "NaN",
     "+Inf", "1e999", "-1", "layer", "forward_mode", "decode", "\\",
     "sglang:eplb_gpu_physical_count", "9" * 5000]
)  # fmt: skip


@given(st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=60))
def test_junk_is_refused_or_says_little(text):
    try:
        samples = Samples(text)
    except FormatError:
        return
    for name in ("sglang", "vllm", "ascend"):
        seen = live(name).metrics(samples, Samples(""))
        assert all(value >= 1 for value in seen.imbalance.values())


@given(st.text(max_size=200))
def test_junk_in_a_log_says_nothing(text):
    assert all(live(name).line(text) is None for name in ("sglang", "vllm", "ascend"))


def test_a_long_line_is_searched_once(tmp_path):
    log = tmp_path / "server.log"
    log.write_text("EPLB step: " * 100_000)
    with pytest.raises(EquipoiseError):
        open_source(str(log), live("vllm"))()

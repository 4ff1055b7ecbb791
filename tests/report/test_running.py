"""A running group, read from a real /metrics address."""

from __future__ import annotations

import http.server
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.control.metrics import Metrics
from equipoise.errors import EquipoiseError
from equipoise.report.running import RunningGroup, sight_of

TEXT = """\
# TYPE equipoise_imbalance gauge
equipoise_imbalance{phase="decode"} 1.5
equipoise_excess{phase="decode"} 0.25
equipoise_state 3
equipoise_step_seconds_count 10
equipoise_step_seconds_sum 0.5
equipoise_rebalances_total{outcome="kept"} 2
equipoise_alarm{name="nothing_counted"} 1
equipoise_alarm{name="maps_disagree"} 0
python_info{version="3.11"} 1
"""


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers as its path says."""

    def do_GET(self):
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "/metrics")
        else:
            self.send_response(500 if self.path == "/broken" else 200)
        self.end_headers()
        if self.path == "/metrics":
            self.wfile.write(TEXT.encode())
        if self.path == "/endless":
            try:
                while True:
                    self.wfile.write(b"#" * 65536)
            except OSError:
                pass
        if self.path == "/drops":
            self.server.slow.wait(10)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    server.slow = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.slow.set()
    server.shutdown()
    server.server_close()


def test_a_group_is_read_over_http(address):
    sight = RunningGroup(f"{address}/metrics").look()
    assert sight == sight_of(TEXT, "")
    assert (sight.imbalance, sight.excess) == ({"decode": 1.5}, {"decode": 0.25})
    assert (sight.state, sight.steps, sight.step_seconds, sight.ranks) == ("move", 10, 0.5, None)
    assert (sight.outcomes, sight.alarms) == ({"kept": 2}, ["nothing_counted"])


def test_what_our_own_metrics_say_is_read():
    metrics = Metrics()
    metrics.take_step(0.25, stall_seconds=0.5)
    metrics.take_ranks(4, 0.0, wanted=4, process="p0", rank=0)
    metrics.take_move(2, 7)
    metrics.take_answered("answered")
    metrics.take_failure()
    sight = sight_of(metrics.text(), "here")
    assert (sight.steps, sight.step_seconds, sight.stall_seconds) == (1, 0.25, 0.5)
    assert (sight.ranks, sight.moved_bytes, sight.failures) == (4, 7, 1)
    assert sight.requests == {"answered": 1, "failed": 0}
    assert (sight.state, sight.alarms) == ("warm-up", [])


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/broken", "answers with status 500; expected metrics."),
        ("/elsewhere", "answers with status 302; expected metrics."),
        ("/other", "answers without a metric of equipoise"),
        ("/endless", "answers more than 4 MiB; expected metrics."),
        ("/drops", "cannot be reached: timed out."),
    ],
)
def test_what_is_no_group_is_refused_in_a_sentence(address, path, sentence):
    with pytest.raises(EquipoiseError) as refused:
        RunningGroup(f"{address}{path}", timeout_seconds=1.0 if path == "/drops" else 30.0).look()
    assert str(refused.value).startswith(f"{address}{path} {sentence}")


def test_nobody_there_is_said(address):
    with pytest.raises(EquipoiseError, match=r"cannot be reached: .*Does the group still run"):
        RunningGroup("http://127.0.0.1:1/metrics").look()


@pytest.mark.parametrize(
    "url", ["", "file:///etc/passwd", "127.0.0.1:9400", "http://", "http://[", "http://a:b@c/"]
)
def test_other_addresses_are_refused(url):
    with pytest.raises(EquipoiseError, match="The address of the metrics is"):
        RunningGroup(url)


@settings(max_examples=50)
@given(st.text(max_size=200) | st.text(alphabet='equipois_ab{}="\\#, 0123\n', max_size=200))
def test_junk_is_refused_and_never_read_as_numbers_that_are_none(text):
    try:
        sight = sight_of(text, "here")
    except EquipoiseError:
        return
    assert sight.ranks is None or sight.ranks == sight.ranks


def test_numbers_that_are_none_are_left_out():
    sight = sight_of("equipoise_ranks NaN\nequipoise_state 99\nequipoise_failures_total +Inf\n", "")
    assert (sight.ranks, sight.state, sight.failures) == (None, None, None)

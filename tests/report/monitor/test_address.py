from __future__ import annotations

import re
import socket

import pytest

from equipoise.errors import EquipoiseError
from equipoise.report.monitor.address import Addresses, checked_url, post
from tests.report.monitor.servers import exposition, group, raw


def test_a_group_is_looked_at():
    with group(exposition(4)) as first, group("equipoise_tokens_total 5\n") as second:
        source = Addresses([first.address, second.address], clock=lambda: 7.0)
        (seen,) = source.look()
    assert (seen.time, seen.num_ranks, seen.counts.tokens) == (7.0, 4, 1005.0)
    assert first.asked == ["GET /metrics HTTP/1.0"]
    assert source.name == f"{first.address} and 1 more"


def test_a_process_that_is_gone_is_named_and_the_others_are_shown():
    with group(exposition(4)) as first:
        source = Addresses([first.address, "127.0.0.1:1"])
        (seen,) = source.look()
    assert seen.num_ranks == 4
    assert seen.silent == {"127.0.0.1:1": "it does not answer (Connection refused)."}


def _endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"equipoise_ranks 4\n" * 4096)


def _slow(connection: socket.socket) -> None:
    connection.settimeout(0.02)
    while True:  # until the other side hangs up
        connection.sendall(b"H")
        try:
            if not connection.recv(1):
                return
        except TimeoutError:
            continue


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda c: c.sendall(b"\x1b]0;junk\x07" * 9), "its answer is not HTTP, but begins with"),
        (lambda c: c.sendall(b"HTTP/1.0 404 Not\x1b[2J Here\r\n\r\n"), "it answers 404 Not�"),
        (lambda c: None, "it has hung up without an answer"),
        (
            lambda c: c.sendall(b"HTTP/1.0 200 OK\r\n\r\n\xff\xfe\0"),
            "line 1 is not in Prometheus's text format",
        ),
        (_endless, "its answer is longer than 4 MB"),
        (_slow, "it has not answered in full within 0.5 s"),
        (lambda c: c.recv(1), "it has not answered in full within 0.5 s"),
    ],
)
def test_bad_servers_get_a_sentence(answer, message):
    with raw(answer) as address:
        source = Addresses([address], patience_seconds=5.0 if answer is _endless else 0.5)
        with pytest.raises(EquipoiseError, match=re.escape(message)) as caught:
            source.look()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "url", ["ftp://host/", "http://", "http://a b:1", "host:99999", "http://[::1", "http://x\x1b:1"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(EquipoiseError, match="is not an address; expected one such as"):
        checked_url(url)


def test_fresh_figures_are_asked_for_where_there_is_an_address():
    with group("done") as server:
        url = checked_url(f"http://{server.address}/dump_expert_distribution_record")
        assert post(url) == "Asked for fresh figures at /dump_expert_distribution_record."
    assert server.asked == ["POST /dump_expert_distribution_record HTTP/1.0"]
    assert "No address was given" in post(None)

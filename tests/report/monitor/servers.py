"""Real servers on this machine: one that answers as a serving group does, and bad ones."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Group:
    """A server of metrics; ``text`` is what it answers next, ``asked`` what it was asked."""

    def __init__(self, text: str) -> None:
        self.text, self.asked = text, list[str]()
        group = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                group.asked.append(self.requestline)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(group.text.encode())

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@contextmanager
def group(text: str) -> Iterator[Group]:
    serving = Group(text)
    try:
        yield serving
    finally:
        serving.server.shutdown()
        serving.server.server_close()


@contextmanager
def raw(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of a server that does to a connection whatever ``answer`` does."""
    listening = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, suppress(OSError):
                    connection.recv(1 << 12)
                    answer(connection)

    Thread(target=work, daemon=True).start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()


def exposition(ranks: int, layers: int = 0, **values: float) -> str:
    """What rank 0 of a group says, with numbers that follow from the sizes."""
    usual = {"ranks": ranks, "map_version": 1, "state": 1, "tokens_total": 1000.0,
             "step_seconds_sum": 1.0, "step_seconds_count": 100.0}  # fmt: skip
    lines = [f"equipoise_{name} {value}" for name, value in (usual | values).items()]
    lines += [
        'equipoise_info{version="1",model="small"} 1',
        'equipoise_rank{process="p0"} 0',
        'equipoise_imbalance{phase="decode"} 1.31',
        'equipoise_noise_floor{phase="decode"} 1.08',
        *(f'equipoise_rank_load{{rank="{r}"}} {0.7 + 0.6 * r / ranks}' for r in range(ranks)),
        *(f'equipoise_layer_imbalance{{layer="{n}"}} {1.1 + n / 100}' for n in range(layers)),
    ]
    return "# HELP equipoise_ranks Ranks.\n" + "\n".join(lines) + "\nother_metric 7\n"

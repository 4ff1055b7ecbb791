"""Something that publishes what a server would, for ``test_demo``."""

from __future__ import annotations

import time
from typing import Any

from torch.distributed import TCPStore

from equipoise.control.status import Status, status_key
from equipoise.errors import EquipoiseError


def serve(
    host: str,
    port: int,
    name: str,
    options: Any,
    metrics_port: int | None,
    metrics_host: str,
    metrics_look: bool,
) -> None:
    """Take requests from the source and say so; a dispatcher called ``even`` is refused."""
    if options.dispatch == "even":
        raise EquipoiseError("not today.")
    store = TCPStore(host, port, is_master=False)
    began = time.monotonic()
    for step in range(1_000_000):
        domain = options.source(step).domain
        status = Status(
            name=name, rank=int(name[1:]), members=("p0", "p1"), epoch=1,
            time=time.monotonic() - began, step=step, step_seconds=0.05, tokens=10 * step,
            domain=domain, rank_load=(3, 1), imbalance=1.5 if domain == "tables" else 1.1,
            state="observe", version=0, moved_slots=0, moved_bytes=0,
            log=(f"metrics at {metrics_port}",),
        )  # fmt: skip
        store.set(status_key(name), status.encode())
        time.sleep(0.05)

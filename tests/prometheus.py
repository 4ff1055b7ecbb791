"""Debian's Prometheus and its promtool, for tests marked ``prometheus``.

Skipped without them; with EQUIPOISE_REQUIRE_PROMETHEUS=1 in the environment that is a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml


def program(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``."""
    found = shutil.which(name)
    if found is None:
        missing = f"no {name} on the PATH; the package prometheus brings it"
        if os.environ.get("EQUIPOISE_REQUIRE_PROMETHEUS") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    """What promtool says; fails where it is not content."""
    command = [program("promtool"), *map(str, arguments)]
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def free_ports(number: int, start: int = 29400) -> int:
    """The first of consecutive ports, from a start on, that nobody listens at."""
    for first in range(start, start + 200, number):
        with ExitStack() as held:
            try:
                for port in range(first, first + number):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


class Scraper:
    """A Prometheus that runs."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}/api/v1"

    def ask(self, path: str, **arguments: str) -> Any:
        query = urllib.parse.urlencode(arguments)
        with urllib.request.urlopen(f"{self._address}/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def series(self, query: str) -> list[tuple[Mapping[str, str], float]]:
        found = self.ask("query", query=query)["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def wait_for(self, query: str, most: float = 60.0) -> list[tuple[Mapping[str, str], float]]:
        """The first answer to a query that is not empty."""
        end = time.monotonic() + most
        while time.monotonic() < end:
            try:
                if found := self.series(query):
                    return found
            except OSError:  # it has not begun to listen
                pass
            time.sleep(0.25)
        raise AssertionError(f"no answer to {query}")


@contextmanager
def scraping(ports: Sequence[int], folder: Path, *, rules: str) -> Iterator[Scraper]:
    """Prometheus that asks these ports every second and minds these rules."""
    (folder / "rules.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": ["rules.yml"],
                "scrape_configs": [
                    {
                        "job_name": "equipoise",
                        "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}],
                    }
                ],
            }
        )
    )
    own_port = free_ports(1, start=29600)  # what it scrapes may not listen yet
    running = subprocess.Popen(
        [
            program("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{own_port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Scraper(own_port)
    finally:
        running.terminate()
        running.wait(30)

"""``equipoise dashboard`` as a process: where it listens, what it refuses, how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request

import numpy as np

import equipoise as eq
from equipoise.cli import main


def test_it_serves_a_recording_until_ctrl_c(tmp_path):
    counts = np.random.default_rng(1).multinomial(4000, np.full(16, 1 / 16), size=(8, 2))
    eq.write_trace(eq.Trace(counts=counts, top_k=2), tmp_path / "a<b>.trace.safetensors")
    command = [sys.executable, "-m", "equipoise", "dashboard", "--port", "0"]
    with subprocess.Popen(
        [*command, str(tmp_path / "a<b>.trace.safetensors")], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("The dashboard is at http://127.0.0.1:")
            url = line.split()[4]
            with urllib.request.urlopen(f"{url}api/choices", timeout=60) as reply:
                recording = json.loads(reply.read())["recording"]
            assert recording["experts"] == 16
            assert recording["name"].endswith("a<b>.trace.safetensors")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_options_of_a_recording_need_one(capsys):
    assert main(["dashboard", "--phase", "decode"]) == 2
    assert "--phase: only with TRACE, a recording." in capsys.readouterr().err


def test_an_address_that_is_none_is_refused(capsys):
    assert main(["dashboard", "--metrics", "file:///etc/passwd"]) == 2
    assert "'file:///etc/passwd' is not an address; expected one such as" in capsys.readouterr().err
    assert main(["dashboard", "--port", "70000"]) == 2

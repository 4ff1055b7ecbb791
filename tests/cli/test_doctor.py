"""``equipoise doctor`` end to end, in process."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from equipoise.cli import main
from tests.engines.doctor.corpus import CASES, MODELS

SOUND = "vllm serve m -tp 4 --enable-expert-parallel"
FAULTY = "vllm serve m -tp 4 --enable-eplb"


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main(["doctor", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_nothing_wrong(capsys):
    status, out, err = run(capsys, SOUND)
    assert (status, err) == (0, "")
    assert out == (
        "vLLM 0.33.0, the newest known (--engine-version names another)\n  nothing wrong found\n"
    )


def test_a_fault_its_remedy_and_the_corrected_command(capsys):
    status, out, err = run(capsys, FAULTY, "--engine-version", "0.20.0")
    assert (status, err) == (1, "")
    first, finding, *_, heading, command = out.splitlines()
    assert first == "vLLM 0.20.0"
    assert finding.startswith("  wrong --enable-eplb: ")
    assert "  note " in out
    assert "--model was not given" in out
    assert (heading, command) == ("corrected:", f"{FAULTY} --enable-expert-parallel")


def test_advice_alone_is_no_fault(capsys):
    config = MODELS / "deepseek-v3.json"
    launch = f"{FAULTY} --enable-expert-parallel --eplb-config.num_redundant_experts 4"
    status, out, _ = run(capsys, launch, "--model", config, "--link-bytes-per-second", "25e9")
    assert status == 0
    assert "advice" in out
    assert "at 200 Gbit/s (the link given)" in out
    assert "corrected" not in out


def test_json(capsys):
    status, out, _ = run(capsys, CASES / "trtllm" / "backend_gone.sh", "--json")
    (launch,) = json.loads(out)["launches"]
    assert status == 1
    assert (launch["engine"], launch["version_assumed"]) == ("TensorRT-LLM", True)
    assert {"kind", "flag", "text", "remedy"} == launch["findings"][0].keys()
    assert "backend: AUTO" in launch["corrected_files"]["./extra.yaml"]


def test_standard_input(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(FAULTY.encode())))
    assert run(capsys, "-")[0] == 1
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff" * 10)))
    status, out, err = run(capsys, "-")
    assert (status, out) == (2, "")
    assert "not UTF-8" in err


def test_several_launches_have_names(capsys):
    status, out, _ = run(capsys, f"{SOUND} & {FAULTY}")
    assert status == 1
    assert "1: vLLM" in out
    assert "2: vLLM" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing.sh"],
        ["ls -la"],
        ["vllm serve 'm"],
        [SOUND, "--engine-version", "newest"],
        [SOUND, "--devices", "0"],
        [SOUND, "--model", "nothing.json"],
        [SOUND, "--link-bytes-per-second", "0"],
        [],
    ],
)
def test_what_cannot_be_read(arguments, capsys):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("equipoise: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("further", ["serve", "--enable-eplb"])
def test_a_command_goes_in_quotes(further, capsys):
    assert main(["doctor", "vllm", further]) == 2
    assert capsys.readouterr().err.endswith(" Put the whole command of an engine in quotes.\n")


def test_words_of_a_launch_are_no_orders_to_the_terminal(capsys):
    run(capsys, "vllm serve '\x1b[2J' --enable-eplb -tp 2 --eplb-config '{\"\x1b[1m\": 1}'")
    assert "\x1b" not in capsys.readouterr().out


def test_neither_torch_nor_numba_is_loaded():
    code = (
        "import sys; from equipoise.cli import main; main(['doctor', 'vllm serve m']); "
        "sys.exit(bool({'torch', 'numba', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

"""Launches are found wherever they stand, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from equipoise.engines.doctor.command import Unknown
from equipoise.engines.doctor.sources import Launch, launches_of_file, launches_of_text
from equipoise.engines.registry import all_knowledge
from equipoise.errors import EquipoiseError


def of(text: str) -> list[Launch]:
    return launches_of_text(text, all_knowledge(), Path())


def one(text: str) -> Launch:
    (launch,) = of(text)
    return launch


def of_file(path: Path, text: str) -> list[Launch]:
    path.write_text(text)
    return launches_of_file(path, text, all_knowledge())


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("vllm serve m", "vllm"),
        ("/opt/bin/vllm serve m", "vllm"),
        ("python3 -u -m vllm.entrypoints.openai.api_server --model m", "vllm"),
        ("vllm serve m --additional-config '{}'", "ascend"),
        ("vllm serve m --additional_config={}", "ascend"),
        ("export DYNAMIC_EPLB=true; vllm serve m", "ascend"),
        ("docker run quay.example/ascend/vllm-ascend:v0.18.0 vllm serve m", "ascend"),
        ("docker run vllm/vllm-openai:v0.11.0 --model m", "vllm"),
        ("python -m sglang.launch_server --model-path m", "sglang"),
        ("sglang serve --model-path m", "sglang"),
        ("trtllm-serve serve m", "trtllm"),
        ("mpirun -n 8 trtllm-llmapi-launch trtllm-bench --model m throughput", "trtllm"),
        ("if true; then vllm serve m; fi", "vllm"),
        ("ssh host 'x'; nohup vllm serve m > log 2>&1 &", "vllm"),
        ("bash -lc 'cd /x && vllm serve m'", "vllm"),
        ("A=1 numactl -m 0 vllm serve m", "vllm"),
    ],
)
def test_the_engine_of_a_command(text, engine):
    assert one(text).command.known.engine == engine


@pytest.mark.parametrize(
    "text", ["vllm bench serve --model m", "echo vllm", "pip install vllm", "# vllm serve m"]
)
def test_what_starts_no_engine(text):
    assert of(text) == []


@pytest.mark.parametrize(
    ("text", "variable", "value"),
    [
        ("A=1 vllm serve m", "A", "1"),
        ("export A='b c'\nvllm serve m", "A", "b c"),
        ("env A=1 vllm serve m", "A", "1"),
        ("docker run -e A=1 vllm/vllm-openai --model m", "A", "1"),
        ("docker run --env=A=1 vllm/vllm-openai --model m", "A", "1"),
        ("export A=1\nunset A\nvllm serve m", "A", None),
        ("A=1\nvllm serve m", "A", None),
        ("export A=$B\nvllm serve m", "A", Unknown("$B")),
        ("export A=1\nbash -c 'vllm serve m'", "A", "1"),
    ],
)
def test_the_environment_of_a_command(text, variable, value):
    assert one(text).command.environment.get(variable) == value


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("vllm serve m -tp 8", "tensor-parallel-size", 8),
        ("vllm serve m -tp=8", "tensor-parallel-size", 8),
        ("vllm serve m --tensor_parallel_size 8", "tensor-parallel-size", 8),
        ("vllm serve m -tp 4 -tp 8", "tensor-parallel-size", 8),
        ("vllm serve m -tp $TP", "tensor-parallel-size", Unknown("$TP")),
        ("vllm serve --enable-eplb m", "enable-eplb", True),
        ("vllm serve m --no-enable-eplb", "enable-eplb", False),
        ("vllm serve m --no-enable-prefix-caching", "enable-prefix-caching", False),
        ("vllm serve m --eplb-config.use_async true", "eplb-config", {"use_async": True}),
        (
            "vllm serve m --eplb-config '{\"window_size\": 1}' --eplb-config.step_interval 2",
            "eplb-config",
            {"window_size": 1, "step_interval": 2},
        ),
        ("sglang serve --tp 8", "tp-size", 8),
        ("sglang serve --cuda-graph-bs 1 2 4 --tp 8", "cuda-graph-bs", ["1", "2", "4"]),
        ("trtllm-serve m --tp_size 8", "tensor_parallel_size", 8),
        ("vllm serve m --seed -1 --enable-eplb", "seed", -1),
    ],
)
def test_settings(text, path, value):
    assert one(text).command.get(path) == value


def test_several_launches_of_a_script():
    found = of("vllm serve a -tp 1\nvllm serve b -tp 2 &\nwait")
    assert [launch.command.get("tensor-parallel-size") for launch in found] == [1, 2]


def test_an_options_file_and_the_command_line(tmp_path):
    (tmp_path / "o.yaml").write_text("tensor-parallel-size: 2\nenable-eplb: true\n")
    (launch,) = of_file(tmp_path / "run.sh", "vllm serve m --config o.yaml -tp 4")
    command = launch.command
    assert (command.get("tensor-parallel-size"), command.get("enable-eplb")) == (4, True)
    (tmp_path / "p.yaml").write_text("tensor_parallel_size: 2\n")
    (launch,) = of_file(tmp_path / "run.sh", "trtllm-serve m --config p.yaml --tp_size 4")
    assert launch.command.get("tensor_parallel_size") == 2


def test_an_options_file_that_is_elsewhere():
    assert one("vllm serve m --config /there/o.yaml").missing


def test_services(tmp_path):
    text = """
services:
  a: {image: "vllm/vllm-openai:v0.11.2", command: "--model m -tp 4", environment: {A: true}}
  b:
    image: "lmsysorg/sglang:v0.5.9-cu129"
    command: ["python3", "-m", "sglang.launch_server", "--tp", "8", "--model-path", "${M}"]
    environment: ["B=2", "C"]
    deploy: {resources: {reservations: {devices: [{device_ids: ["0", "1"]}]}}}
  c: {image: nginx, command: "vllm"}
"""
    first, second = of_file(tmp_path / "compose.yml", text)
    assert (first.name, first.version, first.devices) == ("a", "0.11.2", None)
    assert (first.command.get("tensor-parallel-size"), first.command.environment["A"]) == (
        4,
        "true",
    )
    assert (second.name, second.version, second.devices) == ("b", "0.5.9", 2)
    assert second.command.get("model-path") == Unknown("'${M}'")
    assert second.command.environment["B"] == "2"


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("enable-eplb: true\ntensor-parallel-size: 8", "vllm"),
        ("tp-size: 8\nenable-eplb: true", "sglang"),
        ("enable_attention_dp: true\nmoe_config: {backend: AUTO}", "trtllm"),
        ('{"tp-size": 8}', "sglang"),
        ("tensor-parallel-size: 8\nadditional-config: {}", "ascend"),
    ],
)
def test_the_engine_of_an_options_file(text, engine, tmp_path):
    (launch,) = of_file(tmp_path / "options.yaml", text)
    assert launch.command.known.engine == engine
    assert launch.command.program == ()


def test_an_options_file_that_fits_two_engines(tmp_path):
    with pytest.raises(EquipoiseError, match="may be an options file of"):
        of_file(tmp_path / "options.yaml", "config: x")

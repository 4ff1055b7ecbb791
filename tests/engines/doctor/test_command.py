"""A command is changed where something changed, and otherwise written as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from equipoise.engines.doctor.command import Change, LaunchCommand, drop, export, put, unset
from equipoise.engines.doctor.sources import launches_of_text
from equipoise.engines.registry import all_knowledge


def command(text: str) -> LaunchCommand:
    (launch,) = launches_of_text(text, all_knowledge(), Path())
    return launch.command


@pytest.mark.parametrize(
    ("text", "changes", "written"),
    [
        ("vllm serve 'a b' -tp $N  --x \"$Y\" >log", [], "vllm serve 'a b' -tp $N --x \"$Y\" >log"),
        ("vllm serve m -tp 4", [put(8, "tensor-parallel-size")], "vllm serve m -tp 8"),
        ("vllm serve m --x -tp=4", [put(8, "tensor-parallel-size")], "vllm serve m --x -tp 8"),
        ("vllm serve m", [put(8, "tensor-parallel-size")], "vllm serve m --tensor-parallel-size 8"),
        ("vllm serve m", [put(True, "enable-eplb")], "vllm serve m --enable-eplb"),
        ("vllm serve m --enable-eplb", [put(True, "enable-eplb")], "vllm serve m --enable-eplb"),
        ("vllm serve m --no-enable-eplb", [put(True, "enable-eplb")], "vllm serve m --enable-eplb"),
        ("vllm serve m --enable-eplb -tp 2", [drop("enable-eplb")], "vllm serve m -tp 2"),
        (
            'vllm serve m --eplb-config \'{"a": 1, "b": 2}\'',
            [put(3, "eplb-config", "a"), drop("eplb-config", "b")],
            "vllm serve m --eplb-config '{\"a\": 3}'",
        ),
        ("vllm serve m --eplb-config.a 1", [drop("eplb-config", "a")], "vllm serve m"),
        (
            "vllm serve m --eplb-config.a 1",
            [put(2, "eplb-config", "a")],
            "vllm serve m --eplb-config.a 2",
        ),
        ("vllm serve m", [export("A", "b c")], "A='b c' vllm serve m"),
        ("A=1 vllm serve m", [export("A", "2")], "A=2 vllm serve m"),
        ("A=1 vllm serve m", [unset("A")], "vllm serve m"),
        ("export A=1; vllm serve m", [unset("A")], "env -u A vllm serve m"),
        (
            "nohup bash -c 'vllm serve m -tp $1'",
            [put(True, "enable-eplb")],
            "vllm serve m -tp $1 --enable-eplb",
        ),
    ],
)
def test_changes(text: str, changes: list[Change], written: str):
    fixed = command(text).corrected(changes)
    assert " ".join(fixed.text().replace(" \\\n  ", " ").split()) == " ".join(written.split())


def test_a_long_command_has_a_flag_a_line():
    flags = " ".join(f"--flag-{i} {i}" for i in range(12))
    lines = command(f"vllm serve m {flags} 2>&1").text().splitlines()
    assert lines[0] == "vllm serve m \\"
    assert lines[1] == "  --flag-0 0 \\"
    assert lines[-1] == "  2>&1"


def test_a_variable_is_kept_open_where_it_moves_into_settings():
    fixed = command("vllm serve m --num-redundant-experts $N").corrected(
        [
            drop("num-redundant-experts"),
            put(command("vllm serve --x $N").get("x"), "eplb-config", "n"),
        ]
    )
    assert fixed.text() == "vllm serve m --eplb-config.n $N"


def test_options_files_keep_what_did_not_change():
    text = "cat > o.yaml <<EOF\nmoe_config: {backend: AUTO}\nother: [1, 2]\nEOF\n"
    start = command(f"{text}trtllm-serve m --config o.yaml")
    fixed = start.corrected(
        [put(8, "moe_config", "max_num_tokens"), put(True, "enable_attention_dp")]
    )
    assert start.changed_files == frozenset()
    assert fixed.changed_files == {"o.yaml"}
    assert fixed.file_text("o.yaml") == (
        "moe_config:\n  backend: AUTO\n  max_num_tokens: 8\nother:\n- 1\n- 2\n"
        "enable_attention_dp: true\n"
    )
    assert fixed.text() == "trtllm-serve m --config o.yaml"
    assert fixed.corrected([drop("moe_config")]).get("moe_config") is None

"""Whatever is given as a launch: an answer or our sentence."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from equipoise.engines.doctor.bounded import MAX_BYTES
from equipoise.engines.doctor.examine import Surroundings, examine
from equipoise.engines.registry import all_knowledge
from equipoise.engines.transformers.config import read_model_config
from equipoise.errors import EquipoiseError
from tests.engines.doctor.corpus import ALL, MODELS

MODEL = read_model_config(MODELS / "deepseek-v3.json")
PIECES = "'\"\\$`(){}<>|&;#=-\n\r\t *~![]:,.0aé\x00\udcff"
PROGRAMS = [" ".join(program) for known in all_knowledge() for program in known.programs]
FLAGS = sorted({flag for known in all_knowledge() for flag in known.flags})
ODD = [
    "",
    "0",
    "-1",
    "99999999999999999999",
    "1e9",
    "true",
    "null",
    "{}",
    "[]",
    "{",
    "$X",
    "é",
    "none",
]
KEYS = sorted(
    {key for known in all_knowledge() for keys in known.sections.values() for key in keys}
)

values = st.one_of(
    st.sampled_from(ODD),
    st.integers(-2, 600).map(str),
    st.text(PIECES, max_size=6),
    st.dictionaries(
        st.sampled_from([*KEYS, "eplb_config", "load_balancer"]),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(-2, 600), st.text(max_size=4)),
            lambda inner: st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
            max_leaves=4,
        ),
        max_size=4,
    ).map(json.dumps),
)
flags = st.tuples(
    st.sampled_from(["--", "-", "--no-"]),
    st.one_of(st.sampled_from(FLAGS), st.sampled_from(["eplb-config.use_async", "tp", "ep", "xx"])),
    st.sampled_from([" ", "=", " '", ""]),
    values,
)
versions = st.sampled_from(
    [None, "0.5.6", "0.11.0", "0.16.0", "0.23.0", "1.2.1", "pr-41141", "99.0"]
)


def answers(source: str, **known: object) -> None:
    """Examine it; anything but an answer or our sentence fails the test."""
    with suppress(EquipoiseError):
        for diagnosis in examine(source, Surroundings(**known)):
            json.dumps(diagnosis.document())


@given(st.text(PIECES, max_size=60), st.sampled_from(PROGRAMS))
@settings(max_examples=300, deadline=None)
def test_any_text(text, program):
    answers(text)
    answers(f"{program} {text}")


@given(st.sampled_from(PROGRAMS), st.lists(flags, max_size=6), versions, st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_flags(program, given_flags, version, has_model):
    def written(dashes: str, flag: str, between: str, value: str) -> str:
        quoted = "'" if between == " '" else ""
        return f"{dashes}{flag}{between}{value}{quoted}"

    text = f"A=1 {program} model {' '.join(written(*flag) for flag in given_flags)}"
    answers(text, version=version, model=MODEL if has_model else None, devices=8, nodes=2)


@given(st.data())
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_files(tmp_path, data):
    case = data.draw(st.sampled_from(ALL))
    content = bytearray(case.path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path / case.path.name
    path.write_bytes(bytes(content))
    answers(str(path), model=MODEL)


@pytest.mark.parametrize(
    "source",
    [
        "",
        " ",
        "vllm",
        "no/such/file.sh",
        "ls -la",
        "a\0b c",
        "x" * 5000,
        "vllm serve 'x",
        "echo hi",
    ],
)
def test_what_is_no_launch(source):
    with pytest.raises(EquipoiseError):
        examine(source, Surroundings())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("long.sh", b"vllm serve x " + b"a" * MAX_BYTES),
        ("latin.sh", b"vllm serve caf\xe9"),
        ("list.yaml", b"- 1\n- 2\n"),
        ("nothing.yaml", b"a: 1\n"),
        ("bomb.yaml", b"a: &a [1]\nb: [*a, *a]\n"),
        ("deep.yaml", b"a: " + b"[" * 200 + b"]" * 200),
        ("tag.yaml", b"a: !!python/object/apply:os.system [ls]\n"),
        ("services.yaml", b"services: {a: 1, b: {command: 3}, c: {image: x}}\n"),
        ("both.yaml", b"tensor_parallel_size: 8\ntp-size: 8\n"),
    ],
)
def test_files_that_are_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EquipoiseError):
        examine(str(tmp_path / name), Surroundings())


def test_shells_in_shells_end(tmp_path):
    text = "vllm serve x"
    for _ in range(6):
        text = "bash -c " + "'" + text.replace("'", "'\\''") + "'"
    with pytest.raises(EquipoiseError):
        examine(text, Surroundings())
    assert examine("bash -c 'bash -c \"vllm serve x\"'", Surroundings())


def test_a_long_text_is_read_in_a_moment():
    for piece in ("\\ ", "'a'", '"\\"', "$(", "(", "a=b ", "--x ", "<<E ", "`"):
        text = "vllm serve x " + piece * (60_000 // len(piece))
        answers(text)


def test_a_folder_is_no_launch(tmp_path):
    with pytest.raises(EquipoiseError):
        examine(str(tmp_path), Surroundings())
    assert isinstance(tmp_path, Path)

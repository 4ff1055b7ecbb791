from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise import read_map, write_map
from equipoise.control.settings import Settings
from equipoise.engines.formats import MapContext
from equipoise.engines.settings import TABLES, from_options, read_options
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement

E, R = 256, 32
PLACEMENT = Placement(
    [[*range(E), *range(R)], [*range(R, E), *range(R), *range(R)]], num_ranks=R, num_experts=E
)


def read(engine: str, source: Any, **more: Any) -> Any:
    return read_options(engine, source, num_experts=E, num_ranks=R, **more)


def test_settings_of_ours_next_to_options():
    options = {"window_size": 100, "step_interval": 300}
    settings = from_options("vllm", options, num_experts=E, wait_steps=20)
    assert settings == Settings(window=100, update_interval=300, wait_steps=20)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_document_is_the_same_as_a_mapping_its_text_and_a_file(name, tmp_path):
    options: dict[str, dict[str, Any]] = {
        "ascend": {"dynamic_eplb": True, "num_redundant_experts": 32},
        "atom": {"num_redundant_experts": 32, "rebalance_interval": 2000},
        "fastdeploy": {"redundant_experts_num": 32},
        "trtllm": {"num_slots": 288, "layer_updates_per_iter": 2},
        "vllm": {"num_redundant_experts": 32, "use_async": True},
    }
    text = json.dumps(options[name])
    path = tmp_path / "options"
    path.write_text(text)
    expected = read(name, options[name]).settings
    assert expected.num_redundant == 32
    for source in (text, f" {text}\n", path, f"{path}"):
        assert read(name, source).settings == expected


def test_the_redundant_slots_of_a_map_are_counted(tmp_path):
    path = tmp_path / "map.json"
    write_map(PLACEMENT, path, format="ascend")
    for options in ({}, {"num_redundant_experts": 32}):
        found = read("ascend", {"expert_map_path": str(path)} | options)
        assert found.settings.num_redundant == 32
        assert found.placement == PLACEMENT
    with pytest.raises(EquipoiseError, match=f"asks for 0 redundant slots, and {path} has 32"):
        read("ascend", {"expert_map_path": str(path), "init_redundancy_expert": 0})
    with pytest.raises(EquipoiseError, match=f"{path}: .*A4"):
        read_options("ascend", {"expert_map_path": str(path)}, num_experts=E, num_ranks=16)


def test_without_ranks_a_map_is_not_read(tmp_path):
    path = tmp_path / "map.json"
    path.touch()
    found = read_options("ascend", {"expert_map_path": str(path)})
    assert (found.placement, found.settings.map_path) == (None, path)


def test_what_is_doubtful_about_a_map_is_told(tmp_path):
    path = tmp_path / "map.json"
    write_map(PLACEMENT, path, format="ascend")
    path.write_text(path.read_text().replace('"device_id": 1,', '"device_id": 7,'))
    advice = read("ascend", {"expert_map_path": str(path)}, layer_ids=(0, 1)).advice
    assert [text.partition(";")[0] for text in advice] == [
        f"{path}: Layer {layer}, device 1: device_id is 7" for layer in (0, 1)
    ]


def test_the_map_that_is_served_is_recorded(tmp_path):
    path = tmp_path / "record.json"
    options = {"dynamic_eplb": True, "expert_map_record_path": str(path)}
    found = read("ascend", options)
    assert found.record_path == path
    assert not path.exists()
    found.keep(PLACEMENT)
    assert read_map(path, MapContext(num_ranks=R)) == PLACEMENT
    assert json.loads(path.read_text())["moe_layer_count"] == 2
    assert read("ascend", {"dynamic_eplb": True}).keep is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing/map.json", "there is no folder missing; create it first"),
        ("map.yaml", "needs a name that ends in exactly .json"),
        (".", "needs a name"),
        ("a\0b.json", "expected the path of a file"),
        (5, "expected the path of a file"),
        ("", "expected the path of a file"),
    ],
)
def test_a_record_that_could_not_be_written_is_refused_at_once(path, message):
    options = {"dynamic_eplb": True, "expert_map_record_path": path}
    with pytest.raises(EquipoiseError, match=re.escape(message)) as told:
        read("ascend", options)
    assert str(told.value).startswith("expert_map_record_path: ")


@pytest.mark.parametrize(
    ("engine", "source", "message"),
    [
        ("sglang", {}, "'sglang' are known; use one of ascend, atom, fastdeploy, trtllm, vllm."),
        ("vllm", "missing.json", "missing.json does not exist."),
        ("vllm", "{", "--eplb-config: is not JSON (line 1, column 2"),
        ("vllm", '{"window_size": 8, "window_size": 9}', "'window_size' appears twice"),
        ("vllm", "[1]", "--eplb-config: holds the list [1]; expected a mapping of options."),
        ("vllm", 5, "--eplb-config is 5; expected options as JSON, or the path of a file"),
        ("vllm", "\ud800", "expected options as JSON, or the path of a file"),
        ("vllm", '{"\ud800": 1}', "--eplb-config: is not UTF-8 text"),
        ("vllm", "x" * 5000, "cannot be read"),
        ("trtllm", "num_slots: [", "moe_config.load_balancer: is not safe YAML, line 2"),
        ("trtllm", "num_slots: 288\nnum_slots: 288", "'num_slots' appears twice; keep one"),
        ("trtllm", "{a: &x 1}", "a YAML anchor or alias"),
    ],
)
def test_documents_that_cannot_be_read(engine, source, message):
    with pytest.raises(EquipoiseError, match=re.escape(message)):
        read(engine, source)


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        ("vllm", {"num_redundant_experts": 30}, "num_redundant_experts: 286 slots do not divide"),
        ("ascend", {"dynamic_eplb": True, "init_redundancy_expert": 8}, "264 slots do not divide"),
        ("trtllm", {"num_slots": 300, "layer_updates_per_iter": 1}, "num_slots: 300 slots do not"),
        ("vllm", {"num_redundant_experts": 8192}, "7936 already put every expert on each of 32"),
        (
            "vllm",
            {"num_redundant_experts": "32"},
            "num_redundant_experts is '32'; expected a whole",
        ),
    ],
)
def test_redundancy_has_to_match_the_devices(engine, options, message):
    with pytest.raises(EquipoiseError, match=re.escape(message)):
        read(engine, options)


def test_without_redundancy_the_experts_have_to_match_the_devices():
    with pytest.raises(EquipoiseError, match=r"^256 slots do not divide over 30 ranks; nearest"):
        read_options("vllm", {}, num_experts=E, num_ranks=30)


def test_a_setting_that_there_is_not():
    with pytest.raises(EquipoiseError, match="There is no setting windwo"):
        from_options("vllm", {}, num_experts=E, windwo=5)


def test_one_thing_set_by_an_option_and_by_us():
    with pytest.raises(EquipoiseError, match="window_size and window both set window; give one"):
        from_options("vllm", {"window_size": 100}, num_experts=E, window=100)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
NAMES = st.sampled_from(
    sorted({name for table in TABLES.values() for name in table.options} | {"eplb_config"})
)


@given(
    engine=st.sampled_from(sorted(TABLES)),
    options=st.dictionaries(NAMES | st.text(max_size=6), VALUES, max_size=4),
)
def test_junk_is_refused_in_a_sentence_or_makes_settings(engine, options):
    for source in (options, json.dumps(options)):
        with suppress(EquipoiseError):
            assert isinstance(read(engine, source).settings, Settings)


@given(engine=st.sampled_from(sorted(TABLES)), text=st.text())
def test_any_text_is_refused_in_a_sentence_or_makes_settings(engine, text):
    with suppress(EquipoiseError):
        read(engine, text)

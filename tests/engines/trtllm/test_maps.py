import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.engines.formats import MapContext, Severity
from equipoise.engines.trtllm.maps import FORMAT, iterations_to_refresh, write, write_online
from equipoise.errors import EquipoiseError, FormatError
from equipoise.placement import Placement

GOLDEN = """\
initial_global_assignments:
  3: [0, 1, 0, 2, 0, 3]
  4: [3, 0, 1, 2, 1, 2]
layer_updates_per_iter: 0
num_slots: 6
"""
PLACEMENT = Placement(
    [[0, 1, 0, 2, 0, 3], [3, 0, 1, 2, 1, 2]], num_ranks=3, num_experts=4, layer_ids=[3, 4]
)
CONTEXT = MapContext(num_ranks=3, num_experts=4, layer_ids=(3, 4), num_redundant=2)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "map.yaml"


def findings(path, text, context=CONTEXT):
    path.write_text(text)
    return FORMAT.check(FORMAT.parse(path), context)


def codes(path, text, context=CONTEXT):
    return [finding.code for finding in findings(path, text, context)]


def test_golden_bytes(path):
    write(PLACEMENT, path)
    data = path.read_bytes()
    assert data == GOLDEN.encode()
    assert len(data) == 115
    assert hashlib.sha256(data).hexdigest().startswith("bf130da0289de0f7")


def test_online_map(path):
    write(PLACEMENT, path, layer_updates_per_iter=2)
    assert path.read_text() == GOLDEN.replace("per_iter: 0", "per_iter: 2")
    (note,) = FORMAT.parse(path).notes
    assert "layer_updates_per_iter is 2" in note
    with pytest.raises(EquipoiseError, match="layer_updates_per_iter is -1"):
        write(PLACEMENT, path, layer_updates_per_iter=-1)


def test_reading_the_golden(path):
    assert findings(path, GOLDEN) == []
    assert FORMAT.matches(path)
    assert FORMAT.to_placement(FORMAT.parse(path), CONTEXT) == PLACEMENT


def test_layers_in_any_order(path):
    lines = GOLDEN.splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    assert FORMAT.to_placement(FORMAT.parse(path), CONTEXT) == PLACEMENT


def test_a_map_inside_the_options_file(path):
    indented = "".join(f"    {line}\n" for line in GOLDEN.splitlines())
    options = f"max_batch_size: 8\nmoe_config:\n  backend: CUTLASS\n  load_balancer:\n{indented}"
    assert findings(path, options) == []
    assert FORMAT.matches(path)
    assert FORMAT.to_placement(FORMAT.parse(path), CONTEXT) == PLACEMENT
    (note,) = FORMAT.parse(path).notes
    assert note == "Read from the load balancer's section of an options file."


def test_an_options_file_that_names_the_map(path):
    path.write_text("moe_config:\n  load_balancer: /maps/num_slots.yaml\n")
    assert FORMAT.matches(path)
    with pytest.raises(FormatError, match=r"another file, '/maps/num_slots\.yaml'; give that"):
        FORMAT.parse(path)
    path.write_text("moe_config:\n  backend: CUTLASS\n")
    assert FORMAT.matches(path)
    with pytest.raises(FormatError, match="options file without a load balancer"):
        FORMAT.parse(path)


@pytest.mark.parametrize(
    ("code", "old", "new"),
    [
        ("T1", "num_slots: 6", "num_slots: 6\nep_size: 3"),
        ("T1", "num_slots: 6", "num_slots: 6\nnum_slots: 6"),
        ("T1", "  3: [0, 1, 0, 2, 0, 3]", "  3: [1]\n  3: [0, 1, 0, 2, 0, 3]"),
        ("T2", "num_slots: 6", "num_slots: '6'"),
        ("T2", "num_slots: 6", "num_slots: 6.0"),
        ("T2", "num_slots: 6", "num_slots: true"),
        ("T2", "num_slots: 6", "num_slots: null"),
        ("T2", "num_slots: 6\n", ""),
        ("T3", "[0, 1, 0, 2, 0, 3]", "[0, 1, 2, 0, 3]"),
        ("T3", "[0, 1, 0, 2, 0, 3]", "abc"),
        ("T4", "[0, 1, 0, 2, 0, 3]", "[0, 1, 0, 2, true, 3]"),
        ("T4", "[0, 1, 0, 2, 0, 3]", "[0, 1, 0, 2, 0.0, 3]"),
        ("T4", "[0, 1, 0, 2, 0, 3]", "[0, 1, 0, 2, '0', 3]"),
        ("T4", "[0, 1, 0, 2, 0, 3]", "[0, 1, 0, 2, -1, 3]"),
        ("T4", "[0, 1, 0, 2, 0, 3]", "[0, 1, 0, 2, 4, 3]"),
        ("T4", "[0, 1, 0, 2, 0, 3]", "[0, 1, 0, 2, 0, 1]"),
        ("T5", "  3:", "  5:"),
        ("T5", "  3:", "  '3':"),
        ("T5", "  3:", "  -3:"),
        ("T5", "  3:", "  3.0:"),
        ("T5", "  3: [0, 1, 0, 2, 0, 3]\n", ""),
        ("T6", "per_iter: 0", "per_iter: -1"),
        ("T6", "per_iter: 0", "per_iter: false"),
    ],
)
def test_each_rule(path, code, old, new):
    assert old in GOLDEN
    found = codes(path, GOLDEN.replace(old, new))
    assert found
    assert set(found) == {code}


def test_t2_slots_that_do_not_divide_or_do_not_suffice(path):
    assert codes(path, GOLDEN, MapContext(num_ranks=4, num_experts=4, layer_ids=(3, 4))) == ["T2"]
    (finding,) = findings(path, GOLDEN, MapContext(num_ranks=3, num_experts=7, layer_ids=(3, 4)))
    assert finding.code == "T2"
    assert "6 slots cannot hold 7 experts" in finding.message


def test_t5_a_missing_draft_layer_says_so(path):
    (finding,) = findings(
        path, GOLDEN, MapContext(num_ranks=3, num_experts=4, layer_ids=(3, 4, 61))
    )
    assert finding.code == "T5"
    assert "61" in finding.message
    assert "draft (MTP)" in finding.remedy


def test_t5_a_negative_layer_where_the_model_is_not_known(path):
    text = GOLDEN.replace("  3:", "  -3:")
    assert codes(path, text, MapContext(num_ranks=3, num_experts=4)) == ["T5", "W2"]


@pytest.mark.parametrize(("experts", "slots"), [(1024, 32768), (1025, 1026)])
def test_t7_kernel_limits(path, experts, slots):
    row = [s % experts for s in range(slots)]
    text = f"num_slots: {slots}\ninitial_global_assignments: {{0: {row}}}\n"
    found = codes(path, text, MapContext(num_ranks=slots // 2, num_experts=experts, layer_ids=(0,)))
    assert found == ["T7"]


def test_same_rank_copies_are_warnings(path):
    text = GOLDEN.replace("[0, 1, 0, 2, 0, 3]", "[0, 0, 1, 2, 0, 3]")
    (finding,) = findings(path, text)
    assert (finding.code, finding.severity) == ("W1", Severity.WARNING)


def test_all_defects_in_one_run(path):
    text = """\
initial_global_assignments:
  '3': [0, 1, 0, 2, 0, x]
  4: [3, 0, 1, 2, 1]
  4: [3, 0, 1, 1, 1]
layer_updates_per_iter: -4
num_slots: 6.5
ep_size: 3
"""
    assert set(codes(path, text)) == {"T1", "T2", "T3", "T4", "T5", "T6"}


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nnum_slots: *x\n",
        "num_slots: !!python/object/apply:os.system ['true']\n",
        "num_slots: !!int x\n",
        pytest.param("num_slots: " + "[" * 50_000, id="deep"),
        pytest.param("num_slots: " + "9" * 5000, id="digits"),
        pytest.param("num_slots: 0x" + "f" * 5000, id="hexadecimal"),
        "num_slots: 2001-99-99\n",
        "? [1, 2]\n: 3\n",
        "--- {num_slots: 1}\n--- {num_slots: 1}\n",
        "num_slots: [1\n",
        "a: 1\n",
        "num_slots: 1\ninitial_global_assignments: {}\n",
        "num_slots",
        "",
        "\x00",
    ],
)
def test_what_cannot_be_read_is_a_format_error(path, text):
    path.write_text(text)
    FORMAT.matches(path)
    with pytest.raises(FormatError, match=r"map\.yaml"):
        FORMAT.parse(path)


def test_an_alias_bomb_is_refused_at_once(path):
    lines = ["a0: &a0 [1, 1]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    path.write_text("\n".join([*lines, "num_slots: *a59"]))
    with pytest.raises(FormatError, match="line 1 has a YAML anchor"):
        FORMAT.parse(path)


def test_a_map_of_full_size_is_read_back(path):
    rng = np.random.default_rng(0)
    rows = [np.concatenate([rng.permutation(256), rng.integers(0, 256, 32)]) for _ in range(58)]
    placement = Placement(rows, num_ranks=32, num_experts=256, layer_ids=range(3, 61))
    write(placement, path)
    context = MapContext(num_ranks=32, num_experts=256, layer_ids=tuple(range(3, 61)))
    raw = FORMAT.parse(path)
    assert FORMAT.to_placement(raw, context) == placement


# What the engine takes, though nobody would write it, is a warning.


def severities(path, old, new, context=CONTEXT):
    assert old in GOLDEN
    return {(f.code, f.severity) for f in findings(path, GOLDEN.replace(old, new), context)}


@pytest.mark.parametrize(
    ("code", "old", "new"),
    [
        ("T2", "num_slots: 6", "num_slots: '6'"),
        ("T2", "num_slots: 6", "num_slots: 6.0"),
        ("T5", "  3:", "  '3':"),
        ("T6", "per_iter: 0", "per_iter: -1"),
        ("T6", "per_iter: 0", "per_iter: false"),
    ],
)
def test_what_the_engine_takes_is_a_warning_and_read(path, code, old, new):
    assert severities(path, old, new) == {(code, Severity.WARNING)}
    assert FORMAT.to_placement(FORMAT.parse(path), CONTEXT) == PLACEMENT


def test_a_layer_the_engine_never_looks_at_is_a_warning_and_left_out(path):
    text = GOLDEN.replace("  3:", "  1: [0, 1, 2, 3, 0, 1]\n  3:")
    (finding,) = findings(path, text)
    assert (finding.code, finding.severity, finding.layer) == ("T5", Severity.WARNING, 1)
    assert FORMAT.to_placement(FORMAT.parse(path), CONTEXT) == PLACEMENT


def test_a_layer_in_quotes_is_the_same_layer(path):
    text = GOLDEN.replace("  3:", "  '3': [0]\n  3:")
    assert (("T1", Severity.ERROR)) in {(f.code, f.severity) for f in findings(path, text)}


def test_what_the_engine_refuses_and_nobody_doubts_is_an_error_and_readable(path):
    (finding,) = findings(path, GOLDEN + "ep_size: 3\n")
    assert (finding.code, finding.severity, finding.readable) == ("T1", Severity.ERROR, True)
    assert "'ep_size'" in finding.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_slots: 288\nlayer_updates_per_iter: 2\n", "re-plans 2 layers an iteration"),
        ("num_slots: 288\n", "keeps its default layout"),
        ("num_slots: 288\ninitial_global_assignments: null\n", "keeps its default layout"),
        (
            "moe_config:\n  load_balancer:\n    num_slots: 288\n    layer_updates_per_iter: 2\n",
            "re-plans 2 layers an iteration",
        ),
    ],
)
def test_a_file_without_assignments_is_online_balancing(path, text, words):
    context = MapContext(num_ranks=32, num_experts=256)
    assert findings(path, text, context) == []
    raw = FORMAT.parse(path)
    assert FORMAT.matches(path)
    assert raw.notes[-1] == f"No assignments: the engine places the experts itself and {words}."
    with pytest.raises(EquipoiseError, match="no assignments, so it is not a map"):
        FORMAT.to_placement(raw, context)


@pytest.mark.parametrize(
    ("slots", "context"),
    [
        ("288", MapContext(num_ranks=33)),
        ("288", MapContext(num_experts=289)),
        ("0", MapContext()),
        ("null", MapContext(num_ranks=32)),
        ("many", MapContext(num_ranks=32)),
    ],
)
def test_the_sizes_of_online_balancing_are_checked(path, slots, context):
    text = f"num_slots: {slots}\nlayer_updates_per_iter: 2\n"
    found = findings(path, text, context)
    assert [f.code for f in found if f.severity is Severity.ERROR] == ["T2"]


def test_a_file_of_another_program_is_not_taken_for_ours(path):
    path.write_text(GOLDEN + "version: 3\n")
    with pytest.raises(FormatError, match="states the version 3: another program's file"):
        FORMAT.parse(path)


def test_rows_of_millions_are_refused_at_once(path):
    row = ",".join(["0"] * 1_000_000)
    path.write_text(f"num_slots: 4\ninitial_global_assignments:\n  0: [{row}]\n")
    with pytest.raises(FormatError, match=r"1,000,005 values or more; 128 layers of 2,048 slots"):
        FORMAT.parse(path)


def test_as_many_values_as_any_deployment_has_are_read(path):
    rows = "".join(f"  {layer}: [{'0, ' * 2047}0]\n" for layer in range(128))
    path.write_text(f"initial_global_assignments:\n{rows}num_slots: 2048\n")
    assert len(FORMAT.parse(path).rows) == 128


@given(experts=st.integers(2, 300), ranks=st.integers(2, 40), extra=st.integers(0, 4))
def test_an_online_file_is_two_lines_that_the_validator_passes(
    experts, ranks, extra, tmp_path_factory
):
    slots = (-(-experts // ranks) + extra) * ranks
    context = MapContext(num_ranks=ranks, num_experts=experts, num_redundant=slots - experts)
    path = tmp_path_factory.mktemp("online") / "map.yaml"
    write_online(path, context, layer_updates_per_iter=2)
    assert path.read_text() == f"layer_updates_per_iter: 2\nnum_slots: {slots}\n"
    raw = FORMAT.parse(path)
    assert FORMAT.check(raw, context) == []
    one_more = replace(context, num_ranks=slots + 1)
    assert [finding.code for finding in FORMAT.check(raw, one_more)] == ["T2"]


@pytest.mark.parametrize(
    ("layers", "updates", "cycle"), [(58, 1, 59), (58, 2, 30), (58, 4, 15), (5, 5, 2), (5, 9, 2)]
)
def test_iterations_until_every_layer_was_planned_again(layers, updates, cycle):
    assert iterations_to_refresh(layers, updates) == cycle

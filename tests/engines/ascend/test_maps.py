import hashlib
import json

import pytest

from equipoise.engines.ascend.maps import (
    FORMAT,
    local_expert_map,
    log2phy,
    log2phy_by_token,
    write,
)
from equipoise.engines.formats import MapContext, Severity
from equipoise.errors import EquipoiseError, FormatError
from equipoise.placement import Placement

SAMPLE = Placement([[7, 2, 0, 3, 5, 6, 1, 4, 7, 2]], num_ranks=2, num_experts=8)
CONTEXT = MapContext(num_ranks=2, num_experts=8, layer_ids=(0, 1), num_redundant=2)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "expert_map.json"


def document(*layers):
    layers = layers or ([[7, 2, 0, 3, 5], [6, 1, 4, 7, 2]],) * 2
    return {
        "moe_layer_count": len(layers),
        "layer_list": [
            {
                "layer_id": i,
                "device_count": len(devices),
                "device_list": [
                    {"device_id": d, "device_expert": list(experts)}
                    for d, experts in enumerate(devices)
                ],
            }
            for i, devices in enumerate(layers)
        ],
    }


def findings(path, root, context=CONTEXT):
    path.write_text(json.dumps(root))
    return FORMAT.check(FORMAT.parse(path), context)


def codes(path, change, context=CONTEXT):
    root = document()
    change(root, root["layer_list"], root["layer_list"][1]["device_list"])
    return [finding.code for finding in findings(path, root, context)]


def test_golden_bytes(path):
    write(SAMPLE, path)
    data = path.read_bytes()
    assert len(data) == 711
    assert hashlib.sha256(data).hexdigest().startswith("bb1454cb26dbe400")
    assert not data.endswith(b"\n")


def test_round_trip_states_its_ranks(path):
    write(SAMPLE, path)
    raw = FORMAT.parse(path)
    context = MapContext(num_experts=8, layer_ids=(0,))
    assert FORMAT.matches(path)
    assert FORMAT.check(raw, context) == []
    assert FORMAT.to_placement(raw, context) == SAMPLE
    assert FORMAT.losses(SAMPLE) == []


def test_layers_are_numbered_in_moe_order(path):
    placement = Placement([SAMPLE.slots[0]] * 2, num_ranks=2, num_experts=8, layer_ids=[3, 5])
    write(placement, path)
    context = MapContext(layer_ids=(3, 5))
    assert [layer["layer_id"] for layer in json.loads(path.read_text())["layer_list"]] == [0, 1]
    assert FORMAT.to_placement(FORMAT.parse(path), context) == placement
    (loss,) = FORMAT.losses(placement)
    assert "3, 5" in loss


def test_a_good_map(path):
    assert findings(path, document()) == []


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("A1", lambda root, layers, devices: root.pop("moe_layer_count")),
        ("A1", lambda root, layers, devices: root.update(moe_layer_count=3)),
        ("A1", lambda root, layers, devices: layers[1].update(device_count=3)),
        ("A1", lambda root, layers, devices: layers[1].pop("device_count")),
        ("A1", lambda root, layers, devices: layers[1].pop("layer_id")),
        ("A1", lambda root, layers, devices: devices[0].pop("device_id")),
        ("A2", lambda root, layers, devices: layers[1].update(layer_id=4)),
        ("A2", lambda root, layers, devices: layers[1].update(layer_id=True)),
        ("A2", lambda root, layers, devices: layers[1].update(device_count="2")),
        ("A2", lambda root, layers, devices: devices[1].update(device_id=0)),
        ("A2", lambda root, layers, devices: devices.reverse()),
        ("A3", lambda root, layers, devices: devices[1]["device_expert"].pop()),
        (
            "A3",
            lambda root, layers, devices: devices[0]["device_expert"].append(
                devices[1]["device_expert"].pop(0)
            ),
        ),
        ("A5", lambda root, layers, devices: devices[1]["device_expert"].__setitem__(4, True)),
        ("A5", lambda root, layers, devices: devices[1]["device_expert"].__setitem__(4, 2.0)),
        ("A5", lambda root, layers, devices: devices[1]["device_expert"].__setitem__(4, -1)),
        ("A5", lambda root, layers, devices: devices[1]["device_expert"].__setitem__(4, 8)),
        ("A6", lambda root, layers, devices: devices[0]["device_expert"].__setitem__(4, 4)),
        ("A7", lambda root, layers, devices: devices[1]["device_expert"].__setitem__(4, 7)),
    ],
)
def test_each_rule(path, code, change):
    found = codes(path, change)
    assert found
    assert set(found) == {code}


def test_a1_missing_lists(path):
    assert "A1" in codes(path, lambda root, layers, devices: layers[1].pop("device_list"))
    assert "A1" in codes(path, lambda root, layers, devices: devices[1].pop("device_expert"))
    assert "A1" in codes(path, lambda root, layers, devices: layers.__setitem__(1, 7))


def test_a1_keys_nobody_reads_are_warnings(path):
    (finding,) = findings(path, document() | {"comment": "x"})
    assert (finding.code, finding.severity) == ("A1", Severity.WARNING)


def test_a4_devices_and_layers(path):
    other = MapContext(num_ranks=5, num_experts=8, layer_ids=(0, 1), num_redundant=2)
    assert [f.code for f in findings(path, document(), other)] == ["A4"]
    other = MapContext(num_ranks=1, num_experts=8, layer_ids=(0, 1), num_redundant=2)
    assert [f.code for f in findings(path, document(), other)] == [
        "A4"
    ]  # copies are as in the file
    other = MapContext(num_ranks=2, num_experts=8, layer_ids=(0, 1, 2), num_redundant=2)
    assert [f.code for f in findings(path, document(), other)] == ["A4"]
    layers = [
        [[7, 2, 0, 3, 5], [6, 1, 4, 7, 2]],
        [[7], [2], [0], [3], [5], [6], [1], [4], [7], [2]],
    ]
    assert [f.code for f in findings(path, document(*layers))] == ["A4"]


def test_a8_redundancy(path):
    other = MapContext(num_ranks=2, num_experts=8, layer_ids=(0, 1), num_redundant=0)
    (finding,) = findings(path, document(), other)
    assert finding.code == "A8"
    assert "Configure 2 redundant experts" in finding.remedy


def test_messages_name_layer_device_and_slot(path):
    root = document([[7, 2, 0, 3, 3], [6, 1, 4, 5, 8]])
    context = MapContext(num_ranks=2, num_experts=8, layer_ids=(0,))
    again, outside = sorted(findings(path, root, context), key=lambda f: f.slot)
    assert (again.code, again.severity) == ("A7", Severity.ERROR)
    assert again.message == (
        "Layer 0, device 0, slot 4 holds expert 3 again: rank 0 has it in device 0, slot 3."
    )
    assert outside.message.startswith("Layer 0, device 1, slot 4 holds 8;")


def test_the_broken_maps_of_the_engine_are_refused(path):
    context = MapContext(num_ranks=2, num_experts=8, layer_ids=(0,))
    duplicate = document([[7, 2, 0, 3, 3], [6, 1, 4, 5, 2]])
    assert [f.code for f in findings(path, duplicate, context)] == ["A7"]
    last_missing = document([[6, 2, 0, 3, 5], [6, 1, 4, 5, 2]])
    assert [f.code for f in findings(path, last_missing, context)] == ["A6"]


def test_all_defects_in_one_run(path):
    def change(root, layers, devices):
        root["moe_layer_count"] = 7
        layers[0]["layer_id"] = 9
        layers[0]["device_list"][0]["device_expert"] = [7, 7, 0, 3, 5.0]
        devices[0]["device_expert"].pop()

    context = MapContext(num_ranks=2, num_experts=8, layer_ids=(0, 1, 2), num_redundant=3)
    found = set(codes(path, change, context))
    assert found == {"A1", "A2", "A3", "A4", "A5", "A6", "A7", "A8"}


@pytest.mark.parametrize("text", ["[]", "{}", '{"moe_layer_count": 1, "layer_list": []}', "x", "7"])
def test_what_is_no_map(path, text):
    path.write_text(text)
    with pytest.raises(FormatError, match=r"expert_map\.json"):
        FORMAT.parse(path)


def test_derived_tables_of_the_sample():
    assert local_expert_map(SAMPLE, 0).tolist() == [[2, -1, 1, 3, -1, 4, -1, 0]]
    assert local_expert_map(SAMPLE, 1).tolist() == [[-1, 1, 4, -1, 2, -1, 0, 3]]
    assert log2phy(SAMPLE, 0).tolist() == [[2, 6, 1, 3, 7, 4, 5, 0]]
    assert log2phy(SAMPLE, 1).tolist() == [[2, 6, 9, 3, 7, 4, 5, 8]]
    assert log2phy(SAMPLE, 1, tp_size=2).tolist() == [[2, 6, 9, 3, 7, 4, 5, 0]]


def test_derived_tables_of_the_default_layout():
    default = Placement([[0, 1, 2, 3, 4, 5, 6, 7, 0, 1]], num_ranks=2, num_experts=8)
    assert local_expert_map(default, 0).tolist() == [[0, 1, 2, 3, 4, -1, -1, -1]]
    assert local_expert_map(default, 1).tolist() == [[3, 4, -1, -1, -1, 0, 1, 2]]
    assert log2phy(default, 0).tolist() == [list(range(8))]
    assert log2phy(default, 1).tolist() == [[8, 9, 2, 3, 4, 5, 6, 7]]


def test_rotation_with_tensor_parallelism():
    placement = Placement([[0] * 4 + [1] * 4], num_ranks=8, num_experts=2)
    assert log2phy(placement, 7).tolist() == [[3, 7]]
    assert log2phy(placement, 3, tp_size=4).tolist() == [[3, 4]]
    assert log2phy(placement, 7, tp_size=4).tolist() == [[0, 5]]


def test_uneven_shares_of_three_copies_over_32_ranks():
    placement = Placement([[0, 0, 0, *range(1, 30)]], num_ranks=32, num_experts=30)
    chosen = [int(log2phy(placement, rank)[0, 0]) for rank in range(32)]
    assert [chosen.count(slot) for slot in range(3)] == [11, 11, 10]


def test_rows_of_the_second_runners_table():
    placement = Placement([[0, 1, 2, 3, 0, 1, 3, 3]], num_ranks=8, num_experts=4)
    rows = [log2phy_by_token(placement, 1, token)[0].tolist() for token in range(6)]
    assert rows == [
        [4, 1, 2, 6],
        [0, 5, 2, 7],
        [4, 1, 2, 3],
        [0, 5, 2, 6],
        [4, 1, 2, 7],
        [0, 5, 2, 3],
    ]
    repeated = log2phy_by_token(placement, 1, 1024 + 5)[0].tolist()
    assert repeated == rows[5]


def test_tables_refuse_what_the_engine_cannot_run():
    twice = Placement([[0, 0, 1, 2]], num_ranks=2, num_experts=3)
    with pytest.raises(EquipoiseError, match="twice on one rank"):
        log2phy(twice, 0)
    with pytest.raises(EquipoiseError, match="no rank 2"):
        local_expert_map(SAMPLE, 2)
    with pytest.raises(EquipoiseError, match="tp_size is 3"):
        log2phy(SAMPLE, 0, tp_size=3)


# What the engine never reads is a warning, and a map without it is read.


@pytest.mark.parametrize(
    "change",
    [
        lambda root, layers, devices: layers[1].pop("device_count"),
        lambda root, layers, devices: layers[1].update(device_count=7),
        lambda root, layers, devices: layers[1].pop("layer_id"),
        lambda root, layers, devices: layers[1].update(layer_id=4),
        lambda root, layers, devices: devices[0].pop("device_id"),
        lambda root, layers, devices: devices[0].update(device_id="0"),
        lambda root, layers, devices: root.update(comment="x"),
    ],
)
def test_what_the_engine_never_reads_is_a_warning(path, change):
    root = document()
    change(root, root["layer_list"], root["layer_list"][1]["device_list"])
    assert {f.severity for f in findings(path, root)} == {Severity.WARNING}
    assert FORMAT.matches(path)
    assert FORMAT.to_placement(FORMAT.parse(path), CONTEXT).num_layers == 2


def test_without_the_one_count_it_reads_the_engine_fails_and_the_map_is_certain(path):
    root = document()
    del root["moe_layer_count"]
    (finding,) = findings(path, root)
    assert (finding.code, finding.severity, finding.readable) == ("A1", Severity.ERROR, True)
    assert FORMAT.matches(path)
    (finding,) = findings(path, document() | {"moe_layer_count": 3})
    assert not finding.readable

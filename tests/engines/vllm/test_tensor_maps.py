import json

import numpy as np
import pytest

from equipoise.engines._shared import torch_archive
from equipoise.engines.formats import MapContext
from equipoise.engines.map_io import examine_map, read_map, validate_map
from equipoise.engines.vllm.tensor_maps import holds_a_map
from equipoise.errors import FormatError
from equipoise.placement import Placement

LAYERS = [[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]]
READ = Placement(LAYERS, num_ranks=2, num_experts=4)
POSITIONS = [  # of the experts of LAYERS on two ranks
    [[0, 1, 2, -1], [1, 2, -1, 0]],
    [[-1, 2, 1, 0], [0, -1, 1, 2]],
]


def save(path, root):
    if path.suffix == ".npy":
        np.save(path, root)
    else:
        torch_archive.save(path, root)
    return path


def arrays(root):
    return {name: np.array(value) for name, value in root.items()}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".npy"])
@pytest.mark.parametrize(
    "root", [LAYERS, [[row[:3], row[3:]] for row in LAYERS], POSITIONS], ids=["2-D", "3-D", "ranks"]
)
def test_one_tensor_whose_values_say_what_it_is(tmp_path, suffix, root):
    path = save(tmp_path / f"map{suffix}", np.array(root))
    reading = examine_map(path, MapContext(num_ranks=2))
    assert reading.placement == READ
    assert reading.notes[0].startswith("Read as ")


@pytest.mark.parametrize(
    "root",
    [
        {"phy2log": LAYERS},
        {"phy2log": LAYERS, "logcnt": [[2, 2, 1, 1], [1, 1, 2, 2]], "log2phy": [[[0]]]},
        {"physical_to_logical": LAYERS},
        {"physical_to_logical_map": LAYERS, "logical_replica_count": [[2, 2, 1, 1], [1, 1, 2, 2]]},
    ],
)
def test_a_tensor_under_a_name(tmp_path, root):
    path = save(tmp_path / "map.pt", arrays(root))
    context = MapContext(num_ranks=2)
    assert read_map(path, context) == READ
    path = tmp_path / "map.json"
    path.write_text(json.dumps(root))
    assert read_map(path, context) == READ


def test_a_table_of_ranks_may_be_wider_than_the_experts(tmp_path):
    wide = np.pad(np.array(POSITIONS), ((0, 0), (0, 0), (0, 2)), constant_values=-1)
    path = save(tmp_path / "map.pt", wide)
    assert read_map(path, MapContext()) == READ
    assert [f.code for f in validate_map(path)] == ["W4", "W2"]  # the last two may be experts


def test_x6_copies_that_disagree(tmp_path):
    for count in ([[2, 2, 1, 1], [2, 1, 1, 2]], [[2, 2, 1, 1]]):
        path = save(tmp_path / "map.pt", arrays({"phy2log": LAYERS, "logcnt": count}))
        with pytest.raises(FormatError, match="X6"):
            read_map(path, MapContext(num_ranks=2))


def test_a_second_copy_on_a_rank_is_lost_in_a_table_of_ranks(tmp_path):
    table = np.array(POSITIONS)
    table[1, 0, 2] = -1  # slot 1 of rank 0 may hold expert 1 or 3 again
    path = save(tmp_path / "map.pt", table)
    assert holds_a_map(path)
    with pytest.raises(FormatError, match="what layer 1, rank 0 holds in slot 1: a second copy"):
        read_map(path, MapContext())


@pytest.mark.parametrize(
    "root",
    [
        [[5, 1, 7, 3], [9, 2, 6, 4]],  # loads
        [[[0, 1], [1, 0]], [[1, 0], [0, 1]]],  # every rank with every expert
        [[[0, -1, 0], [1, -1, 0]]],  # two experts in one slot
        [[[-2, 0], [0, -1]]],
        [0, 1, 2],
        [[0, 0]],
        [[0.0, 1.0], [1.0, 0.0]],
    ],
)
def test_what_may_be_something_else_is_not_read(tmp_path, root):
    array = np.array(root)
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    path = save(tmp_path / "other.pt", array)
    assert not holds_a_map(path)
    with pytest.raises(FormatError, match=r"other\.pt"):
        read_map(path, MapContext(num_ranks=1), format="tensors")


def test_loads_are_never_taken_for_a_map(tmp_path):
    loads = np.random.default_rng(0).poisson(40, size=(58, 256))
    assert not holds_a_map(save(tmp_path / "load.pt", loads))


def test_a_large_file_is_not_looked_through(tmp_path):
    path = tmp_path / "big.npy"
    np.lib.format.open_memmap(path, "w+", np.int64, (1 << 11, 1 << 10))
    assert not holds_a_map(path)


@pytest.mark.parametrize(
    "root", [{"phy2log": [[0, 1], [0]]}, {"phy2log": 3}, {"phy2log": [0]}, {"phy2log": [[10**30]]}]
)
def test_a_name_alone_makes_no_map(tmp_path, root):
    path = tmp_path / "map.json"
    path.write_text(json.dumps(root))
    assert not holds_a_map(path)


def test_what_cannot_be_read_is_a_format_error(tmp_path):
    path = tmp_path / "map.npy"
    path.write_bytes(b"\x93NUMPY and no more")
    with pytest.raises(FormatError, match=r"map\.npy has .npy version"):
        read_map(path, format="tensors")

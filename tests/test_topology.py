import numpy as np
import pytest

from equipoise.errors import EquipoiseError
from equipoise.topology import Link, Topology


def test_nodes_are_consecutive_ranks():
    topology = Topology(num_ranks=6, ranks_per_node=2)
    assert topology.num_nodes == 3
    assert topology.node_of_rank.tolist() == [0, 0, 1, 1, 2, 2]


def test_one_node_unless_said():
    assert Topology(5).node_of_rank.tolist() == [0] * 5


@pytest.mark.parametrize(
    ("num_ranks", "ranks_per_node", "says"),
    [
        (0, None, "num_ranks is 0; expected 1 to 65536"),
        (4.0, None, "num_ranks is 4.0; expected a whole number"),
        (True, None, "num_ranks is True; expected a whole number"),
        ("4", None, "num_ranks is '4'; expected a whole number"),
        (8, 3, "nodes of 3"),
        (8, 0, "ranks_per_node is 0"),
        (8, 2.0, "ranks_per_node is 2.0; expected a whole number"),
        (8, 16, "nodes of 16"),
    ],
)
def test_refuses(num_ranks, ranks_per_node, says):
    with pytest.raises(EquipoiseError, match=says):
        Topology(num_ranks, ranks_per_node)


def test_speed_is_relative_to_the_mean():
    assert Topology(2, speed=(1, 3)).relative_speed.tolist() == [0.5, 1.5]
    assert Topology(3).relative_speed.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"speed": (1.0,)}, "expected 2 numbers above 0"),
        ({"speed": (1.0, 0.0)}, "expected 2 numbers above 0"),
        ({"speed": (1.0, float("nan"))}, "expected 2 numbers above 0"),
        ({"room": (1, 2.5)}, "whole numbers"),
        ({"room": (4,)}, "expected 2 numbers"),
        ({"room": (True, True)}, "expected 2 numbers"),
        ({"speed": "12"}, "speed have type <U2; expected numbers"),
        ({"speed": 1.0}, "expected 2 numbers above 0"),
        ({"speed": (1, 2j)}, "complex"),
        ({"speed": (1e308, 1e308)}, "speed goes from 1e.308 to 1e.308; expected 1e-100 to 1e.100"),
        ({"speed": (5e-324, 5e-324)}, "speed goes from 5e-324"),
        ({"speed": (1, 1e13)}, "no rank more than 1e.12 times as fast as another"),
        ({"node_link": 5}, "node_link is 5; expected a Link"),
    ],
)
def test_refuses_unequal_ranks_that_are_no_ranks(options, says):
    with pytest.raises(EquipoiseError, match=says):
        Topology(2, **options)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((-1, 1), "latency_seconds is -1; expected 0 to 1000000000.0"),
        ((float("nan"), 1), "latency_seconds is nan"),
        ((float("inf"), 1), "latency_seconds is inf"),
        ((0, 0), "bytes_per_second is 0; expected 1 to 1e.30"),
        ((0, float("nan")), "bytes_per_second is nan"),
        ((0, "fast"), "bytes_per_second is 'fast'; expected a number"),
    ],
)
def test_refuses_impossible_links(values, says):
    with pytest.raises(EquipoiseError, match=says):
        Link(*values)


def test_a_link_on_which_bytes_take_no_time():
    assert Link(0, float("inf")).bytes_per_second == float("inf")


def test_counts_of_small_integer_types_do_not_wrap():
    topology = Topology(np.uint8(200), np.uint8(2))
    assert topology == Topology(200, 2)
    assert topology.node_of_rank.tolist() == [rank // 2 for rank in range(200)]


@pytest.mark.parametrize("values", [np.array([1, 3]), [1.0, 3.0], np.array([1, 3], np.float16)])
def test_speeds_of_any_array_are_floats(values):
    assert Topology(2, speed=values) == Topology(2, speed=(1.0, 3.0))


def test_more_room_than_any_count_is_room_for_all():
    assert Topology(2, room=(1e30, 3)).distinct_experts(4).tolist() == [4, 3]

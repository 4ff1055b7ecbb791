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
    [(0, None, "at least 1"), (8, 3, "nodes of 3"), (8, 0, "nodes of 0"), (8, 16, "nodes of 16")],
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
    ],
)
def test_refuses_unequal_ranks_that_are_no_ranks(options, says):
    with pytest.raises(EquipoiseError, match=says):
        Topology(2, **options)


@pytest.mark.parametrize("values", [(-1, 1), (0, 0), (float("nan"), 1), (float("inf"), 1)])
def test_refuses_impossible_links(values):
    with pytest.raises(EquipoiseError, match="bandwidth above 0"):
        Link(*values)

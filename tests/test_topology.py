import pytest

from equipoise.errors import EquipoiseError
from equipoise.topology import Topology


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

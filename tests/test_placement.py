import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.errors import EquipoiseError
from equipoise.placement import Placement


@st.composite
def placements(draw):
    ranks = draw(st.integers(1, 5))
    per_rank = draw(st.integers(1, 4))
    slots = ranks * per_rank
    experts = draw(st.integers(1, slots))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        extra = draw(
            st.lists(st.integers(0, experts - 1), min_size=slots - experts, max_size=slots)
        )
        row = list(range(experts)) + extra[: slots - experts]
        rows.append(draw(st.permutations(row)))
    return Placement(rows, num_ranks=ranks, num_experts=experts)


def test_derived_maps():
    # The README example of a two-layer map: copies ascending, padded.
    placement = Placement([[0, 1, 2, 0], [1, 2, 0, 1]], num_ranks=2, num_experts=3)
    assert placement.copies.tolist() == [[2, 1, 1], [1, 2, 1]]
    assert placement.slots_of_experts().tolist() == [
        [[0, 3], [1, -1], [2, -1]],
        [[2, -1], [0, 3], [1, -1]],
    ]
    assert placement.rank_of_slot.tolist() == [0, 0, 1, 1]
    assert placement.num_redundant == 1
    assert placement.duplicates.tolist() == [0, 0]


@given(placements())
def test_slots_of_experts_inverts_the_map(placement):
    table = placement.slots_of_experts()
    for layer in range(placement.num_layers):
        for expert in range(placement.num_experts):
            wanted = np.flatnonzero(placement.slots[layer] == expert).tolist()
            got = table[layer, expert]
            assert got[got >= 0].tolist() == wanted
            assert (got[len(wanted) :] == -1).all()


@given(placements())
def test_counts_agree(placement):
    for layer in range(placement.num_layers):
        for rank in range(placement.num_ranks):
            held = placement.by_rank[layer, rank]
            counted = placement.copies_on_rank[layer, rank]
            assert counted.tolist() == np.bincount(held, minlength=placement.num_experts).tolist()
    wasted = [sum(len(r) - len(set(r)) for r in layer.tolist()) for layer in placement.by_rank]
    assert placement.duplicates.tolist() == wasted


@pytest.mark.parametrize(
    ("slots", "ranks", "experts", "says"),
    [
        ([[0, 1, 1]], 1, 3, "expert 2 has no slot"),
        ([[0, 1], [0, 5]], 1, 2, "Layer 1, slot 1 holds expert 5"),
        ([[0, 1, -1]], 1, 2, "slot 2 holds expert -1"),
        ([[0, 1, 0]], 2, 2, "nearest legal: 2 slots .0 redundant. or 4 slots .2 redundant."),
        ([[0]], 1, 2, "cannot hold 2 experts"),
        ([0, 1], 1, 2, "expected .layers, slots."),
        ([[0.0, 1.0]], 1, 2, "expected integer"),
        ([[True, False]], 1, 2, "expected integer"),
        ([[0, 1]], 0, 2, "num_ranks is 0; expected 1 or more"),
    ],
)
def test_refuses(slots, ranks, experts, says):
    with pytest.raises(EquipoiseError, match=says):
        Placement(slots, num_ranks=ranks, num_experts=experts)


def test_names_the_models_layer():
    with pytest.raises(EquipoiseError, match="Layer 60: expert 1"):
        Placement([[0, 1], [0, 0]], num_ranks=1, num_experts=2, layer_ids=[3, 60])


def test_the_callers_array_is_copied_and_ours_is_read_only():
    mine = np.array([[0, 1]])
    placement = Placement(mine, num_ranks=1, num_experts=2)
    mine[0, 0] = 1
    assert placement.slots.tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="read-only"):
        placement.slots[0, 0] = 1


def test_equality_and_checksum_see_everything():
    a = Placement([[0, 1, 0, 1]], num_ranks=2, num_experts=2)
    same = Placement(np.array([[0, 1, 0, 1]], dtype=np.int32), num_ranks=2, num_experts=2)
    others = [
        Placement([[0, 1, 1, 0]], num_ranks=2, num_experts=2),
        Placement([[0, 1, 0, 1]], num_ranks=4, num_experts=2),
        Placement([[0, 1, 0, 1]], num_ranks=2, num_experts=2, layer_ids=[3]),
    ]
    assert a == same
    assert hash(a) == hash(same)
    assert a.checksum == same.checksum
    for other in others:
        assert a != other
        assert a.checksum != other.checksum


def test_some_layers_of_a_placement():
    whole = Placement([[0, 1], [1, 0], [0, 1]], num_ranks=2, num_experts=2, layer_ids=(3, 5, 9))
    part = whole.rows([1, 2])
    assert part == Placement([[1, 0], [0, 1]], num_ranks=2, num_experts=2, layer_ids=(5, 9))

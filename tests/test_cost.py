from pathlib import Path

import numpy as np
import pytest

from equipoise.cost import RANK_COSTS, RankCost, rank_cost
from equipoise.errors import EquipoiseError


def test_below_the_knee_an_expert_takes_its_weights_above_it_its_tokens():
    cost = RankCost(fixed_seconds=5, expert_seconds=10, token_seconds=0.1)
    assert cost.knee == pytest.approx(100)
    assert cost.slot_seconds([0, 1, 100, 200]).tolist() == [0, 10, 10, 20]


def test_ranks_sum_their_active_slots():
    cost = RankCost(fixed_seconds=5, expert_seconds=10, token_seconds=0.1)
    seconds = cost.rank_seconds([[0, 0, 1, 300]], num_ranks=2)
    assert seconds.tolist() == [[5, 45]]


def test_tokens_are_padded_to_whole_blocks():
    cost = RankCost(token_seconds=1, token_block=128)
    assert cost.slot_seconds([0, 1, 128, 129]).tolist() == [0, 128, 128, 256]


def test_published_knee_of_the_reference():
    assert rank_cost("h100-deepep-ep8").knee == pytest.approx(184, abs=1)
    assert rank_cost("h100-deepep-ep32").knee == pytest.approx(146, abs=1)
    assert rank_cost("gb200-cutlass-ep32").knee == pytest.approx(64, abs=1)


def test_a_ninth_slot_costs_what_the_reference_measured():
    cost = rank_cost("h100-deepep-ep32")
    eight, nine = (float(cost.rank_seconds(np.ones(n), 1)[0]) for n in (8, 9))
    assert eight == pytest.approx(149.6e-6, rel=1e-3)
    assert nine == pytest.approx(165.7e-6, rel=1e-3)


@pytest.mark.parametrize("cost", RANK_COSTS.values(), ids=list(RANK_COSTS))
def test_every_published_cost_names_its_source(cost):
    assert "EP" in cost.source


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"token_seconds": 0}, "token_seconds is 0"),
        ({"token_seconds": -1}, "token_seconds is -1"),
        ({"token_seconds": 1, "fixed_seconds": float("nan")}, "fixed_seconds is nan"),
        ({"token_seconds": 1, "token_block": 0}, "token_block is 0"),
        ({"token_seconds": 1, "token_block": 2.0}, "token_block is 2.0; expected a whole number"),
        ({"token_seconds": "1"}, "token_seconds is '1'; expected a number"),
        ({"token_seconds": True}, "token_seconds is True; expected a number"),
        ({"token_seconds": 1e308}, "token_seconds is 1e.308; expected 0 to 1e.100"),
        ({"token_seconds": 5e-324}, "token_seconds is 5e-324; expected 0, or 1e-100 or more"),
        ({"token_seconds": 1, "source": 3}, "source is 3; expected a str"),
    ],
)
def test_refuses(options, says):
    with pytest.raises(EquipoiseError, match=says):
        RankCost(**options)


def test_refuses_unknown_names_and_shapes():
    with pytest.raises(EquipoiseError, match="h100-deepep-ep8"):
        rank_cost("abacus")
    with pytest.raises(EquipoiseError, match="multiple of 2"):
        RankCost(token_seconds=1).rank_seconds([1, 2, 3], 2)
    with pytest.raises(EquipoiseError, match="hold NaN or infinity"):
        RankCost(token_seconds=1).slot_seconds([1, np.nan])


def test_the_page_lists_every_published_cost():
    page = (Path(__file__).parents[1] / "docs" / "reference" / "costs.md").read_text(
        encoding="utf-8"
    )
    for name, cost in RANK_COSTS.items():
        micro = [1e6 * x for x in (cost.fixed_seconds, cost.expert_seconds, cost.token_seconds)]
        row = f"| `{name}` | {micro[0]:.1f} | {micro[1]:.2f} | {micro[2]:.3f} | {cost.knee:.0f} |"
        assert row in page

from __future__ import annotations

import re

import pytest

from equipoise.control.settings import Settings
from equipoise.engines.settings import from_options
from equipoise.errors import EquipoiseError


def settings(options: dict[str, object]) -> Settings:
    return from_options("fastdeploy", options, num_experts=256)


def test_redundant_experts_are_counted():
    options = {"redundant_experts_num": 16, "enable_eplb": True, "moe_quant_type": "w4a8"}
    assert settings(options) == settings({"eplb_config": options}) == Settings(num_redundant=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"redundant_expert_num": 16}, "redundant_expert_num"),
        (
            {"redundant_expert_eplb_strategy": "balance_intra_node"},
            "redundant_expert_eplb_strategy 'balance_intra_node' would have no effect",
        ),
        (
            {"redundant_expert_api_user": "operator"},
            "nobody has to ask for a rearrangement",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(options, message):
    with pytest.raises(EquipoiseError, match=re.escape(message)):
        settings(options)

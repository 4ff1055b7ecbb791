"""A server of vLLM: what it answers does not depend on who balances, or whether anybody does."""

from __future__ import annotations

import json
import re

import pytest

from tests.integration.vllm import RELEASE
from tests.integration.vllm.served import PROMPTS, TOKENS, ask_a_server
from tests.integration.vllm.served_models import make

pytestmark = pytest.mark.engines

LEAST = 20
"""Rearrangements that a run has to have."""


@pytest.fixture(scope="module", params=["qwen3_moe", "mixtral"])
def model(request, tmp_path_factory):
    return make(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def unbalanced(model, tmp_path_factory):
    return ask_a_server(model, tmp_path_factory.mktemp("off"), balance=None, options="{}")


@pytest.fixture(scope="module", params=["sync", "async"])
def served(request, model, tmp_path_factory):
    """The answers with vLLM's policy, and with the plug-in."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("stock", "ours")}
    options = json.dumps({"status": str(folders["ours"] / "status.json"), "gate": 0})
    return {
        kind: ask_a_server(
            model, folder, balance=request.param, options=options if kind == "ours" else None
        )
        for kind, folder in folders.items()
    }


def rearrangements(answers):
    return len([line for line in answers.lines("Rearranging experts") if "profile" not in line])


def test_tokens_are_the_same_whoever_balances(unbalanced, served, request, capfd):
    with capfd.disabled():  # the table of docs/results/engines.md
        print(f"\n{request.node.name}")
        for name, run in served.items():
            print(f"{name}: {rearrangements(run)} rearrangements, {_moves(run)} slots changed")
    assert len({token for ids in unbalanced.tokens[0] for token in ids}) > PROMPTS
    assert all(len(ids) == TOKENS for ids in unbalanced.tokens[0])
    assert not rearrangements(unbalanced)
    for run in served.values():
        assert run.version == RELEASE
        assert run.tokens == unbalanced.tokens
        assert rearrangements(run) >= LEAST


def test_the_plug_in_is_found_by_vllm_and_inactive_until_asked(served):
    assert not served["stock"].lines("equipoise")
    assert not [line for line in served["stock"].metrics if "equipoise" in line]
    assert served["ours"].lines("plans the placement of experts")
    plans = served["ours"].lines("equipoise (taken")
    assert len(plans) >= LEAST
    assert not served["ours"].lines("equipoise (failed")
    assert _moves(served["ours"]) > 0


def _moves(run):
    """Slots that our plans changed, without the one for vLLM's memory run."""
    plans = run.lines("equipoise (taken")[1:]
    counts = [re.search(r"(\d+) of \d+ slots", line) for line in plans]
    return sum(int(count.group(1)) for count in counts if count)  # workers may cut others' lines


def test_the_servers_metrics_say_what_became_of_the_plans(served):
    metrics = dict(
        line.rsplit(" ", 1) for line in served["ours"].metrics if line.startswith("equipoise_")
    )
    assert float(metrics['equipoise_plans_total{status="taken"}']) >= LEAST
    assert float(metrics['equipoise_plans_total{status="failed"}']) == 0
    assert float(metrics["equipoise_plan_moves_total"]) > 0
    peaks = (
        float(metrics[f'equipoise_plan_peak{{when="{when}"}}']) for when in ("before", "after")
    )
    before, after = peaks
    assert before >= after >= 1

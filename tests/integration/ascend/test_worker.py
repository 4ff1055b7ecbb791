"""Plans of each release's own worker, and of runner V2's own state: `make test-engines`."""

from __future__ import annotations

import json
from statistics import mean, median

import pytest

from tests.integration.ascend.releases import RELEASES, run
from tests.integration.ascend.worker import OURS

pytestmark = pytest.mark.engines


@pytest.mark.parametrize("release", RELEASES)
def test_plans_next_to_swift_and_stair(release, tmp_path, capfd):
    run(release, "tests.integration.ascend.worker", tmp_path / "answer", seconds=1500)
    found = {
        (entry["policy"], *entry["size"][:3]): entry
        for entry in json.loads((tmp_path / "answer").read_text())
    }
    with capfd.disabled():  # the table of docs/results/engines.md
        print()
        for (name, *size), entry in found.items():
            print(release, name, *size, _words(entry))
    for (name, *size), entry in found.items():
        ours, *thrifty = (found[(whose, *size)] for whose in OURS)
        assert max(ours["after"]) < 1.2
        if name in OURS or "refused" in entry:
            continue
        assert _next(ours) < _next(entry) + 0.01
        as_good = [run for run in (ours, *thrifty) if _next(run) < _next(entry) + 0.01]
        if release >= "0.30" or _next(ours) > _next(entry) - 0.01:
            assert 2 * min(sum(run["sent"]) for run in as_good) <= sum(entry["sent"])


def _next(entry) -> float:
    """Imbalance on the loads that follow a plan."""
    return mean(entry["before"][1:])


def _words(entry) -> str:
    if "refused" in entry:
        return f"refuses: {entry['refused']}"
    return (
        f"first plan {entry['before'][0]:.3f} -> {entry['after'][0]:.3f}, {entry['sent'][0]} sent; "
        f"all {len(entry['after'])}: {mean(entry['after']):.3f} and on the next loads "
        f"{_next(entry):.3f}, {sum(entry['sent'])} sent, "
        f"{1000 * median(entry['seconds']):.0f} ms each"
    )


def test_runner_v2_makes_our_policy_and_hands_it_the_time_axis():
    said = run("0.30.0rc2", "tests.integration.ascend.contract_v2")
    found = json.loads(said.splitlines()[-1])
    ours = "equipoise.engines.ascend.runner_v2.Policy"
    assert found["policy"] == ours
    assert found["asked"] == {"stair": ours, "default": ours}
    assert found["windows"] == [16, 2, 32]
    assert sum(found["steps"]) == 20
    assert found["complete"]
    assert 0 < found["moves"] <= 0.5 * 2 * 40
    assert found["after"] < found["before"] - 0.2
    assert found["idle moves"] == 0
    assert found["left out"]

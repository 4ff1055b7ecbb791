"""Each release's own reader of map files, next to ours: `make test-engines`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from equipoise.engines.ascend.maps import log2phy
from equipoise.engines.formats import MapContext, Severity
from equipoise.engines.map_io import validate_map, write_map
from equipoise.errors import FormatError
from equipoise.placement import Placement
from equipoise.plan import Greedy, Problem
from equipoise.topology import Topology
from tests.integration.ascend.releases import RELEASES, run

pytestmark = pytest.mark.engines

WRITTEN = 200


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Placements and the files that we write of them, and damaged ones."""
    folder, rng = tmp_path_factory.mktemp("maps"), np.random.default_rng(0)
    placements = []
    for number in range(WRITTEN):
        ranks = int(rng.choice([2, 4, 8]))
        experts = int(rng.integers(2, 9)) * ranks
        redundant = int(rng.integers(0, 3)) * ranks
        load = rng.lognormal(0, 1, (int(rng.integers(1, 4)), experts))
        plan = Greedy().plan(Problem(load, Topology(ranks), experts + redundant))
        write_map(plan.placement, folder / f"{number}.json", format="ascend")
        placements.append(plan.placement)
    return folder, placements


def damaged(good: str, kind: str) -> str:
    document = json.loads(good)
    devices = document["layer_list"][0]["device_list"]
    match kind:
        case "no devices":
            del document["layer_list"][0]["device_list"]
        case "a device without experts":
            del devices[0]["device_expert"]
        case "uneven devices":
            devices[0]["device_expert"].pop()
        case "an id beyond":
            devices[0]["device_expert"][0] = 10_000
        case "text for an id":
            devices[0]["device_expert"][0] = "one"
        case "a layer missing":
            document["layer_list"] = []
        case "no count":
            del document["moe_layer_count"]
        case "cut short":
            return good[: len(good) // 2]
    return json.dumps(document)


KINDS = (
    "no devices",
    "a device without experts",
    "uneven devices",
    "an id beyond",
    "text for an id",
    "a layer missing",
    "no count",
    "cut short",
)


def is_refused(path: str, placement: Placement) -> bool:
    context = MapContext(num_experts=placement.num_experts, num_ranks=placement.num_ranks)
    try:
        found = validate_map(path, context, format="ascend")
    except FormatError:
        return True
    return any(finding.severity is Severity.ERROR for finding in found)


@pytest.mark.parametrize("release", RELEASES)
def test_they_read_what_we_write_as_we_do_and_refuse_what_we_refuse(maps, release, tmp_path, capfd):
    folder, placements = maps
    asked = [
        (str(folder / f"{number}.json"), p.num_experts, p.num_ranks, p.num_layers)
        for number, p in enumerate(placements)
    ]
    bad = []
    for kind in KINDS:
        path = tmp_path / f"{kind}.json"
        path.write_text(damaged((folder / "0.json").read_text(), kind))
        bad.append((str(path), *asked[0][1:]))
    (tmp_path / "asked").write_text(json.dumps([*asked, *bad]))
    run(release, "tests.integration.ascend.readers", tmp_path / "asked", tmp_path / "answer")
    read = json.loads((tmp_path / "answer").read_text())
    accepted = 0
    for placement, found in zip(placements, read[:WRITTEN], strict=True):
        assert isinstance(found, dict), found
        assert found["held"] == placement.by_rank.tolist()
        for rank in range(placement.num_ranks):
            theirs = [layer[rank] for layer in found["sent"]]
            assert theirs == log2phy(placement, rank).tolist()
        accepted += 1
    refused = sum(not isinstance(found, dict) for found in read[WRITTEN:])
    for path, *_ in bad:
        assert is_refused(path, placements[0])
    with capfd.disabled():
        print(
            f"\n{release}: {accepted} of {WRITTEN} maps read the same; of {len(KINDS)} damaged "
            f"ones it refuses {refused}, validate all"
        )
    assert refused >= len(KINDS) - 1  # the reader of some does not look at the number of experts

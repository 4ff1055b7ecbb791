"""SGLang's own reader of `--init-expert-location` and ours, on the same files."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import torch

from equipoise.engines.formats import MapContext, Severity
from equipoise.engines.map_io import validate_map, write_map
from equipoise.errors import FormatError
from equipoise.placement import Placement
from tests.integration.sglang import stand_ins

pytestmark = pytest.mark.engines

RANKS, EXPERTS, LAYERS, DENSE = 4, 8, 4, 1
CONTEXT = MapContext(
    num_ranks=RANKS,
    num_redundant=4,
    num_experts=EXPERTS,
    num_hidden_layers=LAYERS,
    layer_ids=tuple(range(DENSE, LAYERS)),
)
SLOTS = EXPERTS + CONTEXT.num_redundant


@pytest.fixture(scope="module")
def read():
    """SGLang's reader, as rank 1 of a server with an all-to-all backend or without."""
    stand_ins.install()
    from sglang.srt.eplb.expert_location import compute_initial_expert_location_metadata

    def read(path, **arguments):
        stand_ins.configuration(
            1,
            RANKS,
            num_layers=LAYERS,
            num_experts=EXPERTS,
            ep_num_redundant_experts=CONTEXT.num_redundant,
            init_expert_location=str(path),
            **arguments,
        )
        return compute_initial_expert_location_metadata(None, 1)

    return read


def rows(seed):
    rng = np.random.default_rng(seed)
    extra = rng.integers(0, EXPERTS, (LAYERS, CONTEXT.num_redundant))
    whole = np.concatenate([np.tile(np.arange(EXPERTS), (LAYERS, 1)), extra], axis=1)
    return rng.permuted(whole, axis=1)


def test_every_map_that_we_write_is_read(read, tmp_path, capfd):
    accepted = 0
    ways = product(range(20), (".json", ".pt"), (("none", "dynamic"), ("mooncake", "static")))
    for seed, suffix, (backend, dispatch) in ways:
        slots = rows(seed)[DENSE:]
        placement = Placement(
            slots, num_ranks=RANKS, num_experts=EXPERTS, layer_ids=CONTEXT.layer_ids
        )
        path = tmp_path / f"{seed}{suffix}"
        write_map(placement, path, format="sglang", context=CONTEXT)
        metadata = read(path, moe_a2a_backend=backend, ep_dispatch_algorithm=dispatch)
        assert (metadata.physical_to_logical_map_cpu.numpy()[DENSE:] == slots).all()
        assert not [
            found for found in validate_map(path, CONTEXT) if found.severity is Severity.ERROR
        ]
        accepted += 1
    with capfd.disabled():
        print(f"\n{accepted} of {accepted} maps that we wrote are read by SGLang")


def spoiled():
    """Files with one fault each."""
    good = rows(0).tolist()
    key = "physical_to_logical_map"

    def with_slot(value):
        return {key: [[value, *good[0][1:]], *good[1:]]}

    def without_expert(layer):
        row = [e if e else 1 for e in good[layer]]
        return {key: [*good[:layer], row, *good[layer + 1 :]]}

    return {
        "no JSON": "{",
        "another key": {"map": good},
        "a key too many": {key: good, "version": 1},
        "an unknown expert": with_slot(EXPERTS),
        "a far unknown expert": with_slot(1000),
        "a text": with_slot("a"),
        "nothing in a slot": with_slot(None),
        "a ragged row": {key: [good[0][:-1], *good[1:]]},
        "one level too few": {key: good[0]},
        "one level too many": {key: [good]},
        "no rows": {key: []},
        "slots that do not divide": {key: [row[:-1] for row in good]},
        # What SGLang reads without a word, and then serves wrongly or stops at:
        "an empty slot, -1": with_slot(-1),
        "a fraction": with_slot(good[0][0] + 0.5),
        "an expert without a slot": without_expert(DENSE),
        "a layer too few": {key: good[:-1]},
        "a layer too many": {key: [*good, good[0]]},
        "slots for fewer redundant experts": {key: [list(range(EXPERTS))] * LAYERS},
    }


def refused(check, *given, **options):
    try:
        check(*given, **options)
    except Exception:  # SGLang asserts, indexes and calls; there is no type of its own
        return True
    return False


def faults(path):
    try:
        found = validate_map(path, CONTEXT, format="sglang")
    except FormatError:
        return True
    return any(one.severity is Severity.ERROR for one in found)


def test_what_sglang_refuses_is_refused_here_and_more(read, tmp_path, capfd):
    theirs, ours, sound = set(), set(), tmp_path / "sound.json"
    sound.write_text(json.dumps({"physical_to_logical_map": rows(0).tolist()}))
    assert not faults(sound)
    for name, document in spoiled().items():
        for backend, dispatch in (("none", "dynamic"), ("mooncake", "static")):
            path = tmp_path / f"{name}.json"
            path.write_text(document if isinstance(document, str) else json.dumps(document))
            options = {"moe_a2a_backend": backend, "ep_dispatch_algorithm": dispatch}
            assert not refused(read, sound, **options)
            if refused(read, path, **options):
                theirs.add(name)
        if faults(path):
            ours.add(name)
    with capfd.disabled():
        print(
            f"\nof {len(spoiled())} spoiled maps validate refuses {len(ours)}, SGLang's reader "
            f"{len(theirs)}; not by SGLang: {', '.join(sorted(ours - theirs))}"
        )
    assert ours == set(spoiled())
    assert theirs <= ours
    assert len(theirs) >= 8


def test_torch_maps_of_other_types_are_read_too(read, tmp_path):
    path = tmp_path / "map.pt"
    torch.save({"physical_to_logical_map": torch.from_numpy(rows(1)).int()}, path)
    assert (read(path).physical_to_logical_map_cpu.numpy() == rows(1)).all()
    assert not faults(path)

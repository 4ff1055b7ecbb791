from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from equipoise.engines._shared import torch_archive
from equipoise.engines.formats import TraceOptions, no_progress
from equipoise.engines.sglang.traces import FORMAT
from equipoise.errors import EquipoiseError, FormatError
from equipoise.placement import Placement
from equipoise.trace import Trace

P2L = np.array([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 2]])  # L2 E4 S6, two ranks of three slots


def read(path: Path, **options: Any) -> Trace:
    return FORMAT.read(path, TraceOptions(**options), no_progress)


def notes(trace: Trace) -> str:
    return "\n".join(trace.provenance.notes)


def write_stat(path: Path, logical_count: Any) -> None:
    root = {"rank": 0, "logical_count": logical_count}
    torch_archive.save(path, root | {"average_utilization_rate_over_window": None})


def stat_name(time: float) -> str:
    return f"expert_distribution_recorder_{time}.pt"


def record(number: int, rank: int, counts: Any, **more: Any) -> dict[str, Any]:
    return {
        "forward_pass_id": number,
        "rank": rank,
        "gatherer_key": "primary",
        "global_physical_count": np.asarray(counts, dtype=np.int32),
    } | more


def write_passes(
    directory: Path, rank: int, records: list[Any], *, p2l: Any = P2L, time: float = 1700000000.5
) -> Path:
    path = directory / f"expert_distribution_recorder_{time}_{rank}.pt"
    torch_archive.save(path, {"records": records, "last_physical_to_logical_map": p2l})
    return path


# stat --------------------------------------------------------------------------------------------


def test_reads_a_dump_that_torch_wrote_on_an_accelerator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    counts = torch.zeros(5, 4, 3, dtype=torch.int32)
    counts[:2, 1:] = torch.arange(18).reshape(2, 3, 3)
    file = tmp_path / stat_name(1700000000.5)
    torch.save(
        {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": 0.5}, file
    )
    assert FORMAT.matches(file)
    trace = read(file)
    np.testing.assert_array_equal(trace.counts, counts[:2, 1:].numpy())
    assert trace.layer_ids == (1, 2, 3)
    assert trace.provenance.format == "sglang"
    assert "3 of 5 windows are empty" in notes(trace)
    assert "recording: decoder layer 0" in notes(trace)
    assert "order in time" not in notes(trace)


def test_a_ring_that_wrapped_is_not_in_time_order(tmp_path: Path) -> None:
    """Size 3, two passes, reset, two passes: the golden ring."""
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    write_stat(first, np.array([[[1, 1]], [[2, 2]], [[0, 0]]]))
    write_stat(second, np.array([[[4, 4]], [[0, 0]], [[3, 3]]]))
    assert read(first).counts[:, 0, 0].tolist() == [1, 2]
    assert "order in time" not in notes(read(first))
    assert read(second).counts[:, 0, 0].tolist() == [4, 3]
    assert "order in time" in notes(read(second))


def test_a_full_ring_is_not_known_to_be_in_time_order(tmp_path: Path) -> None:
    write_stat(tmp_path / "full.pt", np.arange(1, 7).reshape(3, 1, 2))
    assert "order in time" in notes(read(tmp_path / "full.pt"))


@pytest.mark.parametrize("counts", [[[1, 2], [3, 4]], [[[1, 2], [3, 4]]]])
@pytest.mark.parametrize("kind", ["json", "list", "tensor"])
def test_reads_two_and_three_axes_from_any_container(
    tmp_path: Path, counts: Any, kind: str
) -> None:
    file = tmp_path / "load"
    if kind == "json":
        file.write_text(json.dumps({"logical_count": counts, "comment": "mine"}))
    else:
        write_stat(file, counts if kind == "list" else np.array(counts))
    assert FORMAT.matches(file)
    assert read(file).counts.tolist() == [[[1, 2], [3, 4]]]


def test_equal_dumps_count_once(tmp_path: Path) -> None:
    counts = np.array([[[1, 2]], [[0, 0]]])
    write_stat(tmp_path / stat_name(1.5), counts)
    write_stat(tmp_path / stat_name(1.625), counts.astype(np.int32))
    trace = read(tmp_path)
    assert trace.counts.tolist() == [[[1, 2]]]
    assert f"{stat_name(1.625)} has the content of {stat_name(1.5)}; counted once" in notes(trace)
    assert not trace.labels


def test_different_dumps_follow_each_other_by_time(tmp_path: Path) -> None:
    write_stat(tmp_path / stat_name(10.5), np.array([[[0, 0], [3, 4]]]))
    write_stat(tmp_path / stat_name(9.5), np.array([[[0, 0], [1, 0]], [[0, 0], [2, 0]]]))
    trace = read(tmp_path)
    assert trace.counts.tolist() == [[[1, 0]], [[2, 0]], [[3, 4]]]
    assert trace.layer_ids == (1,)
    assert trace.labels["dump"].tolist() == [stat_name(9.5)] * 2 + [stat_name(10.5)]
    assert trace.select(dump=stat_name(10.5)).counts.tolist() == [[[3, 4]]]


def test_an_empty_dump_beside_others_is_left_out(tmp_path: Path) -> None:
    write_stat(tmp_path / stat_name(1.5), np.zeros((1, 1, 2), np.int64))
    write_stat(tmp_path / stat_name(2.5), np.ones((1, 1, 2), np.int64))
    trace = read(tmp_path)
    assert trace.num_steps == 1
    assert f"{stat_name(1.5)} holds no load" in notes(trace)


def test_layer_ids_choose_rows_or_name_them(tmp_path: Path) -> None:
    file = tmp_path / "load.pt"
    write_stat(file, np.array([[0, 0], [1, 2], [0, 0], [3, 4]]))
    assert read(file).layer_ids == (1, 3)
    chosen = read(file, layer_ids=(1, 2))
    assert chosen.counts.tolist() == [[[1, 2], [0, 0]]]
    assert chosen.layer_ids == (1, 2)
    assert "Layers 3 have load but are not among the layer_ids" in notes(chosen)
    named = read(file, layer_ids=(3, 4, 5, 7))
    assert named.layer_ids == (3, 4, 5, 7)
    assert named.num_layers == 4
    with pytest.raises(FormatError, match="layer_ids 3, 9 do not fit 4 rows"):
        read(file, layer_ids=(3, 9))


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [
        ([[1, 2], [3]], "different lengths"),
        ([[[[1]]]], "impossible shape"),
        ([["a"]], "not a table of numbers"),
        ([[True]], "not a table of numbers"),
        ([[1.5, 2]], "fractions"),
        ([[-1, 2]], "-1; expected numbers >= 0"),
        ([[1 << 70]], "not a table of numbers|logical_count"),
        ([1, 2], r"shape \(2,\)"),
        ([], r"shape \(0,\)"),
        ([[]], "shape"),
        ([[0, 0]], "no load at all"),
        ("text", "not a table of numbers"),
        (None, "neither logical_count"),
    ],
)
def test_refuses_counts_that_are_none(tmp_path: Path, counts: Any, complaint: str) -> None:
    file = tmp_path / "load.json"
    file.write_text(json.dumps({"logical_count": counts}))
    with pytest.raises(FormatError, match=rf"load\.json.*({complaint})"):
        read(file)


def test_lists_repeated_by_reference_are_not_expanded(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    row = [1] * 1000
    table = [row] * 1000
    torch.save({"logical_count": [table] * 1000}, tmp_path / "bomb.pt")
    assert (tmp_path / "bomb.pt").stat().st_size < 20_000
    with pytest.raises(FormatError, match=r"impossible shape \[1000, 1000, 1000\]"):
        read(tmp_path / "bomb.pt")


def test_lists_that_contain_themselves_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    loop: list[Any] = []
    loop.append(loop)
    torch.save({"logical_count": loop}, tmp_path / "loop.pt")
    with pytest.raises(FormatError, match="impossible shape"):
        read(tmp_path / "loop.pt")


def test_iterations_cannot_choose_windows(tmp_path: Path) -> None:
    write_stat(tmp_path / "load.pt", np.ones((2, 1, 2), np.int64))
    with pytest.raises(FormatError, match="does not number its steps"):
        read(tmp_path / "load.pt", iterations=(0, 1))


def test_dumps_of_different_models_are_not_joined(tmp_path: Path) -> None:
    write_stat(tmp_path / stat_name(1.5), np.ones((1, 2, 4), np.int64))
    write_stat(tmp_path / stat_name(2.5), np.ones((1, 2, 8), np.int64))
    with pytest.raises(FormatError, match="different models"):
        read(tmp_path)


# per_pass ----------------------------------------------------------------------------------------


def test_folds_slots_to_experts(tmp_path: Path) -> None:
    """The golden fold."""
    counts = [[5, 1, 2, 4, 3, 6], [1, 2, 3, 4, 5, 6]]
    trace = read(write_passes(tmp_path, 0, [record(7, 0, counts)]))
    assert trace.counts.tolist() == [[[8, 7, 2, 4], [4, 3, 13, 1]]]
    assert trace.steps.tolist() == [7]
    assert trace.source_counts is None
    assert "Only rank 0 is in the recording" in notes(trace)
    assert "last map" in notes(trace)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_sum_over_ranks_agrees_with_plain_loops(tmp_path: Path, data: st.DataObject) -> None:
    ranks, passes = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    cell = st.lists(st.integers(0, 9), min_size=12, max_size=12)
    expected = np.zeros((passes, 2, 4), dtype=int)
    for rank in range(ranks):
        records = []
        for number in range(passes):
            counts = np.reshape(data.draw(cell), (2, 6))
            counts[0, 5], counts[1, 5] = 1 + 50 * rank, 1  # tokens of its own, in every layer
            records.append(record(number, rank, counts))
            for layer in range(2):
                for slot in range(6):
                    expected[number, layer, P2L[layer, slot]] += counts[layer, slot]
        write_passes(tmp_path, rank, records[::-1])
    for stale in range(ranks, 3):
        (tmp_path / f"expert_distribution_recorder_1700000000.5_{stale}.pt").unlink(missing_ok=True)
    trace = read(tmp_path)
    np.testing.assert_array_equal(trace.counts, expected)
    if trace.source_counts is not None:
        np.testing.assert_array_equal(trace.source_counts.sum(axis=1), expected)


def test_counts_of_tokens_sent_keep_their_source(tmp_path: Path) -> None:
    here = [[1, 0, 0, 1, 0, 0], [0, 0, 0, 2, 0, 0]]
    there = [[0, 3, 0, 0, 0, 0], [0, 0, 3, 1, 0, 0]]
    write_passes(tmp_path, 0, [record(4, 0, here)], time=5.25)
    write_passes(tmp_path, 1, [record(4, 1, there)], time=5.5)  # each rank takes its own time stamp
    trace = read(tmp_path)
    assert FORMAT.matches(tmp_path)
    assert trace.counts.tolist() == [[[1, 3, 0, 1], [3, 3, 0, 0]]]
    assert trace.source_counts is not None
    assert trace.source_counts.tolist() == [
        [[[1, 0, 0, 1], [2, 0, 0, 0]], [[0, 3, 0, 0], [1, 3, 0, 0]]]
    ]
    assert "tokens sent" in notes(trace)


def test_counts_of_tokens_received_have_no_source(tmp_path: Path) -> None:
    write_passes(tmp_path, 0, [record(4, 0, [[1, 2, 3, 0, 0, 0]] * 2)])
    write_passes(tmp_path, 1, [record(4, 1, [[0, 0, 0, 4, 5, 6]] * 2)])
    trace = read(tmp_path)
    assert trace.counts[0, 0].tolist() == [6, 8, 3, 4]
    assert trace.source_counts is None
    assert "tokens received" in notes(trace)


def test_disjoint_counts_on_foreign_slots_decide_nothing(tmp_path: Path) -> None:
    write_passes(tmp_path, 0, [record(4, 0, [[0, 0, 0, 0, 0, 6]] * 2)])
    write_passes(tmp_path, 1, [record(4, 1, [[1, 0, 0, 0, 0, 0]] * 2)])
    trace = read(tmp_path)
    assert trace.source_counts is None
    assert "cannot be told" in notes(trace)


def test_each_dump_is_folded_with_its_own_map(tmp_path: Path) -> None:
    counts = [[5, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 5]]
    write_passes(tmp_path, 0, [record(1, 0, counts)], time=1.5)
    write_passes(tmp_path, 0, [record(2, 0, counts)], time=2.5, p2l=P2L[::-1].copy())
    trace = read(tmp_path)
    assert trace.steps.tolist() == [1, 2]
    assert trace.counts.tolist() == [[[5, 0, 0, 0], [0, 0, 5, 0]], [[0, 0, 0, 5], [0, 5, 0, 0]]]
    assert trace.labels["map"].tolist() == ["0", "1"]


def test_dumps_with_equal_maps_have_no_change_of_the_map(tmp_path: Path) -> None:
    counts = [[5, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 5]]
    write_passes(tmp_path, 0, [record(1, 0, counts)], time=1.5)
    write_passes(tmp_path, 0, [record(2, 0, counts)], time=2.5)
    assert read(tmp_path).labels == {}


def test_two_mixed_dumps_are_refused(tmp_path: Path) -> None:
    counts = np.ones((2, 6))
    write_passes(tmp_path, 0, [record(1, 0, counts), record(2, 0, counts)], time=1.5)
    write_passes(tmp_path, 0, [record(2, 0, counts)], time=2.5)
    with pytest.raises(FormatError, match=r"Pass 2 of rank 0 is in .*1.5_0.pt and in .*2.5_0.pt"):
        read(tmp_path)


def test_missing_records_and_idle_passes_are_noted(tmp_path: Path) -> None:
    busy, idle = np.eye(2, 6, dtype=int), np.zeros((2, 6), int)
    write_passes(tmp_path, 0, [record(1, 0, busy), record(2, 0, idle)])
    write_passes(tmp_path, 2, [record(1, 2, busy * 2)])
    trace = read(tmp_path)
    assert trace.steps.tolist() == [1]
    assert "3 of 6 records (one a pass and rank) are missing" in notes(trace)
    assert "1 of 2 passes routed nothing" in notes(trace)
    assert trace.source_counts is not None
    assert trace.source_counts.shape == (1, 3, 2, 4)
    assert not trace.source_counts[:, 1].any()


def test_iterations_choose_passes(tmp_path: Path) -> None:
    records = [record(n, 0, np.full((2, 6), n)) for n in (3, 4, 5)]
    file = write_passes(tmp_path, 0, records)
    assert read(file, iterations=(4, 6)).steps.tolist() == [4, 5]
    with pytest.raises(FormatError, match="no record of the passes"):
        read(file, iterations=(6, 9))


def test_dense_rows_are_dropped(tmp_path: Path) -> None:
    counts = np.zeros((2, 6), int)
    counts[1] = 1
    trace = read(write_passes(tmp_path, 0, [record(1, 0, counts)]))
    assert trace.layer_ids == (1,)
    assert trace.counts.shape == (1, 1, 4)


GOOD = record(1, 0, np.ones((2, 6)))


@pytest.mark.parametrize(
    ("records", "p2l", "complaint"),
    [
        ([GOOD], "text", "not a table of whole numbers"),
        ([GOOD], P2L.ravel(), r"map has shape \(12,\)"),
        ([GOOD], P2L - 1, "layer 0, slot 0 of the map holds expert -1"),
        ([GOOD], P2L + 5, "layer 0, slot 1 of the map holds expert 6"),
        ([GOOD], P2L[:, :4].copy(), r"global_physical_count \(2, 6\); expected"),
        ([GOOD | {"global_physical_count": [[1]]}], P2L, "global_physical_count list"),
        ([GOOD | {"global_physical_count": -np.ones((2, 6), np.int64)}], P2L, "from -1 to -1"),
        ([GOOD | {"rank": 1 << 40}], P2L, "rank 1099511627776"),
        ([GOOD | {"rank": None}], P2L, "rank None"),
        ([GOOD | {"forward_pass_id": -1}], P2L, "forward_pass_id -1"),
        ([GOOD | {"forward_pass_id": True}], P2L, "forward_pass_id True"),
        ([1], P2L, "not a list of records"),
        ({"a": 1}, P2L, "not a list of records"),
        ([], P2L, "no record"),
        ([record(1, 0, np.zeros((2, 6)))], P2L, "No pass routed a token"),
        ([GOOD, GOOD], P2L, "Pass 1 of rank 0"),
    ],
)
def test_refuses_damaged_records(tmp_path: Path, records: Any, p2l: Any, complaint: str) -> None:
    file = write_passes(tmp_path, 0, records, p2l=p2l)
    with pytest.raises(EquipoiseError, match=complaint) as error:
        read(file)
    assert file.name in str(error.value)


def test_different_deployments_are_not_joined(tmp_path: Path) -> None:
    write_passes(tmp_path, 0, [GOOD])
    write_passes(tmp_path, 1, [record(1, 1, np.ones((2, 4)))], p2l=P2L[:, :4].copy())
    with pytest.raises(FormatError, match="different deployments"):
        read(tmp_path)


# per_token ---------------------------------------------------------------------------------------


def token_record(number: int, rank: int, mode: int, slots: Any) -> dict[str, Any]:
    """``slots`` is (layers, tokens, choices), physical, not yet padded to 8 choices."""
    array = np.asarray(slots, dtype=np.int32)
    padded = np.full((*array.shape[:2], 8), -1, dtype=np.int32)
    padded[:, :, : array.shape[2]] = array
    counts = [np.bincount(layer[layer >= 0], minlength=6) for layer in array]
    tokens = array.shape[1]
    return record(number, rank, counts) | {
        "input_ids": list(range(tokens)),
        "positions": list(range(tokens)),
        "extend_seq_lens": None,
        "forward_mode": mode,
        "topk_ids_of_layer": padded,
        "misc_objects": [],
    }


def test_tokens_carry_logical_experts_in_pass_and_rank_order(tmp_path: Path) -> None:
    nobody = np.zeros((2, 0, 2), int)
    write_passes(
        tmp_path,
        1,
        [
            token_record(6, 1, 4, nobody),
            token_record(5, 1, 1, [[[4, 3]], [[5, -1]]]),
        ],
    )
    write_passes(
        tmp_path,
        0,
        [
            token_record(5, 0, 1, [[[0, 1], [4, 5]], [[0, 1], [4, 5]]]),
            token_record(6, 0, 2, [[[2, 3]], [[3, 2]]]),
        ],
    )
    trace = read(tmp_path)
    assert trace.top_k == 2
    assert trace.tokens is not None
    assert trace.tokens.offsets.tolist() == [0, 3, 4]
    assert trace.tokens.of_step(0).tolist() == [
        [[0, 1], [3, 2]],  # rank 0, first token: layer 0, layer 1
        [[0, 1], [2, 2]],
        [[0, 3], [2, -1]],  # rank 1
    ]
    assert trace.tokens.of_step(1).tolist() == [[[2, 3], [0, 1]]]
    assert trace.labels["phase"].tolist() == ["prefill", "decode"]
    again = Trace.from_tokens(trace.tokens.ids, trace.tokens.offsets, num_experts=4)
    np.testing.assert_array_equal(again.counts, trace.counts)


@pytest.mark.parametrize(
    ("modes", "phase"),
    [
        ((1, 1), "prefill"),
        ((2, 4), "decode"),
        ((3, 3), "mixed"),
        ((1, 2), "mixed"),
        ((4, 4), "idle"),
        ((5, 5), "forward_mode_5"),
    ],
)
def test_phases(tmp_path: Path, modes: tuple[int, int], phase: str) -> None:
    for rank, mode in enumerate(modes):
        write_passes(tmp_path, rank, [token_record(1, rank, mode, [[[0]], [[1 + rank]]])])
    assert read(tmp_path).labels["phase"].tolist() == [phase]


def test_ids_beyond_the_slots_are_no_choice(tmp_path: Path) -> None:
    rec = token_record(1, 0, 2, [[[0]], [[1]]])
    rec["topk_ids_of_layer"] = np.array([[[0, 6]], [[1, 1000]]], dtype=np.int32)
    trace = read(write_passes(tmp_path, 0, [rec]))
    assert trace.tokens is not None
    assert trace.tokens.ids.tolist() == [[[0], [2]]]
    assert "2 choices of" in notes(trace)
    assert "slots from 6 on" in notes(trace)


@pytest.mark.parametrize("counted", [True, False])
def test_tokens_repeated_by_reference_are_not_expanded(tmp_path: Path, counted: bool) -> None:
    torch = pytest.importorskip("torch")
    ids = torch.zeros(1, 500_000, 8, dtype=torch.int32)
    count = torch.ones(1, 1, dtype=torch.int32)
    common = {"rank": 0, "global_physical_count": count, "forward_mode": 1}
    if not counted:  # nothing may be counted before the size is known
        del common["global_physical_count"]
    records = [common | {"forward_pass_id": n, "topk_ids_of_layer": ids} for n in range(500)]
    p2l = torch.zeros(1, 1, dtype=torch.int64)
    torch.save({"records": records, "last_physical_to_logical_map": p2l}, tmp_path / "bomb.pt")
    with pytest.raises(FormatError, match="would take"):
        read(tmp_path / "bomb.pt")


def without(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}


@pytest.mark.parametrize("counts", [{}, {"global_physical_count": None}, {"zero": 0}])
def test_records_without_counts_are_counted_from_the_choices(
    tmp_path: Path, counts: dict[str, Any]
) -> None:
    full = token_record(1, 0, 2, [[[0, 5], [2, 3]], [[1, 4], [0, 5]]])
    bare = without(full, "global_physical_count") | counts
    if "zero" in counts:
        bare = full | {"global_physical_count": np.zeros((2, 6), np.int32)}
    (tmp_path / "full").mkdir()
    expected = read(write_passes(tmp_path / "full", 0, [full]))
    trace = read(write_passes(tmp_path, 0, [bare]))
    np.testing.assert_array_equal(trace.counts, expected.counts)
    assert "1 of 1 records of" in notes(trace)
    assert "counted from the tokens' choices" in notes(trace)
    assert "counted from" not in notes(expected)


def test_a_record_without_counts_and_choices_is_refused(tmp_path: Path) -> None:
    bare = without(record(1, 0, np.ones((2, 6))), "global_physical_count")
    with pytest.raises(FormatError, match="pass 1 has global_physical_count NoneType"):
        read(write_passes(tmp_path, 0, [bare]))


def test_without_a_map_slots_are_experts_unless_one_is_given(tmp_path: Path) -> None:
    counts = np.array([[1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0], [6, 5, 4, 3, 2, 1]])
    file = write_passes(tmp_path, 0, [record(1, 0, counts)], p2l=None)
    plain = read(file)
    assert plain.counts.tolist() == [[[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]]]
    assert "holds no map, so its 6 slots were taken as experts" in notes(plain)
    assert "last map" not in notes(plain)
    placement = Placement(P2L, num_ranks=2, num_experts=4, layer_ids=(0, 2))
    folded = read(file, placement=placement)
    assert folded.counts.tolist() == [[[6, 8, 3, 4], [3, 4, 8, 6]]]
    assert "folded with the one given" in notes(folded)
    with pytest.raises(EquipoiseError, match="6 slots; the placement given has the layers 0-1"):
        read(file, placement=Placement(P2L[:, :4], num_ranks=2, num_experts=4, layer_ids=(0, 1)))
    with pytest.raises(EquipoiseError, match="has the layers 0-1, but others have load"):
        read(file, placement=Placement(P2L, num_ranks=2, num_experts=4, layer_ids=(0, 1)))


def test_a_map_is_not_given_to_a_dump_that_has_one(tmp_path: Path) -> None:
    placement = Placement(P2L, num_ranks=2, num_experts=4)
    write_passes(tmp_path, 0, [record(1, 0, np.ones((2, 6)))])
    with pytest.raises(EquipoiseError, match="leave placement out"):
        read(tmp_path, placement=placement)
    write_stat(tmp_path / "stat.pt", np.ones((1, 2, 4), np.int64))
    with pytest.raises(EquipoiseError, match="leave placement out"):
        read(tmp_path / "stat.pt", placement=placement)


def test_parts_of_an_overlapped_pass_are_added(tmp_path: Path) -> None:
    parts = [
        record(1, 0, np.full((2, 6), 200)) | {"gatherer_key": key} for key in ("child_a", "child_b")
    ]
    whole = record(2, 0, np.ones((2, 6)))
    trace = read(write_passes(tmp_path, 0, [*parts, whole]))
    assert trace.counts.tolist() == [
        [[800, 800, 400, 400], [400, 400, 1200, 400]],
        [[2, 2, 1, 1], [1, 1, 3, 1]],
    ]
    assert "recorded in parts (child_a, child_b, primary)" in notes(trace)
    assert "missing" not in notes(trace)


def test_two_servers_are_named_with_what_they_recorded(tmp_path: Path) -> None:
    for time, mode in ((1.5, 1), (9.5, 2)):
        write_passes(tmp_path, 0, [token_record(1, 0, mode, [[[0]], [[1]]])], time=time)
    said = r"is in \S*1.5_0.pt \(prefill\) and in \S*9.5_0.pt \(decode\): two servers"
    with pytest.raises(FormatError, match=said):
        read(tmp_path)


def test_keys_that_are_not_known_are_named(tmp_path: Path) -> None:
    records = [record(1, 0, np.ones((2, 6)))]
    root = {"records": records, "last_physical_to_logical_map": P2L, "dropped": 3}
    torch_archive.save(tmp_path / "x.pt", root)
    assert "x.pt: keys not used: dropped." in notes(read(tmp_path / "x.pt"))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"topk_ids_of_layer": [[1]]}, "topk_ids_of_layer is not a table"),
        ({"topk_ids_of_layer": np.zeros((3, 1, 8), np.int32)}, "3 layers, the map 2"),
        ({"forward_mode": "decode"}, "forward_mode 'decode'"),
    ],
)
def test_refuses_damaged_token_records(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    rec = token_record(1, 0, 2, [[[0]], [[1]]]) | change
    with pytest.raises(FormatError, match=complaint):
        read(write_passes(tmp_path, 0, [rec]))


# What is which -----------------------------------------------------------------------------------


def test_modes_are_not_mixed(tmp_path: Path) -> None:
    write_passes(tmp_path, 0, [GOOD])
    write_stat(tmp_path / stat_name(1.5), np.ones((1, 2, 4), np.int64))
    with pytest.raises(FormatError, match=r"different modes: .*stat.*passes"):
        read(tmp_path)
    (tmp_path / stat_name(1.5)).unlink()
    write_passes(tmp_path, 1, [token_record(1, 1, 2, [[[0]], [[1]]])])
    with pytest.raises(FormatError, match="mixes per_pass and per_token"):
        read(tmp_path)


def test_maps_are_not_recordings(tmp_path: Path) -> None:
    archive, text = tmp_path / "map.pt", tmp_path / "map.json"
    torch_archive.save(archive, {"physical_to_logical_map": P2L, "logical_count": P2L})
    text.write_text(json.dumps({"physical_to_logical_map": P2L.tolist(), "logical_count": [[1]]}))
    for file in (archive, text):
        assert not FORMAT.matches(file)
        with pytest.raises(FormatError, match="is a map"):
            read(file)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"layers": {"logical_count": [[1]]}}', b'{"records": []}', b"PK"],
)
def test_other_files_are_not_claimed(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "other"
    file.write_bytes(content)
    assert not FORMAT.matches(file)
    with pytest.raises(FormatError, match="other"):
        read(file)


def test_other_archives_directories_and_missing_files_are_not_claimed(tmp_path: Path) -> None:
    torch_archive.save(tmp_path / "table.pt", P2L)
    assert not FORMAT.matches(tmp_path / "table.pt")
    assert not FORMAT.matches(tmp_path)
    assert not FORMAT.matches(tmp_path / "nothing.pt")
    with pytest.raises(FormatError, match=r"no expert_distribution_recorder_\*\.pt"):
        read(tmp_path)


def test_a_large_json_is_told_by_its_head(tmp_path: Path) -> None:
    file = tmp_path / "load.json"
    counts = np.ones((3, 60, 256), dtype=int).tolist()
    file.write_text(json.dumps({"rank": 0, "logical_count": counts}))
    assert FORMAT.matches(file)
    assert read(file).num_steps == 3
    late = tmp_path / "late.json"
    late.write_text(json.dumps({"other": counts, "logical_count": counts}))
    assert not FORMAT.matches(late)
    assert read(late).num_steps == 3  # named by the user

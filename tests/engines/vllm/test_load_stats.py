from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from equipoise.engines.formats import TraceOptions, no_progress
from equipoise.engines.vllm.load_stats import FORMAT
from equipoise.errors import FormatError
from equipoise.trace import Trace

META = {
    "record_type": "eplb_load_meta",
    "version": 1,
    "model": "m",
    "num_ranks": 2,
    "num_groups": 1,
    "num_nodes": 1,
    "num_layers": 2,
    "num_redundant_experts": 0,
}


def stats(step: int, load: Any, p2l: Any = None, **more: Any) -> dict[str, Any]:
    identity = [list(range(len(row))) for row in load] if p2l is None else p2l
    return {
        "record_type": "eplb_load_stats",
        "version": 1,
        "step": step,
        "expert_load": load,
        "p2l_map": identity,
    } | more


FIRST = stats(100, [[10, 1, 5, 2], [2, 8, 1, 3]])
SECOND = stats(200, [[1, 1, 1, 1], [2, 2, 2, 2]])


def write(path: Path, *records: Any, end: str = "") -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records) + end)
    return path


def read(path: Path, **options: Any) -> Trace:
    return FORMAT.read(path, TraceOptions(**options), no_progress)


def notes(trace: Trace) -> str:
    return "\n".join(trace.provenance.notes)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "stats.jsonl"


@pytest.mark.parametrize("revision", ["A", "B"])
def test_golden_sum(file: Path, revision: str) -> None:
    if revision == "A":
        write(file, FIRST | {"num_ranks": 2}, SECOND | {"num_ranks": 2})
    else:
        write(file, META, FIRST, SECOND)
    assert FORMAT.matches(file)
    trace = read(file)
    assert trace.total.tolist() == [[11, 2, 6, 3], [4, 10, 3, 5]]
    assert trace.steps.tolist() == [100, 200]
    assert trace.layer_ids == (0, 1)
    assert trace.provenance.format == "vllm"
    assert "Recorded on 2 ranks" in notes(trace)


def test_golden_fold(file: Path) -> None:
    assert read(write(file, stats(0, [[3, 7]], [[0, 0]]))).counts.tolist() == [[[10]]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fold_agrees_with_plain_loops(file: Path, data: st.DataObject) -> None:
    L, S = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    table = st.lists(
        st.lists(st.integers(0, S - 1), min_size=S, max_size=S), min_size=L, max_size=L
    )
    records = [stats(t, data.draw(table), data.draw(table)) for t in range(data.draw(st.just(2)))]
    E = 1 + max(max(row) for r in records for row in r["p2l_map"])
    expected = np.zeros((2, L, E), dtype=int)
    for t, r in enumerate(records):
        for layer in range(L):
            for slot in range(S):
                expected[t, layer, r["p2l_map"][layer][slot]] += r["expert_load"][layer][slot]
    np.testing.assert_array_equal(read(write(file, *records)).counts, expected)


def test_every_record_is_folded_by_its_own_map(file: Path) -> None:
    write(file, stats(1, [[1, 2, 4]], [[0, 1, 0]]), stats(2, [[1, 2, 4]], [[1, 1, 0]]))
    assert read(file).counts.tolist() == [[[5, 2]], [[4, 3]]]


def test_changes_of_the_map_are_counted(file: Path) -> None:
    loads, one, other = [[1, 2, 4]], [[0, 1, 0]], [[1, 1, 0]]
    maps = [one, one, other, one, one]
    write(file, *(stats(t, loads, p2l) for t, p2l in enumerate(maps)))
    assert read(file).labels["map"].tolist() == ["0", "0", "1", "2", "2"]
    write(file, *(stats(t, loads, one) for t in range(3)))
    assert read(file).labels == {}


def test_maps_of_two_models_in_one_file_are_no_changes(file: Path) -> None:
    target, draft = [[0, 1, 0], [1, 0, 1]], [[1, 1, 0]]
    records = [stats(t, [[1, 2, 4]] * len(p2l), p2l) for t in range(3) for p2l in (target, draft)]
    write(file, *records)
    assert read(file, layer_ids=(0, 1)).labels == {}


def test_meta_says_how_many_experts_there_are(file: Path) -> None:
    meta = META | {"num_redundant_experts": 1, "num_layers": 1}
    write(file, meta, stats(1, [[1, 2, 4, 8]], [[0, 1, 0, 1]]))
    assert read(file).counts.tolist() == [[[5, 10, 0]]]


def test_empty_slots_hold_nothing(file: Path) -> None:
    write(file, stats(1, [[1, 2, 0]], [[0, 1, -1]]))
    assert read(file).counts.tolist() == [[[1, 2]]]
    write(file, stats(1, [[1, 2, 3]], [[0, 1, -1]]))
    with pytest.raises(FormatError, match="line 1: layer 0, slot 2 has load"):
        read(file)


def test_unknown_records_are_skipped_with_a_note(file: Path) -> None:
    extra = {"record_type": "bench_run_start", "version": "2.0"}
    write(file, {"record_type": "session_metadata"}, META, extra, FIRST, extra, {"x": 1})
    assert FORMAT.matches(file)
    trace = read(file)
    assert trace.num_steps == 1
    assert "Skipped 2 records bench_run_start" in notes(trace)
    assert "Skipped 1 records without record_type" in notes(trace)


@pytest.mark.parametrize("cut", [1, 30, 120, -1])
def test_a_cut_off_last_line_is_noted(file: Path, cut: int) -> None:
    write(file, FIRST, end=json.dumps(SECOND)[:cut])
    trace = read(file)
    assert trace.steps.tolist() == [100]
    assert "The last line is cut off and was left out (line 2" in notes(trace)


def test_blank_lines_do_not_hide_a_cut_off_line(file: Path) -> None:
    write(file, FIRST, end='{"record_type": "epl\n\n')
    assert "line 2" in notes(read(file))


def test_a_broken_line_elsewhere_is_refused(file: Path) -> None:
    file.write_text(f"{json.dumps(FIRST)}\n{json.dumps(SECOND)[:50]}\n{json.dumps(SECOND)}\n")
    with pytest.raises(FormatError, match=r"stats\.jsonl, line 2: not a JSON record"):
        read(file)


def test_several_runs_in_one_file_are_noted(file: Path) -> None:
    trace = read(write(file, SECOND, FIRST))
    assert trace.steps.tolist() == [200, 100]
    assert "repeat or go back" in notes(trace)
    assert "repeat or go back" not in notes(read(write(file, FIRST, SECOND)))


def test_options(file: Path) -> None:
    write(file, META, FIRST, SECOND)
    assert read(file, layer_ids=(3, 4)).layer_ids == (3, 4)
    assert read(file, iterations=(150, 201)).steps.tolist() == [200]
    with pytest.raises(FormatError, match=r"stats\.jsonl.*3 layer ids for 2 layers"):
        read(file, layer_ids=(3, 4, 5))
    with pytest.raises(FormatError, match="of the iterations asked for"):
        read(file, iterations=(0, 5))


DRAFT = [stats(100, [[4, 3, 2, 1]]), stats(200, [[1, 1, 1, 1]])]


@pytest.mark.parametrize("revision", ["A", "B"])
def test_a_draft_models_records_are_told_from_the_targets(file: Path, revision: str) -> None:
    mixed = [FIRST, DRAFT[0], SECOND, DRAFT[1]]
    write(file, *([META] if revision == "B" else []), *mixed)
    target = read(file, layer_ids=(3, 4))
    assert target.total.tolist() == [[11, 2, 6, 3], [4, 10, 3, 5]]
    draft = read(file, layer_ids=(61,))
    assert draft.total.tolist() == [[5, 4, 3, 2]]
    assert draft.layer_ids == (61,)
    assert draft.steps.tolist() == [100, 200]
    assert "several models, 2 of 2 layers, 2 of 1 layers; those of 1 layers" in notes(draft)
    if revision == "B":  # the file says how many layers the target has
        assert read(file).total.tolist() == target.total.tolist()
        assert "those of 2 layers were read" in notes(read(file))
        return
    with pytest.raises(FormatError, match=r"models, 2 of 2 layers, 2 of 1.* layer_ids: 0-1"):
        read(file)


def test_records_of_one_step_by_several_processes_are_said(file: Path) -> None:
    trace = read(write(file, FIRST, FIRST, SECOND, SECOND))
    assert trace.num_steps == 4
    assert "data-parallel ranks or a target and its draft model" in notes(trace)


def test_the_number_of_experts_is_said_to_be_inferred_unless_stated(file: Path) -> None:
    assert "does not state the number of experts; 4 is" in notes(read(write(file, FIRST)))
    assert "num_experts" not in notes(read(write(file, META, FIRST)))


@pytest.mark.parametrize("line", [1, 2])
def test_a_key_that_stands_twice_is_refused(file: Path, line: int) -> None:
    texts = [json.dumps(FIRST), json.dumps(SECOND)]
    texts[line - 1] = texts[line - 1].replace('"step"', '"step": 1, "step"', 1)
    file.write_text("\n".join([*texts, json.dumps(SECOND)]))
    with pytest.raises(FormatError, match=f"line {line}: .*'step' appears twice"):
        read(file)


@pytest.mark.parametrize(
    ("records", "complaint"),
    [
        ([FIRST | {"version": 2}], "line 1: version 2 is not known; expected 1"),
        ([META | {"version": "1"}, FIRST], "line 1: version '1' is not known"),
        ([META, FIRST, META], "line 3: a second recording begins"),
        ([META, META], "line 2: a second recording begins"),
        ([FIRST, META], "line 2: a second recording begins"),
        ([META | {"num_layers": 3}, FIRST], "line 2: 2 layers in a recording of 3"),
        ([FIRST, stats(1, [[1, 2, 3, 4]])], "mixes records of several models"),
        ([META | {"num_redundant_experts": 1}, FIRST], "line 2: p2l_map holds expert 3; 4 slots"),
        ([META | {"num_redundant_experts": -9}], "line 1: .*num_redundant_experts"),
        ([stats(1, [[1, 2]], [[0, 2]])], "line 1: p2l_map holds expert 2; 2 slots"),
        ([stats(1, [[1, 2]], [[0, 1 << 40]])], "line 1: .*p2l_map"),
        ([stats(1, [[1, 2]], [[0]])], "line 1: expert_load has"),
        ([stats(1, [[1, 2], [1]], [[0, 1], [0]])], "line 1: its layers have different numbers"),
        ([stats(1, [[-1, 2]])], "line 1: .*expert_load"),
        ([stats(1, [[1.5, 2]])], "line 1: .*expert_load"),
        ([stats(1, [[True, 2]])], "line 1: .*expert_load"),
        ([stats(1, [[1 << 70, 2]])], "line 1: .*expert_load of layer 0, slot 0 is an enormous"),
        ([stats(1, [[1, 1 << 62]])], "slot 1 is 4611686018427387904; expected a number from 0"),
        ([stats(1, [])], "line 1: .*shape"),
        ([stats(-1, [[1]])], "line 1: .*step"),
        ([{"record_type": "eplb_load_stats", "version": 1}], "line 1: .*required field"),
        ([META], "no complete eplb_load_stats record"),
        ([], "no complete eplb_load_stats record"),
    ],
)
def test_refuses_damaged_records(file: Path, records: list[Any], complaint: str) -> None:
    with pytest.raises(FormatError, match=rf"stats\.jsonl.*{complaint}"):
        read(write(file, *records))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[1, 2]\n",
        b'{"record_type": "eplb_initial_mapping", "version": 1}\n',
        b'{"record_type": 5}\n',
        b'{"record_type": "eplb_load_st',
        b'{"layers": []}',
        b"[" * 100_000,
        b"layer,expert\n1,2\n",
    ],
)
def test_other_files_are_not_claimed(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert not FORMAT.matches(file)
    with pytest.raises(FormatError, match=r"stats\.jsonl"):
        read(file)


def test_missing_files_and_directories_are_not_claimed(tmp_path: Path) -> None:
    assert not FORMAT.matches(tmp_path)
    assert not FORMAT.matches(tmp_path / "nothing")
    with pytest.raises(FormatError, match="cannot be read"):
        read(tmp_path / "nothing")


def test_progress_ends_at_the_size_of_the_file(file: Path) -> None:
    seen: list[tuple[int, int]] = []
    write(file, META, FIRST, SECOND)
    FORMAT.read(file, TraceOptions(), lambda done, total: seen.append((done, total)))
    assert len(seen) == 3
    assert seen[-1] == (file.stat().st_size, file.stat().st_size)

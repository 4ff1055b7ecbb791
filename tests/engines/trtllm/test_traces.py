"""TensorRT-LLM dumps: golden bytes, every layout, and what damaged or ragged dumps become."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from equipoise.engines.formats import Progress, TraceOptions, no_progress
from equipoise.engines.trtllm.traces import FORMAT
from equipoise.errors import EquipoiseError, FormatError
from equipoise.placement import Placement
from equipoise.trace import Trace

META = '{"num_experts": 4, "num_experts_per_token": 2}'
RANK0 = {"10_3": [5, 1, 0, 2], "10_4": [1, 3, 3, 1], "11_3": [4, 2, 1, 1], "11_4": [2, 2, 2, 2]}
RANK1 = {"10_3": [3, 3, 1, 1], "10_4": [0, 4, 4, 0], "11_3": [6, 0, 2, 0], "11_4": [1, 3, 0, 4]}
GOLDEN_SOURCE = np.array(
    [[[r[f"{t}_{layer}"] for layer in (3, 4)] for r in (RANK0, RANK1)] for t in (10, 11)]
)


def read(path: Path, progress: Progress = no_progress, **options: Any) -> Trace:
    return FORMAT.read(path, TraceOptions(**options), progress)


def write(trace: Trace, path: Path) -> None:
    assert FORMAT.write is not None
    FORMAT.write(trace, path)


def dump(
    path: Path, *ranks: dict[str, Any], meta: str | None = META, dtype: Any = np.int64
) -> Path:
    path.mkdir(exist_ok=True)
    if meta is not None:
        (path / "meta_info.json").write_text(meta)
    for rank, vectors in enumerate(ranks):
        save(path / f"rank{rank}.safetensors", vectors, dtype)
    return path


def save(path: Path, arrays: dict[str, Any], dtype: Any = np.int64) -> None:
    save_file({key: np.array(value, dtype=dtype) for key, value in arrays.items()}, path)


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return dump(tmp_path / "dump", RANK0, RANK1)


def notes(path: Path, **options: Any) -> str:
    return " | ".join(read(path, **options).provenance.notes)


def test_golden_dump_is_read(golden: Path) -> None:
    assert FORMAT.matches(golden)
    trace = read(golden)
    assert trace.source_counts is not None
    np.testing.assert_array_equal(trace.source_counts, GOLDEN_SOURCE)
    np.testing.assert_array_equal(trace.counts, GOLDEN_SOURCE.sum(axis=1))
    assert trace.steps.tolist() == [10, 11]
    assert (trace.layer_ids, trace.top_k) == ((3, 4), 2)
    assert trace.provenance.notes == ()


def test_golden_dump_is_written_byte_for_byte(tmp_path: Path) -> None:
    trace = Trace(
        counts=GOLDEN_SOURCE.sum(axis=1),
        source_counts=GOLDEN_SOURCE.astype(np.uint8),
        layer_ids=(3, 4),
        step_ids=np.array([10, 11]),
        top_k=2,
    )
    write(trace, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "meta_info.json",
        "rank0.safetensors",
        "rank1.safetensors",
    ]
    meta = (tmp_path / "out" / "meta_info.json").read_bytes()
    assert meta == META.encode()
    assert len(meta) == 46
    for name, digest in (("rank0", "10ae57ffc7438055"), ("rank1", "f5692cca4b269e29")):
        data = (tmp_path / "out" / f"{name}.safetensors").read_bytes()
        assert len(data) == 376
        assert struct.unpack("<Q", data[:8]) == (240,)
        assert data[248 - 8 : 248].endswith(b" " * 7)
        assert hashlib.sha256(data).hexdigest().startswith(digest)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), top=st.sampled_from([3, 300, 70_000, 1 << 40]))
def test_a_trace_survives_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, seed: int, top: int
) -> None:
    rng = np.random.default_rng(seed)
    T, R, L, E = rng.integers(1, 5, 4)
    source = rng.integers(0, top, (T, R, L, E))
    source[0, :, 0, 0] = np.arange(R)  # ranks that differ: equal ones mean replicated tokens
    trace = Trace(
        counts=source.sum(axis=1),
        source_counts=source,
        layer_ids=tuple((np.arange(L) * 7 + 2).tolist()),
        step_ids=np.arange(T) + 8,
        top_k=3,
    )
    path = tmp_path_factory.mktemp("t") / "dump"
    write(trace, path)
    got = read(path)
    assert got.source_counts is not None
    np.testing.assert_array_equal(got.source_counts, source)
    np.testing.assert_array_equal(got.counts, trace.counts)
    assert got.steps.tolist() == trace.steps.tolist()
    assert (got.layer_ids, got.top_k) == (trace.layer_ids, 3)


def test_a_trace_without_source_ranks_becomes_one_rank(tmp_path: Path) -> None:
    trace = Trace(counts=np.array([[[1, 2]], [[3, 4]]], dtype=np.uint16), top_k=1)
    write(trace, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").glob("rank*")] == ["rank0.safetensors"]
    np.testing.assert_array_equal(read(tmp_path / "out").counts, trace.counts)


def test_an_empty_directory_is_filled_and_a_full_one_refused(tmp_path: Path) -> None:
    trace = Trace(counts=np.array([[[1, 2]]]), top_k=1)
    (tmp_path / "out").mkdir()
    write(trace, tmp_path / "out")
    with pytest.raises(EquipoiseError, match="not an empty directory"):
        write(trace, tmp_path / "out")
    with pytest.raises(EquipoiseError, match="there is no folder"):
        write(trace, tmp_path / "none" / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"top_k": None}, "which this recording does not"),
        ({"step_ids": np.array([1, 1])}, "repeats step ids"),
        ({"step_ids": np.array([-1, 1])}, "negative"),
    ],
)
def test_what_a_dump_cannot_say_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    trace = Trace(**{"counts": np.ones((2, 1, 2), int), "top_k": 2, **change})
    with pytest.raises(EquipoiseError, match=said):
        write(trace, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_iterations_are_half_open(golden: Path) -> None:
    trace = read(golden, iterations=(11, 12))
    np.testing.assert_array_equal(trace.source_counts, GOLDEN_SOURCE[1:])
    with pytest.raises(FormatError, match=r"iterations 10-11; none of them is in \[12, 20\)"):
        read(golden, iterations=(12, 20))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_other_number_types_are_read(tmp_path: Path, dtype: Any) -> None:
    trace = read(dump(tmp_path / "d", RANK0, RANK1, dtype=dtype))
    np.testing.assert_array_equal(trace.source_counts, GOLDEN_SOURCE)


@pytest.mark.parametrize(("meta", "said"), [(None, "There is no meta_info"), ("null", "is null")])
def test_without_meta_the_vectors_tell(tmp_path: Path, meta: str | None, said: str) -> None:
    path = dump(tmp_path / "d", RANK0, RANK1, meta=meta)
    trace = read(path)
    assert (trace.num_experts, trace.top_k) == (4, None)
    assert said in trace.provenance.notes[0]


@pytest.mark.parametrize("meta", ["{", '{"num_experts": "x"}', "[" * 100_000, "[1]"])
def test_damaged_meta_is_named(tmp_path: Path, meta: str) -> None:
    with pytest.raises(FormatError, match=r"meta_info\.json is damaged"):
        read(dump(tmp_path / "d", RANK0, meta=meta))


def test_missing_pairs_and_ranks_count_zero_and_are_told(tmp_path: Path) -> None:
    path = dump(tmp_path / "d", RANK0, {"10_3": [1, 1, 1, 1], "13_4": [1, 1, 1, 1]})
    (path / "rank1.safetensors").rename(path / "rank3.safetensors")
    trace = read(path)
    assert trace.source_counts is not None
    assert trace.source_counts.shape == (3, 4, 2, 4)
    assert trace.source_counts.sum() == 32 + 8
    assert trace.source_counts[:, 1:3].sum() == 0
    assert trace.source_counts[2, 3].tolist() == [[0] * 4, [1] * 4]
    assert trace.provenance.notes == (
        "Files of the ranks 1-2 are missing; they count 0.",
        "6 of 12 (iteration, layer) pairs are missing, in 2 rank files "
        "(13_3 of rank0.safetensors is the first); they count 0.",
        "The ranks 0, 3 did not record every iteration.",
        "Iterations have gaps: 10-11, 13.",
    )


def test_a_rank_that_recorded_nothing_is_told(tmp_path: Path) -> None:
    path = dump(tmp_path / "d", RANK0, {})
    assert FORMAT.matches(path)
    assert "4 of 8 (iteration, layer) pairs are missing" in notes(path)
    with pytest.raises(FormatError, match="the run recorded nothing"):
        read(dump(tmp_path / "e", {}, {}))


def test_the_tail_behind_num_experts_is_dropped_and_counted(tmp_path: Path) -> None:
    longer = {key: [*vector, 3] for key, vector in RANK0.items()}
    mixed = {**RANK1, "10_3": [*RANK1["10_3"], 2, 5]}
    trace = read(dump(tmp_path / "d", longer, mixed))
    np.testing.assert_array_equal(trace.source_counts, GOLDEN_SOURCE)
    assert trace.provenance.notes == ("19 assignments to ids beyond num_experts 4 were dropped.",)
    without = read(dump(tmp_path / "e", RANK0, mixed, meta=None))
    assert without.num_experts == 4
    assert "7 assignments" in without.provenance.notes[1]


def test_slot_counts_are_folded_with_the_map_of_the_run(tmp_path: Path) -> None:
    placement = Placement(
        [[0, 1, 0, 2], [2, 1, 1, 0]], num_ranks=2, num_experts=3, layer_ids=(3, 4)
    )
    path = dump(tmp_path / "d", RANK0, RANK1)
    trace = read(path, placement=placement)
    assert trace.source_counts is not None
    assert trace.source_counts[0].tolist() == [[[5, 1, 2], [1, 6, 1]], [[4, 3, 1], [0, 8, 0]]]
    assert trace.counts[0].tolist() == [[9, 4, 3], [1, 14, 1]]
    assert "Counts of 4 slots were folded" in trace.provenance.notes[0]


def test_a_width_that_looks_like_slots_is_told(tmp_path: Path) -> None:
    path = dump(tmp_path / "d", {"0_0": [1] * 6}, meta=None)
    assert "6 ids were counted. If the recorded run balanced" in notes(path)
    assert "balanced" not in notes(path, num_experts=6)


@pytest.mark.parametrize("stated", [0, -4, 10**9])
def test_an_unusable_num_experts_is_refused(tmp_path: Path, stated: int) -> None:
    path = dump(tmp_path / "d", RANK0, meta=f'{{"num_experts": {stated}}}')
    with pytest.raises(FormatError, match="does not state a usable num_experts"):
        read(path)


def test_folding_widens_counts_where_sums_need_it(tmp_path: Path) -> None:
    path = dump(tmp_path / "d", {"0_0": [255, 200, 0, 1]}, {"0_0": [0, 1, 0, 0]})
    trace = read(path, placement=Placement([[0, 0, 1, 1]], num_ranks=1, num_experts=2))
    assert trace.counts.tolist() == [[[456, 1]]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_experts": 3}, "counts 4 ids, num_experts is 3. If the recorded run balanced"),
        (
            {"placement": Placement([[0, 1, 0]], num_ranks=1, num_experts=2)},
            "counts 4 ids, the placement given has 3 slots",
        ),
        (
            {"placement": Placement([[0, 1, 0, 1]], num_ranks=1, num_experts=2)},
            "has layer 3-4, the placement given has layers 0",
        ),
        (
            {
                "placement": Placement([[0, 1, 0, 1]], num_ranks=1, num_experts=2),
                "num_experts": 4,
            },
            "num_experts is 4, the placement has 2",
        ),
        ({"allow_pickle": True}, "holds no pickles"),
    ],
)
def test_options_that_contradict_the_dump_are_refused(
    golden: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(FormatError, match=said):
        read(golden, **options)


def test_equal_ranks_are_counted_once(tmp_path: Path) -> None:
    trace = read(dump(tmp_path / "d", RANK0, RANK0, RANK0))
    np.testing.assert_array_equal(trace.counts, GOLDEN_SOURCE[:, 0])
    assert trace.source_counts is None
    assert "counted once" in trace.provenance.notes[0]


@pytest.mark.parametrize("end", [0, 7, 100, 250, 375])
def test_a_truncated_file_is_named(golden: Path, end: int) -> None:
    data = (golden / "rank1.safetensors").read_bytes()
    (golden / "rank1.safetensors").write_bytes(data[:end])
    assert FORMAT.matches(golden)
    with pytest.raises(FormatError, match=r"rank1\.safetensors"):
        read(golden)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 260), value=st.integers(0, 255))
def test_a_flipped_byte_never_escapes_as_another_error(
    golden: Path, position: int, value: int
) -> None:
    data = (golden / "rank1.safetensors").read_bytes()
    changed = bytearray(data)
    changed[position] = value
    (golden / "rank1.safetensors").write_bytes(changed)
    message = failure(golden)
    (golden / "rank1.safetensors").write_bytes(data)
    assert message is None or str(golden) in message


def failure(path: Path, **options: Any) -> str | None:
    """What reading a dump complains about."""
    try:
        read(path, **options)
    except EquipoiseError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("vectors", "dtype", "said"),
    [
        ({"10_3": [1, 2, 3]}, np.int64, r"rank0.safetensors: 10_3 has 3 counts; expected 4"),
        ({"10_3": [[1, 2, 3, 4]]}, np.int64, r"10_3 has shape \(1, 4\)"),
        ({"10_3": 5}, np.int64, r"10_3 has shape \(\)"),
        ({"10_3": [1, -2, 3, 4]}, np.int64, "10_3 counts -2 for id 1"),
        ({"10_3": [1, 2.5, 3, 4]}, np.float32, "10_3 counts 2.5 for id 1"),
        ({"10_3": [1, np.nan, 3, 4]}, np.float32, "10_3 counts nan for id 1"),
        ({"10_3": [1, np.inf, 3, 4]}, np.float32, "10_3 counts inf for id 1"),
        ({"10_3": [1, 2, 3, 4]}, np.uint8, "counts in uint8"),
        ({"layer3": [1, 2, 3, 4]}, np.int64, "'layer3' is not a key"),
        ({"1_3": [1, 2, 3, 4], "01_3": [1, 2, 3, 4]}, np.int64, "1_3, which mean the same"),
    ],
)
def test_vectors_that_do_not_fit_are_named(
    tmp_path: Path, vectors: dict[str, Any], dtype: Any, said: str
) -> None:
    with pytest.raises(FormatError, match=said):
        read(dump(tmp_path / "d", vectors, dtype=dtype))


def test_half_precision_is_counted_where_it_is_exact(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    path = dump(tmp_path / "d")
    exact = {"1_3": torch.tensor([1, 2, 3, 255]).to(torch.bfloat16)}
    save_torch(exact, path / "rank0.safetensors")
    for file in path.glob("rank[1-9]*.safetensors"):
        file.unlink()
    assert read(path).counts.tolist() == [[[1, 2, 3, 255]]]
    save_torch({"1_3": exact["1_3"] * 2}, path / "rank0.safetensors")
    with pytest.raises(FormatError, match=r"rank0.safetensors: it holds 510 in bfloat16"):
        read(path)


def test_mixed_types_are_refused(tmp_path: Path) -> None:
    path = dump(tmp_path / "d")
    tensors = {"1_3": np.zeros(4, np.int64), "2_3": np.zeros(4, np.int32)}
    save_file(tensors, path / "rank0.safetensors")
    with pytest.raises(FormatError, match="mixes I32, I64"):
        read(path)


def test_a_few_stray_keys_cannot_ask_for_memory_without_end(tmp_path: Path) -> None:
    vectors = {f"{n}_{n}": [0] * 64 for n in range(2000)}
    path = dump(tmp_path / "d", vectors, meta=None)
    with pytest.raises(FormatError, match="2000 iterations, 1 ranks and 2000 layers"):
        read(path)
    save(tmp_path / "d" / "rank999999.safetensors", {"0_0": [0] * 64})
    with pytest.raises(FormatError, match="1000000 ranks"):
        read(path)


def test_progress_counts_files(golden: Path) -> None:
    calls: list[tuple[int, int]] = []
    read(golden, lambda done, total: calls.append((done, total)))
    assert calls == [(0, 2), (1, 2), (2, 2)]


# Layouts beyond the released one.

CHOSEN0 = {"10_3": [[0, 1], [0, 3]], "10_4": [[1, 2], [2, 9]], "11_3": [[0, 2]], "11_4": [[3, 2]]}
CHOSEN1 = {"10_3": [[1, 2]], "10_4": [[2, 1]]}


def test_v2_adds_the_tokens_own_choices(golden: Path) -> None:
    save(golden / "token_selected_experts_rank0.safetensors", CHOSEN0, np.int32)
    save(golden / "token_selected_experts_rank1.safetensors", CHOSEN1, np.int32)
    save(golden / "cooccurrence_rank0.safetensors", {"10_3": np.eye(4)}, np.int32)
    trace = read(golden)
    np.testing.assert_array_equal(trace.source_counts, GOLDEN_SOURCE)
    assert trace.tokens is not None
    assert trace.tokens.offsets.tolist() == [0, 3, 4]
    assert trace.tokens.of_step(0).tolist() == [
        [[0, 1], [1, 2]],
        [[0, 3], [2, -1]],
        [[1, 2], [2, 1]],
    ]
    assert trace.provenance.notes == (
        "Files of experts chosen together (cooccurrence_rank*) are not used.",
    )


def test_v3_raw_files_alone_are_counted(tmp_path: Path) -> None:
    path = dump(tmp_path / "d")
    save(path / "rank0_raw.safetensors", CHOSEN0, np.int32)
    save(path / "rank1_raw.safetensors", CHOSEN1, np.int32)
    assert FORMAT.matches(path)
    trace = read(path)
    assert trace.source_counts is not None
    assert trace.source_counts[0].tolist() == [
        [[2, 1, 0, 1], [0, 1, 2, 0]],
        [[0, 1, 1, 0], [0, 1, 1, 0]],
    ]
    assert trace.tokens is not None
    assert trace.tokens.offsets.tolist() == [0, 3, 4]
    text = " | ".join(trace.provenance.notes)
    assert "the tokens' own choices were counted" in text
    assert "1 choices were dropped: padding, or ids that 4 experts do not have" in text
    assert "last chunk" in text
    assert "2 of 8 (iteration, layer) pairs are missing" in text


def test_v3_raw_beside_counts_keeps_to_the_counted_iterations(golden: Path) -> None:
    save(golden / "rank0_raw.safetensors", {**CHOSEN0, "12_3": [[0, 1]]}, np.int32)
    trace = read(golden)
    np.testing.assert_array_equal(trace.source_counts, GOLDEN_SOURCE)
    assert trace.tokens is not None
    assert len(trace.tokens.ids) == 3


def test_choices_are_translated_with_the_map(tmp_path: Path) -> None:
    path = dump(tmp_path / "d")
    save(path / "rank0_raw.safetensors", {"0_0": [[0, 3], [2, -1]]}, np.int32)
    placement = Placement([[0, 1, 0, 1]], num_ranks=1, num_experts=2)
    trace = read(path, placement=placement)
    assert trace.counts.tolist() == [[[2, 1]]]
    assert trace.tokens is not None
    assert trace.tokens.ids.tolist() == [[[0, 1]], [[0, -1]]]


def test_choices_that_differ_between_layers_are_left_out(golden: Path) -> None:
    save(golden / "rank0_raw.safetensors", {"10_3": [[0, 1]], "10_4": [[0, 1], [1, 2]]}, np.int32)
    assert read(golden).tokens is None
    assert "choices were left out" in notes(golden)


def test_choices_of_the_wrong_shape_are_refused(golden: Path) -> None:
    save(golden / "rank0_raw.safetensors", {"10_3": [0, 1]}, np.int32)
    with pytest.raises(FormatError, match=r"rank0_raw\.safetensors: 10_3 has shape \(2,\)"):
        read(golden)
    save(golden / "rank0_raw.safetensors", {"10_3": [[0, 1]]}, np.float32)
    with pytest.raises(FormatError, match="holds float32 values; expected whole ids"):
        read(golden)


def test_raw_files_without_meta_need_num_experts(tmp_path: Path) -> None:
    path = dump(tmp_path / "d", meta=None)
    save(path / "rank0_raw.safetensors", CHOSEN0, np.int32)
    with pytest.raises(FormatError, match="give num_experts"):
        read(path)
    assert read(path, num_experts=10).num_experts == 10


def test_v4_token_numbers_tell_of_a_partial_iteration(tmp_path: Path) -> None:
    path = dump(tmp_path / "d", RANK0, RANK1, meta=META[:-1] + ', "ep_size": 4}')
    (path / "rank0_numtokens.json").write_text(json.dumps(dict.fromkeys(RANK0, 4)))
    assert "add up" not in notes(path)
    assert "ep_size 4; files name 2 ranks" in notes(path)
    (path / "rank1_numtokens.json").write_text(json.dumps({"10_3": 4, "11_3": 5, "99_3": 1}))
    assert "In the iterations 11 counts do not add up" in notes(path)
    (path / "rank1_numtokens.json").write_text("[")
    with pytest.raises(FormatError, match=r"rank1_numtokens\.json is damaged"):
        read(path)


def pickled(path: Path, *ranks: Any) -> Path:
    path.mkdir()
    for rank, content in enumerate(ranks):
        (path / f"rank_{rank}.pkl").write_bytes(pickle.dumps(content))
    return path


def test_v0_pickles_are_read_without_calling_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    def tensors(vectors: dict[str, list[int]], dtype: Any) -> Any:
        both = torch.tensor(list(vectors.values()), dtype=dtype)  # one storage, as recorders slice
        keys = [tuple(map(int, key.split("_"))) for key in vectors]
        return OrderedDict(zip(keys, both, strict=True))

    path = pickled(tmp_path / "d", tensors(RANK0, torch.int64), tensors(RANK1, torch.float32))
    assert FORMAT.matches(path)
    with pytest.raises(FormatError, match="can run code when loaded; give allow_pickle"):
        read(path)
    trace = read(path, allow_pickle=True)
    np.testing.assert_array_equal(trace.source_counts, GOLDEN_SOURCE)
    assert trace.steps.tolist() == [10, 11]
    np.testing.assert_array_equal(
        read(path, allow_pickle=True, iterations=(10, 11)).counts, trace.counts[:1]
    )


class Exploit:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_v0_pickles_that_call_anything_else_are_refused(tmp_path: Path) -> None:
    path = pickled(tmp_path / "d", {(1, 2): Exploit(tmp_path / "marker")})
    with pytest.raises(FormatError, match=r"rank_0\.pkl is refused.*mkdir"):
        read(path, allow_pickle=True)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "numbers an object 2147483647"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00.", "damaged"),
        (b"\x80\x02ccollections\nOrderedDict\n}b.", "instruction BUILD"),
        (b"\x80\x02(ios\nsystem\n.", "instruction INST"),
    ],
)
def test_v0_programs_are_checked_before_they_run(tmp_path: Path, program: bytes, said: str) -> None:
    path = pickled(tmp_path / "d", {})
    (path / "rank_0.pkl").write_bytes(program)
    with pytest.raises(FormatError, match=said):
        read(path, allow_pickle=True)


@pytest.mark.parametrize(
    "content",
    [[1], {"a": 1}, {(1, 2): 3}, {(1, -2): 3}, {(True, 2): OrderedDict()}, {(1, 2, 3): 1}, 5],
)
def test_v0_pickles_of_other_content_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(FormatError, match=r"rank_0\.pkl"):
        read(pickled(tmp_path / "d", content), allow_pickle=True)


def test_v0_damage_is_named(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = pickled(tmp_path / "d", {(1, 2): torch.arange(4)})
    data = (path / "rank_0.pkl").read_bytes()
    for at in range(0, len(data), 3):
        changed = bytearray(data)
        changed[at] ^= 0x15
        (path / "rank_0.pkl").write_bytes(changed)
        message = failure(path, allow_pickle=True)
        assert message is None or "rank_0.pkl" in message or str(path) in message
        (path / "rank_0.pkl").write_bytes(data[:at])
        with pytest.raises(FormatError, match=r"rank_0\.pkl"):
            read(path, allow_pickle=True)


def test_pickles_beside_safetensors_are_refused(golden: Path) -> None:
    (golden / "rank_0.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(FormatError, match="pickles and safetensors"):
        read(golden, allow_pickle=True)


def test_other_directories_are_not_claimed(tmp_path: Path) -> None:
    assert not FORMAT.matches(tmp_path)
    (tmp_path / "expert_distribution_recorder_1.pt").write_bytes(b"PK")
    save(tmp_path / "rank0-of-2.safetensors", RANK0)
    save(tmp_path / "rank00.safetensors", RANK0)
    assert not FORMAT.matches(tmp_path)
    with pytest.raises(FormatError, match="has no file rank<number>"):
        read(tmp_path)
    save(tmp_path / "rank0.safetensors", {"model.weight": [1]})
    assert not FORMAT.matches(tmp_path)
    assert not FORMAT.matches(tmp_path / "rank0.safetensors")
    with pytest.raises(FormatError, match="cannot be read"):
        read(tmp_path / "none")


def test_ranks_with_layers_of_their_own_are_pipeline_stages(tmp_path: Path) -> None:
    path = dump(tmp_path / "d", {"10_3": [1, 0, 2, 0], "11_3": [3, 0, 0, 1]})
    save(path / "rank1.safetensors", {"10_3": [0, 1, 0, 2], "11_3": [0, 2, 2, 0]})
    save(path / "rank2.safetensors", {"10_4": [1, 1, 1, 0], "11_4": [0, 0, 4, 0]})
    save(path / "rank3.safetensors", {"10_4": [0, 0, 0, 3], "11_4": [1, 1, 1, 1]})
    trace = read(path)
    assert trace.source_counts is not None
    assert trace.source_counts[0].tolist() == [
        [[1, 0, 2, 0], [1, 1, 1, 0]],
        [[0, 1, 0, 2], [0, 0, 0, 3]],
    ]
    text = " | ".join(trace.provenance.notes)
    assert "ranks 0-1 layers 3; ranks 2-3 layers 4" in text
    assert "pipeline stages of 2 expert-parallel ranks" in text
    assert "missing" not in text

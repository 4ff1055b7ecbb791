from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import equipoise as eq
from equipoise.engines.formats import TraceOptions
from equipoise.errors import FormatError

RANDOM = np.random.default_rng(5)


def choices(tokens: int, experts: int = 6) -> np.ndarray:
    return RANDOM.random((tokens, experts)).argsort(axis=1)[:, :2]


def record(step: int, layer: int, rank: int, ids: Any, **more: Any) -> dict[str, Any]:
    ids = np.asarray(ids).tolist()
    known = {"step": step, "stage": "pre_dispatch", "block": "decoder", "layer": layer}
    known |= {"rank": rank, "num_tokens": len(ids), "topk": 2, "top_indices": ids}
    return known | more


def write(folder: Path, **records: list[dict[str, Any]]) -> Path:
    for rank, lines in records.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"router_trace_{rank}.jsonl").write_text(text)
    return folder


def notes(trace: eq.Trace) -> str:
    return " ".join(trace.provenance.notes)


def test_ranks_steps_and_layers(tmp_path):
    ids = {(s, layer, r): choices(30 + r) for s in (4, 7) for layer in (1, 3) for r in (0, 1)}
    by_rank = {
        f"rank{r}": [record(s, layer, r, i) for (s, layer, q), i in ids.items() if q == r]
        for r in (0, 1)
    }
    trace = eq.read_trace(write(tmp_path, **by_rank))
    assert (trace.steps.tolist(), trace.layer_ids, trace.top_k) == ([4, 7], (1, 3), 2)
    assert trace.source_counts.shape == (2, 2, 2, 6)
    for (s, layer, r), chosen in ids.items():
        counted = np.bincount(chosen.ravel(), minlength=6)
        cell = trace.source_counts[[4, 7].index(s), r, [1, 3].index(layer)]
        assert cell.tolist() == counted.tolist()
    assert trace.tokens.offsets.tolist() == [0, 61, 122]
    np.testing.assert_array_equal(trace.tokens.of_step(1)[30:, 1], ids[7, 3, 1])
    assert eq.read_trace(tmp_path, TraceOptions(iterations=(5, 9))).steps.tolist() == [7]


def test_ranks_that_saw_the_same_tokens_are_counted_once(tmp_path):
    ids = [choices(200), choices(200)]
    lines = {f"rank{r}": [record(0, layer, r, ids[layer]) for layer in (0, 1)] for r in (0, 1)}
    trace = eq.read_trace(write(tmp_path, **lines))
    assert trace.source_counts is None
    assert trace.counts.sum(axis=2).tolist() == [[400, 400]]
    assert len(trace.tokens.ids) == 200
    assert "each group was counted once" in notes(trace)


def test_draft_layers_and_other_stages_are_left_out_and_said(tmp_path):
    lines = [
        record(0, 1, 0, choices(9)),
        record(0, 1, 0, choices(9), block="mtp", mtp_idx=0),
        record(0, 1, 0, choices(9), stage="post_dispatch"),
    ]
    trace = eq.read_trace(write(tmp_path, rank0=lines))
    assert trace.counts.sum() == 18
    assert "1 records of block 'mtp', mtp_idx 0 were left out" in notes(trace)
    assert "1 records of stage 'post_dispatch' were left out" in notes(trace)


def test_older_records_without_block_and_stage(tmp_path):
    line = {k: v for k, v in record(0, 2, 0, choices(4)).items() if k not in ("block", "stage")}
    trace = eq.read_trace(write(tmp_path, rank0=[line]))
    assert trace.layer_ids == (2,)


def test_micro_batches_of_a_step_are_added(tmp_path):
    parts = {layer: [choices(3), choices(5)] for layer in (0, 1)}
    lines = [record(0, layer, 0, part) for i in (0, 1) for layer, ids in parts.items()
             for part in [ids[i]]]  # fmt: skip
    trace = eq.read_trace(write(tmp_path, rank0=lines))
    np.testing.assert_array_equal(trace.tokens.ids[:, 1], np.concatenate(parts[1]))
    assert "2 records repeat a step and layer" in notes(trace)


def test_padding_counts_for_nothing(tmp_path):
    ids, names = choices(5), ["a", "b", None, "c", None]
    lines = [record(0, layer, 0, ids, semantic_token_ids=names) for layer in (0, 1)]
    trace = eq.read_trace(write(tmp_path, rank0=lines))
    assert trace.counts.sum(axis=2).tolist() == [[6, 6]]
    assert "4 rows are padding" in notes(trace)


def test_stages_of_a_pipeline_have_counts_but_no_whole_tokens(tmp_path):
    lines = {"rank0": [record(0, 0, 0, choices(40))], "rank2": [record(0, 1, 2, choices(40))]}
    trace = eq.read_trace(write(tmp_path, **lines))
    assert trace.tokens is None
    assert trace.counts.sum(axis=2).tolist() == [[80, 80]]
    said = notes(trace)
    assert "stages of a pipeline" in said
    assert "own choices were left out" in said
    assert "ranks 1 are missing" in said


def test_one_file_is_one_rank(tmp_path):
    write(tmp_path, rank3=[record(0, 0, 3, choices(8))])
    trace = eq.read_trace(tmp_path / "router_trace_rank3.jsonl")
    assert trace.source_counts is None
    assert "the part of rank 3" in notes(trace)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"top_indices": [[1, 2], [3]]}, "same number of experts"),
        ({"top_indices": [1, 2]}, "not a list of the experts"),
        ({"top_indices": [[1, "2"]]}, "same number of experts"),
        ({"top_indices": [[1, 1 << 40]]}, "not expert ids"),
        ({"top_indices": [[1, 2, 3]]}, "expected one top-k"),
        ({"top_indices": [[3, 3, 1]] * 4}, "one top-k"),
        ({"step": -1}, "step is -1"),
        ({"layer": None}, "layer is None"),
    ],
)
def test_records_that_are_none(tmp_path, line, said):
    lines = [record(0, 0, 0, choices(4)), record(1, 0, 0, choices(4)) | line]
    with pytest.raises(FormatError, match=rf"rank0\.jsonl, line 2: .*{said}"):
        eq.read_trace(write(tmp_path, rank0=lines))


def test_a_token_that_names_an_expert_twice_is_refused(tmp_path):
    lines = [record(0, 0, 0, [[1, 2, 3], [4, 4, 1]])]
    with pytest.raises(FormatError, match="names expert 4 twice"):
        eq.read_trace(write(tmp_path, rank0=lines))


def test_a_folder_without_choices_is_refused(tmp_path):
    with pytest.raises(FormatError, match="no choices of a decoder layer"):
        eq.read_trace(write(tmp_path, rank0=[record(0, 0, 0, [])]))
    write(tmp_path, rank1=[record(0, 0, 1, choices(2))])
    (tmp_path / "router_trace_rank01.jsonl").write_text("{}")
    with pytest.raises(FormatError, match="two traces of one rank"):
        eq.read_trace(tmp_path)

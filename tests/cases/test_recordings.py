"""What people feed it as a recording, and what was put in: each file stands for a kind of fault."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import equipoise as eq
from equipoise.cli import main
from equipoise.engines._shared import torch_archive
from equipoise.engines.formats import MapContext, TraceOptions
from equipoise.engines.map_io import read_map
from equipoise.engines.trace_io import read_trace
from equipoise.errors import FormatError
from tests.cases.bombs import BOMBS

CASES = Path(__file__).parent
PER_TOKEN = CASES / "sglang_per_token"
MATRIX = eq.read_trace(CASES / "other_recorders" / "matrix.json").counts


def notes(trace: eq.Trace) -> str:
    return "\n".join(trace.provenance.notes)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(FormatError) as error:
        read_trace(path, TraceOptions(**options))
    return str(error.value)


# SGLang's records of tokens: 4 passes of 20 tokens, 3 MoE layers, top 2 of 8 experts ------


@pytest.mark.parametrize(
    ("folder", "tokens"), [("", 80), ("none", 40), ("shared", 80), ("tbo", 160)]
)
def test_per_token_dumps_are_counted_from_the_choices(folder: str, tokens: int) -> None:
    trace = read_trace(PER_TOKEN / folder)
    assert trace.layer_ids == (1, 2, 3)
    assert trace.top_k == 2
    assert trace.tokens is not None
    assert len(trace.tokens.ids) == tokens
    assert trace.counts.sum(axis=(0, 2)).tolist() == [tokens * 2] * 3
    counted = eq.Trace.from_tokens(
        trace.tokens.ids, trace.tokens.offsets, num_experts=trace.num_experts
    )
    np.testing.assert_array_equal(trace.counts, counted.counts)


def test_per_token_dumps_say_what_was_assumed() -> None:
    assert "counted from the tokens' choices" in notes(read_trace(PER_TOKEN))
    assert "12 slots were taken as experts" in notes(read_trace(PER_TOKEN / "none"))
    assert "fused shared expert" in notes(read_trace(PER_TOKEN / "shared"))
    assert "(child_a, child_b), as with two-batch overlap" in notes(read_trace(PER_TOKEN / "tbo"))
    assert read_trace(PER_TOKEN).num_experts == 8


def test_a_dump_of_no_pass_and_one_of_two_servers_are_refused() -> None:
    assert "no record of any pass" in refusal(PER_TOKEN / "empty")
    both = refusal(PER_TOKEN / "pd")
    assert "1.5_0.pt (prefill)" in both
    assert "9.5_0.pt (decode)" in both
    assert "two servers" in both


# One file a rank


def test_the_first_recorders_tables_are_one_recording_by_source_rank() -> None:
    trace = read_trace(CASES / "sglang_csv")
    assert (trace.num_layers, trace.num_experts, trace.layer_ids) == (3, 256, (3, 4, 5))
    assert trace.source_counts is not None
    assert trace.source_counts.sum(axis=(0, 3)).tolist() == [
        [2924436, 2742756, 2581313],
        [2678374, 2864948, 2922872],
        [2778879, 2727577, 2949964],
    ]


def test_one_of_the_first_recorders_tables_is_said_to_be_a_part() -> None:
    (file,) = (CASES / "sglang_csv").glob("*rank1*")
    trace = read_trace(file)
    assert int(trace.counts.sum()) == 2678374 + 2864948 + 2922872
    assert "the part of rank 1" in notes(trace)


@pytest.mark.parametrize("name", ["p", "q"])
def test_rank_tensors_of_a_folder_are_one_recording(tmp_path: Path, name: str) -> None:
    for file in (CASES / "rank_files_pt").glob(f"{name}-*"):
        shutil.copy(file, tmp_path)
    trace = read_trace(tmp_path)
    assert trace.source_counts is not None
    assert trace.source_counts.sum(axis=(0, 2, 3)).tolist() == [3395, 3555, 3187, 3628]
    root = torch_archive.load(tmp_path / f"{name}-TP2.expert-load.pt")
    np.testing.assert_array_equal(trace.source_counts[0, 2], root["logical_count"])
    (tmp_path / f"{name}-TP1.expert-load.pt").unlink()
    assert "ranks 1 are missing" in notes(read_trace(tmp_path))


def test_one_rank_tensor_and_two_recordings_in_a_folder_are_said() -> None:
    part = read_trace(CASES / "rank_files_pt" / "q-TP3.expert-load.pt")
    assert int(part.counts.sum()) == 3628
    assert "the part of rank 3 of 4" in notes(part)
    assert "2 recordings: p (4 files), q (4 files)" in refusal(CASES / "rank_files_pt")


# Slots


@pytest.mark.parametrize("name", ["expert_load_view.pt", "lpc.pt"])
def test_loads_of_slots_are_folded_by_the_map_of_the_run(name: str) -> None:
    file = CASES / "ascend_slots" / name
    slots = torch_archive.load(file).reshape(3, 20)
    expected = slots[:, :16].copy()
    expected[:, :4] += slots[:, 16:]
    placement = read_map(CASES / "ascend_slots" / "map.json", MapContext(num_ranks=4))
    trace = read_trace(file, TraceOptions(placement=placement))
    np.testing.assert_array_equal(trace.counts[0], expected)


def test_loads_of_slots_without_their_map_are_said_or_refused() -> None:
    assert "(placement)" in notes(read_trace(CASES / "ascend_slots" / "expert_load_view.pt"))
    assert "(placement)" in refusal(CASES / "ascend_slots" / "lpc.pt")


# vLLM's load statistics


def stats(name: str, **options: Any) -> eq.Trace:
    return read_trace(CASES / "vllm_stats" / f"{name}.jsonl", TraceOptions(**options))


@pytest.mark.parametrize("name", ["mtp", "mtpB"])
def test_a_target_and_its_draft_model_are_told_apart(name: str) -> None:
    target, draft = stats(name, layer_ids=(3, 4, 5, 6)), stats(name, layer_ids=(61,))
    assert (target.num_steps, target.layer_ids) == (6, (3, 4, 5, 6))
    assert (draft.num_steps, draft.layer_ids) == (6, (61,))
    assert target.steps.tolist() == draft.steps.tolist() == [0, 100, 200, 300, 400, 500]
    named = notes(draft)
    assert "6 of 4 layers, 6 of 1 layers" in named


def test_mixed_models_are_refused_unless_the_file_says_which_is_the_target() -> None:
    said = refusal(CASES / "vllm_stats" / "mtp.jsonl")
    assert "several models, 6 of 4 layers, 6 of 1 layers" in said
    assert stats("mtpB").num_layers == 4


def test_repeated_steps_are_kept_and_said() -> None:
    assert stats("dp").num_steps == 12
    assert "data-parallel ranks" in notes(stats("dp"))
    assert stats("same").num_steps == 12
    assert "a target and its draft model" in notes(stats("same"))


def test_impossible_loads_are_refused_with_their_place() -> None:
    for name in ("huge", "huge2"):
        said = refusal(CASES / "vllm_stats" / f"{name}.jsonl")
        assert "line 1: expert_load of layer 0, slot 0 is 4611686018427387904" in said
    assert "layer 0, slot 3 has load" in refusal(CASES / "vllm_stats" / "minus.jsonl")


def test_an_expert_without_a_slot_can_be_stated() -> None:
    trace = stats("omits")
    assert trace.num_experts == 15
    assert "does not state the number of experts" in notes(trace)
    assert stats("omits", num_experts=16).num_experts == 16


# Other recorders


@pytest.mark.parametrize(
    "name",
    [
        *("counts.json", "counts.npy", "floatms.json", "layers_lists.json", "named.json"),
        *("sg.json", "sgnull.json"),
    ],
)
def test_counts_are_the_same_however_they_were_dumped(name: str) -> None:
    trace = read_trace(CASES / "other_recorders" / name)
    np.testing.assert_array_equal(trace.counts, MATRIX)
    assert trace.layer_ids == (0, 1, 2, 3)
    assert int(trace.counts.sum()) == 32599
    assert trace.counts[0, 0, :3].tolist() == [849, 636, 511]


def test_a_record_of_a_layer_a_line_is_a_step_an_iteration() -> None:
    trace = read_trace(CASES / "other_recorders" / "rank3.jsonl")
    assert trace.steps.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(trace.counts, np.repeat(MATRIX, 3, axis=0))
    assert "the part of rank 3" in notes(trace)


def test_unknown_keys_are_named_and_stop_nothing() -> None:
    trace = read_trace(CASES / "unknown_keys" / "extra.pt")
    assert (trace.num_steps, trace.num_layers, trace.num_experts) == (6, 4, 16)
    assert int(trace.counts.sum()) == 18811
    for key in ("dropped_tokens", "forward_mode", "physical_to_logical_map_history"):
        assert key in notes(trace)


def test_a_layer_of_fewer_experts_is_refused_unless_they_are_stated() -> None:
    file = CASES / "uneven_experts" / "unequal_layers.csv"
    assert "Layer 4 has rows for the experts 0-11 only" in refusal(file)
    assert read_trace(file, TraceOptions(num_experts=16)).num_experts == 16


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("not_a_map.txt", "neither a map nor a recording"),
        ("eplb_dict.pt", "is a map (tensors), not a recording"),
        ("phy2log.pt", "that is a map"),
        ("expert_map.pth", "The table holds -1, as maps do"),
        ("online.yaml", "is a map (trtllm), not a recording"),
    ],
)
def test_what_is_no_recording_is_told_so(name: str, said: str) -> None:
    message = refusal(CASES / "foreign_maps" / name)
    assert said in message
    if "neither" in message:
        assert message.endswith("layer,expert,tokens, or numpy.savez(path, counts=...).")


# What one file may ask for

_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))
from equipoise.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_ask_for_much_are_answered(tmp_path: Path, name: str) -> None:
    build, said, options = BOMBS[name]
    if name in ("one record 5,000 times", "one vector 2,000 times"):
        pytest.importorskip("torch")
    command = ["report", str(build(tmp_path)), "--ranks", "2", *options]
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, *command], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr[-500:]
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_names_reach_the_terminal_without_what_it_would_obey(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a\x1b[2Jb\x07.csv"
    path.write_text("layer,expert,tokens,\x1b[31mred\n0,0,1,1\n0,1,1,1\n")
    assert main(["report", str(path), "--ranks", "2"]) == 0
    assert main(["report", str(path), "--ranks", "2", "--format", "npz"]) == 2
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    assert "\x07" not in told.out + told.err


def test_a_file_of_one_rank_without_any_counts_is_refused(tmp_path: Path) -> None:
    torch_archive.save(tmp_path / "x-TP0.expert-load.pt", {"ep_rank": 0, "ep_size": 1})
    with pytest.raises(eq.EquipoiseError, match="physical_count is not a table"):
        read_trace(tmp_path, format="rank-loads")

"""TensorRT-LLM's own scripts by their flags, and what only its files say."""

from __future__ import annotations

import pytest
import yaml

from equipoise.cli import main
from tests.cli.samples import write_sample
from tests.cli.test_commands import GOLDEN_MAP, GOLDEN_REPORT
from tests.engines.trtllm.test_traces import RANK0, RANK1, dump

PER_EXPERT = """\
Load statistics:
         mean       std  imbalance-ratio
3         4.0  3.513202           1.2500
4         4.0  2.644922           0.6250
average   4.0  3.079062           0.9375
"""


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command as it is typed, next to the folder ``dump``; status, output, errors."""
    dump(tmp_path / "dump", RANK0, RANK1)
    monkeypatch.chdir(tmp_path)

    def typed(line: str) -> tuple[int, str, str]:
        status = main(line.split())
        return (status, *capsys.readouterr())

    return typed


def test_the_report_is_the_scripts(run):
    line = "report_load_statistics --expert_statistic_path dump"
    assert run(line)[:2] == (0, GOLDEN_REPORT)
    assert run(f"{line} --iter_start 10 --iter_stop 12")[:2] == (0, GOLDEN_REPORT)
    assert run(f"{line} --per_expert")[:2] == (0, PER_EXPERT)
    assert run("report_load_statistics --expert_statistic_path=./dump")[1] == GOLDEN_REPORT


def test_the_report_of_a_part(run):
    """Of iteration 11 an expert's loads of layer 3 are 10, 2, 3 and 1."""
    line = "report_load_statistics --expert_statistic_path dump --iter_start 11 --per_expert"
    status, out, _ = run(line)
    assert status == 0
    assert "\n3         4.0  4.082483              1.5\n" in out


def test_notes_stand_apart_from_the_table(run, tmp_path):
    (tmp_path / "dump" / "meta_info.json").unlink()
    status, out, err = run("report_load_statistics --expert_statistic_path dump")
    assert (status, out) == (0, GOLDEN_REPORT)
    assert "equipoise: note: There is no meta_info.json:" in err


def test_the_scripts_own_planner_gives_its_file_byte_for_byte(run, tmp_path):
    line = "generate_eplb_config --ep_size 3 --num_slots 6 --expert_statistic_path dump"
    status, out, err = run(f"{line} --output_path ./moe.yaml --planner trtllm")
    assert status == 0
    assert all(line.startswith("equipoise: note: ") for line in err.splitlines())
    assert (tmp_path / "moe.yaml").read_text() == GOLDEN_MAP
    assert "TrtllmGreedy(): 4 experts in 6 slots on 3 ranks" in out
    assert "Written, read back and compared: moe.yaml" in out


def test_our_planner_is_the_default_and_said(run, tmp_path):
    line = "generate_eplb_config --ep_size 3 --num_slots 6 --expert_statistic_path dump"
    status, out, _ = run(f"{line} --output_path moe.yaml --layer_updates_per_iter 2")
    assert status == 0
    assert "\nRobust(" in out
    document = yaml.safe_load((tmp_path / "moe.yaml").read_text())
    assert (document["num_slots"], document["layer_updates_per_iter"]) == (6, 2)
    assert [sorted(set(row)) for row in document["initial_global_assignments"].values()] == [
        [0, 1, 2, 3]
    ] * 2


def test_ranks_and_slots_are_those_of_the_recording_if_not_given(run, tmp_path):
    status, out, _ = run("generate_eplb_config --expert_statistic_path dump --output_path m.yaml")
    assert status == 0
    assert "4 experts in 4 slots on 2 ranks" in out
    assert yaml.safe_load((tmp_path / "m.yaml").read_text())["num_slots"] == 4


def test_counts_that_may_be_of_slots_are_told_where_they_would_be_planned_for(run, tmp_path):
    vectors = {key: [*counts, 1, 1] for key, counts in RANK0.items()}
    dump(tmp_path / "slots", vectors, meta='{"num_experts": 6, "num_experts_per_token": 2}')
    *_, err = run(
        "generate_eplb_config --ep_size 2 --expert_statistic_path slots --output_path new.yaml"
    )
    assert "note: 6 ids were counted." in err
    assert "6 ids" not in run("report_load_statistics --expert_statistic_path slots")[2]


def test_an_online_file_is_written_and_valid(run, tmp_path):
    line = "generate_eplb_config --ep_size 36 --num_slots 288 --layer_updates_per_iter 2"
    status, out, err = run(f"{line} --experts 256 --output_path online.yaml")
    assert (status, err) == (0, "")
    assert (tmp_path / "online.yaml").read_text() == "layer_updates_per_iter: 2\nnum_slots: 288\n"
    assert "note: The file has no assignments" in out
    assert run("validate online.yaml --ranks 36 --experts 256")[0] == 0
    for sizes, said in (
        ("--ranks 37 --experts 256", "T2 error: 288 slots do not divide over 37 ranks."),
        ("--ranks 36 --experts 384", "T2 error: 288 slots cannot hold 384 experts."),
    ):
        status, out, _ = run(f"validate online.yaml {sizes}")
        assert status == 1
        assert out.startswith(said)


def test_plan_writes_the_same_kinds_of_files(run, tmp_path):
    line = "plan dump --ranks 3 --redundant 2 --hold-out 0 --planner trtllm --for trtllm -o m.yaml"
    options = "--options-file extra.yaml --max-batch-size 256 --rank-assignments 400"
    status, out, _ = run(f"{line} --layer-updates-per-iter 2 --mtp-layers 1 {options}")
    assert status == 0
    assert (tmp_path / "m.yaml").read_text() == GOLDEN_MAP.replace(
        "layer_updates_per_iter: 0", "  5: [0, 1, 1, 2, 2, 3]\nlayer_updates_per_iter: 2"
    )
    written = (tmp_path / "extra.yaml").read_text()
    assert "and this as extra.yaml, which is written:" in out
    assert all(f"  {line}" in out.splitlines() for line in written.splitlines())
    assert yaml.safe_load(written)["moe_config"] == {
        "load_balancer": "m.yaml",
        "max_num_tokens": int(400 / (9 / 16 * 2)),
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "report_load_statistics --expert_statistic_path none",
            "none does not exist.",
        ),
        (
            "report_load_statistics --expert_statistic_path dump --iter_stop 99",
            "dump: the iterations 10 to 98 were asked for, 10-11 were recorded.",
        ),
        (
            "generate_eplb_config --ep_size 3 --num_slots 7 --expert_statistic_path dump "
            "--output_path new.yaml",
            "7 slots do not divide over 3 ranks; nearest legal: 6 slots (2 redundant) or 9 slots "
            "(5 redundant).",
        ),
        (
            "generate_eplb_config --expert_statistic_path dump --output_path new.json",
            "new.json: a map for trtllm needs a name that ends in exactly .yaml or .yml.",
        ),
        (
            "generate_eplb_config --expert_statistic_path dump --output_path new.yaml --experts 4",
            "--experts: only without --expert_statistic_path, which states them.",
        ),
        (
            "generate_eplb_config --num_slots 288 --layer_updates_per_iter 2 "
            "--output_path new.yaml",
            "Without --expert_statistic_path the file has no assignments; give --ep_size, "
            "--num_slots and --experts to check it against.",
        ),
        (
            "generate_eplb_config --ep_size 2 --num_slots 4 --experts 4 --layer_updates_per_iter 2 "
            "--output_path new.yaml --mtp-layers 1 --planner trtllm --iter_stop 9",
            "--iter_stop, --planner, --mtp-layers: only with --expert_statistic_path.",
        ),
        (
            "generate_eplb_config --ep_size 2 --num_slots 4 --experts 4 --output_path new.yaml",
            "Without assignments and without updates nothing would ever be balanced; give "
            "layer_updates_per_iter 1 or more.",
        ),
        (
            "generate_eplb_config --expert_statistic_path dump --output_path new.yaml "
            "--max-batch-size 8",
            "--max-batch-size: only with --options-file.",
        ),
        (
            "generate_eplb_config --expert_statistic_path dump --output_path new.yaml "
            "--options-file new.yaml",
            "new.yaml: is the map itself; give the options another file.",
        ),
        (
            "plan dump --ranks 2 --options-file x.yaml --layer-updates-per-iter 2",
            "--layer-updates-per-iter, --options-file: only for a map; give --output, its "
            "file, as well.",
        ),
        (
            "plan dump --ranks 2 --for ascend -o new.json --mtp-layers 1",
            "--mtp-layers: only for trtllm, not ascend.",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(run, tmp_path, line, said):
    before = sorted(tmp_path.rglob("*"))
    assert run(line) == (2, "", f"equipoise: {said}\n")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_map_that_is_no_recording_is_told(run, tmp_path):
    write_sample(tmp_path, "map.yaml")
    status, out, err = run("report_load_statistics --expert_statistic_path map.yaml")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1

"""Releases, gaps and what belongs together."""

from __future__ import annotations

import pytest

from equipoise.engines.doctor.case import Release
from equipoise.engines.doctor.examine import Surroundings, examine
from equipoise.errors import EquipoiseError
from tests.engines.doctor.said import model, said

OLD = "--num-redundant-experts 8"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("0.11.0", (0, 11, 0)),
        ("v0.18.0rc1", (0, 18, 0)),
        ("1.4.0rc4", (1, 4, 0)),
        ("0.23.0.post1", (0, 23, 0)),
        ("1.2", (1, 2)),
        (None, (0, 33, 0)),
        ("main", (0, 33, 0)),
        ("pr-41141", (0, 33, 0)),
    ],
)
def test_releases(name, number):
    assert Release.of(name, "0.33.0").number == number


@pytest.mark.parametrize("name", ["", "newest", "11", "x0.11"])
def test_what_is_no_release(name):
    with pytest.raises(EquipoiseError, match="expected a release"):
        Release.of(name, "0.33.0")


def test_an_image_names_the_release():
    launch = f"docker run vllm/vllm-openai:v0.11.0 --model m -dp 8 -ep --enable-eplb {OLD}"
    assert "deprecated --num-redundant-experts" in said(launch)
    assert "wrong --num-redundant-experts" in said(launch, version="0.20.0")
    (diagnosis,) = examine(launch, Surroundings())
    assert (diagnosis.version, diagnosis.assumed) == ("0.11.0", False)


def test_a_check_says_what_it_could_not_look_at():
    launch = "vllm serve m -tp $TP -ep --enable-eplb --eplb-config.num_redundant_experts 8"
    (diagnosis,) = examine(launch, Surroundings())
    gaps = " ".join(diagnosis.not_checked)
    assert "model was not given" in gaps
    assert "--tensor-parallel-size is '$TP', which only the shell knows" in gaps
    assert not diagnosis.fails
    (diagnosis,) = examine(launch.replace("$TP", "8"), Surroundings(model=model("deepseek-v3")))
    assert diagnosis.not_checked == ()


def test_findings_are_ordered_by_what_they_mean():
    launch = f"vllm serve m -dp 8 --enable-eplb {OLD} --eplb-config.log_balancedness true"
    (diagnosis,) = examine(launch, Surroundings(version="0.11.0", model=model("deepseek-v3")))
    kinds = [finding.kind.value for finding in diagnosis.findings]
    order = ["wrong", "ignored", "deprecated", "wasteful", "advice"]
    assert kinds == sorted(kinds, key=order.index)
    assert set(kinds) == {"wrong", "deprecated", "wasteful", "advice"}


def test_a_fault_that_another_hides_is_told_in_the_same_run():
    launch = "vllm serve m -dp 8 -ep --enable-elpb --eplb-config.num_redundant_experts 9"
    found = said(launch, model=model("deepseek-v3"))
    assert {"wrong --enable-elpb", "wrong num_redundant_experts in eplb-config"} <= found


@pytest.mark.parametrize(
    ("variables", "devices"),
    [
        ("CUDA_VISIBLE_DEVICES=0,1", 2),
        ("CUDA_VISIBLE_DEVICES=$X", None),
        ("HIP_VISIBLE_DEVICES=0,1,2", 3),
        ("CUDA_VISIBLE_DEVICES=0,1 X=1", 2),
    ],
)
def test_devices_that_a_variable_leaves(variables, devices):
    found = said(f"{variables} vllm serve m -tp 4")
    assert ("wrong --tensor-parallel-size" in found) == (devices is not None)
    assert said(f"{variables} vllm serve m -dp 16 -dpl 2 -ep") == set()


@pytest.mark.parametrize(
    "given", [{"devices": 0}, {"nodes": -1}, {"link_bytes_per_second": 0}, {"devices": 1.5}]
)
def test_surroundings_that_no_machine_has(given):
    with pytest.raises(EquipoiseError):
        Surroundings(**given)


def test_a_key_that_stands_twice(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("tp-size: 8\nep-size: 8\ntp-size: 4\n")
    assert "ignored 'tp-size'" in said(path)
    text = f"cat > o.yaml <<EOF\n{path.read_text()}EOF\nsglang serve --config o.yaml"
    assert "ignored 'tp-size'" in said(text)


def test_a_broken_line_is_told_of_its_own_launch():
    text = "vllm serve a \\ # x\n -tp 2\nvllm serve b -tp 2"
    first, second = examine(text, Surroundings())
    assert [finding.flag for finding in first.findings] == ["lines 1"]
    assert second.findings == ()

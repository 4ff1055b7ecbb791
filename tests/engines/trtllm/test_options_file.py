"""The options file: golden for every release, and where its largest chunk comes from."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from equipoise.engines.formats import Launch, LaunchOptions
from equipoise.engines.trtllm.launch import launch
from equipoise.engines.trtllm.options_file import Capacity, options_text
from equipoise.errors import EquipoiseError
from equipoise.placement import Placement
from equipoise.trace import Trace

PLACEMENT = Placement([[0, 1, 2, 0], [2, 1, 0, 0]], num_ranks=2, num_experts=3, layer_ids=[3, 4])
WIDE = Placement([[*range(256), *range(32)]], num_ranks=36, num_experts=256)

COUNTS = [
    [[60, 20, 20], [20, 40, 40]],  # rank 0: 30 + 20, 80 of 100
    [[90, 50, 60], [50, 60, 90]],  # 95 and 150 of 200
    [[0, 4, 0], [0, 0, 4]],  # a step of two tokens, all of them on one rank
]
RECORDING = Trace(counts=np.array(COUNTS), layer_ids=(3, 4), step_ids=np.array([7, 8, 9]), top_k=2)

SINCE_1_0 = """\
# Options of TensorRT-LLM main, written by equipoise.
# Balancing requires attention data parallelism.
enable_attention_dp: true
# With 20 requests on each of 2 ranks, the 40 tokens of a decoding step fit in one chunk
# (speculative decoding has several tokens a request). In the 2 recorded steps with 100 or more
# assignments in a layer, the busiest rank of this map got at most 80.0% of them (step 7, layer 4;
# an equal share is 50.0%). That is 64 of a chunk's 80.
moe_config:
  load_balancer: moe.yaml
  max_num_tokens: 40
# Whole experts on every rank: start with tensor-parallel size 2.
moe_expert_parallel_size: 2
# Decoding steps run as CUDA graphs up to the largest batch of a rank.
cuda_graph_config:
  enable_padding: true
  max_batch_size: 20
"""
REASON = SINCE_1_0[SINCE_1_0.index("# With 20") : SINCE_1_0.index("moe_config")]
FLAT = f"""\
# Options of TensorRT-LLM 0.21, written by equipoise.
# Balancing requires attention data parallelism.
enable_attention_dp: true
# Whole experts on every rank: start with tensor-parallel size 2.
moe_expert_parallel_size: 2
{REASON}moe_load_balancer: moe.yaml
# Decoding steps run as CUDA graphs up to the largest batch of a rank.
use_cuda_graph: true
cuda_graph_padding_enabled: true
cuda_graph_max_batch_size: 20
moe_max_num_tokens: 40
"""
FIRST_ERA = """\
# Options of TensorRT-LLM first-era, written by equipoise.
# Balancing requires attention data parallelism.
enable_attention_dp: true
# Whole experts on every rank: start with tensor-parallel size 2.
moe_expert_parallel_size: 2
# Decoding steps of up to 128 requests a rank run as CUDA graphs, the engine's own default. The
# engine chooses the number of tokens in a chunk.
pytorch_backend_config:
  moe_load_balancer: moe.yaml
  use_cuda_graph: true
"""


def text(placement=PLACEMENT, recording=RECORDING, version=None, **capacity):
    made = launch(placement, "moe.yaml", LaunchOptions(version=version))
    return options_text(made, placement, recording, Capacity(**capacity))


@pytest.mark.parametrize(
    ("version", "recording", "capacity", "golden"),
    [
        (None, RECORDING, {"max_batch_size": 20}, SINCE_1_0),
        ("0.21", RECORDING, {"max_batch_size": 20}, FLAT),
        ("first-era", None, {}, FIRST_ERA),
    ],
)
def test_golden_files(version, recording, capacity, golden):
    assert text(version=version, recording=recording, **capacity) == golden


def test_the_batches_of_all_ranks_pass_in_one_chunk():
    made = text(WIDE, None, max_batch_size=256)
    assert yaml.safe_load(made) == {
        "enable_attention_dp": True,
        "moe_expert_parallel_size": 36,
        "cuda_graph_config": {"enable_padding": True, "max_batch_size": 256},
        "moe_config": {"load_balancer": "moe.yaml", "max_num_tokens": 9216},
    }
    assert "# With 256 requests on each of 36 ranks, the 9,216 tokens of a decoding step" in made


def test_room_for_less_than_a_batch_makes_chunks():
    made = text(max_batch_size=20, rank_assignments=48)  # 0.8 x 2 x 30
    assert yaml.safe_load(made)["moe_config"]["max_num_tokens"] == 30
    said = made.replace("\n# ", " ")
    assert (
        "room for 48 assignments; the busiest rank may get that number from a chunk of 30" in said
    )
    assert "That is less, so a full decoding step takes 2 chunks." in said
    assert "That is 48 of a chunk's 60." in said


def test_room_for_more_than_a_batch_changes_nothing():
    made = text(max_batch_size=20, rank_assignments=4800)
    assert yaml.safe_load(made)["moe_config"]["max_num_tokens"] == 40
    assert "That is less" not in made


def test_room_alone_limits_by_the_steps_of_the_mean_size_and_more():
    made = text(rank_assignments=300)  # 101 on average: the second step, 0.75 x 2 x 200
    assert yaml.safe_load(made)["moe_config"]["max_num_tokens"] == 200
    assert "In the 1 recorded step with 200 or more assignments" in made.replace("\n# ", " ")
    assert yaml.safe_load(made)["cuda_graph_config"] == {}


def test_where_no_step_is_as_large_the_largest_count():
    assert "75.0% of them (step 8, layer 4;" in text(max_batch_size=2000).replace("\n# ", " ")


def test_without_top_k_there_are_parts_but_no_numbers():
    recording = Trace(counts=np.array(COUNTS), layer_ids=(3, 4))
    said = text(recording=recording, max_batch_size=20).replace("\n# ", " ")
    assert "(step 1, layer 4; an equal share is 50.0%)." in said
    with pytest.raises(EquipoiseError, match="rank_assignments needs the number of choices"):
        text(recording=recording, rank_assignments=48)


@pytest.mark.parametrize("recording", [None, Trace(counts=np.zeros((1, 2, 3), int), top_k=1)])
def test_without_load_nothing_is_said_of_the_busiest_rank(recording):
    assert "busiest" not in text(recording=recording, max_batch_size=20)
    with pytest.raises(EquipoiseError, match="rank_assignments needs the load of the busiest rank"):
        text(recording=recording, rank_assignments=48)


def test_a_version_whose_file_is_not_known_is_refused():
    unknown = Launch(engine="trtllm", version="9.9", command=())
    with pytest.raises(EquipoiseError, match=r"options file of TensorRT-LLM 9\.9 is not known"):
        options_text(unknown, PLACEMENT, None, Capacity())

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from equipoise.engines.transformers.recorder import RoutingRecorder  # noqa: E402 (after the skip)
from equipoise.errors import EquipoiseError  # noqa: E402 (after the skip)
from equipoise.trace import Trace  # noqa: E402 (after the skip)
from tests.engines.transformers.tiny import MODELS, build, prompt  # noqa: E402 (after the skip)

FAMILIES = sorted(MODELS)


def record(model: Any, *inputs: torch.Tensor, **options: Any) -> Trace:
    """One forward pass over each of ``inputs``."""
    with torch.no_grad(), RoutingRecorder(model, **options) as recorder:
        for tokens in inputs:
            model(tokens)
    return recorder.trace()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def choose(router: Any, x: np.ndarray) -> set[int]:
    """The experts a router's weights give to one token, worked out from the model's definition."""
    logits = router.weight.detach().double().numpy() @ x
    if hasattr(router, "bias"):  # gpt-oss
        logits = logits + router.bias.detach().double().numpy()
    if not hasattr(router, "num_group"):
        return set(np.argsort(-logits)[: router.top_k].tolist())
    if hasattr(router, "e_score_correction_bias"):  # DeepSeek-V3: sigmoid, bias, top-2 of a group
        scores = 1 / (1 + np.exp(-logits)) + router.e_score_correction_bias.double().numpy()
        rank_of_group = lambda group: np.sort(group)[-2:].sum()  # noqa: E731
    else:  # DeepSeek-V2: softmax, the best of a group
        scores = softmax(logits)
        rank_of_group = np.max
    groups = np.array([rank_of_group(g) for g in np.split(scores, router.num_group)])
    width = len(scores) // router.num_group
    open_groups = np.argsort(-groups)[: router.topk_group]
    usable = [g * width + i for g in open_groups for i in range(width)]
    return set(sorted(usable, key=lambda e: -scores[e])[: router.top_k])


def routers_by_layer(model: Any) -> dict[int, Any]:
    return {
        int(name.split(".")[2]): module
        for name, module in model.named_modules()
        if type(module).__name__.lower().endswith("topkrouter")
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_choices_are_those_worked_out_from_the_routers_inputs(family: str) -> None:
    model = build(family)
    routers, seen = routers_by_layer(model), {}
    for layer, router in routers.items():
        router.register_forward_pre_hook(
            lambda _, args, layer=layer: seen.update({layer: args[0].reshape(-1, 32).clone()})
        )
    trace = record(model, prompt(2, 9), token_ids=True)

    _, _, layers, num_experts, top_k = MODELS[family]
    assert trace.layer_ids == layers == tuple(sorted(routers))
    assert (trace.num_experts, trace.top_k) == (num_experts, top_k)
    assert trace.tokens is not None
    expected = np.zeros((len(layers), num_experts), dtype=np.int64)
    for row, layer in enumerate(layers):
        for token, hidden in enumerate(seen[layer].double().numpy()):
            experts = choose(routers[layer], hidden)
            assert set(trace.tokens.ids[token, row].tolist()) == experts
            for expert in experts:
                expected[row, expert] += 1
    np.testing.assert_array_equal(trace.counts, expected[None])
    assert np.ptp(expected, axis=1).max() > 0  # a uniform count would hide wrong ids


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss"])
def test_counts_agree_with_the_models_own_router_logits(family: str) -> None:
    model = build(family)
    tokens = prompt(3, 5)
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        logits = model(tokens, output_router_logits=True).router_logits
    trace = recorder.trace()
    for row, layer_logits in enumerate(logits):
        chosen = layer_logits.topk(MODELS[family][4], dim=-1).indices.ravel().numpy()
        expected = np.bincount(chosen, minlength=trace.num_experts)
        np.testing.assert_array_equal(trace.counts[0, row], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_recording_changes_nothing(family: str) -> None:
    model = build(family)
    tokens = prompt(2, 9)
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    with torch.no_grad():
        before = model(tokens).logits
        with RoutingRecorder(model, token_ids=True):
            during = model(tokens).logits
    assert torch.equal(before, during)
    assert hooks == [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]


def test_hooks_go_when_the_block_fails() -> None:
    model = build("mixtral")
    with pytest.raises(RuntimeError, match="stop"), RoutingRecorder(model):
        raise RuntimeError("stop")
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_token_ids_agree_with_counts_and_are_small() -> None:
    trace = record(build("deepseek_v3"), prompt(2, 4), prompt(1, 6, seed=1), token_ids=True)
    assert trace.tokens is not None
    assert trace.tokens.ids.dtype == np.uint8
    assert trace.tokens.offsets.tolist() == [0, 8, 14]
    again = Trace.from_tokens(trace.tokens.ids, trace.tokens.offsets, num_experts=8)
    np.testing.assert_array_equal(again.counts, trace.counts)
    assert record(build("deepseek_v3"), prompt(2, 4)).tokens is None


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_is_one_prefill_and_then_decode_steps(family: str) -> None:
    model = build(family)
    with RoutingRecorder(model) as recorder:
        model.generate(prompt(2, 5), max_new_tokens=4, do_sample=False)
    trace = recorder.trace()
    top_k = MODELS[family][4]
    assert trace.labels["phase"].tolist() == ["prefill", "decode", "decode", "decode"]
    assert trace.steps.tolist() == [0, 1, 2, 3]
    assert (trace.counts.sum(axis=2) == np.array([[10], [2], [2], [2]]) * top_k).all()


def test_a_prompt_read_in_chunks_is_several_prefill_steps() -> None:
    model = build("mixtral")
    whole = record(model, prompt(1, 8))
    with RoutingRecorder(model) as recorder:
        model.generate(prompt(1, 8), max_new_tokens=2, do_sample=False, prefill_chunk_size=4)
    trace = recorder.trace()
    assert trace.labels["phase"].tolist() == ["prefill", "prefill", "decode"]
    np.testing.assert_array_equal(trace.counts[:2].sum(axis=0), whole.counts[0])


def test_padding_is_not_counted() -> None:
    model = build("olmoe")
    short, long = prompt(1, 3, seed=1), prompt(1, 6, seed=2)
    padded = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), short], dim=1), long])
    mask = (padded != 0).long()
    with RoutingRecorder(model, token_ids=True) as recorder:
        model.generate(padded, attention_mask=mask, max_new_tokens=3, do_sample=False)
    together = recorder.trace()
    apart = []
    for tokens in (short, long):
        with RoutingRecorder(model) as recorder:
            model.generate(tokens, max_new_tokens=3, do_sample=False)
        apart.append(recorder.trace().counts)
    np.testing.assert_array_equal(together.counts, apart[0] + apart[1])
    assert together.tokens is not None
    assert np.diff(together.tokens.offsets).tolist() == [9, 2, 2]


def test_a_mask_that_hides_padding_is_noted() -> None:
    model = build("mixtral")
    tokens = prompt(1, 4)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        model(tokens, attention_mask=mask)
    trace = recorder.trace()
    assert trace.counts.sum() == 3 * 4 * 2
    (note,) = trace.provenance.notes
    assert note.startswith("1 forward passes had an attention mask that is not 2-D")


def test_sequences_that_have_ended_are_not_counted() -> None:
    model = build("mixtral")
    tokens = prompt(2, 5)
    free = model.generate(tokens, max_new_tokens=4, do_sample=False)
    end = int(free[0, 5])  # what the first sequence says first; the second never does
    assert end not in free[1, 5:]
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
    with RoutingRecorder(model, finished_ids={end, 0}) as recorder:
        model.generate(tokens, **settings)
    assert recorder.trace().counts.sum(axis=2)[:, 0].tolist() == [20, 2, 2, 2]


def test_only_iterations_in_the_range_are_kept() -> None:
    model = build("mixtral")
    inputs = [prompt(1, 3, seed=s) for s in range(5)]
    everything = record(model, *inputs)
    some = record(model, *inputs, iterations=(1, 3), token_ids=True)
    assert some.steps.tolist() == [1, 2]
    np.testing.assert_array_equal(some.counts, everything.counts[1:3])
    assert some.provenance.notes == ()


def test_a_range_that_outlasts_the_run_is_noted() -> None:
    trace = record(build("mixtral"), prompt(1, 3), prompt(1, 3), iterations=(1, 9))
    assert trace.steps.tolist() == [1]
    assert trace.provenance.notes == (
        "The run ended after iteration 1, before the end of the range 1-9.",
    )


def test_a_range_that_is_never_reached_is_an_error() -> None:
    with pytest.raises(EquipoiseError, match=r"2 iterations \(0 to 1\) .* never reached .* 7-9"):
        record(build("mixtral"), prompt(1, 3), prompt(1, 3), iterations=(7, 9))


def test_no_forward_pass_is_an_error() -> None:
    model = build("mixtral")
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        model.model(prompt(1, 3))  # inside, past the module the recorder was given
    with pytest.raises(EquipoiseError, match="No forward pass of MixtralForCausalLM"):
        recorder.trace()


@pytest.mark.parametrize("iterations", [(3, 3), (4, 1), (-1, 2)])
def test_an_empty_range_is_refused(iterations: tuple[int, int]) -> None:
    with pytest.raises(EquipoiseError, match="are not a range"):
        RoutingRecorder(build("mixtral"), iterations=iterations)


def test_domains_label_steps() -> None:
    model = build("mixtral")
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        model(prompt(1, 3))
        with recorder.labelled(domain="code"):
            model(prompt(1, 3))
        recorder.domain = "math"
        model(prompt(1, 3))
    assert recorder.trace().labels["domain"].tolist() == ["", "code", "math"]
    assert "domain" not in record(model, prompt(1, 3)).labels


def test_a_pass_that_raises_is_no_iteration() -> None:
    model = build("mixtral")
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        with pytest.raises(IndexError):
            model(torch.full((1, 2), 10_000))
        model(prompt(1, 3))
    assert recorder.trace().steps.tolist() == [0]


def test_several_calls_of_the_experts_in_a_pass_are_added() -> None:
    model = build("mixtral")
    whole = record(model, prompt(1, 6), token_ids=True)
    block = model.model.layers[1].mlp
    run = block.forward
    block.forward = lambda x: torch.cat([run(x[:, :2]), run(x[:, 2:])], dim=1)
    chunked = record(model, prompt(1, 6), token_ids=True)
    np.testing.assert_array_equal(chunked.counts, whole.counts)
    assert chunked.tokens is not None
    assert whole.tokens is not None
    np.testing.assert_array_equal(chunked.tokens.ids, whole.tokens.ids)


def test_choices_outside_the_experts_count_for_nothing() -> None:
    model = build("mixtral")
    router = model.model.layers[0].mlp.gate

    def drop_the_second(_: Any, __: Any, out: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        ids = out[2].clone()
        ids[:, 1] = 5  # E: the class the experts skip
        return (*out[:2], ids)

    router.register_forward_hook(drop_the_second)
    trace = record(model, prompt(1, 4), token_ids=True)
    assert trace.counts.sum(axis=2).tolist() == [[4, 8, 8]]
    assert trace.tokens is not None
    assert (trace.tokens.ids[:, 0, 1] == 5).all()


def test_embeddings_as_input_are_counted() -> None:
    model = build("mixtral")
    tokens = prompt(2, 4)
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        model(inputs_embeds=model.get_input_embeddings()(tokens))
    np.testing.assert_array_equal(recorder.trace().counts, record(model, tokens).counts)


def test_a_model_without_experts_is_refused_with_the_known_layouts() -> None:
    with pytest.raises(EquipoiseError, match=r"No mixture-of-experts layer .* Sequential.*Mixtral"):
        RoutingRecorder(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_replaced_experts_are_noticed() -> None:
    model = build("mixtral")
    block = model.model.layers[2].mlp
    block.forward = lambda x: x  # as a fused kernel would
    with (
        torch.no_grad(),
        RoutingRecorder(model),
        pytest.raises(EquipoiseError, match=r"Layer 2 .* without calling its experts"),
    ):
        model(prompt(1, 3))


def test_a_pass_that_routes_other_tokens_is_noticed() -> None:
    model = build("mixtral")
    block = model.model.layers[0].mlp
    run = block.forward
    block.forward = lambda x: torch.cat([run(x[:, :1]), x[:, 1:]], dim=1)
    with (
        torch.no_grad(),
        RoutingRecorder(model),
        pytest.raises(EquipoiseError, match=r"Layer 0 .* routed 1 tokens in a forward pass of 3"),
    ):
        model(prompt(1, 3))


def test_two_stacks_of_layers_are_refused() -> None:
    model = build("mixtral")
    both = torch.nn.ModuleDict({"thinker": model.model, "talker": copy.deepcopy(model.model)})
    with pytest.raises(EquipoiseError, match=r"thinker.* and talker.* are both layer 0"):
        RoutingRecorder(both)


def test_layers_of_unequal_experts_are_refused() -> None:
    model = build("mixtral")
    model.model.layers[1].mlp.experts.num_experts = 4
    with pytest.raises(EquipoiseError, match="Layer 1 has 4 experts, layer 0 has 5"):
        RoutingRecorder(model)


def test_layers_of_unequal_top_k_are_refused() -> None:
    model = build("mixtral")
    model.model.layers[1].mlp.gate.top_k = 1
    with pytest.raises(EquipoiseError, match=r"different numbers of experts \(\[1, 2\]\)"):
        record(model, prompt(1, 3))


@pytest.mark.parametrize("config", [{"ep_size": 2}, {"enable_expert_parallel": True}])
def test_expert_parallelism_is_refused(config: dict[str, Any]) -> None:
    model = build("mixtral")
    model.config.distributed_config = type("Config", (), config)()
    with pytest.raises(EquipoiseError, match="spread over processes"):
        RoutingRecorder(model)


def test_recording_twice_at_once_is_refused() -> None:
    recorder = RoutingRecorder(build("mixtral"))
    with recorder, pytest.raises(EquipoiseError, match="already recording"), recorder:
        pass


def test_recording_goes_on_in_a_second_block() -> None:
    model = build("mixtral")
    recorder = RoutingRecorder(model)
    with torch.no_grad():
        for _ in range(2):
            with recorder:
                model(prompt(1, 3))
            model(prompt(1, 3))
    assert recorder.trace().steps.tolist() == [0, 1]

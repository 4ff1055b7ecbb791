import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from equipoise.errors import EquipoiseError
from equipoise.trace import Provenance, TokenIds, Trace

counts_arrays = hnp.arrays(
    np.int64, st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(0, 99)
)


def labelled(num_steps, **labels):
    counts = np.arange(num_steps * 2).reshape(num_steps, 1, 2)
    return Trace(counts=counts, labels={k: np.array(v) for k, v in labels.items()})


def token_trace():
    ids = np.array([[[0, 1]], [[2, 2]], [[1, -1]], [[3, 0]]])
    return Trace.from_tokens(ids, [0, 2, 3, 4], num_experts=4)


def test_tokens_are_counted_per_step():
    trace = token_trace()
    # Naming an expert twice counts twice; an id outside the range counts for nothing.
    assert trace.counts[:, 0].tolist() == [[1, 1, 2, 0], [0, 1, 0, 0], [1, 0, 0, 1]]
    assert trace.top_k == 2


@given(st.data())
def test_counting_equals_a_loop(data):
    shape = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 3), st.integers(1, 3)))
    ids = data.draw(hnp.arrays(np.int64, shape, elements=st.integers(-2, 6)))
    cuts = sorted(data.draw(st.lists(st.integers(0, shape[0]), max_size=3)))
    offsets = [0, *cuts, shape[0]]
    trace = Trace.from_tokens(ids, offsets, num_experts=5)
    naive = np.zeros_like(trace.counts)
    for step in range(len(offsets) - 1):
        for token in range(offsets[step], offsets[step + 1]):
            for layer in range(shape[1]):
                for expert in ids[token, layer]:
                    if 0 <= expert < 5:
                        naive[step, layer, expert] += 1
    assert (trace.counts == naive).all()


@given(counts_arrays, st.integers(1, 7))
def test_windows_keep_every_assignment(counts, size):
    trace = Trace(counts=counts)
    summed = trace.windows(size)
    assert summed.num_steps == -(-trace.num_steps // size)
    assert (summed.total == trace.total).all()
    assert (summed.counts[0] == counts[:size].sum(axis=0)).all()


def test_windows_do_not_cross_labels():
    trace = labelled(5, domain=["code", "code", "code", "math", "math"])
    summed = trace.windows(2)
    assert summed.steps.tolist() == [0, 2, 3]
    assert summed.labels["domain"].tolist() == ["code", "code", "math"]


def test_windows_of_tokens():
    summed = token_trace().windows(2)
    assert summed.tokens is not None
    assert summed.tokens.offsets.tolist() == [0, 3, 4]
    again = Trace.from_tokens(summed.tokens.ids, summed.tokens.offsets, num_experts=4)
    assert (again.counts == summed.counts).all()


def test_split_holds_out_the_later_steps_of_every_domain():
    trace = labelled(8, domain=["a", "a", "a", "a", "b", "b", "b", "b"])
    fit, held = trace.split(at=0.75)
    assert fit.steps.tolist() == [0, 1, 2, 4, 5, 6]
    assert held.steps.tolist() == [3, 7]
    whole_fit, whole_held = trace.split(at=0.75, within=None)
    assert whole_fit.steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert whole_held.steps.tolist() == [6, 7]


@pytest.mark.parametrize("at", [0.01, 0.5, 0.99])
def test_split_leaves_a_step_on_each_side(at):
    fit, held = labelled(3).split(at=at)
    assert fit.num_steps >= 1
    assert held.num_steps >= 1
    assert fit.num_steps + held.num_steps == 3


@pytest.mark.parametrize("at", [0, 1, -0.2, 1.5, float("nan")])
def test_split_needs_a_share(at):
    with pytest.raises(EquipoiseError, match="between 0 and 1"):
        labelled(3).split(at=at)


def test_split_of_one_step_says_so():
    with pytest.raises(EquipoiseError, match="Only 1 step of domain 'b'"):
        labelled(3, domain=["a", "a", "b"]).split()


def test_select():
    trace = labelled(4, domain=["a", "b", "a", "b"], phase=["p", "p", "d", "d"])
    assert trace.select(domain="a").steps.tolist() == [0, 2]
    assert trace.select(domain=["a", "b"], phase="d").steps.tolist() == [2, 3]
    assert trace.select(steps=[3, 1]).steps.tolist() == [3, 1]
    assert trace.select(steps=np.array([True, False, False, True])).steps.tolist() == [0, 3]


def test_select_layers_takes_everything_along():
    ids = np.array([[[0], [1]], [[1], [0]]])
    source = np.array([[[[1, 0], [0, 1]]], [[[0, 1], [1, 0]]]])
    trace = Trace(
        counts=source.sum(axis=1),
        layer_ids=(3, 9),
        source_counts=source,
        tokens=TokenIds(ids, np.array([0, 1, 2])),
    )
    chosen = trace.select(layers=[9])
    assert chosen.layer_ids == (9,)
    assert chosen.counts.tolist() == [[[0, 1]], [[1, 0]]]
    assert chosen.source_counts.tolist() == [[[[0, 1]]], [[[1, 0]]]]
    assert chosen.tokens.ids.tolist() == [[[1]], [[0]]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"domain": "c"}, "the trace has a, b"),
        ({"language": "x"}, "no label 'language'"),
        ({"layers": [7]}, "no layer 7; it has 0"),
        ({"steps": []}, "No step"),
    ],
)
def test_select_refuses(arguments, says):
    with pytest.raises(EquipoiseError, match=says):
        labelled(2, domain=["a", "b"]).select(**arguments)


def test_merge_appends_steps():
    a, b = token_trace(), token_trace()
    merged = Trace.merge([a, b])
    assert merged.num_steps == 6
    assert merged.tokens.offsets.tolist() == [0, 2, 3, 4, 6, 7, 8]
    assert (merged.total == a.total + b.total).all()
    assert merged.top_k == 2


def test_merge_drops_what_one_lacks():
    plain = Trace(counts=np.ones((1, 1, 4), int))
    merged = Trace.merge([token_trace(), plain])
    assert merged.tokens is None
    assert merged.top_k is None


def test_merge_refuses_other_shapes():
    with pytest.raises(EquipoiseError, match="Cannot merge"):
        Trace.merge([labelled(1), Trace(counts=np.ones((1, 1, 3), int))])
    with pytest.raises(EquipoiseError, match="Nothing to merge"):
        Trace.merge([])


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        (np.zeros((0, 1, 2), int), "none of them 0"),
        (np.zeros(3, int), "expected .steps, layers, experts."),
        (np.array([[[1, -4]]]), "expert 1 has count -4"),
        (np.array([[[1.5, 0]]]), "fractions"),
        (np.array([[[np.nan, 0]]]), "NaN"),
        (np.array([[[1, 2j]]]), "Counts have type complex128; expected numbers"),
        ([[1, 2], [3]], "Counts do not form an array"),
        ([["a"]], "Counts have type <U1"),
        (None, "Counts have type object"),
        (np.ma.array([[1, 2]], mask=[[0, 1]]), "Counts have masked entries"),
        (np.array([[[2**63, 1]]], np.uint64), "expected numbers from 0 to 2.48"),
        ([[10**30, 1]], "Counts have type object"),
        (np.full((1, 1, 2), np.inf, np.float16), "infinity"),
    ],
)
def test_refuses_counts(counts, says):
    with pytest.raises(EquipoiseError, match=says):
        Trace(counts=counts)


def test_whole_floats_are_counts():
    assert Trace(counts=np.array([[[2.0, 1.0]]])).counts.dtype == np.int64


@pytest.mark.parametrize("dtype", [bool, np.float16, np.float32, np.longdouble, np.uint64])
def test_whole_numbers_of_any_type_are_counts(dtype):
    assert Trace(counts=np.array([[1, 0, 1]], dtype)).counts.tolist() == [[[1, 0, 1]]]


def test_tensors_are_counts():
    torch = pytest.importorskip("torch")
    whole = torch.tensor([[2.0, 1.0]])
    assert Trace(counts=whole.to(torch.bfloat16)).counts.tolist() == [[[2, 1]]]
    assert Trace(counts=whole.requires_grad_()).counts.tolist() == [[[2, 1]]]


COUNTS = np.ones((2, 1, 2), int)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"layer_ids": (1.5,)}, "A layer id is 1.5; expected a whole number"),
        ({"layer_ids": "3"}, "layer_ids is '3'"),
        ({"step_ids": [0.5, 1]}, "step_ids have type float64; expected integers"),
        ({"step_ids": 3}, "step_ids is 3; expected a number for each step"),
        ({"step_ids": [0]}, "step_ids has size 1; the trace needs 2"),
        ({"top_k": 2.0}, "top_k is 2.0; expected a whole number"),
        ({"top_k": 0}, "top_k is 0; expected 1 to"),
        ({"source_counts": COUNTS}, "Source counts have shape"),
        ({"source_counts": [[[["a"]]]]}, "Source counts have type <U1"),
        ({"labels": ["a", "b"]}, "labels is .*; expected a name for each step"),
        ({"labels": {3: ["a", "b"]}}, "The name of a label is 3; expected a str"),
        ({"labels": {"phase": [1.5, None]}}, "Label 'phase' has type object; expected names"),
        ({"tokens": [[1]]}, "tokens is .*; expected a TokenIds"),
        ({"provenance": "here"}, "provenance is 'here'; expected a Provenance"),
    ],
)
def test_what_does_not_belong_to_a_trace(arguments, says):
    with pytest.raises(EquipoiseError, match=says):
        Trace(counts=COUNTS, **arguments)


@pytest.mark.parametrize(
    ("ids", "offsets", "says"),
    [
        (np.zeros((2, 1), int), [0, 2], "expected .tokens, layers, top_k."),
        (np.zeros((2, 1, 1)), [0, 2], "Token ids have type float64; expected integers"),
        (np.zeros((2, 1, 1), int), [0.0, 2.0], "Token offsets have type float64"),
        (np.zeros((2, 1, 1), int), [0, 3], "ascending numbers from 0 to the 2 tokens"),
        (np.zeros((2, 1, 1), int), [1, 2], "ascending numbers"),
        (np.zeros((2, 1, 1), int), np.array([0, 2, 1, 2], np.uint8), "ascending numbers"),
        (np.zeros((2, 1, 1), int), [], "ascending numbers"),
        (np.zeros((2, 1, 1), int), 2, "ascending numbers"),
    ],
)
def test_what_is_no_tokens(ids, offsets, says):
    with pytest.raises(EquipoiseError, match=says):
        TokenIds(ids, offsets)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda trace: trace.windows(1.5), "size of a window is 1.5; expected a whole number"),
        (lambda trace: trace.windows(0), "size of a window is 0; expected 1 or more"),
        (lambda trace: trace.split("0.8"), "Cannot split at '0.8'"),
        (lambda trace: trace.select(steps=[0.5]), "steps to keep have type float64"),
        (lambda trace: trace.select(steps=[True]), "mask of steps has size"),
        (lambda trace: trace.select(layers=0), "layers is 0; expected several numbers"),
        (lambda trace: trace.select(layers=[0.0]), "layers have type float64"),
    ],
)
def test_parts_are_asked_for_in_whole_numbers(call, says):
    with pytest.raises(EquipoiseError, match=says):
        call(Trace(counts=COUNTS))


def test_shapes_must_agree():
    counts = np.ones((2, 1, 2), int)
    with pytest.raises(EquipoiseError, match="label 'phase'"):
        Trace(counts=counts, labels={"phase": np.array(["x"])})
    with pytest.raises(EquipoiseError, match="source_counts"):
        Trace(counts=counts, source_counts=np.ones((2, 3, 1, 4), int))
    with pytest.raises(EquipoiseError, match="layer ids"):
        Trace(counts=counts, layer_ids=(1, 2))


def test_notes_add_up():
    trace = Trace(counts=np.ones((1, 1, 1), int), provenance=Provenance("x", "y", ("one",)))
    assert trace.with_notes("two").provenance.notes == ("one", "two")
    assert "1 steps" in repr(trace)


def test_source_counts_are_counts():
    with pytest.raises(EquipoiseError, match="has count -1"):
        Trace(counts=np.ones((1, 1, 1), int), source_counts=np.array([[[[2]], [[-1]]]]))


def test_windows_of_small_integers_do_not_wrap():
    source = np.full((4, 2, 1, 1), 200, dtype=np.uint8)
    trace = Trace(counts=source.sum(axis=1), source_counts=source)
    assert trace.windows(4).source_counts.tolist() == [[[[800]], [[800]]]]

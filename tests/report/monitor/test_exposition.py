from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from equipoise.errors import FormatError
from equipoise.report.monitor.exposition import Page, look_at_pages
from tests.report.monitor.servers import exposition


def look(*texts: str):
    return look_at_pages([Page(text) for text in texts], time=1000.0, silent={})


def test_what_rank_0_says():
    seen = look(exposition(4, layers=2, last_look_timestamp_seconds=990.0))
    assert (seen.model, seen.num_ranks, seen.map_version, seen.state) == ("small", 4, 1, "observe")
    assert seen.looked_at == 990.0
    assert seen.imbalance == {"decode": 1.31}
    assert seen.noise_floor == {"decode": 1.08}
    assert list(seen.rank_load) == [0, 1, 2, 3]
    assert seen.layer_imbalance == {0: 1.1, 1: 1.11}
    assert seen.counts.tokens == 1000.0


def test_processes_are_added_up_and_rank_0_speaks_for_all():
    other = 'equipoise_tokens_total 500\nequipoise_rank{process="p1"} 1\nequipoise_ranks 9\n'
    seen = look(other, exposition(4))
    assert (seen.num_ranks, seen.counts.tokens) == (4, 1500.0)


def test_single_ranks_of_layers_are_a_map_where_all_are_told():
    cells = {(layer, rank): layer + rank / 10 for layer in (3, 12) for rank in range(4)}
    lines = [
        f'equipoise_layer_rank_load{{layer="{layer}",rank="{rank}"}} {value}'
        for (layer, rank), value in cells.items()
    ]
    heat = look("\n".join(lines)).heat
    assert heat is not None
    assert heat.layer_ids == (3, 12)
    assert heat.multiples.tolist() == [[3.0, 3.1, 3.2, 3.3], [12.0, 12.1, 12.2, 12.3]]
    assert look("\n".join(lines[1:])).heat is None


def test_the_floor_is_what_is_left_of_the_excess_where_it_is_not_said():
    text = 'equipoise_imbalance{phase="all"} 1.5\nequipoise_excess{phase="all"} 0.3\n'
    assert look(text).noise_floor == {"all": pytest.approx(1.2)}


def test_what_is_not_said_is_not_known():
    seen = look("equipoise_ranks 2\n")
    assert (seen.model, seen.map_version, seen.counts.tokens, seen.imbalance) == (
        "",
        None,
        None,
        {},
    )


@pytest.mark.parametrize("value", ["NaN", "+Inf", "1e300"])
def test_numbers_that_are_none_are_passed_over(value):
    assert look(f"equipoise_ranks 2\nequipoise_map_version {value}\n").map_version is None


def test_names_lose_what_a_terminal_would_obey():
    seen = look('equipoise_info{model="\x1b[2Jgone\\n\u202e"} 1\n')
    assert seen.model == "�[2Jgone��"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "none of its lines is a metric of equipoise"),
        ("<html>busy</html>", "line 1 is not in Prometheus's text format"),
        ("vllm:running 1\n", "none of its lines is a metric of equipoise"),
        ("equipoise_ranks four\n", "line 1 is not in Prometheus's text format"),
        ('equipoise_rank{process="p0} 1\n', "line 1 is not in"),
    ],
)
def test_junk_is_refused_in_a_sentence(text, message):
    with pytest.raises(FormatError, match=message):
        Page(text)


@settings(max_examples=30)
@given(st.text() | st.builds("equipoise_{}".format, st.text()))
@example('equipoise_a{b="\\"} 1')
@example("equipoise_a{" + "x" * 5000)
def test_any_text_is_read_or_refused(text):
    try:
        look_at_pages([Page(text)], time=0.0, silent={})
    except FormatError as error:
        said = str(error)
    else:
        said = ""
    assert said.isprintable()

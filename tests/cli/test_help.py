"""The help of every command: what it says, how wide it is, and that its examples run."""

from __future__ import annotations

import re
import shlex

import pytest

import equipoise as eq
from equipoise.cli import COMMANDS, SCRIPTS, app, command, main
from equipoise.cli.options.groups import MAIN

SUMMARIES = {**COMMANDS, **SCRIPTS}
_EXAMPLE = re.compile(r"^ {8}(equipoise (?:.*\\\n)*.*)$", re.MULTILINE)

EXAMPLES = {name: _EXAMPLE.findall(command(name).help) for name in SUMMARIES}
ALL = [(name, example) for name, found in EXAMPLES.items() for example in found]
QUICK = {
    "budget": (0,), "compare": (0, 1), "convert": (0, 1), "diff": (0, 1), "doctor": (0,),
    "explain": (0, 2),
    "failover": (0, 1), "grafana": (0,), "lab": (0, 1), "report": (0,),
    "validate": (0, 1),
}  # fmt: skip
"""Examples on data that ships, or on the maps made here, by their places."""
LONG = {
    "budget": (1,), "forecast": (0, 1), "plan": (0, 1), "repair": (0, 1), "simulate": (0,),
    "tune": (0,),
}  # fmt: skip
"""Those that search or replay for longer."""


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Maps of the recording that ships, by the names that the examples use."""
    folder = tmp_path_factory.mktemp("maps")
    trace = eq.read_trace(eq.sample_trace_path())
    for name, num_slots in (("old", 40), ("new", 40), ("map", 40)):
        problem = eq.Problem(trace.windows(trace.num_steps), eq.Topology(8), num_slots)
        planner = eq.RoundRobin() if name == "old" else eq.Greedy()
        placement = planner.plan(problem).placement
        for suffix, format in ((".json", "equipoise"), (".yaml", "trtllm")):
            eq.write_map(placement, folder / f"{name}{suffix}", format=format)
    return folder


def typed(example: str) -> list[str]:
    """The words of an example, after the name of the program."""
    return shlex.split(example.replace("\\\n", ""))[1:]


@pytest.mark.parametrize("name", SUMMARIES)
def test_help_fits_a_terminal_and_has_three_examples(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    assert [line for line in shown if line != line.rstrip()] == []
    assert command(name).help.splitlines()[0] == SUMMARIES[name]
    assert len(EXAMPLES[name]) >= 3
    lines = [line.strip() for line in shown]
    for example in EXAMPLES[name]:  # whole, so that it can be copied
        assert {part.strip() for part in example.split("\n")} <= set(lines)


@pytest.mark.parametrize("name", SUMMARIES)
def test_many_options_stand_under_headings(name):
    options = [
        x
        for x in command(name).assemble_argument_collection(parse_docstring=True)
        if x.name[:1] == "-"
    ]
    main_options = [x.name for x in options if x.parameter.group == (MAIN,)]
    assert len(main_options) <= 10
    for option in options:
        assert re.fullmatch(r"[A-Z0-9].*\.", option.parameter.help, re.DOTALL), option.name


@pytest.mark.parametrize(("name", "example"), ALL)
def test_the_options_of_every_example_are_known(name, example):
    found, _, _ = app.parse_args(typed(example), exit_on_error=False, print_error=False)
    assert found.__name__ == name


def chosen(places):
    return [(name, place) for name, of in places.items() for place in of]


def runs(name, place, maps, tmp_path, monkeypatch):
    for path in maps.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return main(typed(EXAMPLES[name][place]))


@pytest.mark.parametrize(("name", "place"), chosen(QUICK))
def test_an_example_runs(name, place, maps, tmp_path, monkeypatch, capsys):
    status = runs(name, place, maps, tmp_path, monkeypatch)
    out, err = capsys.readouterr()
    assert status in (0, 1), err
    assert out
    assert [line for line in out.splitlines() if line != line.rstrip()] == []


@pytest.mark.long
@pytest.mark.parametrize(("name", "place"), chosen(LONG))
def test_a_longer_example_runs(name, place, maps, tmp_path, monkeypatch, capsys):
    test_an_example_runs(name, place, maps, tmp_path, monkeypatch, capsys)

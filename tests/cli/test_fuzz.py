"""Damaged files, some by default and 36,000 when asked for."""

from __future__ import annotations

import pytest

from tests.cli.fuzz import check, fuzz
from tests.cli.samples import MAPS, TRACES

ROUNDS = 25  # for each sample
FILES = 36_000


@pytest.mark.parametrize("name", [*TRACES, *MAPS])
def test_damaged_files(name, tmp_path, monkeypatch):
    if name == "pickles":
        pytest.importorskip("torch")
    statuses = set()
    for number in range(ROUNDS):
        here = tmp_path / str(number)
        here.mkdir()
        monkeypatch.chdir(here)
        statuses.add(check(name, number, here))
    assert statuses & {1, 2}, "nothing was refused: is the damage done?"


def test_files_in_processes_of_their_own():
    figures = fuzz(6, ["counts.npz", "map.yaml"])
    assert (figures.files, figures.faults) == (6, [])


@pytest.mark.long
def test_many_damaged_files_in_processes_of_their_own():
    figures = fuzz(FILES, [*TRACES, *MAPS])
    print(figures)
    assert figures.files >= FILES
    assert figures.faults == []
    assert set(figures.statuses) == {0, 1, 2}
